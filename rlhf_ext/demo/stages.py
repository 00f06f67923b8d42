"""The stages of the demo; each writes its result to the run's folder and is skipped when the result is there."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .gold import gold_scores
from .preferences import Completion, label_pairs, sample_completions
from .prompts import demo_prompts
from .reward_model import readout_tokenizer, untrained_reward_model, with_readout
from .settings import DemoSettings

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from ..trainer.ppo_config import PPOConfig

BASE, REWARD_MODEL, TRAINING, POLICY = "base", "reward_model", "ppo_training", "policy"
PROMPTS, PAIRS, HELD_OUT_PAIRS, BEFORE, AFTER, HISTORY = (
    "prompts.jsonl",
    "pairs.jsonl",
    "held_out_pairs.jsonl",
    "before.json",
    "after.json",
    "history.json",
)
CHECKPOINT_EVERY = 5
SAMPLE_BATCH = 64
MINIBATCH = 16
PPO_EPOCHS = 2

Progress = Callable[[int, int], None]


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that an interrupted run leaves either all of it or none."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def open_run(folder: Path, settings: DemoSettings) -> None:
    """
    Make the run's folder, or check that the one that exists was made with the same settings.

    Raises:
        ValueError: If the folder belongs to a run with other settings.
    """
    path, wanted = folder / "settings.json", asdict(settings)
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found != wanted:
            changed = {k: (found.get(k), v) for k, v in wanted.items() if found.get(k) != v}
            raise ValueError(
                f"{folder} holds a demo run with other settings (there, here): {changed}. Choose another --output, or "
                "start over with --fresh."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(wanted, indent=2))


def make_preferences(folder: Path, settings: DemoSettings, progress: Progress) -> None:
    """Sample completions of the untouched model, label pairs by gold, and keep those of held-out prompts apart."""
    if (folder / HELD_OUT_PAIRS).is_file():
        return
    train, held_out = demo_prompts()
    write_atomically(folder / PROMPTS, "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in train))
    count = 2 * settings.pairs_per_prompt
    groups = _sample(folder / BASE, None, [*train, *held_out], count, settings.max_new_tokens, settings.seed, progress)
    gold = [gold_scores([completion.text for completion in group]) for group in groups]
    for name, rows in ((PAIRS, slice(len(train))), (HELD_OUT_PAIRS, slice(len(train), None))):
        pairs = label_pairs(groups[rows], gold[rows], settings.label_temperature, seed=settings.seed)
        write_atomically(folder / name, "".join(json.dumps(pair) + "\n" for pair in pairs))


def train_reward_model(folder: Path, settings: DemoSettings, callback: "TrainerCallback") -> None:
    """Train the reward model on the training pairs and write its report card on the held-out ones."""
    if (folder / REWARD_MODEL / "model.safetensors").is_file():
        return
    from datasets import load_dataset
    from transformers import PrinterCallback

    from ..trainer.reward_config import RewardConfig
    from ..trainer.reward_trainer import RewardTrainer

    args = RewardConfig(
        output_dir=str(folder / "reward_training"),
        per_device_train_batch_size=16,
        per_device_eval_batch_size=SAMPLE_BATCH,
        num_train_epochs=settings.reward_epochs,
        learning_rate=3e-4,
        warmup_steps=4,
        logging_steps=5,
        seed=settings.seed,
        **_on_cpu(),
    )
    files = {"train": str(folder / PAIRS), "held_out": str(folder / HELD_OUT_PAIRS)}
    tokenizer = readout_tokenizer(folder / BASE)
    pairs = load_dataset("json", data_files=files).map(
        with_readout, fn_kwargs={"readout_ids": tokenizer("")["input_ids"]}
    )
    trainer = RewardTrainer(
        model=untrained_reward_model(folder / BASE),
        args=args,
        train_dataset=pairs["train"],
        eval_dataset=pairs["held_out"],
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    unfinished = folder / f".{REWARD_MODEL}.part"
    trainer.save_model(str(unfinished))
    os.replace(unfinished, folder / REWARD_MODEL)


def align(folder: Path, settings: DemoSettings, callback: "TrainerCallback") -> None:
    """Run PPO against the reward model; gold is watched with weight zero. Continues from the last checkpoint."""
    if (folder / HISTORY).is_file():
        return
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import PrinterCallback
    from transformers.trainer_utils import get_last_checkpoint

    from ..trainer.ppo_trainer import PPOTrainer

    trainer = PPOTrainer(
        model=str(folder / BASE),
        reward_funcs=[str(folder / REWARD_MODEL), gold],
        args=_ppo_config(folder, settings),
        train_dataset=load_dataset("json", data_files=str(folder / PROMPTS), split="train"),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[callback],
    )
    trainer.remove_callback(PrinterCallback)
    checkpoints = folder / TRAINING
    trainer.train(resume_from_checkpoint=get_last_checkpoint(checkpoints) if checkpoints.is_dir() else None)
    trainer.save_model(str(folder / POLICY))
    rows = [row for row in trainer.state.log_history if "objective/score" in row]
    write_atomically(folder / HISTORY, json.dumps(rows, indent=1))


def judge(folder: Path, settings: DemoSettings, name: str, progress: Progress) -> None:
    """Sample answers to the held-out prompts, before or after training, with their gold and reward-model scores."""
    if (folder / name).is_file():
        return
    adapter = folder / POLICY if name == AFTER else None
    prompts = demo_prompts()[1]
    count, tokens = settings.judged_per_prompt, settings.max_new_tokens
    groups = _sample(folder / BASE, adapter, prompts, count, tokens, settings.seed + 1, progress)
    completions = [completion for group in groups for completion in group]
    golds = gold_scores([completion.text for completion in completions])
    rewards = _reward_scores(folder, completions)
    rows = [
        {"prompt": c.prompt, "completion": c.text, "gold": g, "reward": r, "length": len(c.ids)}
        for c, g, r in zip(completions, golds, rewards, strict=True)
    ]
    write_atomically(folder / name, json.dumps(rows, indent=1))


def gold(completions: list[str], **_: Any) -> list[float]:
    """The gold score as a reward function."""
    return gold_scores(completions)


def _ppo_config(folder: Path, settings: DemoSettings) -> "PPOConfig":
    from ..trainer.ppo_config import PPOConfig

    updates = settings.rollout_size // MINIBATCH * PPO_EPOCHS
    return PPOConfig(
        output_dir=str(folder / TRAINING),
        per_device_train_batch_size=MINIBATCH,
        per_device_eval_batch_size=SAMPLE_BATCH,
        steps_per_generation=settings.rollout_size // MINIBATCH,
        num_iterations=PPO_EPOCHS,
        max_steps=settings.num_rollouts * updates,
        max_completion_length=settings.max_new_tokens,
        learning_rate=3e-4,
        lr_scheduler_type="constant",
        critic="head",
        reward_weights=[1.0, 0.0],
        kl_target=settings.kl_target,
        kl_unit="sequence",
        kl_placement=settings.kl_placement,
        save_strategy="steps",
        save_steps=CHECKPOINT_EVERY * updates,
        save_total_limit=1,
        seed=settings.seed,
        **_on_cpu(save=False),
    )


def _on_cpu(save: bool = True) -> dict[str, Any]:
    common = {
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "disable_tqdm": True,
    }
    return common | ({"save_strategy": "no"} if save else {})


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _sample(
    base: Path, adapter: Path | None, prompts: list[str], count: int, tokens: int, seed: int, progress: Progress
) -> list[list[Completion]]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return sample_completions(
        model,
        _tokenizer(base),
        prompts,
        count,
        tokens,
        batch_size=SAMPLE_BATCH,
        seed=seed,
        progress=progress,
    )


def _reward_scores(folder: Path, completions: list[Completion]) -> list[float]:
    from ..models.scoring import RewardModelScorer, load_reward_model

    model = load_reward_model(str(folder / REWARD_MODEL))
    tokenizers = _tokenizer(folder / REWARD_MODEL), _tokenizer(folder / BASE)
    scorer = RewardModelScorer(model, *tokenizers, "reward model", SAMPLE_BATCH)
    raw = scorer(
        prompts=[c.prompt for c in completions],
        completions=[c.text for c in completions],
        completion_ids=[c.ids for c in completions],
    )
    mean, std = scorer.normalization or (0.0, 1.0)
    return [(score - mean) / std for score in raw if score is not None]
