"""What is shown while a run trains."""

import logging
import re

import pytest
from transformers import PrinterCallback, ProgressCallback

from rlhf_ext import PPOTrainer
from rlhf_ext.trainer.callbacks import Notice
from rlhf_ext.trainer.progress import (
    RolloutProgressCallback,
    evaluation_line,
    four_numbers,
    show_rollouts,
)

ROW = {
    "objective/score": 0.5,
    "kl/ref": 4.25,
    "kl/ref_token": 0.5,
    "kl/target": 6.0,
    "kl/beta": 0.125,
    "policy/entropy": 2.0,
    "value/explained_variance": 0.25,
    "completions/mean_length": 9.0,
}


def make(config, path, prompts, **overrides):
    return PPOTrainer(
        path,
        lambda completions, **_: [len(c) / 10 for c in completions],
        config(disable_tqdm=False, **overrides),
        prompts,
        prompts,
    )


def test_four_numbers_in_the_unit_of_the_target():
    assert four_numbers(ROW, "kl/ref") == {"score": "+0.5", "kl": "4.25/6", "entropy": "2", "critic": "0.25"}
    assert four_numbers(ROW, "kl/ref_token")["kl"] == "0.5/6"
    # With beta=0 no KL is measured.
    assert four_numbers({"objective/score": -1.0, "value/explained_variance": None}, "kl/ref") == {"score": "-1"}


def test_an_evaluation_is_a_line_of_its_numbers():
    metrics = {"eval_objective/score": 0.5, "eval_kl/ref": 2.0, "eval_runtime": 3.0, "epoch": 1.0}
    assert evaluation_line(metrics) == "eval_objective/score 0.5, eval_kl/ref 2"
    assert evaluation_line({"train_runtime": 3.0}) == ""


def test_a_run_in_a_terminal_is_one_bar_with_the_numbers(ppo_config, tiny_policy_path, prompts, capfd):
    trainer = make(ppo_config, tiny_policy_path, prompts, logging_steps=1, eval_strategy="steps", eval_steps=4)
    trainer.train()
    shown = capfd.readouterr()
    last = [row for row in trainer.state.log_history if "objective/score" in row][-1]
    assert f"score={last['objective/score']:+.3g}" in shown.err
    assert "'objective/score'" not in shown.out + shown.err
    assert len(re.findall(r"step \d+: eval_objective/score", shown.out + shown.err)) == 2


def test_printed_logs_and_the_user_s_own_display_stay(ppo_config, tiny_policy_path, prompts):
    class Own(ProgressCallback):
        pass

    trainer = make(ppo_config, tiny_policy_path, prompts)
    kinds = {type(callback) for callback in trainer.callback_handler.callbacks}
    assert RolloutProgressCallback in kinds
    assert ProgressCallback not in kinds

    trainer.callback_handler.callbacks[:] = [Own(), PrinterCallback()]
    show_rollouts(trainer)
    assert [type(callback) for callback in trainer.callback_handler.callbacks] == [Own, PrinterCallback]


class TestNotebook:
    @pytest.fixture
    def shown(self, monkeypatch):
        display = pytest.importorskip("IPython.display")
        pages = []

        class Handle:
            def update(self, html):
                pages.append(html.data)

        def show(html, display_id):
            pages.append(html.data)
            return Handle()

        monkeypatch.setattr(display, "display", show)
        return pages

    def test_one_output_with_table_and_plots(self, shown, ppo_config, tiny_policy_path, prompts, monkeypatch):
        from transformers.utils.notebook import NotebookProgressCallback

        from rlhf_ext.trainer.notebook import NotebookRolloutsCallback

        monkeypatch.setattr("transformers.trainer.DEFAULT_PROGRESS_CALLBACK", NotebookProgressCallback)
        trainer = make(
            ppo_config,
            tiny_policy_path,
            prompts,
            logging_steps=1,
            kl_target=1.0,
            kl_unit="token",
            eval_strategy="epoch",
        )
        kinds = {type(callback) for callback in trainer.callback_handler.callbacks}
        assert NotebookRolloutsCallback in kinds
        assert NotebookProgressCallback not in kinds
        trainer.train()
        rows = [row for row in trainer.state.log_history if "objective/score" in row]
        page = shown[-1]
        assert page.count("<tr>") == 1 + len(rows)
        assert f"<td>{rows[-1]['kl/ref_token']:.4g}</td>" in page
        assert page.count("<figure>") == 4
        assert 'class="target"' in page
        assert "eval_objective/score" in page

    def test_rows_that_lack_a_number_and_an_evaluation_are_shown_as_they_are(self, shown):
        from rlhf_ext.trainer.notebook import RolloutsTracker

        tracker = RolloutsTracker(10, "kl/ref")
        tracker.evaluation = "<script>"
        tracker.add([(1, {**ROW, "value/explained_variance": None}), (2, ROW), *[(i, ROW) for i in range(3, 11)]])
        assert "<script>" not in shown[-1]
        assert shown[-1].count("<tr>") == 1 + 8
        assert "<tr><td>10</td>" in shown[-1]
        assert "<tr><td>2</td>" not in shown[-1]

    def test_a_finding_is_a_line_of_the_display_and_not_of_the_log(
        self, shown, ppo_config, tiny_policy_path, prompts, monkeypatch, caplog
    ):
        from transformers.utils.notebook import NotebookProgressCallback

        monkeypatch.setattr("transformers.trainer.DEFAULT_PROGRESS_CALLBACK", NotebookProgressCallback)
        args = ppo_config(disable_tqdm=False, beta=0.1, max_steps=24)
        trainer = PPOTrainer(tiny_policy_path, lambda completions, **_: [1.0] * len(completions), args, prompts)
        trainer.train()
        (line,) = re.findall(r"<summary>(WARN X14 .*?)</summary>(.*?)</details>", shown[-1])
        assert re.search(r"\(opened at step \d+\)$", line[0]) and "Cure: " in line[1]
        assert not [message for message in caplog.messages if "X14" in message]

    def test_the_latest_notice_on_a_thing_stands_for_those_before_it(self, shown, caplog):
        from rlhf_ext.trainer.notebook import NotebookRolloutsCallback, RolloutsTracker

        callback = NotebookRolloutsCallback()
        callback.say(Notice("M1", "before the run", "", logging.WARNING))
        assert caplog.messages == ["before the run."]
        callback.training_tracker = RolloutsTracker(10, "kl/ref")
        for notice in (
            Notice("M1", "WARN M1 <drift>", "KL & score.", logging.WARNING),
            Notice("M2", "INFO M2", "", logging.INFO),
            Notice("M3", "M3: over at step 3", "", logging.WARNING),
            Notice("M1", "CRITICAL M1", "More KL.", logging.WARNING),
        ):
            callback.say(notice)
        assert "&lt;drift&gt;</summary>KL &amp; score." in shown[0]
        last = shown[-1]
        assert "drift" not in last and "INFO M2" not in last
        assert last.index("<summary>CRITICAL M1</summary>More KL.") < last.index("<p>M3: over at step 3</p>")
        assert caplog.messages == ["before the run."]
