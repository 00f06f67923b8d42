"""A run of PPOTrainer, read back from what its trackers kept."""

import pytest

from rlhf_ext import PPOConfig, PPOTrainer, diagnose


def test_the_trackers_of_a_run_tell_the_same(tiny_policy_path, tiny_reward_path, tmp_path, monkeypatch):
    from datasets import Dataset

    # transformers has no setting for the folder of the events.
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    config = PPOConfig(
        str(tmp_path / "out"),
        per_device_train_batch_size=2,
        steps_per_generation=2,
        num_iterations=2,
        max_steps=12,
        logging_steps=1,
        max_completion_length=4,
        kl_target=6.0,
        kl_unit="sequence",
        report_to=["tensorboard"],
        save_strategy="steps",
        save_steps=12,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    prompts = Dataset.from_dict({"prompt": [f"Say {i}" for i in range(16)]})
    trainer = PPOTrainer(str(tiny_policy_path), str(tiny_reward_path), config, train_dataset=prompts)
    trainer.train()
    state = diagnose(tmp_path / "out" / "checkpoint-12" / "trainer_state.json")
    events = diagnose(tmp_path / "events")
    assert state.framework == events.framework == "rlhf_ext PPOTrainer"
    # Two optimizer steps a pass, two passes a rollout, one log line each.
    assert state.rollouts == events.rollouts == 12 // config.updates_per_rollout
    assert set(state.curves) == set(events.curves) >= {"kl_ref_seq", "value_loss", "explained_var", "beta", "len_mean"}
    for name, (steps, values) in state.curves.items():
        # Event files hold single precision.
        assert events.curves[name].steps == steps
        assert events.curves[name].values == pytest.approx(values, rel=1e-6, abs=1e-9, nan_ok=True)
    logged = [row for row in trainer.state.log_history if "objective/score" in row]
    assert state.curves["score_mean"].values == [row["objective/score"] for row in logged]
    assert state.unmapped == events.unmapped
    known = events.settings
    assert (known.kl_target, known.kl_unit, known.num_epochs, known.dtype) == (6.0, "sequence", 2, "float32")
