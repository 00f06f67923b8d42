"""
The sides on the present TRL, `python -m benchmarks.speed.trl_116 SPEC`: this project's PPOTrainer, and RLOOTrainer as what
the engine costs without a critic.
"""

import json
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from trl import RLOOConfig, RLOOTrainer

from rlhf_ext import PPOConfig, PPOTrainer

from .recorder import Recorder


def record(base: type, recorder: Recorder, keeps_texts: bool = False) -> type:
    """The trainer, its phases marked, and KL and completions of each rollout."""

    class RecordedTrainer(base):  # type: ignore[misc]
        """A rollout ends where the next one begins, and after the last step."""

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            if recorder.is_open:
                recorder.finish()
            recorder.begin("generate")
            outputs = super()._generate_and_score_completions(inputs)
            recorder.begin("update")
            return outputs

        def _generate(self, prompts: Any, *args: Any) -> Any:
            outputs = super()._generate(prompts, *args)
            recorder.count(*([len(ids) for ids in rows] for rows in outputs[:2]))
            if keeps_texts:
                recorder.note(texts=outputs[2])
            recorder.begin("score")
            return outputs

        def log(self, logs: Any, *args: Any) -> None:
            super().log(logs, *args)
            if "kl/ref" in logs:
                recorder.note(kl=logs["kl/ref"])
            elif "kl" in logs:
                # The mean over tokens; of a sequence it is that by its mean length.
                recorder.note(kl=logs["kl"] * logs["completions/mean_length"])

    return RecordedTrainer


def main() -> None:
    """Train for the rollouts of the specification."""
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    recorder = Recorder(spec["cuda"])
    micro_batches, rank = spec["sequences"] // spec["micro_batch"], spec["lora"]
    updates = spec["epochs"] * spec["mini_batches"]
    common: dict[str, Any] = {
        "output_dir": spec["output_dir"],
        "per_device_train_batch_size": spec["micro_batch"],
        "per_device_eval_batch_size": spec["micro_batch"],
        "gradient_accumulation_steps": micro_batches // spec["mini_batches"],
        "steps_per_generation": micro_batches,
        "num_iterations": spec["epochs"],
        "max_steps": spec["rollouts"] * updates,
        "max_completion_length": spec["completion"],
        "temperature": 1.0,
        "beta": spec["beta"],
        "learning_rate": spec["learning_rate"],
        "lr_scheduler_type": "constant",
        "seed": spec["seed"],
        "logging_steps": updates,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": not spec["cuda"],
        "bf16": spec["cuda"],
        "gradient_checkpointing": spec["checkpointing"],
        "model_init_kwargs": {"dtype": spec["dtype"]},
    }
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    if spec["side"] == "rloo":
        args: Any = RLOOConfig(**common, num_generations=2)
        trainer_class, reward = RLOOTrainer, spec["reward"]
    else:
        args = PPOConfig(**common, critic=spec["critic"], normalize_scores=False)
        trainer_class, reward = PPOTrainer, spec["reward_adapter" if rank else "reward"]
    trainer = record(trainer_class, recorder, spec["keeps_texts"])(
        model=spec["policy"],
        reward_funcs=reward,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": spec["prompts"]}),
        peft_config=lora if rank else None,
    )
    trainer.train()
    recorder.finish()


if __name__ == "__main__":
    main()
