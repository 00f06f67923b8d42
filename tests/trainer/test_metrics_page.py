"""docs/metrics.md names what PPOTrainer logs: all of it, and nothing else."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from rlhf_ext import PPOTrainer

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
# Logged by transformers' Trainer for every kind of training.
OF_TRAINER = {"epoch", "step", "loss", "learning_rate"}
OF_EVALUATION = {
    "epoch",
    "eval_runtime",
    "eval_samples_per_second",
    "eval_steps_per_second",
    "eval_model_preparation_time",
}


def names_in(text):
    """The names in backquotes, `<name>` standing for any one name."""
    return {re.sub(r"<\w+>", "*", name) for name in re.findall(r"`([\w/<>]+)`", text)}


def table_names():
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    return names_in("".join(rows))


def evaluation_names():
    paragraph = next(part for part in PAGE.split("\n\n") if part.startswith("`evaluate()`"))
    return {f"eval_{name}" for name in names_in(paragraph) - {"eval_"}}


def unmatched(names, patterns):
    return {name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)}


@pytest.fixture(scope="module")
def trainer(tiny_policy_path, tiny_reward_path, tmp_path_factory):
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from rlhf_ext import PPOConfig

    known = str(tmp_path_factory.mktemp("reward"))
    model = AutoModelForSequenceClassification.from_pretrained(tiny_reward_path)
    model.config.score_mean, model.config.score_std = 0.0, 1.0
    model.save_pretrained(known)
    AutoTokenizer.from_pretrained(tiny_reward_path).save_pretrained(known)

    prompts = Dataset.from_dict({"prompt": [f"Say {i}" for i in range(16)]})
    config = PPOConfig(
        str(tmp_path_factory.mktemp("out")),
        per_device_train_batch_size=4,
        steps_per_generation=2,
        max_steps=8,
        max_completion_length=64,
        kl_target=6.0,
        kl_unit="sequence",
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    trainer = PPOTrainer(
        tiny_policy_path,
        [tiny_reward_path, known],
        config,
        prompts,
        eval_dataset=prompts,
        quality_fn=lambda completions, **_: [float(len(text)) for text in completions],
    )
    trainer.train()
    return trainer


def test_the_table_names_what_a_rollout_logs(trainer):
    logged = set(next(row for row in trainer.state.log_history if "objective/score" in row)) - OF_TRAINER
    assert unmatched(logged, table_names()) == set()
    assert {pattern for pattern in table_names() if not any(fnmatch(name, pattern) for name in logged)} == set()


def test_the_page_names_what_evaluation_gives(trainer):
    given = set(trainer.evaluate()) - OF_EVALUATION
    names = evaluation_names()
    assert unmatched(given, names) == set()
    assert {pattern for pattern in names if not any(fnmatch(name, pattern) for name in given)} == set()
