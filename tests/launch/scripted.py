"""PPO runs whose completions depend on nothing but the prompt and the number of the rollout.

    accelerate launch --config_file X.yaml tests/launch/on_cpu.py FACTS.json \\
        tests/launch/scripted.py POLICY REWARD_MODEL REWARD_ADAPTER FOLDER [--deepspeed X.json]

With the same global batch, one process and several must then make the same run. The first half of every rollout, which
is all that the first of two processes sees, has short answers with low scores, the second half long ones with high
scores: a statistic of one process's share is far from the one of the whole.
"""

import json
import os
import random
import sys
from pathlib import Path
from unittest import mock

from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from peft import LoraConfig
from trl.trainer import rloo_trainer

from rlhf_ext import PPOConfig, PPOTrainer
from rlhf_ext.diagnostics.remedies import Action, Remediation

# Settings of PPOConfig; whether LoRA is trained, and whether the reward model is an adapter of the policy's base.
CASES = {
    "lora-head": {"critic": "head", "peft": True, "reward_adapter": False},
    "lora-adapter": {"critic": "adapter", "peft": True, "reward_adapter": True, "diagnostics": "act"},
    "full-head": {"critic": "head", "peft": False, "reward_adapter": False, "diagnostics": "act"},
    "full-model": {"critic": "model", "peft": False, "reward_adapter": False},
    # The default of the recipes: DeepSpeed and FSDP then keep weights in bf16, where DDP casts on the fly.
    "lora-adapter-bf16": {"critic": "adapter", "peft": True, "reward_adapter": True, "bf16": True},
    "full-model-bf16": {"critic": "model", "peft": False, "reward_adapter": False, "bf16": True},
}
# Run a second time, from the checkpoint after the first rollout.
RESUMED = ("lora-adapter", "full-model")
ROLLOUTS, SEQUENCES, STEPS_PER_ROLLOUT = 3, 16, 4


def prompts() -> Dataset:
    kinds = ["short"] * (SEQUENCES // 2) + ["long"] * (SEQUENCES // 2)
    return Dataset.from_dict({"prompt": [f"{kind} {i}" for i, kind in enumerate(kinds * ROLLOUTS)]})


def score(completion_ids: list[list[int]], **_) -> list[float]:
    return [len(ids) / 4 + ids[0] % 5 / 10 for ids in completion_ids]


def evens_first(rollout: dict) -> dict:
    """In place of the shuffle: a minibatch has the same sequences however many processes share them."""
    return {name: None if column is None else column[[*range(0, len(column), 2), *range(1, len(column), 2)]]
            for name, column in rollout.items()}  # fmt: skip


def act_after_the_first_rollout(self, diagnostics) -> list[Action]:
    """In place of `Remediation.decide`, which the main process alone asks."""
    factors = {"policy_lr": 0.5, "critic_lr": 0.25, "beta": 1.2} if diagnostics.history.rows == 1 else {}
    return [Action(lever, x, "M1", "scripted", 0, 1, "kl_ref_seq", None) for lever, x in factors.items()]


class ScriptedTrainer(PPOTrainer):
    """Answers by script, and keeps what every rollout held."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rollouts = []

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields):
        return [self._answer(ids) for ids in prompt_ids]

    def _answer(self, prompt_ids: list[int]) -> list[int]:
        prompt = self._tokenizer.decode(prompt_ids)
        draw = random.Random(f"{self.state.global_step // STEPS_PER_ROLLOUT} {prompt}")
        length = draw.randint(2, 4) if prompt.startswith("short") else draw.randint(9, 12)
        ids = [draw.randrange(3, len(self._tokenizer)) for _ in range(length)]
        return [*ids[:-1], self._tokenizer.eos_token_id] if draw.random() < 0.7 else ids

    def _generate_and_score_completions(self, inputs):
        rollout = super()._generate_and_score_completions(inputs)
        mask = rollout["completion_mask"]
        names = ("old_logprobs", "old_values", "advantages", "returns")
        rows = {name: [row[m].tolist() for row, m in zip(rollout[name], mask, strict=True)] for name in names}
        self.rollouts.append(gather_object([rows]))
        return rollout


def settings(folder: Path, peft: bool, **overrides) -> PPOConfig:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    values = {
        "output_dir": str(folder),
        # Rollouts of 16 sequences, two epochs of two minibatches, each of two micro-batches.
        "per_device_train_batch_size": 4 // processes,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
        "num_iterations": 2,
        "max_steps": ROLLOUTS * STEPS_PER_ROLLOUT,
        "shuffle_dataset": False,
        "max_completion_length": 12,
        "learning_rate": 3e-3 if peft else 1e-3,
        "kl_target": 0.5,
        "kl_unit": "sequence",
        "kl_controller": "multiplicative",
        "missing_eos_penalty": 0.5,
        "entropy_coef": 0.01,
        "save_steps": STEPS_PER_ROLLOUT,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 1,
    }
    return PPOConfig(**{**values, **overrides})


def run(
    case: str,
    policy: str,
    reward_models: list[str],
    folder: Path,
    deepspeed: str | None = None,
    start: str | None = None,
) -> None:
    """
    One case; leaves the model, and what was measured in `run.json`.

    Args:
        case: One of `CASES`.
        policy: Folder of the policy.
        reward_models: Folders of a whole reward model, and of one that is an adapter of the policy.
        folder: Where to save.
        deepspeed: DeepSpeed's configuration, where it is the recipe that names it.
        start: Checkpoint to go on from.
    """
    overrides = dict(CASES[case])
    peft, reward_model = overrides.pop("peft"), reward_models[overrides.pop("reward_adapter")]
    args = settings(folder, peft, deepspeed=deepspeed, **overrides)
    adapter = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if peft else None
    with (
        mock.patch.object(rloo_trainer, "shuffle_sequence_dict", evens_first),
        mock.patch.object(Remediation, "decide", act_after_the_first_rollout),
    ):
        trainer = ScriptedTrainer(policy, [score, reward_model], args, prompts(), peft_config=adapter)
        trainer.train(resume_from_checkpoint=start)
    trainer.save_model()
    if trainer.accelerator.is_main_process:
        written = {"log": trainer.state.log_history, "rollouts": trainer.rollouts}
        (folder / "run.json").write_text(json.dumps(written))
    # Gloo's threads must have let go of the last tensors before the process group is taken down (pytorch #56297).
    trainer.accelerator.wait_for_everyone()


def main() -> None:
    policy, whole, adapter, output, *options = sys.argv[1:]
    folder, deepspeed = Path(output), options[1] if options else None
    for case in CASES:
        run(case, policy, [whole, adapter], folder / case, deepspeed)
    for case in RESUMED:
        start = str(folder / case / f"checkpoint-{STEPS_PER_ROLLOUT}")
        run(case, policy, [whole, adapter], folder / f"{case}-resumed", deepspeed, start)
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
