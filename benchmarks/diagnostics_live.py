"""What the diagnostics cost while a run trains.

    python benchmarks/diagnostics_live.py            # SmolLM2-135M with LoRA, 32 answers of 16 tokens a rollout, on a CPU
    python benchmarks/diagnostics_live.py --tokens 64 --rollouts 4

CPU seconds of the callback (reading the log, the words of all completions, every detector, the journal) over those of the
rollouts, measured in one run. The callback's own cost does not depend on the size of the model.
"""

import argparse
import statistics
import tempfile
import time
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_ext import DiagnosticsCallback, PPOConfig, PPOTrainer
from rlhf_ext.demo.model import bundled_model
from rlhf_ext.demo.prompts import demo_prompts

BAR = 0.01
SIZE = 32


def length(completions: list[str], **_: Any) -> list[float]:
    """A reward that costs nothing."""
    return [float(len(text)) for text in completions]


class Timed:
    """CPU seconds spent in the callback, log by log, and when each log ended. Words are read when a step ends."""

    def __init__(self, callback: DiagnosticsCallback) -> None:
        self.seconds = [0.0]
        self.ends: list[float] = []
        for hook in ("on_step_end", "on_log"):
            setattr(callback, hook, self._timed(getattr(callback, hook), hook == "on_log"))

    def _timed(self, hook: Any, ends_rollout: bool) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            result = hook(*args, **kwargs)
            end = time.process_time()
            self.seconds[-1] += end - start
            if ends_rollout:
                self.ends.append(end)
                self.seconds.append(0.0)
            return result

        return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rollouts", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = bundled_model(folder)
        args = PPOConfig(
            folder, per_device_train_batch_size=16, steps_per_generation=SIZE // 16, num_iterations=2,
            max_completion_length=options.tokens, max_steps=4 * options.rollouts, kl_target=6.0, kl_unit="sequence",
            report_to=[], save_strategy="no", use_cpu=True, bf16=False, disable_tqdm=True, gradient_checkpointing=False,
        )  # fmt: skip
        trainer = PPOTrainer(
            AutoModelForCausalLM.from_pretrained(base), length, args,
            Dataset.from_dict({"prompt": demo_prompts()[0]}), processing_class=AutoTokenizer.from_pretrained(base),
            peft_config=LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        )  # fmt: skip
        assert trainer.diagnostics is not None
        timed = Timed(trainer.diagnostics)
        trainer.train()
    # The last call is the line about the whole run, and the first rollout pays for what is done once.
    rollouts = [later - earlier for earlier, later in zip(timed.ends[:-2], timed.ends[1:-1], strict=True)]
    shares = [own / whole for own, whole in zip(timed.seconds[1:-2], rollouts, strict=True)]
    print(
        f"{len(rollouts)} rollouts of {SIZE} x {options.tokens} tokens: {statistics.median(rollouts):.1f} CPU s each, "
        f"{1e3 * statistics.median(timed.seconds[1:-2]):.1f} ms of them the diagnostics: a share of "
        f"{statistics.median(shares):.5f} (median; largest {max(shares):.5f}; bar {BAR})"
    )


if __name__ == "__main__":
    main()
