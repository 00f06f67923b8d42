"""What of a rollout is neither a model's forward nor backward.

    python -m benchmarks.speed.overhead --folder bench_models     # workload (a), one rollout after one to warm up

CPU seconds inside the outermost forward calls of the models, inside backward, and of all. The rest is divided: merging the
adapter, which saves products of the forward calls after it; drawing tokens from the logits; the optimizer with the norm of
the gradients; and what remains, which is shaping, GAE, controller, diagnostics, logging, tokenising and the sampler's own
work.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from .growth import Kept
from .trl_116 import record


class Clock:
    """CPU seconds inside what it watches; calls within calls count once."""

    def __init__(self) -> None:
        self.depth, self.seconds, self.started = 0, 0.0, 0.0

    def watch(self, owner: Any, name: str) -> None:
        """Replace a method by one that is timed."""
        method = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self.depth == 0:
                self.started = time.process_time()
            self.depth += 1
            try:
                return method(*args, **kwargs)
            finally:
                self.depth -= 1
                if self.depth == 0:
                    self.seconds += time.process_time() - self.started

        setattr(owner, name, timed)


PARTS = ("in_models", "merging", "drawing", "optimizer")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("bench_models"))
    parser.add_argument("--prompts", type=int, default=32, help="of a rollout, a multiple of the micro-batch")
    arguments = parser.parse_args()
    from datasets import Dataset
    from peft import LoraConfig

    from rlhf_ext import PPOConfig, PPOTrainer
    from rlhf_ext.models import merging
    from rlhf_ext.trainer import generation

    from .driver import RESULTS
    from .models import prepare
    from .workloads import WORKLOADS

    workload = WORKLOADS["a"]
    models = prepare(arguments.folder, workload.model, workload.dtype)
    steps = arguments.prompts // workload.micro_batch
    with tempfile.TemporaryDirectory() as folder:
        args = PPOConfig(
            folder, per_device_train_batch_size=workload.micro_batch, gradient_accumulation_steps=steps,
            steps_per_generation=steps, num_iterations=workload.epochs, max_steps=2 * workload.epochs,
            max_completion_length=workload.completion, critic="head", beta=0.05, logging_steps=workload.epochs,
            save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, bf16=False,
            gradient_checkpointing=False,
        )  # fmt: skip
        recorder, clocks, marks = Kept(), {part: Clock() for part in PARTS}, []
        trainer = record(PPOTrainer, recorder)(
            models["policy"], models["reward_adapter"], args,
            Dataset.from_dict({"prompt": workload.texts(2 * arguments.prompts)}),
            peft_config=LoraConfig(r=workload.lora, target_modules="all-linear", task_type="CAUSAL_LM"),
        )  # fmt: skip
        clocks["in_models"].watch(trainer.model.get_base_model(), "forward")
        clocks["in_models"].watch(trainer.accelerator, "backward")
        clocks["merging"].watch(merging, "_merge")
        clocks["drawing"].watch(generation, "draw")
        clocks["optimizer"].watch(torch.optim.AdamW, "step")
        clocks["optimizer"].watch(trainer.accelerator, "clip_grad_norm_")
        finish = recorder.finish

        def marked() -> None:
            finish()
            marks.append({part: clock.seconds for part, clock in clocks.items()})

        recorder.finish = marked  # type: ignore[method-assign]
        trainer.train()
        recorder.finish()
    total = sum(recorder.rows[1]["cpu"].values())
    result = {"prompts": arguments.prompts, "seconds": total} | {
        part: marks[1][part] - marks[0][part] for part in PARTS
    }
    result["other"] = total - sum(result[part] for part in PARTS)
    result["share_of_the_rest"] = 1 - result["in_models"] / total
    result["share_of_other"] = result["other"] / total
    (RESULTS / "speed_overhead.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
