"""The diagnostics while a run trains: what they read, what they say, and that they change nothing."""

import json
import logging
import math
import sys
from types import SimpleNamespace

import pytest
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from rlhf_ext import DiagnosticsCallback, PPOTrainer, diagnose
from rlhf_ext.diagnostics import Diagnostics, Event, Finding, Severity
from rlhf_ext.diagnostics.confidence import confidence
from rlhf_ext.diagnostics.finding import Cause
from rlhf_ext.trainer.callbacks import JOURNAL_FILE, announce, updates_per_rollout


def spread(completions, **_):
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [sum(ord(character) % 7 for character in text) / 10 for text in texts]


def constant(completions, **_):
    return [1.0] * len(completions)


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop |= state.global_step >= self.step


def journal(folder, kind=None):
    lines = [json.loads(line) for line in (folder / JOURNAL_FILE).read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if kind in (None, line["kind"])]


def test_a_run_writes_its_records_with_the_numbers_of_the_log(tiny_policy_path, prompts, ppo_config, tmp_path):
    args = ppo_config(kl_target=6.0, kl_unit="sequence", max_completion_length=32)
    trainer = PPOTrainer(tiny_policy_path, spread, args, prompts)
    trainer.train()
    (settings,) = journal(tmp_path / "out", "settings")
    expected = {"planned_rollouts": 2, "kl_target": 6.0, "rollout_size": 8, "num_epochs": 2, "dtype": "float32"}
    assert expected.items() <= settings.items()
    assert settings["score_clip"] == "Infinity"
    assert settings["critic_learning_rate"] == settings["learning_rate"] == 1e-3
    logged = [row for row in trainer.state.log_history if "objective/score" in row]
    records = journal(tmp_path / "out", "rollout")
    assert [record["step"] for record in records] == [4, 8]
    for record, row in zip(records, logged, strict=True):
        values = record["values"]
        assert values["score_mean"] == row["objective/score"]
        assert values["kl_se"] == row["kl/ref_se"]
        assert values["adv_std"] == row["policy/advantage_std"]
        assert values["return_var"] == row["value/return_variance"]
        assert values["lr_critic"] > 0
        assert {"dup_frac", "distinct2", "rep4", "ref_nll", "score_max"} <= set(values)
        assert [set(sample) for sample in record["samples"]] == [{"prompt", "completion", "score"}] * 5
        assert record["samples"][0]["score"] == pytest.approx(row["objective/score_max"], rel=1e-6)
        assert record["samples"][0]["prompt"].startswith("Say ")


def test_a_finding_is_logged_and_kept_with_samples_and_found_again_afterwards(
    tiny_policy_path, prompts, ppo_config, tmp_path, caplog
):
    trainer = PPOTrainer(tiny_policy_path, constant, ppo_config(beta=0.1, max_steps=24), prompts)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    opened = [line["finding"] for line in journal(tmp_path / "out", "opened")]
    (no_signal,) = [finding for finding in opened if finding["mode"] == "X14"]
    assert no_signal["causes"][0]["check"] == "confirmed"
    assert len(no_signal["samples"]) == 5
    assert any("X14" in message and "Cure: " in message for message in caplog.messages)
    assert "X14" in {episode.finding.mode for episode in diagnose(tmp_path / "out").episodes}
    assert "X14" in {finding.mode for finding in trainer.diagnostics.diagnostics.open_findings}


def test_off_watches_nothing_and_watching_changes_nothing(tiny_policy_path, prompts, ppo_config, tmp_path):
    def log_of(**settings):
        trainer = PPOTrainer(tiny_policy_path, spread, ppo_config(beta=0.1, **settings), prompts)
        trainer.train()
        timed = ("time/", "step_time", "train_")
        return trainer, [
            {k: v for k, v in row.items() if not k.startswith(timed)} for row in trainer.state.log_history
        ]

    off, plain = log_of(diagnostics="off")
    assert off.diagnostics is None
    assert not (tmp_path / "out" / JOURNAL_FILE).exists()
    assert log_of(diagnostics="advise")[1] == plain
    assert log_of(diagnostics="act")[1] == plain


@pytest.mark.parametrize("with_trainer", [True, False])
@pytest.mark.parametrize(("trainer_class", "config_class"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)])
def test_trls_own_trainers_take_it_as_a_callback(
    trainer_class, config_class, with_trainer, tiny_policy_path, prompts, tmp_path
):
    args = config_class(
        str(tmp_path / "out"),
        per_device_train_batch_size=4,
        num_generations=2,
        num_iterations=2,
        steps_per_generation=2,
        gradient_accumulation_steps=1,
        max_completion_length=4,
        max_steps=32,
        logging_steps=1,
        beta=0.1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    trainer = trainer_class(tiny_policy_path, constant, args=args, train_dataset=prompts)
    trainer.add_callback(DiagnosticsCallback(trainer if with_trainer else None))
    trainer.train()
    records = journal(tmp_path / "out", "rollout")
    # Four optimizer steps, each with a row of its own, are one rollout of eight completions.
    assert [record["step"] for record in records] == list(range(1, 32, 4))
    assert records[0]["values"]["score_mean"] == 1.0
    assert ("dup_frac" in records[0]["values"]) == with_trainer
    assert len(records[0]["samples"]) == (5 if with_trainer else 0)
    assert "X14" in {line["finding"]["mode"] for line in journal(tmp_path / "out", "opened")}


def test_a_resumed_run_judges_as_one_that_was_never_stopped(tiny_policy_path, prompts, ppo_config, tmp_path):
    def trainer(folder, **settings):
        args = ppo_config(output_dir=str(tmp_path / folder), beta=0.1, max_steps=16, **settings)
        return PPOTrainer(tiny_policy_path, constant, args, prompts)

    whole = trainer("whole")
    whole.train()
    first = trainer("parts", save_strategy="steps", save_steps=8)
    first.train()
    second = trainer("parts", save_strategy="steps", save_steps=8)
    second.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-8"))
    assert second.diagnostics.diagnostics.state_dict() == whole.diagnostics.diagnostics.state_dict()
    steps = [line["step"] for line in journal(tmp_path / "parts", "rollout")]
    assert steps == [4, 8, 12, 16, 12, 16]
    assert diagnose(tmp_path / "parts").rollouts == 4


@pytest.mark.parametrize(
    "settings", [{"logging_steps": 1, "save_steps": 6}, {"save_steps": 8, "eval_strategy": "steps", "eval_steps": 8}]
)
def test_rows_of_a_rollout_that_is_not_at_its_end_are_part_of_a_checkpoint(
    settings, tiny_policy_path, prompts, ppo_config, tmp_path
):
    def run(folder, **train):
        args = ppo_config(output_dir=str(tmp_path / folder), beta=0.1, max_steps=12, save_strategy="steps", **settings)
        trainer = PPOTrainer(tiny_policy_path, constant, args, prompts, eval_dataset=prompts.select(range(4)))
        trainer.train(**train)
        return trainer.diagnostics.diagnostics.state_dict()

    whole = run("whole")
    checkpoint = tmp_path / "whole" / f"checkpoint-{settings['save_steps']}"
    assert run("resumed", resume_from_checkpoint=str(checkpoint)) == whole


def test_a_resumed_run_may_be_longer_and_a_state_of_another_version_is_left_out(
    tiny_policy_path, prompts, ppo_config, tmp_path, caplog
):
    settings = {"beta": 0.1, "lr_scheduler_type": "constant", "save_strategy": "steps", "save_steps": 8}
    PPOTrainer(tiny_policy_path, spread, ppo_config(max_steps=8, **settings), prompts).train()
    checkpoint = tmp_path / "out" / "checkpoint-8"
    longer = PPOTrainer(tiny_policy_path, spread, ppo_config(max_steps=2000, **settings), prompts)
    longer.add_callback(StopAt(12))
    longer.train(resume_from_checkpoint=str(checkpoint))
    assert longer.diagnostics.diagnostics.history.rows == 3
    state = json.loads((checkpoint / "diagnostics.json").read_text())
    state["diagnostics"]["version"] = 99
    (checkpoint / "diagnostics.json").write_text(json.dumps(state))
    anew = PPOTrainer(tiny_policy_path, spread, ppo_config(max_steps=12, **settings), prompts)
    anew.train(resume_from_checkpoint=str(checkpoint))
    assert anew.diagnostics.diagnostics.history.rows == 1
    assert any("start anew, at step 8: The saved diagnostics have version 99" in m for m in caplog.messages)


def test_settings_that_work_otherwise_than_they_look_are_named_before_a_model_loads(
    tiny_policy_path, prompts, ppo_config, caplog, monkeypatch
):
    class Loading(Exception):
        pass

    def load(*_, **__):
        raise Loading

    monkeypatch.setattr(RLOOTrainer, "__init__", load)
    for diagnostics, expected in (("advise", 1), ("off", 0)):
        caplog.clear()
        args = ppo_config(top_k=50, allow_mismatched_sampling=True, diagnostics=diagnostics)
        with pytest.raises(Loading):
            PPOTrainer(tiny_policy_path, spread, args, prompts)
        warned = [m for m in caplog.messages if "X17 settings: sampler: top_k=50" in m and "Set top_k=0" in m]
        assert len(warned) == expected


def test_what_breaks_in_the_diagnostics_does_not_end_the_run(
    tiny_policy_path, prompts, ppo_config, tmp_path, monkeypatch, caplog
):
    def broken(self, record):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Diagnostics, "observe", broken)
    trainer = PPOTrainer(tiny_policy_path, spread, ppo_config(beta=0.1), prompts)
    trainer.train()
    assert trainer.state.global_step == 8
    assert [r for r in caplog.records if "are off from here on" in r.message and r.exc_info[0] is ZeroDivisionError]
    assert len(caplog.records) >= 1
    assert trainer.diagnostics.diagnostics is None


@pytest.mark.parametrize(("severity", "level"), [(Severity.WARN, "WARN"), (Severity.CRITICAL, "ERROR")])
def test_a_tracker_gets_an_alert_with_cause_and_cure(severity, level, monkeypatch):
    sent = []
    tracker = SimpleNamespace(
        AlertLevel=SimpleNamespace(WARN="WARN", ERROR="ERROR"), alert=lambda **alert: sent.append(alert)
    )
    monkeypatch.setitem(sys.modules, "trackio", tracker)
    cause = Cause("beta-too-low", "The penalty is small.", "confirmed", "how", "Double beta.")
    finding = Finding("M1", "drift", severity, 8, "KL rose.", causes=(cause,))
    announce(Event("opened", 8, finding), ["tensorboard", "trackio"])
    seen = str(confidence("M1", severity.name))
    text = f"KL rose. {seen} Most likely: The penalty is small. Cure: Double beta."
    assert seen.startswith("In the lab ")
    assert sent == [{"title": "M1 drift", "text": text, "level": level}]
    announce(Event("closed", 20, finding), ["trackio"])
    announce(Event("opened", 8, Finding("M1", "drift", Severity.INFO, 8, "KL rose.")), ["trackio"])
    announce(Event("opened", 8, finding), [])
    assert len(sent) == 1


def test_scores_that_are_not_a_number_are_told_from_those_left_out(tiny_policy_path, prompts, ppo_config):
    def holey(completions, **_):
        return [math.nan, None, *[float(len(c)) for c in completions[2:]]]

    trainer = PPOTrainer(tiny_policy_path, holey, ppo_config(beta=0.1, max_steps=4), prompts)
    trainer.train()
    (row,) = [row for row in trainer.state.log_history if "objective/score" in row]
    assert row["objective/not_finite"] == 1
    assert trainer.diagnostics.diagnostics.open_findings[0].mode == "X1"


@pytest.mark.parametrize(("steps_per_generation", "epochs", "accumulation", "expected"), [(2, 2, 1, 4), (4, 3, 4, 3)])
def test_updates_of_a_rollout(steps_per_generation, epochs, accumulation, expected):
    args = SimpleNamespace(
        steps_per_generation=steps_per_generation, num_iterations=epochs, gradient_accumulation_steps=accumulation
    )
    assert updates_per_rollout(args) == expected


def test_a_tracker_that_does_not_answer_costs_the_alert_alone(monkeypatch, caplog):
    def alert(**_):
        raise OSError("no route to host")

    tracker = SimpleNamespace(AlertLevel=SimpleNamespace(WARN="WARN", ERROR="ERROR"), alert=alert)
    monkeypatch.setitem(sys.modules, "wandb", tracker)
    announce(Event("opened", 8, Finding("M1", "drift", Severity.WARN, 8, "KL rose.")), ["wandb"])
    assert any("could not be sent" in record.message and record.exc_info for record in caplog.records)
