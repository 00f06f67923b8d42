"""What of a rollout is neither a model's forward nor backward.

    python -m benchmarks.speed.overhead --folder bench_models     # workload (a), one rollout after one to warm up

CPU seconds inside the outermost forward calls of the models, inside backward, and of all. The rest is sampling from the
logits, shaping, GAE, controller, diagnostics, logging, tokenising and the optimizer.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("bench_models"))
    arguments = parser.parse_args()
    from datasets import Dataset
    from peft import LoraConfig

    from rlhf_ext import PPOConfig, PPOTrainer

    from .driver import RESULTS
    from .models import prepare
    from .workloads import WORKLOADS

    workload = WORKLOADS["a"]
    models = prepare(arguments.folder, workload.model, workload.dtype)
    steps = workload.prompts // workload.micro_batch
    with tempfile.TemporaryDirectory() as folder:
        args = PPOConfig(
            folder, per_device_train_batch_size=workload.micro_batch, gradient_accumulation_steps=steps,
            steps_per_generation=steps, num_iterations=workload.epochs, max_steps=2 * workload.epochs,
            max_completion_length=workload.completion, critic="head", beta=0.05, logging_steps=workload.epochs,
            save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, bf16=False,
            gradient_checkpointing=False,
        )  # fmt: skip
        recorder, clock, marks = Kept(), Clock(), []
        trainer = record(PPOTrainer, recorder)(
            models["policy"], models["reward_adapter"], args,
            Dataset.from_dict({"prompt": workload.texts(2 * workload.prompts)}),
            peft_config=LoraConfig(r=workload.lora, target_modules="all-linear", task_type="CAUSAL_LM"),
        )  # fmt: skip
        clock.watch(trainer.model.get_base_model(), "forward")
        clock.watch(trainer.accelerator, "backward")
        finish = recorder.finish

        def marked() -> None:
            finish()
            marks.append(clock.seconds)

        recorder.finish = marked  # type: ignore[method-assign]
        trainer.train()
        recorder.finish()
    total, models_share = sum(recorder.rows[1]["cpu"].values()), marks[1] - marks[0]
    result = {"seconds": total, "in_models": models_share, "share_of_the_rest": 1 - models_share / total}
    (RESULTS / "speed_overhead.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
