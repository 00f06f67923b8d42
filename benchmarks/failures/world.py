"""One run of the small world."""

import json
import random
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback, set_seed

from rlhf_ext import PPOConfig, PPOTrainer
from rlhf_ext.trainer import measured
from rlhf_ext.trainer.callbacks import JOURNAL_FILE, live_settings

from .base import REWARD_MODELS, Models
from .faults import FAULTS
from .grammar import Request, gold, random_request
from .oracle import Oracle, split_requests
from .recipes import BASE, RECIPES, Recipe
from .recorder import QUALITY_EVERY, Recorder
from .rewards import TEXT_REWARDS, TextReward
from .stored import write_rows


class _StopAt(TrainerCallback):
    """Saves and stops at a step, as an interruption does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def make_config(recipe: Recipe, folder: str, seed: int, acts: bool = False) -> PPOConfig:
    """Settings of a run of `recipe`; to act, with checkpoints to go back to and a probe of the held-out quality."""
    settings = {**BASE, **recipe.settings}
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


def _prompts(recipe: Recipe, seed: int, rollout_size: int) -> Dataset:
    """Requests to train on; a curriculum asks for three subjects from half-way on."""
    train, _, _ = split_requests(recipe.num_subjects)
    requests: list[Request] = train
    if recipe.fault == "curriculum":
        rng = random.Random(seed)
        half = recipe.rollouts // 2 * rollout_size
        requests = [rng.choice(train) for _ in range(half)] + [random_request(rng, 3) for _ in range(half)]
    return Dataset.from_dict({"prompt": [request.prompt for request in requests]})


def _asks_for_three(request: Request) -> bool:
    return len(request.subjects) == 3


def _judge(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    return [gold(Request.from_prompt(p), c) for p, c in zip(prompts, completions, strict=True)]


def simulate(
    name: str, seed: int, models: Models, acts: bool = False
) -> tuple[dict[str, Any], list[dict], list[dict], list[dict]]:
    """
    Run a recipe.

    Args:
        name (`str`): Name in `RECIPES`.
        seed (`int`): Seed of everything random in the run, the reward model's too.
        models ([`Models`]): The world's models.
        acts (`bool`): With `diagnostics="act"`, whose probe is the gold score on requests of its own.

    Returns:
        The run's settings, its records, the oracle's rows and the actions.
    """
    recipe = RECIPES[name]
    reward, critic = _reward_and_critic(recipe, seed, models)
    set_seed(seed)
    _, probe, held_out = split_requests(recipe.num_subjects)
    if recipe.fault == "curriculum":
        held_out += split_requests(3)[2]
    asked_later = _asks_for_three if recipe.fault == "curriculum" else None
    recorder = Recorder(probe, seed)
    reference = AutoModelForCausalLM.from_pretrained(models.policy)
    check = measured.check_first_pass
    with tempfile.TemporaryDirectory() as folder:
        args = make_config(recipe, folder, seed, acts)
        dataset = _prompts(recipe, seed, args.generation_batch_size)

        probed = {
            "eval_dataset": Dataset.from_dict({"prompt": [request.prompt for request in probe]}),
            "quality_fn": _judge,
        }

        def make_trainer() -> PPOTrainer:
            trainer = PPOTrainer(
                str(models.policy),
                reward,
                make_config(recipe, folder, seed, acts),
                dataset,
                critic_model=critic,
                **(probed if acts else {}),
            )
            trainer.remove_callback(PrinterCallback)
            FAULTS.get(recipe.fault or "", lambda _: None)(trainer)
            recorder.attach(trainer, Oracle(trainer, reference, held_out, seed, asked_later))
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


def _reward_and_critic(recipe: Recipe, seed: int, models: Models) -> tuple[Any, str]:
    """The reward, and what the critic starts from: the reward model, or one that knows what a careless writer gets."""
    reward: Any = (
        str(models.reward_model(recipe.reward, seed))
        if recipe.reward in REWARD_MODELS
        else TextReward(TEXT_REWARDS[recipe.reward], seed)
    )
    return reward, reward if recipe.reward in REWARD_MODELS else str(models.critic)


def _train(make_trainer: Any, recipe: Recipe) -> None:
    trainer = make_trainer()
    if recipe.fault != "resume":
        trainer.train()
        return
    trainer.add_callback(_StopAt(trainer.args.max_steps // 2))
    trainer.train()
    make_trainer().train(resume_from_checkpoint=True)


def run_one(name: str, seed: int, models: Models, folder: Path, acts: bool = False) -> None:
    """
    Run a recipe and write `records.jsonl.gz` (settings first), `oracle.jsonl.gz` and, where it acts, `actions.jsonl.gz` to
    `folder`, at its end.
    """
    torch.set_num_threads(1)
    settings, records, outcomes, actions = simulate(name, seed, models, acts)
    if acts:
        write_rows(folder / "actions.jsonl.gz", actions)
    write_rows(folder / "oracle.jsonl.gz", [{k: _short(v) for k, v in row.items()} for row in outcomes])
    write_rows(folder / "records.jsonl.gz", [{"settings": settings}, *records])


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value
