"""Generation by transformers' continuous batching, which the parent offers."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig

from rlhf_ext import PPOTrainer
from rlhf_ext.trainer.contexts import kept_for_continuous_batching

SMALL = {"num_blocks": 64, "max_batch_tokens": 256}


def code_points(completions, **_):
    return [sum(map(ord, text)) / 500 for text in completions]


def state(model):
    return {name: (t.dtype, t) for name, t in [*model.named_parameters(), *model.named_buffers()]}


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_it_trains_and_changes_neither_precision_nor_mode(lora, bf16, tiny_policy_path, prompts, ppo_config):
    args = ppo_config(
        beta=0.1, bf16=bf16, max_steps=8, per_device_eval_batch_size=4, use_transformers_continuous_batching=True,
        transformers_continuous_batching_config=SMALL,
    )  # fmt: skip
    adapter = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    held_out = prompts.select(range(4))
    trainer = PPOTrainer(tiny_policy_path, code_points, args, prompts, held_out, peft_config=adapter)
    before = {name: (dtype, tensor.clone()) for name, (dtype, tensor) in state(trainer.model).items()}
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_objective/score"] > 0 and not trainer.model.training
    after = state(trainer.model)
    assert {name: dtype for name, (dtype, _) in after.items()} == {name: dtype for name, (dtype, _) in before.items()}
    frequencies = [name for name in after if name.endswith("inv_freq")]
    assert frequencies and all(torch.equal(after[name][1], before[name][1]) for name in frequencies)
    rollouts = [row for row in trainer.state.log_history if "objective/score" in row]
    assert len(rollouts) == 2 and rollouts[0]["kl/ref"] == pytest.approx(0.0, abs=1e-5)
    assert any(not torch.equal(after[name][1], tensor) for name, (_, tensor) in before.items())


class KeepsItsCache(torch.nn.Linear):
    """As transformers 5.24 does, whose paged cache has a dtype and is no tensor."""

    def forward(self, x):
        return {"logits": super().forward(x), "cache": SimpleNamespace(dtype=torch.bfloat16)}


def test_the_forward_of_mixed_precision_stands_aside_while_the_parent_generates():
    model = Accelerator(cpu=True, mixed_precision="bf16").prepare_model(KeepsItsCache(2, 2))
    prepared, x = model.forward, torch.ones(1, 2)
    with pytest.raises(RuntimeError, match="stopped here"):
        with kept_for_continuous_batching(model, SimpleNamespace(bf16=True, fp16=False)):
            assert model(x.bfloat16())["logits"].dtype == torch.bfloat16
            raise RuntimeError("stopped here")
    assert model.forward is prepared and model.weight.dtype == torch.float32
