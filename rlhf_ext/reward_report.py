"""The report card of a reward model as one HTML page, which loads nothing. NumPy and the standard library only."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from .diagnostics.report_html import html_page, html_table
from .diagnostics.report_text import short
from .markdown import cut
from .report_card import ReportCard
from .report_plots import calibration_plot, length_plot, margin_plot

REPORT_PAGE_FILE = "reward_report.html"
SHOWN_MISTAKES = 10
_LONGEST_TEXT = 4000


class Mistake(NamedTuple):
    """
    A pair that the model orders the other way round, as the model read it.

    Args:
        prompt, chosen, rejected (`str`): Texts.
        chosen_score, rejected_score (`float`): Their scores; the rejected one's is higher.
    """

    prompt: str
    chosen: str
    rejected: str
    chosen_score: float
    rejected_score: float

    @property
    def confidence(self) -> float:
        """Probability that the model gives to the wrong order: sigmoid(rejected_score - chosen_score)."""
        return 1 / (1 + math.exp(self.chosen_score - self.rejected_score))


@dataclass(frozen=True)
class RewardReport:
    """
    What a report card was made from, as far as it is shown.

    Args:
        card ([`ReportCard`]): The numbers.
        margins (`list[float]`): Of the pairs with finite scores.
        lengths (`list[float]`): Tokens of the chosen and rejected completions of those pairs.
        scores (`list[float]`): Their scores, in the same order.
        mistakes (`list[Mistake]`): The most confident first.
    """

    card: ReportCard
    margins: Sequence[float]
    lengths: Sequence[float]
    scores: Sequence[float]
    mistakes: Sequence[Mistake]

    def to_html(self, name: str) -> str:
        """
        The page.

        Args:
            name (`str`): Of the model.
        """
        body = [_head(self.card, name), _plots(self), _mistakes(self.mistakes), _numbers(self.card)]
        return html_page(f"Report card of {name}", "".join(body))


def most_confident_mistakes(
    chosen: Sequence[float], rejected: Sequence[float], count: int = SHOWN_MISTAKES
) -> list[int]:
    """
    Places of the pairs that the model gets most wrong: the lowest margins below zero, the lowest first.

    Args:
        chosen, rejected (`list[float]`): Scores; pairs with one that is not finite are passed over.
        count (`int`, *optional*, defaults to `10`): At most so many.
    """
    margins = {i: a - b for i, (a, b) in enumerate(zip(chosen, rejected, strict=True)) if math.isfinite(a - b)}
    return sorted((i for i, margin in margins.items() if margin < 0), key=lambda i: margins[i])[:count]


def _head(card: ReportCard, name: str) -> str:
    beats_coin = card.accuracy_low is not None and card.accuracy_low > 0.5
    verdict = f"Accuracy {short(card.accuracy)} (95 %: {short(card.accuracy_low)} to {short(card.accuracy_high)})"
    verdict += "" if beats_coin else ", which a coin may reach"
    facts = {
        "held-out pairs": str(card.num_pairs),
        **({} if card.num_prompts is None else {"rankings": str(card.num_prompts)}),
        "ties": str(card.num_ties),
        "mean margin": short(card.margin_mean),
        "calibration error": short(card.calibration_error),
        "score against length": short(card.length_spearman),
    }
    rows = "".join(f"<div><dt>{escape(term)}</dt><dd>{escape(value)}</dd></div>" for term, value in facts.items())
    return (
        f'<header><h1>Report card of a reward model</h1><p class="path">{escape(name)}</p>'
        f'<p class="verdict {"ok" if beats_coin else "warn"}">{escape(verdict)}</p><dl class="facts">{rows}</dl></header>'
    )


def _plots(report: RewardReport) -> str:
    if not report.margins:
        return ""
    figures = {
        "Calibration: how often it is right at each confidence sigmoid(|margin|); dashed is as often as it says": (
            calibration_plot(report.card.reliability)
        ),
        "Margins: score of the chosen minus score of the rejected answer; left of the line it is wrong": margin_plot(
            report.margins
        ),
        "Score against length in tokens, chosen and rejected answers": length_plot(report.lengths, report.scores),
    }
    drawn = "".join(
        f"<figure><figcaption>{escape(title)}</figcaption>{plot}</figure>" for title, plot in figures.items()
    )
    return f'<section><h2>Plots</h2><div class="plots">{drawn}</div></section>'


def _mistakes(mistakes: Sequence[Mistake]) -> str:
    if not mistakes:
        return "<section><h2>Most confident mistakes</h2><p>None: every pair is in the labelled order.</p></section>"
    return f"<section><h2>Most confident mistakes</h2>{''.join(map(_mistake, mistakes))}</section>"


def _mistake(mistake: Mistake) -> str:
    chosen = f"chosen, score {short(mistake.chosen_score)}"
    rejected = f"rejected, score {short(mistake.rejected_score)}"
    return (
        f'<div class="sample"><h3>{mistake.confidence:.1%} sure of the wrong order</h3>'
        f'<pre class="prompt">{_text(mistake.prompt)}</pre>'
        f'<p class="score">{escape(chosen)}</p><pre>{_text(mistake.chosen)}</pre>'
        f'<p class="score">{escape(rejected)}</p><pre>{_text(mistake.rejected)}</pre></div>'
    )


def _text(text: str) -> str:
    return escape(cut(text, _LONGEST_TEXT))


def _numbers(card: ReportCard) -> str:
    reliability = [
        (f"{r.lower:.2f} to {r.upper:.2f}", str(r.count), short(r.confidence), short(r.accuracy), f"{r.share:.1%}")
        for r in card.reliability
    ]
    numbers = [
        (name.replace("_", " "), short(value) if isinstance(value, float) else str(value))
        for name, value in card.to_dict().items()
        if isinstance(value, int | float | str)
    ]
    notes = "".join(f"<li>{escape(note)}</li>" for note in card.notes)
    return (
        "<section><h2>Numbers</h2>"
        + html_table(("number", "value"), numbers)
        + html_table(("confidence", "pairs", "mean confidence", "accuracy", "share"), reliability)
        + (f"<ul>{notes}</ul>" if notes else "")
        + "</section>"
    )
