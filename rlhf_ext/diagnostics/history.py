"""What the detectors remember of a run: two windows of every metric, and the frozen start."""

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np

from .finding import Evidence
from .record import LARGEST, METRICS, Record, RunSettings, Sample
from .series import MetricSeries
from .statistics import Floats, Series, median, noise_sd, ratio_to, robust_sd, theil_sen, trend_z

DEFAULT_WINDOW = 60
"""Rows of a window where the length of the run is unknown; the false alarms of section "Trends" were measured there."""
SHORTEST_RUN = 60
"""Planned rollouts below which no trend can be told from noise within the run: warm-up, reference and two windows."""
KEPT_SAMPLES = 5
CRITIC_METRICS = ("value_loss", "return_var", "explained_var", "value_clipfrac", "grad_norm_critic", "reward_mean")
"""What changes with beta, because the returns do."""
BETA_JUMP = 0.2
"""Relative change of beta within one rollout after which the critic meets other returns; controllers make 10 %."""
LR_RESTART = 2.0
"""Rise of the learning rate, relative to its lowest since the peak, that is a restart and no noise of a schedule."""


@dataclass(frozen=True)
class Windows:
    """
    Lengths in rows (rollouts).

    Args:
        window (`int`): W, the latest rows that a trend is read from: 15 % of the run, 30 to 100.
        warmup (`int`): First rows that no trend rule reads: 10, 5 % of the run, or the critic's warm-up and 10.
        every (`int`): Rows between two tests of a trend, W / 12.
    """

    window: int
    warmup: int
    every: int

    @classmethod
    def of(cls, settings: RunSettings) -> "Windows":
        """The lengths for a run."""
        planned = settings.planned_rollouts
        window = DEFAULT_WINDOW if planned is None else int(min(max(0.15 * planned, 30), 100))
        warmup = max(10, int(0.05 * (planned or 0)), (settings.critic_warmup_rollouts or 0) + 10)
        return cls(window, warmup, max(1, window // 12))

    @property
    def reference(self) -> int:
        """Rows of the frozen reference: the first W / 2 after the warm-up."""
        return self.window // 2


class Reference(NamedTuple):
    """Median and robust standard deviation of a metric in the reference window."""

    median: float
    sd: float


class Change:
    """
    What a metric did within a window.

    Args:
        values (`Series`): Its values there, of shape `(n,)`, n at least 5.
    """

    def __init__(self, values: Series) -> None:
        self._values = values

    @cached_property
    def before(self) -> float:
        """Median of the first fifth."""
        return median(self._values[: len(self._values) // 5])

    @cached_property
    def after(self) -> float:
        """Median of the last fifth."""
        return median(self._values[-(len(self._values) // 5) :])

    @cached_property
    def z(self) -> float:
        """Block-median Mann-Kendall: the trend in standard normal units."""
        return trend_z(self._values)

    @cached_property
    def slope(self) -> float:
        """Theil-Sen: the change from one value to the next."""
        return theil_sen(np.asarray(self._values))

    @cached_property
    def noise(self) -> float:
        """Robust standard deviation of one value around the running median."""
        return noise_sd(np.asarray(self._values))

    @property
    def growth(self) -> float | None:
        """`after / before`, where before is positive."""
        return ratio_to(self.after, self.before)

    @property
    def improved(self) -> bool:
        """Whether it rose, by trend (one-sided 10 %) or by more than the noise of one value."""
        rise = self.after - self.before
        return self.z >= 1.28 or (rise >= 1e-12 and rise >= self.noise)

    @property
    def fell(self) -> bool:
        """Whether it clearly fell: by trend (one-sided 2.5 %) and by twice the noise of one value."""
        return self.z <= -1.96 and self.before - self.after > 2 * self.noise


@lru_cache(maxsize=256)
def alternatives(names: str) -> tuple[str, ...]:
    """The names in `"a|b"`."""
    return tuple(names.split("|"))


class History:
    """
    The last `2 W` values of every metric, the reference window, and what happened to the run (resume, change of beta,
    restart of the learning rate). Memory does not grow with the run.

    Args:
        settings ([`RunSettings`]): What is known of the run.

    Attributes:
        rows (`int`): Records so far. step (`int`): Step of the latest.
        is_test_row (`bool`): Whether trends are tested at the latest.
        critic_disturbed (`int`): Row of the last resume, jump of beta or restart of the learning rate.
    """

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings
        self.windows = Windows.of(settings)
        self.rows = 0
        self.step = 0
        self.is_test_row = False
        self.record: Record | None = None
        self.not_finite: list[str] = []
        self.samples: tuple[Sample, ...] = ()
        self.beta_range: tuple[float, float] | None = None
        self.critic_disturbed = -1_000_000
        self._lowest_lr: float | None = None
        self._series: dict[str, MetricSeries] = {}
        self._reference: dict[str, Reference] = {}
        self._armed: dict[str, int] = {}
        # Metrics that are logged and have no reference yet.
        self._unfrozen: set[str] = set()
        # Of the present row.
        self._now: dict[str, float] = {}
        self._changes: dict[tuple[str, int], Change | None] = {}
        self._levels: dict[tuple[str, int], float | None] = {}

    # Taking a record

    def add(self, record: Record) -> None:
        """Takes the next record; one whose step is not later than the last is a resume and replaces what it repeats."""
        self._changes.clear()
        self._levels.clear()
        if self.rows and record.step <= self.step:
            for series in self._series.values():
                series.drop_from(record.step)
            self._disturb_critic()
        self._note_schedule(record)
        self.record, self.step = record, record.step
        self._take(record)
        self.samples = record.samples or self.samples
        self.rows += 1
        self.is_test_row = self.settled > 0 and self.rows % self.windows.every == 0
        self._freeze_references()

    def _take(self, record: Record) -> None:
        if self.rows % (2 * self.windows.window) == 0:
            for series in self._series.values():
                series.trim()
        row, step, now = self.rows, record.step, {}
        self.not_finite = []
        for name, value in record.values.items():
            if value is not None and -LARGEST <= value <= LARGEST:
                now[name] = value
                known = self._series.get(name) or self._new_series(name)
                known.rows.append(row)
                known.steps.append(step)
                known.values.append(value)
            elif value is not None:
                self.not_finite.append(name)
        self._now = now

    def _new_series(self, name: str) -> MetricSeries:
        self._unfrozen.add(name)
        self._series[name] = MetricSeries(2 * self.windows.window)
        return self._series[name]

    def rearm(self, names: Iterable[str] | None = None) -> None:
        """Learns the reference anew from the next rows, of the metrics named or of all."""
        for name in METRICS if names is None else names:
            self._reference.pop(name, None)
            self._armed[name] = self.rows
            if name in self._series:
                self._unfrozen.add(name)

    def _disturb_critic(self) -> None:
        self.critic_disturbed = self.rows
        self.rearm(CRITIC_METRICS)

    def _note_schedule(self, record: Record) -> None:
        beta, previous = record.get("beta"), self.latest("beta")
        if beta is not None:
            low, high = self.beta_range or (beta, beta)
            self.beta_range = min(low, beta), max(high, beta)
            if previous is not None and abs(beta - previous) > BETA_JUMP * abs(previous):
                self._disturb_critic()
        lr, previous = record.get("lr"), self.latest("lr")
        if lr is not None:
            # The rise of a warm-up starts from the lowest value there ever was; a restart follows a fall.
            if previous is not None and lr < previous:
                self._lowest_lr = lr
            elif self._lowest_lr is not None and lr > LR_RESTART * self._lowest_lr:
                self._lowest_lr = None
                self._disturb_critic()

    def _freeze_references(self) -> None:
        for name in [name for name in self._series if name in self._unfrozen] if self._unfrozen else ():
            start = max(self.windows.warmup, self._armed.get(name, 0))
            if self.rows >= start + self.windows.reference:
                series = self._series[name]
                values = series.values[series.since(start) :]
                if len(values) >= min(5, self.windows.reference):
                    self._reference[name] = Reference(median(values), robust_sd(values))
                    self._unfrozen.discard(name)

    # Reading

    @property
    def settled(self) -> int:
        """Rows since the warm-up."""
        return self.rows - self.windows.warmup

    def now(self, name: str) -> float | None:
        """The finite value in the latest record."""
        return self._now.get(name)

    def has(self, name: str) -> bool:
        """Whether any of the names in `"a|b"` was logged within the last two windows."""
        oldest = self.rows - 2 * self.windows.window
        for part in alternatives(name):
            series = self._series.get(part)
            if series is not None and series.rows and series.rows[-1] >= oldest:
                return True
        return False

    def first(self, names: str) -> str:
        """The first of the names in `"a|b"` that is being logged."""
        parts = alternatives(names)
        return next((part for part in parts if self.has(part)), parts[0])

    def latest(self, name: str) -> float | None:
        """The last finite value, however old."""
        series = self._series.get(name)
        return series.values[-1] if series is not None and series.values else None

    def learning_rates(self) -> tuple[float | None, float | None]:
        """Present learning rates of the critic and of the policy, else those of the settings."""
        own, policy = self.latest("lr_critic"), self.latest("lr")
        return own or self.settings.critic_learning_rate, policy or self.settings.learning_rate

    def logged(self, name: str, rows: int) -> Floats:
        """Rows, steps and values of the last `rows` rows, of shape `(3, n)`."""
        series = self._series.get(name)
        if series is None:
            return np.empty((3, 0))
        start = series.since(self.rows - rows)
        return np.array((series.rows[start:], series.steps[start:], series.values[start:]))

    def values(self, name: str, rows: int) -> Floats:
        """Values of the last `rows` rows, of shape `(n,)`."""
        return np.array(self._window(name, rows))

    def _window(self, name: str, rows: int) -> Series:
        series = self._series.get(name)
        return array("d") if series is None else series.values[series.since(self.rows - rows) :]

    def level(self, name: str, rows: int | None = None) -> float | None:
        """Median of the last `rows` rows, by default W / 4."""
        rows = rows or self.windows.window // 4
        if (name, rows) not in self._levels:
            values = self._window(name, rows)
            self._levels[name, rows] = median(values) if values else None
        return self._levels[name, rows]

    def reference(self, name: str) -> Reference | None:
        """The frozen start of a metric, once it is known."""
        return self._reference.get(name)

    def ratio(self, name: str) -> float | None:
        """Level over the reference's median, where both are known and the latter is positive."""
        reference, level = self.reference(name), self.level(name)
        return None if reference is None or level is None else ratio_to(level, reference.median)

    def change(self, name: str, rows: int | None = None) -> Change | None:
        """What it did in the last `rows` rows (W by default), the warm-up left out; `None` for under ten values."""
        rows = rows or self.windows.window
        if (name, rows) not in self._changes:
            self._changes[name, rows] = self._change(name, min(rows, max(self.settled, 0)))
        return self._changes[name, rows]

    def _change(self, name: str, rows: int) -> Change | None:
        values = self._window(name, rows)
        return Change(values) if len(values) >= 10 else None

    def evidence(
        self,
        name: str,
        statistic: str,
        rows: int | None = None,
        before: float | None = None,
        after: float | None = None,
    ) -> Evidence:
        """The numbers behind a finding: by default the reference against the level of the last W / 4 rows."""
        rows = rows or self.windows.window // 4
        steps = self.logged(name, rows)[1]
        reference = self.reference(name)
        return Evidence(
            metric=name,
            unit=METRICS[name].unit,
            before=before if before is not None or reference is None else reference.median,
            after=after if after is not None else self.level(name, rows),
            first_step=int(steps[0]) if steps.size else self.step,
            last_step=int(steps[-1]) if steps.size else self.step,
            statistic=statistic,
        )

    def contrast(self, *names: str) -> tuple[Evidence, ...]:
        """What other metrics did within the window, those that are logged."""
        return tuple(
            self.evidence(name, f"trend z = {change.z:.2f}", self.windows.window, change.before, change.after)
            for name in names
            if (change := self.change(name)) is not None
        )

    def kept_samples(self) -> tuple[Sample, ...]:
        """The three best-scored of the latest completions, and the first others."""
        scored = [s for s in self.samples if s.score is not None and math.isfinite(s.score)]
        best = sorted(scored, key=lambda s: s.score or 0.0, reverse=True)[:3]
        others = [s for s in self.samples if not any(s is b for b in best)]
        return tuple([*best, *others][:KEPT_SAMPLES])

    # State

    def state_dict(self) -> dict[str, Any]:
        """Everything the next record is judged by, as plain values."""
        series = {
            name: [column[s.start :].tolist() for column in (s.rows, s.steps, s.values)]
            for name, s in self._series.items()
            if s.rows
        }
        return {
            "rows": self.rows,
            "step": self.step,
            "samples": [list(sample) for sample in self.samples],
            "beta_range": self.beta_range and list(self.beta_range),
            "critic_disturbed": self.critic_disturbed,
            "lowest_lr": self._lowest_lr,
            "series": series,
            "reference": {name: list(reference) for name, reference in self._reference.items()},
            "armed": dict(self._armed),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a saved state, bit for bit."""
        self.rows, self.step = state["rows"], state["step"]
        self.samples = tuple(Sample(*sample) for sample in state["samples"])
        self.beta_range = state["beta_range"] and (state["beta_range"][0], state["beta_range"][1])
        self.critic_disturbed = state["critic_disturbed"]
        self._lowest_lr = state["lowest_lr"]
        self._series = {}
        for name, columns in state["series"].items():
            series = self._series[name] = MetricSeries(2 * self.windows.window)
            series.rows, series.steps, series.values = (array("d", column) for column in columns)
        self._reference = {name: Reference(*pair) for name, pair in state["reference"].items()}
        self._unfrozen = set(self._series) - set(self._reference)
        self._armed = dict(state["armed"])
        self._changes.clear()
        self._levels.clear()
