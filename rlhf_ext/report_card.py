"""The report card of a reward model: how far its scores on held-out preference pairs can be trusted.

Works on plain arrays of scores and lengths; NumPy and the standard library only.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .pair_statistics import (
    ReliabilityBin,
    brier_score,
    correctness,
    expected_calibration_error,
    pearson,
    reliability_table,
    spearman,
    wilson_interval,
)

REPORT_CARD_FILE = "report_card.json"


@dataclass(frozen=True)
class ReportCard:
    """
    What a reward model does on held-out preference pairs. Built by [`make_report_card`].

    A value is `None` where the data do not define it (no pair, a constant score, one value for a standard deviation).
    Standard deviations are sample standard deviations (divisor n - 1).

    Args:
        num_pairs (`int`):
            Pairs that the card is about. Pairs with a NaN or infinite score are left out and named in `notes`.
        num_ties (`int`):
            Pairs with two equal scores. Each counts as half a correct answer.
        num_prompts (`int` or `None`):
            Rankings that the pairs come from, each of which counts the same however many pairs it gives; `None` where
            pairs were given, which count the same.
        accuracy (`float` or `None`):
            Fraction of pairs in which the chosen completion has the higher score.
        accuracy_low, accuracy_high (`float` or `None`):
            95 % Wilson interval of the accuracy, over prompts where the pairs come from rankings: those of one prompt
            are no independent trials.
        margin_mean, margin_std (`float` or `None`):
            Mean and standard deviation of the margin, in units of the score.
        brier (`float` or `None`):
            Brier score of the preferred side, see [`brier_score`].
        calibration_error (`float` or `None`):
            Expected calibration error, see [`expected_calibration_error`].
        reliability (`tuple[ReliabilityBin, ...]`):
            Reliability table, see [`reliability_table`].
        length_pearson, length_spearman (`float` or `None`):
            Correlation of score with completion length in tokens, over the chosen and rejected completions together; an
            answer of a ranking is there once for each of its pairs.
        num_references (`int`):
            Number of reference completions.
        score_mean, score_std (`float` or `None`):
            Mean and standard deviation of the scores of the reference completions.
        reference (`str`):
            What the reference completions are.
        notes (`tuple[str, ...]`):
            What a reader has to know before trusting the numbers.
    """

    num_pairs: int
    num_ties: int
    num_prompts: int | None
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    margin_mean: float | None
    margin_std: float | None
    brier: float | None
    calibration_error: float | None
    reliability: tuple[ReliabilityBin, ...]
    length_pearson: float | None
    length_spearman: float | None
    num_references: int
    score_mean: float | None
    score_std: float | None
    reference: str
    notes: tuple[str, ...]

    @property
    def normalization(self) -> tuple[float, float] | None:
        """Mean and standard deviation to centre and scale a score with; `None` where the spread is 0 or unknown."""
        if self.score_mean is None or self.score_std is None or self.score_std == 0.0:
            return None
        return self.score_mean, self.score_std

    def to_dict(self) -> dict[str, Any]:
        """The card as JSON types, with `normalization`: `{"score_mean": ..., "score_std": ...}` or `None`."""
        normalization = self.normalization
        stored = None if normalization is None else dict(zip(("score_mean", "score_std"), normalization, strict=True))
        return {**asdict(self), "normalization": stored}

    def save(self, folder: str | Path) -> Path:
        """Write the card to `report_card.json` in `folder`, which is made if need be, and return the file's path."""
        path = Path(folder) / REPORT_CARD_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        return path

    def to_markdown(self) -> str:
        """The card as a Markdown section, for a model card."""
        rows = [
            ("Held-out pairs (ties)", f"{self.num_pairs} ({self.num_ties})"),
            *([] if self.num_prompts is None else [("Prompts, of which each counts the same", str(self.num_prompts))]),
            ("Accuracy, ties as half (95 % Wilson interval)", f"{_show(self.accuracy)} {self._interval()}"),
            ("Margin, mean ± std", f"{_show(self.margin_mean)} ± {_show(self.margin_std)}"),
            ("Brier score (0 best, 0.25 = coin)", _show(self.brier)),
            ("Expected calibration error", _show(self.calibration_error)),
            ("Score against length: Pearson", _show(self.length_pearson)),
            ("Score against length: Spearman", _show(self.length_spearman)),
            (f"Score of {self.num_references} {self.reference}, mean", _show(self.score_mean)),
            (f"Score of {self.num_references} {self.reference}, std", _show(self.score_std)),
        ]
        lines = ["## Report card", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""]
        lines += ["Reliability: confidence sigmoid(\\|margin\\|) against the fraction ordered as labelled.", ""]
        lines += ["| Confidence | Pairs | Mean confidence | Accuracy |", "|---|---|---|---|"]
        lines += [
            f"| {row.lower:.2f} to {row.upper:.2f} | {row.count} | {_show(row.confidence)} | {_show(row.accuracy)} |"
            for row in self.reliability
        ]
        lines += ["", *(f"- {note}" for note in self.notes)] if self.notes else []
        return "\n".join(lines) + "\n"

    def _interval(self) -> str:
        return f"({_show(self.accuracy_low)} to {_show(self.accuracy_high)})"


def make_report_card(
    chosen_scores: ArrayLike,
    rejected_scores: ArrayLike,
    chosen_lengths: ArrayLike,
    rejected_lengths: ArrayLike,
    reference_scores: ArrayLike | None = None,
    reference: str | None = None,
    bins: int = 10,
    rankings: ArrayLike | None = None,
) -> ReportCard:
    """
    Work out the report card of a reward model from its scores on held-out pairs.

    Args:
        chosen_scores (`array_like` of shape `(N,)`):
            Scores of the chosen completions, raw as the model gives them.
        rejected_scores (`array_like` of shape `(N,)`):
            Scores of the rejected completions, in the same order.
        chosen_lengths (`array_like` of shape `(N,)`):
            Lengths of the chosen completions in tokens.
        rejected_lengths (`array_like` of shape `(N,)`):
            Lengths of the rejected completions in tokens.
        reference_scores (`array_like` of shape `(M,)`, *optional*):
            Scores of the reference completions. Defaults to the chosen and rejected ones together.
        reference (`str`, *optional*):
            What the reference completions are, in words.
        bins (`int`, *optional*, defaults to `10`):
            Number of bins of the reliability table.
        rankings (`array_like` of shape `(N,)`, *optional*):
            Number of the ranking that each pair comes from. All pairs of one together then count as much as those of
            another.

    Returns:
        [`ReportCard`].

    Raises:
        `ValueError`: if the four arrays of the pairs do not have the same length.
    """
    pairs = _as_vectors(chosen_scores, rejected_scores, chosen_lengths, rejected_lengths)
    if reference_scores is None:
        reference_scores = np.concatenate(pairs[:2])
        reference = reference or "held-out completions, chosen and rejected"
    references = np.asarray(reference_scores, dtype=np.float64)
    finite = np.isfinite(pairs[0]) & np.isfinite(pairs[1])
    chosen, rejected, chosen_len, rejected_len = (array[finite] for array in pairs)
    prompts = None if rankings is None else np.asarray(rankings)[finite]
    scores, lengths = np.concatenate([chosen, rejected]), np.concatenate([chosen_len, rejected_len])
    score_std = _std(references)
    return ReportCard(
        **_margin_statistics(chosen - rejected, bins, prompts),
        length_pearson=pearson(scores, lengths),
        length_spearman=spearman(scores, lengths),
        num_references=len(references),
        score_mean=_mean(references),
        score_std=score_std,
        reference=reference or "reference completions",
        notes=_notes(num_left_out=int((~finite).sum()), score_std=score_std),
    )


def _margin_statistics(margins: NDArray[np.float64], bins: int, prompts: NDArray[Any] | None) -> dict[str, Any]:
    """The fields of the card that depend on the margins alone."""
    count, weights, trials = len(margins), np.ones(len(margins)), len(margins)
    if prompts is not None and count:
        _, prompt, pairs = np.unique(prompts, return_inverse=True, return_counts=True)
        weights, trials = 1 / pairs[prompt], len(pairs)
    accuracy = float(np.average(correctness(margins), weights=weights)) if count else None
    # Rounding must not lift a mean of ones above one.
    low, high = (None, None) if accuracy is None else wilson_interval(min(accuracy * trials, trials), trials)
    table = reliability_table(margins, bins, weights)
    return {
        "num_pairs": count,
        "num_ties": int((margins == 0).sum()),
        "num_prompts": None if prompts is None else trials,
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "margin_mean": _finite_or_none(np.average(margins, weights=weights)) if count else None,
        "margin_std": _std(margins, weights),
        "brier": brier_score(margins, weights) if count else None,
        "calibration_error": expected_calibration_error(table) if count else None,
        "reliability": table,
    }


def _as_vectors(*arrays: ArrayLike) -> list[NDArray[np.float64]]:
    vectors = [np.asarray(array, dtype=np.float64) for array in arrays]
    if len({vector.shape for vector in vectors}) != 1 or vectors[0].ndim != 1:
        shapes = [vector.shape for vector in vectors]
        raise ValueError(f"scores and lengths of the pairs must be four vectors of one length, got shapes {shapes}")
    return vectors


def _notes(num_left_out: int, score_std: float | None) -> tuple[str, ...]:
    notes = []
    if num_left_out:
        notes.append(
            f"{num_left_out} pairs have a score that is NaN or infinite; all statistics of pairs leave them out."
        )
    if score_std is None:
        notes.append(
            "The scores of the reference completions have no finite standard deviation (fewer than two, or a score "
            "that is NaN or infinite): score_mean and score_std are not stored in the model's config."
        )
    elif score_std == 0.0:
        notes.append(
            "The reference completions all have the same score (standard deviation 0): score_mean and score_std are "
            "not stored in the model's config."
        )
    return tuple(notes)


def _mean(values: NDArray[np.float64]) -> float | None:
    return _finite_or_none(values.mean()) if len(values) else None


def _std(values: NDArray[np.float64], weights: NDArray[np.float64] | None = None) -> float | None:
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    # The mean of equal values may be off by a rounding error, and the deviation then a hair above 0.
    if np.ptp(values) == 0:
        return 0.0
    variance = np.average((values - np.average(values, weights=weights)) ** 2, weights=weights)
    return _finite_or_none(math.sqrt(variance * len(values) / (len(values) - 1)))


def _finite_or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _show(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"
