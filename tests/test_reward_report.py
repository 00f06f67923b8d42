"""The page of a reward model: its plots by hand, its mistakes, and that no text gets out of its place."""

import re
from html.parser import HTMLParser

import pytest
from datasets import Dataset

from rlhf_ext import RewardTrainer
from rlhf_ext.diagnostics.plots import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from rlhf_ext.pair_statistics import reliability_table
from rlhf_ext.report_plots import MOST_POINTS, calibration_plot, length_plot, margin_plot
from rlhf_ext.reward_report import most_confident_mistakes
from test_reward_trainer import load, make_config, scores_one_by_one

EVIL = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>"


def numbers(pattern, text):
    return [tuple(map(float, found.groups())) for found in re.finditer(pattern, text)]


def test_the_most_confident_mistakes_are_the_lowest_margins():
    chosen, rejected = [1.0, 0.0, 2.0, float("nan"), 0.0, 0.5], [0.0, 3.0, 2.0, 9.0, 1.0, 0.75]
    # Margins 1, -3, 0 (a tie is no mistake), NaN, -1, -0.25.
    assert most_confident_mistakes(chosen, rejected) == [1, 4, 5]
    assert most_confident_mistakes(chosen, rejected, 1) == [1]


def test_a_calibration_mark_is_where_confidence_and_accuracy_say():
    # One bin: margins 0 and 0 give confidence 0.5 and accuracy 0.5, at the left end and half way up; radius 9.
    ((x, y, radius),) = numbers(
        r'cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)"', calibration_plot(reliability_table([0, 0], 1))
    )
    assert (x, y, radius) == (LEFT, pytest.approx((HEIGHT - BOTTOM + TOP) / 2), 9.0)


def test_the_bars_of_the_margins_hold_every_pair():
    # From -1 to 2 in three bars: one of the pairs, none, and three (the upper end belongs to the last).
    svg = margin_plot([-1.0, 1.5, 2.0, 1.0], bins=3)
    assert re.findall(r"<title>(\d+) pairs from ([-\d.]+)", svg) == [("1", "-1"), ("3", "1")]
    heights = [h for (h,) in numbers(r'height="([\d.]+)"><title>', svg)]
    assert heights[1] == pytest.approx(HEIGHT - TOP - BOTTOM) and heights[0] == pytest.approx(heights[1] / 3, abs=0.1)
    zero = LEFT + (WIDTH - LEFT - RIGHT) / 3
    assert numbers(r'class="lost" x1="([\d.]+)"', svg) == [(pytest.approx(zero, abs=0.05),)]


def test_a_large_scatter_is_thinned_and_a_constant_one_is_drawn():
    assert length_plot(list(range(4000)), [0.0] * 4000).count("<circle") == 1334 <= MOST_POINTS


class Structure(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "onerror")]


def test_the_page_shows_the_mistakes_of_the_saved_model_and_runs_nothing(tiny_reward_path, tiny_tokenizer, tmp_path):
    rows = [{"prompt": f"{EVIL} {i}", "chosen": f"c{i}{EVIL}", "rejected": f"r{i * 7}"} for i in range(24)]
    data = Dataset.from_list(rows)
    trainer = RewardTrainer(tiny_reward_path, make_config(tmp_path), train_dataset=data, eval_dataset=data)
    trainer.report_card()
    trainer.save_model()
    page = (tmp_path / "reward_report.html").read_text()
    model, eos = load(tmp_path), tiny_tokenizer.eos_token
    sides = [
        scores_one_by_one(model, [tiny_tokenizer(r["prompt"] + r[side] + eos)["input_ids"] for r in rows])
        for side in ("chosen", "rejected")
    ]
    margins = sides[0] - sides[1]
    wrong = [int(i) for i in margins.argsort() if margins[i] < 0][:10]
    assert wrong
    shown = re.findall(r"<p class=\"score\">rejected, score [-\d.e]+</p><pre>r(\d+)", page)
    assert [int(text) for text in shown] == [7 * i for i in wrong]
    assert re.findall(r'<pre class="prompt">(.*?) \d+</pre>', page) == [
        EVIL.replace("<", "&lt;").replace(">", "&gt;")
    ] * len(wrong)
    parsed = Structure()
    parsed.feed(page)
    assert not {"script", "img", "link", "iframe"} & set(parsed.tags) and not parsed.links
    assert page.count("<svg ") == 3 and f"Accuracy {trainer.last_report_card.accuracy:.4g}" in page
    # Numbers that are about other weights do not stay behind.
    trainer.last_report = None
    trainer.save_model()
    assert not (tmp_path / "reward_report.html").exists()
