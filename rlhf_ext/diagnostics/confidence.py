"""How often findings were right in the lab: frequencies with their counts, no probabilities of anybody's making."""

import json
from pathlib import Path
from typing import NamedTuple

LABELLED = {**{mode: mode for mode in ("M1", "M2", "M3", "M4", "M5", "X1", "X2", "X3")}, "X7": "M4"}
"""Mode -> failure that the lab's oracle confirms for it; for other modes it confirms that the run failed of something."""
TABLE = Path(__file__).parent / "calibration.json"

_COUNTS: dict[str, dict[str, list[int]]] = json.loads(TABLE.read_text(encoding="utf-8"))


class Confidence(NamedTuple):
    """
    What a finding of this mode and severity was worth on the lab's runs that tune the detectors (docs/lab.md).

    Args:
        right (`int`): Runs with such a finding in which the oracle saw the failure, or any where the mode has none of its
            own.
        failed (`int`): Runs with such a finding that failed of anything.
        number (`int`): Runs with such a finding.
        failure (`str`, *optional*): The failure that it saw; `None` for any.
    """

    right: int
    failed: int
    number: int
    failure: str | None

    def __str__(self) -> str:
        if not self.number:
            return "Uncalibrated: no run of the lab had such a finding."
        if self.failure is None:
            return f"In the lab {self.failed} of {self.number} runs with such a finding failed."
        return (
            f"In the lab {self.right} of {self.number} runs with such a finding had this failure, "
            f"{self.failed - self.right} another."
        )


def confidence(mode: str, severity: str) -> Confidence:
    """
    How often such a finding was right.

    Args:
        mode (`str`): Its mode.
        severity (`str`): Name of its severity, `"WARN"` or `"CRITICAL"`; what is only worth knowing has not been counted.

    Returns:
        [`Confidence`]: with 0 runs for what was never seen.
    """
    right, failed, number = _COUNTS.get(mode, {}).get(severity, (0, 0, 0))
    return Confidence(right, failed, number, LABELLED.get(mode))
