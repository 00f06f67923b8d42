"""The checks of `references.py` must fail on a wrong sign, an off-by-one at EOS, a dropped mask, a mean for a sum."""

import importlib
import types
from pathlib import Path

import pytest
import references

MUTANTS = [
    # module, function, original text, mutant text
    ("advantages", "gae", "r + gamma * next_v - v", "r + gamma * next_v + v"),
    ("advantages", "gae", "delta + gamma * lam * advantage", "delta + lam * advantage"),
    ("advantages", "gae", "next_v = torch.nn.functional.pad(v[:, 1:], (0, 1))", "next_v = torch.roll(v, -1, 1)"),
    ("advantages", "gae", "torch.where(mask, values, 0)", "values.nan_to_num(0.5, 0.5, 0.5)"),
    ("advantages", "gae", "torch.where(mask, rewards, 0)", "rewards * mask"),
    ("advantages", "gae", "advantages = torch.where(mask, advantages, 0)", "pass"),
    ("advantages", "explained_variance", "1 - residual_var / var", "1 + residual_var / var"),
    ("advantages", "explained_variance", "masked_moments(returns, mask)", "masked_moments(values, mask)"),
    ("rewards", "shape_rewards", "scores - beta", "scores + beta"),
    ("rewards", "shape_rewards", "at_or_before_last.sum(1) - 1", "at_or_before_last.sum(1) - 2"),
    ("rewards", "shape_rewards", "at_or_before_last.sum(1) - 1", "mask.sum(1) - 1"),
    ("rewards", "shape_rewards", "import masked_sum", "import masked_mean as masked_sum"),
    ("rewards", "shape_rewards", "torch.where(mask, beta * kl, 0)", "beta * kl * mask"),
    ("rewards", "shape_rewards", "torch.where(mask, beta * kl, 0)", "beta * kl"),
    ("masked", "masked_whiten", ".add(eps).rsqrt()", ".add(eps).reciprocal()"),
    ("masked", "masked_whiten", "torch.where(mask, values, 0)", "values"),
    ("masked", "masked_whiten", "torch.where(mask, values, 0)", "(values * mask)"),
    ("masked", "masked_whiten", "torch.where(mask, x - mean, 0)", "(x - mean)"),
    ("masked", "masked_whiten", "if not shift_mean:", "if shift_mean:"),
    ("losses", "policy_loss", "-masked_sum(torch.minimum", "masked_sum(torch.minimum"),
    ("losses", "policy_loss", "torch.minimum(", "torch.maximum("),
    ("losses", "policy_loss", "ratio.clamp(1 - epsilon, 1 + epsilon)", "ratio.clamp(max=1 + epsilon)"),
    ("losses", "policy_loss", "log_ratio = torch.where(mask, logprobs.to(dtype) - old_logprobs.detach(), 0)",
     "log_ratio = logprobs.to(dtype) - old_logprobs.detach()"),
    ("losses", "policy_loss", "torch.where(mask, advantages.detach(), 0)", "(advantages.detach() * mask)"),
    ("losses", "policy_loss", "(total / num_tokens)", "(total / mask.sum())"),
    ("losses", "policy_loss", "import masked_sum", "import masked_mean as masked_sum"),
    ("losses", "value_loss", "torch.maximum(", "torch.minimum("),
    ("losses", "value_loss", "0.5 * masked_sum", "masked_sum"),
    ("losses", "value_loss", "old - clip_range, old + clip_range", "target - clip_range, target + clip_range"),
    ("losses", "value_loss", "torch.where(mask, values, 0)", "(values * mask)"),
    ("losses", "value_loss", "torch.where(mask, returns.detach(), 0)", "returns.detach()"),
    ("losses", "entropy_bonus", "import masked_sum", "import masked_mean as masked_sum"),
    ("losses", "preference_loss", "-logsigmoid(difference)", "-logsigmoid(-difference)"),
    ("losses", "preference_loss", "difference - margin", "difference + margin"),
    ("losses", "preference_loss", "logsigmoid(difference).mean()", "logsigmoid(difference).sum()"),
]  # fmt: skip


def load(module: str, original: str, mutant: str) -> types.ModuleType:
    """The module with one piece of its source replaced, outside `sys.modules`."""
    source = Path(importlib.import_module(f"rlhf_ext.functional.{module}").__file__).read_text(encoding="utf-8")
    assert source.count(original) == 1, f"{original!r} is not in {module}.py exactly once: update the mutant"
    broken = types.ModuleType(f"broken_{module}")
    broken.__package__ = "rlhf_ext.functional"
    exec(compile(source.replace(original, mutant), f"{module}.py, mutated", "exec"), vars(broken))
    return broken


@pytest.mark.filterwarnings("ignore:Error detected in")
@pytest.mark.parametrize(("module", "function", "original", "mutant"), MUTANTS)
def test_a_broken_version_disagrees_with_the_reference(module, function, original, mutant):
    broken = load(module, original, mutant)
    with pytest.raises(AssertionError):
        getattr(references, f"check_{function}")(getattr(broken, function))


@pytest.mark.parametrize(("module", "function"), sorted({(module, function) for module, function, *_ in MUTANTS}))
def test_a_loaded_but_unbroken_version_agrees(module, function):
    same = "from torch import Tensor"
    getattr(references, f"check_{function}")(getattr(load(module, same, same), function))
