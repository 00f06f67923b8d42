"""One run of a world."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback, set_seed

from rlhf_ext import PPOConfig, PPOTrainer
from rlhf_ext.trainer import measured
from rlhf_ext.trainer.callbacks import JOURNAL_FILE, live_settings

from .faults import FAULTS
from .oracle import Oracle
from .recipes import BASES, RECIPES, Recipe
from .recorder import QUALITY_EVERY, Recorder
from .stored import write_rows


class Prompts(NamedTuple):
    """
    Prompts to train on, those of the quality probe, those of the oracle, and where a curriculum changes them, whether one
    is asked from half-way on.
    """

    train: list[str]
    probe: list[str]
    held_out: list[str]
    asked_later: Callable[[str], bool] | None = None


class World(Protocol):
    """
    What a run needs of its world.

    Args:
        samples_per_prompt (`int`): Completions of each prompt that the oracle reads.
        oracle_every (`int`): Rollouts between two of its measurements.
    """

    samples_per_prompt: int
    oracle_every: int

    @property
    def policy(self) -> Path:
        """Folder of the language model that runs start from."""

    def prompts(self, recipe: Recipe, seed: int, rollout_size: int) -> Prompts:
        """The prompts of a run."""

    def gold(self, prompts: list[str], completions: list[str]) -> list[float]:
        """The score that cannot be gamed."""

    def roles(self, recipe: Recipe, seed: int) -> dict[str, Any]:
        """Arguments of [`PPOTrainer`]: policy, reward and what the critic starts from."""


class _StopAt(TrainerCallback):
    """Saves and stops at a step, as an interruption does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def make_config(recipe: Recipe, folder: str, seed: int, acts: bool = False) -> PPOConfig:
    """Settings of a run of `recipe`; to act, with checkpoints to go back to and a probe of the held-out quality."""
    settings = {**BASES[recipe.world], **recipe.settings}
    per_rollout = settings["steps_per_generation"] * settings["num_iterations"]
    acting = {
        "diagnostics": "act",
        "save_strategy": "steps",
        "save_steps": QUALITY_EVERY * per_rollout,
        "save_total_limit": 4,
        "probe_every": QUALITY_EVERY,
        "probe_size": 16,
    }
    return PPOConfig(
        output_dir=folder,
        max_steps=recipe.rollouts * per_rollout,
        per_device_eval_batch_size=256,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        shuffle_dataset=recipe.fault != "curriculum",
        seed=seed,
        **(acting if acts else {"diagnostics": "off", "save_strategy": "no"}),
        **settings,
    )


def simulate(
    name: str, seed: int, world: World, acts: bool = False
) -> tuple[dict[str, Any], list[dict], list[dict], list[dict]]:
    """
    Run a recipe.

    Args:
        name (`str`): Name in `RECIPES`.
        seed (`int`): Seed of everything random in the run, the reward model's too.
        world ([`World`]): Its models, prompts and scores.
        acts (`bool`): With `diagnostics="act"`, whose probe is the gold score on prompts of its own.

    Returns:
        The run's settings, its records, the oracle's rows and the actions.
    """
    recipe = RECIPES[name]
    roles = world.roles(recipe, seed)
    set_seed(seed)
    reference = AutoModelForCausalLM.from_pretrained(world.policy)
    check = measured.check_first_pass
    with tempfile.TemporaryDirectory() as folder:
        args = make_config(recipe, folder, seed, acts)
        prompts = world.prompts(recipe, seed, args.generation_batch_size)
        recorder = Recorder(prompts.probe, world.gold, world.oracle_every, seed)
        probed = {
            "eval_dataset": Dataset.from_dict({"prompt": prompts.probe}),
            "quality_fn": lambda prompts, completions, **_: world.gold(prompts, completions),
        }

        def oracle_of(trainer: PPOTrainer) -> Oracle:
            samples = world.samples_per_prompt
            return Oracle(trainer, reference, prompts.held_out, samples, world.gold, seed, prompts.asked_later)

        def make_trainer() -> PPOTrainer:
            trainer = PPOTrainer(
                args=make_config(recipe, folder, seed, acts),
                train_dataset=Dataset.from_dict({"prompt": prompts.train}),
                **roles,
                **(probed if acts else {}),
            )
            trainer.remove_callback(PrinterCallback)
            FAULTS.get(recipe.fault or "", lambda _: None)(trainer)
            recorder.attach(trainer, oracle_of(trainer))
            return trainer

        try:
            _train(make_trainer, recipe)
            if acts:
                recorder.finish()
        except RuntimeError as error:
            # What the trainer does where numbers are not finite; the run ends there.
            recorder.outcomes.append({"rollout": len(recorder.records), "error": str(error)})
        finally:
            measured.check_first_pass = check
        actions = _actions(Path(folder) / JOURNAL_FILE) if acts else []
    settings = asdict(live_settings(args, recipe.rollouts, "float32"))
    return settings, recorder.records, recorder.outcomes, actions


def _actions(journal: Path) -> list[dict]:
    lines = map(json.loads, journal.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["kind"] == "action"]


def _train(make_trainer: Any, recipe: Recipe) -> None:
    trainer = make_trainer()
    if recipe.fault != "resume":
        trainer.train()
        return
    trainer.add_callback(_StopAt(trainer.args.max_steps // 2))
    trainer.train()
    make_trainer().train(resume_from_checkpoint=True)


def run_one(name: str, seed: int, world: World, folder: Path, acts: bool = False) -> None:
    """
    Run a recipe and write `records.jsonl.gz` (settings first), `oracle.jsonl.gz` and, where it acts, `actions.jsonl.gz` to
    `folder`, at its end.
    """
    torch.set_num_threads(1)
    settings, records, outcomes, actions = simulate(name, seed, world, acts)
    if acts:
        write_rows(folder / "actions.jsonl.gz", actions)
    write_rows(folder / "oracle.jsonl.gz", [{k: _short(v) for k, v in row.items()} for row in outcomes])
    write_rows(folder / "records.jsonl.gz", [{"settings": settings}, *records])


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value
