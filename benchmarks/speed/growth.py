"""How time and memory grow: exponents against batch, completion length, PPO epochs, vocabulary and LoRA rank.

    python -m benchmarks.speed.growth            # measure, fit and plot; some minutes
    python -m benchmarks.speed.growth --only vocabulary

One small random model, all roles on its base. Each point is a run of its own in this process: a rollout to warm up and
`--rollouts` measured ones. The exponent is the slope of the logarithm of the cost against that of the size.
Memory is what a rollout's peak adds to what is resident before it: weights and optimizer are not in it.
"""

import argparse
import gc
import json
import math
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from .driver import RESULTS
from .machine import describe
from .recorder import Recorder

FIXED_THRESHOLD = "131072"
"""Size above which glibc maps a tensor, in bytes: fixed, so that what is resident is what is alive."""
BASE = {"batch": 16, "completion": 32, "epochs": 2, "vocabulary": 32768, "rank": 16}
SIZES = {
    "batch": (8, 16, 32),
    "completion": (16, 32, 64, 128),
    "epochs": (1, 2, 4),
    "vocabulary": (32768, 65536, 131072, 262144),
    "rank": (4, 16, 64),
}
SMALL = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "tie_word_embeddings": True}
MICRO_BATCH = 8


class Kept(Recorder):
    """Keeps the rollouts instead of printing them."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        super().__init__()

    def finish(self) -> None:
        """The rollout ends."""
        self.rows.append({**self.row(), "resident": self.resident})
        self._reset()

    def _reset(self) -> None:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
        self.resident = pages * os.sysconf("SC_PAGE_SIZE")
        super()._reset()


def byte_tokenizer() -> Any:
    """Bytes, padding and EOS: fits every vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(["<pad>", "<eos>", *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def make_trainer(sizes: dict[str, int], recorder: Recorder, rollouts: int, folder: Path) -> Any:
    """A trainer with all roles on one small random base."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import LlamaConfig, LlamaForCausalLM

    from rlhf_ext import PPOConfig, PPOTrainer

    from ..memory import save_reward_adapter
    from .trl_116 import record

    tokenizer = byte_tokenizer()
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMALL, vocab_size=sizes["vocabulary"], **ids))
    policy = str(folder / "policy")
    model.save_pretrained(policy)
    tokenizer.save_pretrained(policy)
    reward = save_reward_adapter(model, policy, folder / "reward")
    tokenizer.save_pretrained(reward)
    steps = sizes["batch"] // MICRO_BATCH
    args = PPOConfig(
        str(folder / "out"),
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=steps,
        steps_per_generation=steps,
        num_iterations=sizes["epochs"],
        max_steps=rollouts * sizes["epochs"],
        max_completion_length=sizes["completion"],
        critic="head",
        beta=0.05,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    adapter = LoraConfig(r=sizes["rank"], target_modules="all-linear", task_type="CAUSAL_LM")
    prompts = Dataset.from_dict({"prompt": ["a prompt of some words"] * 64})
    return record(PPOTrainer, recorder)(policy, reward, args, prompts, peft_config=adapter)


def measure(sizes: dict[str, int], rollouts: int) -> dict[str, float]:
    """CPU seconds of a rollout, and bytes that its peak adds; the first rollout is not counted."""
    recorder = Kept()
    with tempfile.TemporaryDirectory() as folder:
        make_trainer(sizes, recorder, rollouts + 1, Path(folder)).train()
        recorder.finish()
    rows = recorder.rows[1:]
    return {
        "seconds": median(sum(row["cpu"].values()) for row in rows),
        "bytes": median(max(row["peak_bytes"].values()) - row["resident"] for row in rows),
    }


def exponent(sizes: list[float], costs: list[float]) -> float:
    """Slope of `log(cost)` against `log(size)`, by least squares."""
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def plot(points: dict[str, list[dict[str, float]]], file: Path) -> None:
    """Cost against size, both logarithmic, each relative to its first point."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, cost, title in zip(axes, ("seconds", "bytes"), ("CPU time", "memory of a rollout"), strict=True):
        for name, rows in points.items():
            sizes = [row["size"] for row in rows]
            costs = [row[cost] for row in rows]
            label = f"{name} ({exponent(sizes, costs):.2f})"
            axis.plot([s / sizes[0] for s in sizes], [c / costs[0] for c in costs], "o-", label=label)
        axis.set(xscale="log", yscale="log", title=title, xlabel="size, relative", ylabel="cost, relative")
        axis.legend(title="exponent", loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(file, dpi=120)


def main() -> None:
    """Measure, keep after every point, fit and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rollouts", type=int, default=2)
    parser.add_argument("--plot", type=Path, default=Path("docs") / "bench_growth.png")
    arguments = parser.parse_args()
    if os.environ.get("MALLOC_MMAP_THRESHOLD_") != FIXED_THRESHOLD:
        os.environ["MALLOC_MMAP_THRESHOLD_"] = FIXED_THRESHOLD
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.speed.growth", *sys.argv[1:]])
    file = RESULTS / "speed_growth.json"
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"points": {}}
    kept |= {"machine": describe(), "model": SMALL, "base": BASE}
    for name in arguments.only:
        kept["points"][name] = []
        for size in SIZES[name]:
            row = {"size": size, **measure(BASE | {name: size}, arguments.rollouts)}
            print(f"{name} {size}: {row['seconds']:.2f} CPU s, {row['bytes'] / 2**20:.0f} MiB", flush=True)
            kept["points"][name].append(row)
            file.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    plot(kept["points"], arguments.plot)


if __name__ == "__main__":
    main()
