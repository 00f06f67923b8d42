"""Kills runs with SIGKILL at random moments, resumes them, and compares them bit for bit with runs never killed.

    python benchmarks/kills.py                                        # 20 kills, about five minutes
    python benchmarks/kills.py --kills 3 --seed 1
    python benchmarks/kills.py --write docs/resume.md                 # and put the table between the markers of that page

A run announces each phase as it enters it: generating a rollout, updating on it, saving a checkpoint. For every kill a
phase, one of its occurrences and a delay are drawn; the process is killed that long after it announced the occurrence
(drawn again where it had left the phase by then), and a new process resumes the run from its newest checkpoint until it
ends. All logged numbers but seconds, and all parameters, must equal those of the reference. Whole models and LoRA adapters
take turns, each with its default critic. A checkpoint is saved every three steps and a rollout lasts four, so most
checkpoints lie inside a rollout.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import random
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PHASES = ("generation", "update", "saving")
POLICIES = ("full", "lora")
SECONDS = re.compile("time/|step_time|.*_runtime|.*_per_second")
START = "<!-- kills: start -->"
END = "<!-- kills: end -->"
PATIENCE = 300  # seconds
LOGS, PARAMETERS = "logs.json", "parameters.safetensors"


@dataclass(frozen=True)
class Moment:
    """When to kill: `delay` seconds after the `count`-th announcement of `phase`."""

    phase: str
    count: int
    delay: float


@dataclass(frozen=True)
class Kill:
    """What one kill did, and the difference that it made, if any."""

    policy: str
    moment: Moment
    resumed_from: str
    difference: str | None


# ---- The run, in a process of its own -------------------------------------------------------------------------------


def make_models(folder: Path) -> None:
    """A random policy with a tokenizer of bytes, loadable from `folder`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(["<pad>", "<eos>", *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def run(model: Path, folder: Path, policy: str, announcements: Connection) -> None:
    """Train until the end, from the newest checkpoint in `folder` where there is one."""
    from datasets import Dataset
    from peft import LoraConfig
    from safetensors.torch import save_file

    from rlhf_ext import PPOConfig, PPOTrainer

    class Announcing(PPOTrainer):
        def _generate(self, prompts: list) -> Any:
            announcements.send("generation")
            return super()._generate(prompts)

        def _compute_loss(self, model: Any, inputs: Any) -> Any:
            announcements.send("update")
            return super()._compute_loss(model, inputs)

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            announcements.send("saving")
            super()._save_checkpoint(model, trial)
            announcements.send("between")

    def code_points(completions: list[str], **_: Any) -> list[float]:
        return [sum(ord(character) % 7 for character in text) / 10 for text in completions]

    args = PPOConfig(
        str(folder), per_device_train_batch_size=4, steps_per_generation=2, num_iterations=2, max_completion_length=16,
        max_steps=24, logging_steps=5, save_steps=3, save_total_limit=2, learning_rate=1e-3, kl_target=0.5,
        kl_unit="sequence", kl_controller="multiplicative", report_to=[], use_cpu=True, bf16=False, disable_tqdm=True,
        gradient_checkpointing=False, seed=1,
    )  # fmt: skip
    lora = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1, task_type="CAUSAL_LM")
    data = Dataset.from_dict({"prompt": [f"Say {i}" for i in range(24)]})
    trainer = Announcing(str(model), code_points, args, data, peft_config=lora if policy == "lora" else None)
    trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))
    announcements.send("end")
    logs = [{k: v for k, v in row.items() if not SECONDS.match(k)} for row in trainer.state.log_history]
    (folder / LOGS).write_text(json.dumps(logs))
    save_file({k: v.contiguous() for k, v in trainer.model.state_dict().items()}, folder / PARAMETERS)


def run_into_file(model: Path, folder: Path, policy: str, announcements: Connection) -> None:
    """`run`, with what it prints in a file beside its folder."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_CACHE": str(model.parent)}
    with open(f"{folder}.log", "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    run(model, folder, policy, announcements)


# ---- Killing --------------------------------------------------------------------------------------------------------


class Bench:
    """Starts runs, and kills them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        # A server that has imported everything makes each process; a run then starts in a moment.
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["trl.trainer.rloo_trainer", "rlhf_ext.trainer.ppo_trainer", "peft"])
        make_models(folder / "model")
        self.references = {policy: self._reference(policy) for policy in POLICIES}

    def start(self, folder: Path, policy: str) -> tuple[Any, Connection]:
        """A process that runs or resumes in `folder`, and what it announces."""
        receiver, sender = self.context.Pipe(duplex=False)
        process = self.context.Process(target=run_into_file, args=(self.folder / "model", folder, policy, sender))
        process.start()
        sender.close()
        return process, receiver

    def finish(self, folder: Path, policy: str) -> list[tuple[str, float]]:
        """Run to the end; each announced phase with the seconds it took."""
        process, receiver = self.start(folder, policy)
        times = [(phase, time.perf_counter()) for phase in _announced(receiver)]
        process.join()
        _check_exit(process, folder, 0)
        ends = [moment for _, moment in times[1:]]
        return [(phase, end - begin) for (phase, begin), end in zip(times[:-1], ends, strict=True)]

    def _reference(self, policy: str) -> dict[str, list[float]]:
        """Seconds of each phase of the run never killed."""
        phases = self.finish(self.folder / f"reference-{policy}", policy)
        return {name: [seconds for phase, seconds in phases if phase == name] for name in PHASES}

    def draw(self, policy: str, phase: str) -> Moment:
        """A random moment inside a random occurrence of a phase."""
        seconds = self.references[policy][phase]
        count = self.random.randrange(len(seconds))
        return Moment(phase, count + 1, self.random.random() * seconds[count])

    def strike(self, folder: Path, policy: str, moment: Moment) -> bool:
        """Start a run and kill it; whether it was still in the phase that was meant, or quicker than the reference."""
        process, receiver = self.start(folder, policy)
        announced = _announced(receiver)
        occurrences = (name for name in announced if name == moment.phase)
        is_reached = next(itertools.islice(occurrences, moment.count - 1, None), None)
        if is_reached:
            time.sleep(moment.delay)
            process.kill()
        process.join()
        if is_reached and process.exitcode == 0:
            return False
        _check_exit(process, folder, -signal.SIGKILL)
        return not list(announced)

    def kill(self, index: int) -> Kill:
        """Start a run, kill it, resume it, compare it."""
        policy, phase = POLICIES[index % len(POLICIES)], PHASES[index % len(PHASES)]
        for attempt in itertools.count():
            folder, moment = self.folder / f"killed-{index}-{attempt}", self.draw(policy, phase)
            if self.strike(folder, policy, moment):
                break
        steps = [int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*")]
        resumed_from = f"step {max(steps)}" if steps else "the start"
        self.finish(folder, policy)
        difference = compare(self.folder / f"reference-{policy}", folder)
        return Kill(policy, moment, resumed_from, difference)


def _check_exit(process: Any, folder: Path, expected: int) -> None:
    if process.exitcode != expected:
        log = Path(f"{folder}.log").read_text()
        raise RuntimeError(
            f"The run in {folder} ended with code {process.exitcode} instead of {expected}:\n{log[-3000:]}"
        )


def _announced(receiver: Connection) -> Iterator[str]:
    """What a run announces until it ends."""
    while receiver.poll(PATIENCE):
        try:
            yield receiver.recv()
        except EOFError:
            return
    raise TimeoutError(f"A run has not announced anything for {PATIENCE} seconds.")


def compare(reference: Path, resumed: Path) -> str | None:
    """The first difference of logs or parameters between two runs; `None` if every bit is the same."""
    from safetensors.torch import load_file

    logs = [json.loads((folder / LOGS).read_text()) for folder in (reference, resumed)]
    if len(logs[0]) != len(logs[1]):
        return f"{len(logs[1])} log lines instead of {len(logs[0])}"
    for a, b in zip(*logs, strict=True):
        different = sorted(key for key in {*a, *b} if a.get(key) != b.get(key))
        if different:
            return f"step {a['step']}: {', '.join(different)}"
    parameters = [load_file(folder / PARAMETERS) for folder in (reference, resumed)]
    names = sorted(
        name for name, x in parameters[0].items() if x.numpy().tobytes() != parameters[1][name].numpy().tobytes()
    )
    return f"parameters {', '.join(names[:3])}" if names else None


# ---- Reporting ------------------------------------------------------------------------------------------------------


def report(kills: list[Kill]) -> str:
    """One row a kill, and the count."""
    lines = ["| policy | killed during | after | resumed from | same as never killed |", "|---|---|---|---|---|"]
    lines += [
        f"| {k.policy} | {k.moment.phase} {k.moment.count} | {1000 * k.moment.delay:.0f} ms | {k.resumed_from} | "
        f"{k.difference or 'yes'} |"
        for k in kills
    ]
    identical = sum(kill.difference is None for kill in kills)
    hits = ", ".join(f"{sum(kill.moment.phase == phase for kill in kills)} during {phase}" for phase in PHASES)
    return "\n".join([*lines, "", f"{identical} of {len(kills)} kills resumed identically ({hits})."])


def kill_runs(folder: Path, kills: int, seed: int) -> list[Kill]:
    """Kill as many runs, in `folder`."""
    bench = Bench(folder, seed)
    return [bench.kill(index) for index in range(kills)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help="page whose table is to be replaced")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kills = kill_runs(Path(folder), arguments.kills, arguments.seed)
    table = report(kills)
    print(table)
    if arguments.write:
        text = arguments.write.read_text(encoding="utf-8")
        head, tail = text.split(START)[0], text.split(END)[1]
        arguments.write.write_text(f"{head}{START}\n{table}\n{END}{tail}", encoding="utf-8")
    if any(kill.difference for kill in kills):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
