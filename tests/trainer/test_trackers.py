"""What PPOTrainer logs reaches the trackers that Trainer reports to, and the table of completions."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlhf_ext import PPOTrainer


def length(completions, **_):
    return [float(len(text)) for text in completions]


def sixes(completions, **_):
    return [6.0] * len(completions)


@pytest.fixture
def trainer(tiny_policy_path, prompts, ppo_config, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    args = ppo_config(
        report_to=["tensorboard"], kl_target=6.0, kl_unit="sequence", log_completions=True, num_completions_to_print=2,
        eval_strategy="steps", eval_steps=4, reward_weights=[1.0, 0.0], per_device_eval_batch_size=4,
    )  # fmt: skip
    trainer = PPOTrainer(tiny_policy_path, [length, sixes], args, prompts, eval_dataset=prompts.select(range(8)))
    trainer.train()
    return trainer


def test_a_tracker_gets_every_number_of_the_log(trainer, tmp_path):
    events = EventAccumulator(str(tmp_path / "events"), size_guidance={"scalars": 0}).Reload()
    rows = [row for row in trainer.state.log_history if "objective/score" in row or "eval_objective/score" in row]
    assert [("eval_objective/score" in row, row["step"]) for row in rows] == [
        (False, 4),
        (True, 4),
        (False, 8),
        (True, 8),
    ]
    for row in rows:
        for name, value in row.items():
            if name in ("step", "epoch") or value is None:
                continue
            tag = f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}"
            (found,) = [event.value for event in events.Scalars(tag) if event.step == row["step"]]
            assert found == pytest.approx(value, rel=1e-6), tag


def test_the_table_of_completions_has_whole_rows(trainer, capsys):
    trainer.model.train()
    trainer.log({})
    printed = capsys.readouterr().out
    logs = trainer._logs
    assert {len(logs["prompt"]), len(logs["completion"]), len(logs["advantages"])} == {8}
    assert {name: len(column) for name, column in logs["rewards"].items()} == {"length": 8, "sixes": 8}
    for prompt, completion, score in zip(logs["prompt"], logs["completion"], logs["rewards"]["length"], strict=True):
        assert prompt.startswith("Say ") and score == len(completion)
    assert set(logs["rewards"]["sixes"]) == {6.0}
    # The last rows are those of the evaluation, which has no advantages.
    assert set(logs["advantages"]) == {0.0}
    assert all(name in printed for name in ("Prompt", "Completion", "length", "sixes", "Advantage"))
