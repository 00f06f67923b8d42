"""What a detector says."""

from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any, Literal

from .confidence import Confidence, confidence
from .record import Sample

Check = Literal["confirmed", "refuted", "open"]


class Severity(IntEnum):
    """INFO: worth knowing. WARN: act soon. CRITICAL: output is being destroyed, or the numbers are dead."""

    INFO = 1
    WARN = 2
    CRITICAL = 3


@dataclass(frozen=True)
class Evidence:
    """
    A number that moved.

    Args:
        metric (`str`): Canonical name.
        unit (`str`): Its unit.
        before, after (`float`, *optional*): Medians of the reference and of the latest window, in that unit.
        first_step, last_step (`int`): Steps that the latest window covers.
        statistic (`str`): The test in words with its value, such as `"trend z = 3.1"`.
    """

    metric: str
    unit: str
    before: float | None
    after: float | None
    first_step: int
    last_step: int
    statistic: str


@dataclass(frozen=True)
class Cause:
    """
    A possible cause, with what the log says of it.

    Args:
        name (`str`): Short identifier, such as `"beta-too-low"`.
        why (`str`): The cause in a sentence.
        check (`str`): `"confirmed"`, `"refuted"` or `"open"` (nothing in the log tells).
        how (`str`): What was checked, with the numbers; for an open cause how to check it.
        remedy (`str`): Which setting to change, in which direction, how far.
    """

    name: str
    why: str
    check: Check
    how: str
    remedy: str


@dataclass(frozen=True)
class Finding:
    """
    A failure that a detector sees, from the record at which it opened.

    Args:
        mode (`str`): Identifier of the mode, such as `"M1"`.
        title (`str`): The failure in a few words.
        severity ([`Severity`]): How bad it is.
        step (`int`): Step at which it opened.
        summary (`str`): What happened, in one or two sentences with numbers and units.
        evidence (`tuple[Evidence]`): The numbers behind it, the deciding one first.
        causes (`tuple[Cause]`): Ranked: confirmed before open before refuted, then by how common they are.
        samples (`tuple[Sample]`): Completions at the time.
    """

    mode: str
    title: str
    severity: Severity
    step: int
    summary: str
    evidence: tuple[Evidence, ...] = ()
    causes: tuple[Cause, ...] = ()
    samples: tuple[Sample, ...] = ()

    @property
    def confidence(self) -> Confidence | None:
        """How often such a finding was right in the lab; `None` for what is only worth knowing."""
        return None if self.severity < Severity.WARN else confidence(self.mode, self.severity.name)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        told = self.confidence and self.confidence._asdict()
        samples = [sample._asdict() for sample in self.samples]
        return asdict(self) | {"severity": self.severity.name, "confidence": told, "samples": samples}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "Finding":
        """The finding that [`~Finding.as_dict`] wrote."""
        plain = {name: value for name, value in plain.items() if name != "confidence"}
        parts = {
            "severity": Severity[plain["severity"]],
            "evidence": tuple(Evidence(**item) for item in plain["evidence"]),
            "causes": tuple(Cause(**item) for item in plain["causes"]),
            "samples": tuple(Sample(**item) for item in plain["samples"]),
        }
        return cls(**plain | parts)


@dataclass(frozen=True)
class Event:
    """A finding opened, became worse, or closed at `step`."""

    kind: Literal["opened", "escalated", "closed"]
    step: int
    finding: Finding
