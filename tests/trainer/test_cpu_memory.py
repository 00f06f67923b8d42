"""What takes less memory gives the same, and takes less."""

import platform
import weakref
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig
from transformers import GenerationConfig, LlamaForCausalLM

from rlhf_ext import PPOTrainer
from rlhf_ext.models.merging import trim_heap
from rlhf_ext.trainer import role_trainer
from rlhf_ext.trainer.forward import parts_of
from rlhf_ext.trainer.generation import Sampler, _GrowingLayer
from tiny import tiny_config

LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
SECONDS = {"time/generate", "time/score", "time/update", "step_time"}


def letters(completions, **_):
    """Of every third; rows without a score are left out of the update."""
    return [None if i % 3 else sum(map(ord, text)) / 500 for i, text in enumerate(completions)]


def batch_of(prompts, completions):
    def mask(lengths):
        return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]

    return {
        "prompt_mask": mask(prompts),
        "completion_mask": mask(completions),
        "id": torch.arange(len(prompts)),
    }


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        # Lengths 7, 3, 12, 4, 4: from the longest on, as many rows as fit at the width of the longest of them.
        (12, [[2], [0], [4, 3, 1]]),
        (14, [[2], [0, 4], [3, 1]]),
        (5, [[2], [0], [4], [3], [1]]),
        (24, [[2, 0], [4, 3, 1]]),
    ],
)
def test_parts_hold_every_row_once_and_no_more_tokens_than_asked(most, expected):
    batch = batch_of(prompts=[3, 1, 2, 2, 1], completions=[4, 2, 10, 2, 3])
    parts = parts_of(batch, most)
    assert [sorted(part["id"].tolist()) for part in parts] == [sorted(rows) for rows in expected]
    for part in parts:
        assert torch.equal(part["completion_mask"], batch["completion_mask"][part["id"]])


def test_what_fits_is_left_as_it_is():
    batch = batch_of(prompts=[3, 1, 2], completions=[4, 2, 10])
    (same,) = parts_of(batch, 36)
    assert same is batch and len(parts_of(batch, 35)) == 2
    # A row that was left out has no tokens of its answer, or none at all.
    empty = batch_of(prompts=[1, 1], completions=[1, 1])
    empty = {**empty, "prompt_mask": empty["prompt_mask"] & False, "completion_mask": empty["completion_mask"] & False}
    assert parts_of(empty, 5)[0] is empty


def run(monkeypatch, policy, prompts, args, most, adapter):
    """The trained trainer, and how many tokens of answers each forward call with gradient had."""
    calls, forward = [], role_trainer.completion_outputs

    def watched(model, sequences, *more):
        calls.extend([int(sequences.completion_mask.sum())] if torch.is_grad_enabled() else [])
        return forward(model, sequences, *more)

    monkeypatch.setattr(role_trainer, "PART_TOKENS", most)
    monkeypatch.setattr(role_trainer, "completion_outputs", watched)
    trainer = PPOTrainer(policy, letters, args, prompts, peft_config=adapter)
    trainer.train()
    monkeypatch.setattr(role_trainer, "completion_outputs", forward)
    return trainer, calls


@pytest.mark.parametrize(("critic", "checkpoints"), [("head", False), ("adapter", True)])
def test_parts_change_neither_weights_nor_metrics(
    critic, checkpoints, monkeypatch, tiny_policy_path, prompts, ppo_config
):
    sizes = {"gradient_accumulation_steps": 2, "max_steps": 4, "logging_steps": 1}
    args = ppo_config(critic=critic, entropy_coef=0.01, gradient_checkpointing=checkpoints, **sizes)
    whole, calls = run(monkeypatch, tiny_policy_path, prompts, args, 10**6, LORA)
    parts, more = run(monkeypatch, tiny_policy_path, prompts, args, 24, LORA)
    # Whole parts are left out too.
    assert len(calls) == 8 and len(more) > 2 * len(calls) and sum(more) == sum(calls) and 0 in more
    moved = 0.0
    for (name, found), wanted in zip(parts.model.named_parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6, msg=name)
        moved += float("lora_B" in name) * float(found.detach().abs().sum())
    assert moved > 0
    rows = [[row for row in trainer.state.log_history if "policy/loss" in row] for trainer in (parts, whole)]
    assert len(rows[0]) == 4
    for found, wanted in zip(*rows, strict=True):
        names = wanted.keys() - SECONDS
        assert found.keys() == wanted.keys()
        assert {name: found[name] for name in names} == pytest.approx(
            {name: wanted[name] for name in names}, rel=1e-4, abs=1e-5, nan_ok=True
        )


def test_all_weights_and_other_devices_are_trained_whole(monkeypatch, tiny_policy_path, prompts, ppo_config):
    for adapter, critic in ((None, "head"), (LORA, "model")):
        args = ppo_config(max_steps=2, critic=critic)
        _, calls = run(monkeypatch, tiny_policy_path, prompts, args, 24, adapter)
        assert len(calls) == 2
    trainer = PPOTrainer(tiny_policy_path, letters, ppo_config(), prompts, peft_config=LORA)
    assert trainer._takes_parts()
    trainer.aux_loss_enabled = True
    assert not trainer._takes_parts()
    trainer.aux_loss_enabled = False
    for name, value in (
        ("device", torch.device("cuda")),
        ("mixed_precision", "bf16"),
        ("distributed_type", "MULTI_CPU"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(Accelerator, name, value)
            assert not trainer._takes_parts()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the heap of another C library")
def test_freed_tensors_below_one_that_lives_are_given_back():
    def resident():
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon:"))
        return int(line.split()[1]) // 1024

    # 128 MiB in tensors that glibc has in its heap, the last of which stays.
    tensors = [torch.ones(2**13) for _ in range(2**12)]
    last = tensors[-1]
    full = resident()
    tensors.clear()
    trim_heap()
    assert full - resident() > 64 and last.sum() == 2**13


@pytest.mark.parametrize("lengths", [(9, 9, 9, 9), (9, 1, 1, 2)], ids=["even", "in groups"])
def test_keys_and_values_are_there_once_while_the_cache_is_made_to_grow(lengths, monkeypatch, tiny_tokenizer):
    model = LlamaForCausalLM(tiny_config(tiny_tokenizer, num_hidden_layers=3)).eval()
    seen, alive, grow = [], [], _GrowingLayer.of

    def watched(layers, room):
        seen.append([weakref.ref(layer.keys) for layer in layers])
        alive.append([any(reference() is not None for reference in layer) for layer in seen])
        return grow(layers, room)

    monkeypatch.setattr(_GrowingLayer, "of", watched)
    mask = (torch.arange(9) >= 9 - torch.tensor(lengths)[:, None]).long()
    config = GenerationConfig(max_new_tokens=4, do_sample=True, top_k=0, pad_token_id=tiny_tokenizer.pad_token_id)
    with Sampler(None).sampling(model), torch.no_grad():
        model.generate(input_ids=5 * mask, attention_mask=mask, generation_config=config)
    assert len(seen[0]) == (1 if lengths[1] == 9 else 4)
    assert alive == [[True], [False, True], [False, False, True]]
