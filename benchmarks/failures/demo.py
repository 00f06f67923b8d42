"""The second world: the demo's prompts and its pretrained model of 135M parameters, of which the upper layers learn."""

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rlhf_ext.demo.model import bundled_model
from rlhf_ext.demo.preferences import Completion, sample_completions
from rlhf_ext.demo.prompts import demo_prompts
from rlhf_ext.models.critic import Critic, save_critic
from rlhf_ext.rollout import Sequences

from .base import ModelCache
from .recipes import DEMO_BASE, Recipe
from .rewards import TextReward
from .sentiment import GOLD_SCALE, SENTIMENT_REWARDS, gold
from .world import Prompts

if TYPE_CHECKING:
    from peft import LoraConfig

LORA_RANK = 16
TRAINED_LAYERS = 8
PROBE_PROMPTS, ORACLE_PROMPTS = 16, 40
MOST_WORDS = 6
"""Longest prompts that are used, because a prompt costs as much as what is written."""
CRITIC_SAMPLES = 4
"""Completions of each training prompt that the critic starts from."""
BATCH = 64
STRENGTHS = tuple(10.0**power for power in range(1, 6))
"""Of the critic's ridge regression, in rows; that which foresees a held-out fifth of the completions best is taken."""


@torch.no_grad()
def pretrain_critic(policy: Path, folder: Path) -> None:
    """
    Write a value head that foresees, at every token, the gold score of what the untouched model writes: ridge regression on
    its last hidden states over completions of the training prompts; an adapter that changes nothing yet, for a critic that
    has one; and how much of held-out completions the head explains, to `held_out.json`. The same on every call.
    """
    model, tokenizer = AutoModelForCausalLM.from_pretrained(policy).eval(), AutoTokenizer.from_pretrained(policy)
    prompts, _ = demo_prompts()
    length = DEMO_BASE["max_completion_length"]
    groups = sample_completions(model, tokenizer, prompts, CRITIC_SAMPLES, length, batch_size=BATCH)
    completions = [completion for group in groups for completion in group]
    batches = [completions[i : i + BATCH] for i in range(0, len(completions), BATCH)]
    states = torch.cat([_states(model, batch, tokenizer.pad_token_id) for batch in batches])
    targets = torch.tensor([GOLD_SCALE * gold(c.text) for c in completions for _ in c.ids])
    owners = torch.tensor([i for i, c in enumerate(completions) for _ in c.ids])
    strength, explained = best_strength(states.double(), targets.double(), owners)
    weight, bias = ridge(states.double(), targets.double(), strength)
    critic = Critic(model.config.hidden_size)
    critic.value_head.linear.weight.copy_(weight)
    critic.value_head.linear.bias.copy_(bias)
    save_critic(critic, str(folder))
    save_untrained_adapter(policy, folder)
    (folder / "held_out.json").write_text(json.dumps({"strength": strength, "explained": explained}))


def save_untrained_adapter(policy: Path, folder: Path) -> None:
    """Write an adapter that changes nothing yet."""
    from peft import get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        get_peft_model(AutoModelForCausalLM.from_pretrained(policy), lora_config(policy)).save_pretrained(folder)


def lora_config(policy: Path) -> "LoraConfig":
    """Of the upper layers."""
    from peft import LoraConfig

    layers = AutoConfig.from_pretrained(policy).num_hidden_layers
    return LoraConfig(
        r=LORA_RANK,
        lora_alpha=2 * LORA_RANK,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        layers_to_transform=list(range(max(layers - TRAINED_LAYERS, 0), layers)),
        task_type="CAUSAL_LM",
    )


def _states(model: Any, completions: list[Completion], pad: int) -> Tensor:
    """Last hidden states `(T, H)` from which the tokens of the completions were drawn, one after another."""
    prompt_ids, ids = [c.prompt_ids for c in completions], [c.ids for c in completions]
    sequences = Sequences.from_lists(prompt_ids, ids, pad, torch.device("cpu"))
    inputs, mask = sequences.model_inputs(slice(None))
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    outputs = model.base_model(input_ids=inputs, attention_mask=mask.long(), position_ids=positions)
    length = sequences.completion_ids.size(1)
    return outputs.last_hidden_state[:, -length - 1 : -1][sequences.completion_mask]


def ridge(x: Tensor, y: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """
    `w, b = argmin |x w + b - y|^2 + strength * sum_j (sd_j w_j)^2 `, that is, ridge regression on columns of unit variance.
    """
    mean, sd = x.mean(0), x.std(0).clamp(min=1e-6)
    z = (x - mean) / sd
    gram = z.T @ z + strength * torch.eye(z.size(1), dtype=z.dtype)
    weight = torch.linalg.solve(gram, z.T @ (y - y.mean())) / sd
    return weight, y.mean() - mean @ weight


def best_strength(x: Tensor, y: Tensor, owners: Tensor) -> tuple[float, float]:
    """
    Of `STRENGTHS` the one whose fit to four fifths of the completions explains most of the rest, and that share of the
    variance. Rows are of the completions `owners`, and stay together: rows of one completion share its score.
    """
    held_out = owners % 5 == 4
    shares = {}
    for strength in STRENGTHS:
        weight, bias = ridge(x[~held_out], y[~held_out], strength)
        errors = y[held_out] - x[held_out] @ weight - bias
        shares[strength] = 1 - float(errors.square().mean() / y[held_out].var(correction=0))
    strength = max(shares, key=lambda each: shares[each])
    return strength, shares[strength]


class DemoWorld(ModelCache):
    """See [`World`]."""

    samples_per_prompt = 1
    oracle_every = 12

    @property
    def policy(self) -> Path:
        """Folder of SmolLM2-135M-Instruct."""
        return self._made("smollm2", bundled_model)

    @property
    def critic(self) -> Path:
        """Folder of a critic of the untouched model."""
        policy = self.policy
        return self._made("smollm2-critic", lambda folder: pretrain_critic(policy, folder))

    def prompts(self, recipe: Recipe, seed: int, rollout_size: int) -> Prompts:
        """The demo's, of which the held-out ones are on topics of their own."""
        train, held_out = ([p for p in prompts if len(p.split()) <= MOST_WORDS] for prompts in demo_prompts())
        held_out = random.Random(0).sample(held_out, PROBE_PROMPTS + ORACLE_PROMPTS)
        return Prompts(train, held_out[:PROBE_PROMPTS], held_out[PROBE_PROMPTS:])

    def gold(self, prompts: list[str], completions: list[str]) -> list[float]:
        """Gold score of each completion."""
        return [gold(completion) for completion in completions]

    def roles(self, recipe: Recipe, seed: int) -> dict[str, Any]:
        """An adapter on the upper layers, and a critic that knows what the untouched model gets."""
        return {
            "model": str(self.policy),
            "reward_funcs": TextReward(SENTIMENT_REWARDS[recipe.reward], seed),
            "critic_model": str(self.critic),
            "peft_config": lora_config(self.policy),
        }
