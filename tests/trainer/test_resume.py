"""A run that is resumed is the run that was never stopped; a checkpoint is whole or refused."""

import json
import re
import signal

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback

from rlhf_ext import PPOTrainer
from rlhf_ext.trainer.checkpoint import damage, rollout_file, run_state_file

KINDS = [
    ("full", "model"),
    ("full", "head"),
    ("lora", "adapter"),
    ("lora", "head"),
    ("lora", "model"),
    ("start", "adapter"),
]
PROMPTS = Dataset.from_dict({"prompt": [f"Say {'a' * (i % 5)} {i}" for i in range(16)]})
# 2 rollouts of 4 steps are an epoch, a save falls on every step, a log line on every fifth.
RUN = {
    "max_steps": 20, "save_strategy": "steps", "save_steps": 1, "logging_steps": 5, "kl_target": 0.5,
    "kl_unit": "sequence", "kl_controller": "multiplicative",
}  # fmt: skip


def code_points(completions, **_):
    return [sum(ord(character) % 7 for character in text) / 10 for text in completions]


def lora(**overrides):
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "lora_dropout": 0.1}
    return LoraConfig(**{**settings, **overrides})


def trainer_of(policy, args, path, reward=code_points, data=PROMPTS, **kwargs):
    """A trainer of a whole model, of a new adapter, or of an adapter to start from, which is then the reference."""
    model = path
    if policy == "start":
        torch.manual_seed(0)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(path), lora(init_lora_weights=False))
        kwargs["processing_class"] = AutoTokenizer.from_pretrained(path)
    return PPOTrainer(model, reward, args, data, peft_config=lora() if policy == "lora" else None, **kwargs)


def rows(trainer):
    seconds = re.compile("time/|step_time|.*_runtime|.*_per_second")
    return [{k: v for k, v in row.items() if not seconds.match(k)} for row in trainer.state.log_history]


def assert_same_run(whole, resumed):
    assert len(rows(whole)) == len(rows(resumed))
    for a, b in zip(rows(whole), rows(resumed), strict=True):
        assert a == b
    state = resumed.model.state_dict()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert whole.kl_controller.state_dict() == resumed.kl_controller.state_dict()


@pytest.fixture
def checkpoint(tiny_policy_path, ppo_config, tmp_path):
    """The third of four steps on a rollout; also a run to save it in."""
    args = ppo_config(**RUN | {"max_steps": 3, "output_dir": str(tmp_path / "run")})
    PPOTrainer(tiny_policy_path, code_points, args, PROMPTS).train()
    return tmp_path / "run" / "checkpoint-3"


@pytest.mark.parametrize(("policy", "critic"), KINDS)
def test_a_resumed_run_is_the_run_never_stopped(policy, critic, tiny_policy_path, ppo_config, tmp_path):
    def run(folder, **kwargs):
        save = {"save_strategy": "no"} if kwargs else {}
        args = ppo_config(**RUN | save, output_dir=str(tmp_path / folder), critic=critic)
        trainer = trainer_of(policy, args, tiny_policy_path)
        trainer.train(**kwargs)
        return trainer

    whole = run("whole")
    assert {"kl/beta", "loss", "num_tokens", "grad_norm"} <= set(rows(whole)[0])
    # In the first epoch, at its end, and in the third.
    for step in (6, 8, 17):
        folder = tmp_path / "whole" / f"checkpoint-{step}"
        assert (folder / rollout_file(0)).is_file() == (step % 4 != 0)
        assert_same_run(whole, run(f"from-{step}", resume_from_checkpoint=str(folder)))


def test_accumulation_evaluation_and_several_answers_resume(tiny_policy_path, ppo_config, tmp_path):
    settings = RUN | {
        "gradient_accumulation_steps": 2, "steps_per_generation": 4, "num_generations": 2, "max_steps": 10,
        "eval_strategy": "steps", "eval_steps": 3, "logging_steps": 2, "per_device_eval_batch_size": 4,
        "lr_scheduler_type": "cosine", "warmup_steps": 2,
    }  # fmt: skip

    def run(folder, **kwargs):
        args = ppo_config(**settings, output_dir=str(tmp_path / folder))
        trainer = PPOTrainer(tiny_policy_path, code_points, args, PROMPTS, eval_dataset=PROMPTS.select(range(4)))
        trainer.train(**kwargs)
        return trainer

    whole = run("whole")
    assert sum("eval_kl/ref" in row for row in rows(whole)) == 4
    for step in (3, 7):
        resumed = run(f"from-{step}", resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert_same_run(whole, resumed)


def test_a_stream_resumes_in_its_first_pass_and_is_refused_after_it(tiny_policy_path, ppo_config, tmp_path):
    def run(folder, prompts, **kwargs):
        args = ppo_config(**RUN | {"max_steps": 12}, output_dir=str(tmp_path / folder))
        trainer = PPOTrainer(tiny_policy_path, code_points, args, prompts.to_iterable_dataset())
        trainer.train(**kwargs)
        return trainer

    longer = Dataset.from_dict({"prompt": [f"Say {i}" for i in range(32)]})
    whole = run("long", longer)
    for step in (3, 8):
        assert_same_run(
            whole, run(f"from-{step}", longer, resume_from_checkpoint=str(tmp_path / f"long/checkpoint-{step}"))
        )
    run("short", PROMPTS)
    with pytest.raises(ValueError, match="read to its end 1 times"):
        run("again", PROMPTS, resume_from_checkpoint=str(tmp_path / "short/checkpoint-10"))


class InterruptOnce(TrainerCallback):
    """Ctrl-C between the micro-batches of the tenth optimizer step."""

    interrupted = False

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == 9 and not self.interrupted:
            self.interrupted = True
            raise KeyboardInterrupt


def test_a_trainer_that_was_interrupted_resumes_in_the_same_object(tiny_policy_path, ppo_config, tmp_path):
    def make(folder, callbacks):
        changes = {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "max_steps": 12, "save_steps": 3}
        args = ppo_config(**RUN | changes, output_dir=str(tmp_path / folder))
        return PPOTrainer(tiny_policy_path, code_points, args, PROMPTS, callbacks=callbacks)

    whole = make("whole", [])
    whole.train()
    trainer = make("run", [InterruptOnce()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.train(resume_from_checkpoint=True)
    assert_same_run(whole, trainer)


# ---- Completeness ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["_save_rng_state", "_save_run_state"])
def test_a_crash_while_saving_leaves_no_checkpoint(moment, tiny_policy_path, ppo_config, tmp_path, monkeypatch):
    args = ppo_config(**RUN | {"max_steps": 4, "output_dir": str(tmp_path)})
    trainer = PPOTrainer(tiny_policy_path, code_points, args, PROMPTS)
    save = getattr(trainer, moment)

    def crash(folder):
        save(folder)
        if trainer.state.global_step == 3:
            raise OSError("No space left on device")

    monkeypatch.setattr(trainer, moment, crash)
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    assert (tmp_path / "_saving" / "checkpoint-3" / "optimizer.pt").is_file()
    assert not (tmp_path / "checkpoint-3").exists()
    again = PPOTrainer(tiny_policy_path, code_points, args, PROMPTS)
    again.train(resume_from_checkpoint=True)
    assert again._checkpoint == str(tmp_path / "checkpoint-2")
    assert damage(str(tmp_path / "checkpoint-3")) is None and not (tmp_path / "_saving").exists()


def test_every_file_of_a_checkpoint_is_missed_by_its_name(checkpoint, tiny_policy_path, ppo_config):
    assert damage(str(checkpoint)) is None
    names = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
    assert {
        "model.safetensors",
        "critic/value_head.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
    } <= names
    assert {"trainer_state.json", "kl_control.json", run_state_file(0), rollout_file(0)} <= names
    for name in sorted(names):
        path = checkpoint / name
        content = path.read_bytes()
        path.unlink()
        assert f"`{name}`" in damage(str(checkpoint))
        path.write_bytes(content[: len(content) // 2])
        assert f"`{name}`" in damage(str(checkpoint)), name
        path.write_bytes(content)
    trainer = PPOTrainer(tiny_policy_path, code_points, ppo_config(**RUN), PROMPTS)
    (checkpoint / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-3`: `optimizer.pt` is missing"):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    with pytest.raises(ValueError, match="there is no such folder"):
        trainer.train(resume_from_checkpoint=str(checkpoint / "no"))


def test_content_of_the_right_length_is_looked_at(checkpoint):
    for name, message in (
        ("model.safetensors", "is not a safetensors file"),
        ("kl_control.json", "is not valid JSON"),
    ):
        content = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(b"\xff" * 20 + content[20:])
        assert f"`{name}` {message}" in damage(str(checkpoint))
        (checkpoint / name).write_bytes(content)


def test_a_damaged_checkpoint_is_passed_over_only_when_asked(checkpoint, tiny_policy_path, ppo_config):
    (checkpoint / "rng_state.pth").write_bytes(b"")

    def resume(**overrides):
        args = ppo_config(**RUN | {"max_steps": 4, "output_dir": str(checkpoint.parent)} | overrides)
        trainer = PPOTrainer(tiny_policy_path, code_points, args, PROMPTS)
        trainer.train(resume_from_checkpoint=True)
        return trainer

    with pytest.raises(ValueError, match=r"`rng_state.pth` has 0 bytes"):
        resume()
    assert resume(skip_damaged_checkpoints=True)._checkpoint == str(checkpoint.parent / "checkpoint-2")
    for folder in checkpoint.parent.glob("checkpoint-*"):
        (folder / "rng_state.pth").unlink()
    with pytest.raises(ValueError, match="None of the 4 checkpoints"):
        resume(skip_damaged_checkpoints=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_iterations": 3}, "num_iterations was 2 and is 3"),
        ({"per_device_train_batch_size": 2, "steps_per_generation": 4}, "steps_per_generation was 2 and is 4"),
        ({"beta": 0.3}, "beta was 'auto' and is 0.3"),
        ({"rows": 15}, "rows of the data was 16 and is 15"),
        ({"kl_target": 1.0}, "target=0.5, this run has target=1.0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_run_that_cannot_continue_a_checkpoint_is_refused(change, message, checkpoint, tiny_policy_path, ppo_config):
    data = PROMPTS.select(range(change.pop("rows", 16)))
    trainer = PPOTrainer(tiny_policy_path, code_points, ppo_config(**RUN | change), data)
    with pytest.raises(ValueError, match=message):
        trainer.train(resume_from_checkpoint=str(checkpoint))


def test_a_checkpoint_of_another_trainer_or_of_the_model_alone_is_refused(tiny_policy_path, ppo_config, tmp_path):
    args = ppo_config(**RUN | {"max_steps": 1, "save_only_model": True, "output_dir": str(tmp_path)})
    trainer = PPOTrainer(tiny_policy_path, code_points, args, PROMPTS)
    trainer.train()
    with pytest.raises(ValueError, match="saved by another trainer or with save_only_model=True"):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("given", "taken"), [("true", True), ("False", False), ("out/checkpoint-3", "out/checkpoint-3")]
)
def test_the_command_line_can_ask_for_the_newest_checkpoint(given, taken, ppo_config):
    assert ppo_config(resume_from_checkpoint=given).resume_from_checkpoint == taken


@pytest.mark.parametrize("given", ["as the program does", "to train", "as an instance"])
def test_a_run_is_not_continued_with_its_own_policy_as_reference(given, checkpoint, tiny_tokenizer, ppo_config):
    settings = RUN | {"max_steps": 4, "output_dir": str(checkpoint.parent)}
    if given == "as the program does":
        # No tokenizer and no weights: nothing is loaded before.
        for name in ("model.safetensors", "tokenizer.json"):
            (checkpoint.parent / "checkpoint-2" / name).unlink()
        args = ppo_config(**settings, resume_from_checkpoint="true")
        with pytest.raises(ValueError, match=r"checkpoint-2` was saved by the run .* began with \(.*tiny-policy\)"):
            PPOTrainer(str(checkpoint.parent / "checkpoint-2"), code_points, args, PROMPTS)
        return
    model = AutoModelForCausalLM.from_pretrained(checkpoint) if given == "as an instance" else str(checkpoint)
    trainer = PPOTrainer(model, code_points, ppo_config(**settings), PROMPTS, processing_class=tiny_tokenizer)
    with pytest.raises(ValueError, match=r"checkpoint-3` was saved by the run that is to be continued"):
        trainer.train(resume_from_checkpoint=True)


def test_a_run_that_began_with_a_checkpoint_of_another_in_its_folder_goes_on(checkpoint, ppo_config):
    def run(folder, **kwargs):
        args = ppo_config(**RUN | {"max_steps": 5, "save_steps": 4, "output_dir": str(checkpoint.parent)})
        trainer = PPOTrainer(str(folder / "checkpoint-2"), code_points, args, PROMPTS)
        trainer.train(**kwargs)
        return trainer

    whole = run(checkpoint.parent)
    # Also when everything has been moved.
    moved = checkpoint.parent.rename(checkpoint.parent.with_name("moved"))
    assert_same_run(whole, run(moved, resume_from_checkpoint=str(moved / "checkpoint-4")))


# ---- What Trainer does with checkpoints -----------------------------------------------------------------------------


def test_rotation_best_checkpoint_and_pushes_see_finished_folders(tiny_policy_path, ppo_config, tmp_path, monkeypatch):
    pushed = []

    def push(self, folder):
        assert damage(folder) is None
        pushed.append(folder)

    monkeypatch.setattr(Trainer, "_push_from_checkpoint", push)
    monkeypatch.setattr(Trainer, "init_hf_repo", lambda self: None)
    settings = RUN | {"max_steps": 4, "save_total_limit": 2, "eval_strategy": "steps", "eval_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "objective/score", "greater_is_better": False}
    args = ppo_config(**settings, **best, output_dir=str(tmp_path), save_only_model=False)
    trainer = PPOTrainer(tiny_policy_path, code_points, args, PROMPTS, eval_dataset=PROMPTS.select(range(4)))
    trainer.args.push_to_hub = True
    trainer.train()
    scores = {row["step"]: row["eval_objective/score"] for row in trainer.state.log_history if "eval_kl/ref" in row}
    lowest = str(tmp_path / f"checkpoint-{min(scores, key=scores.get)}")
    kept = {str(path) for path in tmp_path.glob("checkpoint-*")}
    assert kept == {lowest, str(tmp_path / "checkpoint-4")} or kept == {lowest, str(tmp_path / "checkpoint-3")}
    assert pushed == [str(tmp_path / f"checkpoint-{step}") for step in (1, 2, 3, 4)]
    assert trainer.state.best_model_checkpoint == lowest
    assert json.loads((tmp_path / "checkpoint-4/trainer_state.json").read_text())["best_model_checkpoint"] == lowest


def test_a_checkpoint_of_the_same_step_is_replaced(checkpoint, tiny_policy_path, ppo_config):
    (checkpoint / "stale").write_text("")
    args = ppo_config(**RUN | {"max_steps": 3, "output_dir": str(checkpoint.parent)})
    PPOTrainer(tiny_policy_path, code_points, args, PROMPTS).train()
    assert damage(str(checkpoint)) is None and not (checkpoint / "stale").exists()
    assert not (checkpoint.parent / "_saving").exists()


# ---- SIGTERM --------------------------------------------------------------------------------------------------------


def test_sigterm_saves_says_how_to_go_on_and_exits(tiny_policy_path, ppo_config, tmp_path, capsys):
    calls = []

    def terminated(completions, **_):
        calls.append(None)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return code_points(completions)

    settings = {**RUN, "save_strategy": "no"}
    whole = PPOTrainer(tiny_policy_path, code_points, ppo_config(**settings), PROMPTS)
    whole.train()
    args = ppo_config(**settings, output_dir=str(tmp_path / "run"))
    before = signal.getsignal(signal.SIGTERM)
    terminated.__name__ = "code_points"
    trainer = PPOTrainer(tiny_policy_path, terminated, args, PROMPTS)
    with pytest.raises(SystemExit) as exit:
        trainer.train()
    assert exit.value.code == 143 and signal.getsignal(signal.SIGTERM) is before
    assert "Saved step 5 in" in capsys.readouterr().err
    resumed = PPOTrainer(tiny_policy_path, code_points, args, PROMPTS)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)


def test_sigterm_promises_no_resume_of_a_model_alone(tiny_policy_path, ppo_config, tmp_path, capsys):
    def terminated(completions, **_):
        signal.raise_signal(signal.SIGTERM)
        return code_points(completions)

    args = ppo_config(**RUN | {"save_only_model": True, "output_dir": str(tmp_path)})
    with pytest.raises(SystemExit):
        PPOTrainer(tiny_policy_path, terminated, args, PROMPTS).train()
    said = capsys.readouterr().err
    assert "Saved step 1 in" in said and "no run can be resumed" in said and "To go on" not in said
