"""Rankings: the pairs they become, what each counts, and the card and page that are made of them, by hand."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset

from rlhf_ext import RewardTrainer
from rlhf_ext.pair_statistics import wilson_interval
from rlhf_ext.report_card import make_report_card
from rlhf_ext.trainer.ranked import expand_rankings, weighted_preference_loss, with_weights
from test_reward_trainer import load, make_config, scores_one_by_one

RANKINGS = [
    {"prompt": "p", "completions": ["a", "b", "c"], "topic": "x"},
    {"prompt": "q", "completions": ["d", "e"], "topic": "y"},
]


def test_every_two_answers_become_a_pair_and_every_prompt_weighs_the_same():
    pairs = with_weights(expand_rankings(Dataset.from_list(RANKINGS), "train"))
    found = [(row["prompt"], row["chosen"], row["rejected"], row["topic"]) for row in pairs]
    assert found == [("p", "a", "b", "x"), ("p", "a", "c", "x"), ("p", "b", "c", "x"), ("q", "d", "e", "y")]
    # Four pairs of two prompts: 4 / (2 * 3) for each of the first three, 4 / (2 * 1) for the last.
    assert pairs["weight"] == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2.0])
    # A pair that was too long is gone: the other two then carry the prompt.
    assert with_weights(pairs.remove_columns("weight").select([0, 2, 3]))["weight"] == pytest.approx([0.75, 0.75, 1.5])


def test_the_loss_by_hand():
    # Margins ln 3 and 0: -log(3/4) and -log(1/2); weights 0.5 and 2.
    chosen, rejected = torch.tensor([math.log(3.0), 1.0]), torch.tensor([0.0, 1.0])
    weight = torch.tensor([0.5, 2.0])
    expected = (0.5 * math.log(4 / 3) + 2 * math.log(2)) / 2
    assert weighted_preference_loss(chosen, rejected, weight).item() == pytest.approx(expected, rel=1e-6)
    # A margin of 1 on the second: -log sigmoid(-1); squares of sums (ln 3)^2 and 4, times 0.1.
    margin = torch.tensor([0.0, 1.0])
    expected = (0.5 * math.log(4 / 3) + 2 * math.log(1 + math.e)) / 2
    expected += 0.1 * (0.5 * math.log(3) ** 2 + 2 * 4) / 2
    loss = weighted_preference_loss(chosen, rejected, weight, margin, 0.1)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_the_trainer_learns_from_prompts_alike(tiny_reward_path, tiny_tokenizer, tmp_path):
    config = make_config(tmp_path, max_steps=1, logging_steps=1, learning_rate=0.0, per_device_train_batch_size=4)
    data = Dataset.from_list([{k: row[k] for k in ("prompt", "completions")} for row in RANKINGS])
    trainer = RewardTrainer(tiny_reward_path, config, train_dataset=data, eval_dataset=data)
    trainer.train()
    # Independently: mean over prompts of the mean over their pairs.
    model, eos = load(tiny_reward_path), tiny_tokenizer.eos_token
    means = []
    for row in RANKINGS:
        ids = [tiny_tokenizer(row["prompt"] + answer + eos)["input_ids"] for answer in row["completions"]]
        scores = scores_one_by_one(model, ids)
        losses = [
            math.log(1 + math.exp(scores[j] - scores[i])) for i in range(len(ids)) for j in range(i + 1, len(ids))
        ]
        means.append(np.mean(losses))
    assert trainer.state.log_history[0]["loss"] == pytest.approx(np.mean(means), rel=1e-4)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(np.mean(means), rel=1e-4)
    card = trainer.last_report_card
    assert (card.num_pairs, card.num_prompts) == (4, 2)
    again = trainer.report_card(data)
    assert again.accuracy == card.accuracy


def test_the_card_of_rankings_by_hand():
    # Prompt 7: margins 1, 1, -1: two thirds right. Prompt 9: margin 2: right. Accuracy (2/3 + 1) / 2 = 5/6.
    card = make_report_card([1, 1, 0, 2], [0, 0, 1, 0], [3] * 4, [2] * 4, rankings=[7, 7, 7, 9], bins=1)
    assert (card.num_pairs, card.num_prompts) == (4, 2)
    assert card.accuracy == pytest.approx(5 / 6)
    assert (card.accuracy_low, card.accuracy_high) == pytest.approx(wilson_interval(5 / 3, 2))
    # Means with weights 1/6, 1/6, 1/6, 1/2: (1 + 1 - 1) / 6 + 2 / 2 = 7/6.
    assert card.margin_mean == pytest.approx(7 / 6)
    one, two = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2))
    assert card.brier == pytest.approx((2 * (1 - one) ** 2 + one**2) / 6 + (1 - two) ** 2 / 2)
    (row,) = card.reliability
    assert (row.accuracy, row.share) == (pytest.approx(5 / 6), 1.0)
    assert card.calibration_error == pytest.approx(abs(5 / 6 - (3 * one / 6 + two / 2)))
    assert "Prompts, of which each counts the same | 2" in card.to_markdown()
    # One pair a prompt is the plain card.
    plain = make_report_card([1, 1, 0, 2], [0, 0, 1, 0], [3] * 4, [2] * 4)
    single = make_report_card([1, 1, 0, 2], [0, 0, 1, 0], [3] * 4, [2] * 4, rankings=[0, 1, 2, 3])
    assert {**single.to_dict(), "num_prompts": None} == plain.to_dict()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "p", "completions": ["a"]}], r"Row 0 of train ranks \['a'\].*two or more, best first"),
        ([{"prompt": "p", "completions": ["a", "b"], "labels": [True, False]}], "stepwise supervision"),
    ],
)
def test_what_ranks_nothing_is_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        expand_rankings(Dataset.from_list(rows), "train")


def test_a_stream_of_rankings_is_refused():
    with pytest.raises(ValueError, match="Load it without streaming"):
        expand_rankings(Dataset.from_list(RANKINGS).to_iterable_dataset(), "train")
