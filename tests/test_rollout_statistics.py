"""What is logged of a rollout's scores, lengths and texts, worked out by hand."""

import math

import pytest
import torch

from rlhf_ext.diagnostics.diversity import distinct_ngrams, duplicate_fraction, repeated_ngrams, text_metrics
from rlhf_ext.kl_control import make_kl_controller
from rlhf_ext.trainer.statistics import SequenceTable, reward_model_metrics


def table(score, length):
    columns = {
        "score": score,
        "raw_score": score,
        "kl": [1.0, 2.0, 3.0, 6.0],
        "k3": [0.0] * 4,
        "ref_logprob": [-4.0, -8.0, -12.0, -16.0],
        "length": length,
        "has_eos": [1.0] * 4,
    }
    return SequenceTable(**{name: torch.tensor(values, dtype=torch.float64) for name, values in columns.items()})


def test_numbers_of_the_sequences():
    metrics = table([1.0, 2.0, 3.0, 3.0], [2.0, 4.0, 6.0, 8.0]).metrics(measures_kl=True)
    assert metrics["objective/score_max"] == 3.0
    assert metrics["objective/score_at_max"] == 0.5
    assert metrics["policy/reference_nll"] == 2.0  # 40 nats over 20 tokens
    # Variance (4 + 1 + 0 + 9) / 4 of the KL, four sequences.
    assert metrics["kl/ref_se"] == pytest.approx(math.sqrt(3.5 / 4))
    # Covariance 1.75, variances 0.6875 and 5.
    assert metrics["objective/score_length_correlation"] == pytest.approx(1.75 / math.sqrt(0.6875 * 5))


def test_a_score_one_percent_of_the_spread_below_the_largest_is_at_the_maximum():
    # Spread about 0.5: one percent of it is 0.005.
    metrics = table([0.0, 0.0, 1.0, 0.996], [2.0, 2.0, 2.0, 2.0]).metrics(measures_kl=False)
    assert metrics["objective/score_at_max"] == 0.5
    metrics = table([0.0, 0.0, 1.0, 0.99], [2.0, 2.0, 2.0, 2.0]).metrics(measures_kl=False)
    assert metrics["objective/score_at_max"] == 0.25
    assert not {"objective/score_length_correlation", "kl/ref_se", "policy/reference_nll"} & set(metrics)


def test_reward_models_that_disagree_and_scores_far_above_the_reference():
    first, second = torch.tensor([1.0, 5.0, 9.0]), torch.tensor([3.0, 5.0, 1.0])
    # Scaled by mean 1 and spread 2 the first gives 0, 2, 4; half the distance to the second is 1.5, 1.5, 1.5.
    metrics = reward_model_metrics([(first, (1.0, 2.0)), (second, None)])
    assert metrics["objective/reward_model_disagreement"] == pytest.approx(1.5)
    assert metrics["objective/reward_model_outliers"] == pytest.approx(1 / 3)  # 4 alone is above 3
    assert reward_model_metrics([(second, None)]) == {}


def test_words_that_repeat():
    assert duplicate_fraction(["p", "q", "p", "r"], ["a b", "a b", "c", "d"]) == 0.5
    assert duplicate_fraction(["p", "p"], ["a", "a"]) == 0.0  # under the same prompt
    assert distinct_ngrams(["a b a b", "a b"]) == 0.5  # ab, ba, ab, ab
    assert repeated_ngrams(["a a a a a a", "a a a a"]) == 0.5  # three and one, two of which stood there before
    assert text_metrics(["p"], ["word"]) == {"dup_frac": 0.0}


@pytest.mark.parametrize("kind", ["fixed", "ziegler", "multiplicative", "log_pi"])
def test_a_controller_goes_on_from_a_beta_that_was_scaled(kind):
    controller = make_kl_controller(kind, beta=0.1, target=6.0, unit="sequence", total_rollouts=100)
    assert controller.scale(3.0) == pytest.approx(0.3)
    assert controller.beta == pytest.approx(0.3)
    for factor in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="positive number"):
            controller.scale(factor)
