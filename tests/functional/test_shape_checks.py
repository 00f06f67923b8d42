"""A wrong shape would broadcast in silence, so each function refuses it and names the argument."""

import pytest
import torch

import rlhf_ext.functional as functional
from rlhf_ext.functional._precision import accumulation_dtype

MATRICES = {
    "k1": ["logprobs", "ref_logprobs"],
    "k2": ["logprobs", "ref_logprobs"],
    "k3": ["logprobs", "ref_logprobs"],
    "gae": ["rewards", "values", "mask"],
    "explained_variance": ["values", "returns", "mask"],
    "policy_loss": ["logprobs", "old_logprobs", "advantages", "mask"],
    "value_loss": ["values", "old_values", "returns", "mask"],
    "entropy_bonus": ["entropies", "mask"],
    "shape_rewards": ["kl", "mask"],
    "last_token_index": ["mask"],
}
VECTORS = {
    "clip_scores": ["scores"],
    "apply_missing_eos_penalty": ["scores", "has_eos"],
    "preference_loss": ["chosen_scores", "rejected_scores"],
}
EXTRAS = {
    "policy_loss": {"epsilon": 0.1},
    "shape_rewards": {"scores": torch.zeros(2), "beta": 0.1},
    "clip_scores": {"clip": 1.0},
    "apply_missing_eos_penalty": {"penalty": 1.0},
}
FLAGS = {"mask", "has_eos"}
CASES = [
    (function, wrong, shape)
    for table, shape in ((MATRICES, (2, 3)), (VECTORS, (2,)))
    for function, names in table.items()
    for wrong in names
]


def arguments(function, shape):
    names = {**MATRICES, **VECTORS}[function]
    tensors = {name: torch.ones(shape, dtype=torch.bool if name in FLAGS else torch.float32) for name in names}
    return {**tensors, **EXTRAS.get(function, {})}


@pytest.mark.parametrize(("function", "wrong", "shape"), CASES)
def test_a_tensor_of_another_rank_is_refused_by_name(function, wrong, shape):
    call = getattr(functional, function)
    good = arguments(function, shape)
    call(**good)
    with pytest.raises(ValueError, match=rf"`{wrong}` has shape \({', '.join(map(str, shape))},? ?1\)"):
        call(**{**good, wrong: good[wrong].unsqueeze(-1)})


@pytest.mark.parametrize(("function", "wrong", "shape"), [c for c in CASES if c[1] != (MATRICES | VECTORS)[c[0]][0]])
def test_a_tensor_that_would_broadcast_is_refused_by_name(function, wrong, shape):
    good = arguments(function, shape)
    broadcastable = good[wrong][..., :1]
    with pytest.raises(ValueError, match=rf"`{wrong}` has shape .*, expected"):
        getattr(functional, function)(**{**good, wrong: broadcastable})


@pytest.mark.parametrize(("function", "wrong", "shape"), [c for c in CASES if c[1] in FLAGS])
def test_a_mask_of_integers_is_refused(function, wrong, shape):
    good = arguments(function, shape)
    with pytest.raises(ValueError, match=f"`{wrong}` .* dtype torch.int64, expected torch.bool"):
        getattr(functional, function)(**{**good, wrong: good[wrong].long()})


@pytest.mark.parametrize("name", ["masked_sum", "masked_mean", "masked_var", "masked_moments", "masked_whiten"])
def test_masked_statistics_refuse_a_mask_that_does_not_fit(name):
    call = getattr(functional, name)
    with pytest.raises(ValueError, match=r"`mask` has shape \(3,\), expected \(2, 3\), the shape of `values`"):
        call(torch.zeros(2, 3), torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"`mask` .* dtype torch.float32"):
        call(torch.zeros(2, 3), torch.ones(2, 3))


def test_a_score_per_token_or_for_another_batch_is_refused():
    kl, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    for scores in (torch.zeros(2, 1), torch.zeros(1)):
        with pytest.raises(ValueError, match="`scores` has shape"):
            functional.shape_rewards(scores, kl, mask, 0.1)


def test_a_margin_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"`margin` has shape \(1,\), expected \(B,\) = \(2,\)"):
        functional.preference_loss(torch.zeros(2), torch.zeros(2), torch.zeros(1))


def test_moments_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"`moments` has shape \(2, 3\)"):
        functional.moments_to_mean_var(torch.zeros(2, 3))


def test_every_public_name_exists():
    assert [name for name in functional.__all__ if not hasattr(functional, name)] == []


def test_sums_run_in_float64_except_where_the_device_has_none():
    assert accumulation_dtype(torch.device("cuda")) == torch.float64
    assert accumulation_dtype(torch.device("mps")) == torch.float32
