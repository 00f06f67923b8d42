"""What `diagnostics="act"` does to a run: each lever moves what it says, survives a resume, and never the rest."""

import json
import math
from itertools import pairwise

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerControl

from rlhf_ext import PPOTrainer
from rlhf_ext.diagnostics.remedies import Action, Remediation
from rlhf_ext.trainer.callbacks import JOURNAL_FILE


def spread(completions, **_):
    return [sum(ord(character) % 7 for character in text) / 10 for text in completions]


def action(lever, value, since=0, mode="M1"):
    return Action(lever, value, mode, "a reason", since, 1, "kl_ref_seq", 1.0)


def scripted(monkeypatch, plan):
    """The decisions of a run: rollout -> actions."""

    def decide(self, diagnostics):
        actions = plan.get(diagnostics.history.rows, [])
        for each in actions:
            self.factors[each.lever] = each.value
        return actions

    monkeypatch.setattr(Remediation, "decide", decide)


class Watch(TrainerCallback):
    """Parameters and learning rates after every optimizer step."""

    def __init__(self):
        self.weights, self.rates = [], []

    def on_step_begin(self, args, state, control, optimizer, **_):
        self.rates.append([group["lr"] for group in optimizer.param_groups])

    def on_step_end(self, args, state, control, model, **_):
        self.weights.append(torch.cat([p.detach().flatten().clone() for p in model.parameters()]))


def run(policy, prompts, args, watch=None, **train):
    trainer = PPOTrainer(policy, spread, args, prompts, callbacks=[watch] if watch else None)
    trainer.train(**train)
    return trainer


def ledger(folder):
    lines = map(json.loads, (folder / JOURNAL_FILE).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["kind"] == "action"]


def test_rates_and_beta_move_by_their_factors_and_are_in_the_ledger(
    tiny_policy_path, prompts, ppo_config, tmp_path, monkeypatch
):
    plan = {2: [action("policy_lr", 0.5)], 3: [action("critic_lr", 0.25), action("beta", 3.0)]}
    scripted(monkeypatch, plan)
    settings = {"beta": 0.1, "max_steps": 16, "critic_learning_rate": 2e-3}
    acting, plain = Watch(), Watch()
    trainer = run(tiny_policy_path, prompts, ppo_config(diagnostics="act", **settings), acting)
    run(tiny_policy_path, prompts, ppo_config(**settings), plain)
    assert len(acting.rates[0]) == 4  # policy and critic, each with and without weight decay
    for step, (mine, theirs) in enumerate(zip(acting.rates, plain.rates, strict=True)):
        policy, critic = 0.5 if step >= 8 else 1.0, 0.25 if step >= 12 else 1.0
        assert mine == pytest.approx([theirs[0] * policy, theirs[1] * policy, theirs[2] * critic, theirs[3] * critic])
    betas = [row["kl/beta"] for row in trainer.state.log_history if "kl/beta" in row]
    assert betas == pytest.approx([0.1, 0.1, 0.1, 0.3])
    rows = ledger(tmp_path / "out")
    assert [(row["step"], row["action"]["lever"]) for row in rows] == [
        (8, "policy_lr"),
        (12, "critic_lr"),
        (12, "beta"),
    ]
    assert rows[0]["result"].startswith("learning rate")
    assert rows[2]["result"] == "kl/beta 0.1 -> 0.3"


def test_a_slip_in_the_critics_rate_is_set_right_before_the_first_step(
    tiny_policy_path, prompts, ppo_config, tmp_path
):
    settings = {"lr_scheduler_type": "constant", "learning_rate": 1e-3, "critic_learning_rate": 0.1}
    watch = Watch()
    run(tiny_policy_path, prompts, ppo_config(diagnostics="act", max_steps=4, **settings), watch)
    assert [max(rates) for rates in watch.rates] == pytest.approx([1e-3] * 4)
    (line,) = ledger(tmp_path / "out")
    assert (line["action"]["mode"], line["result"]) == ("X17", "learning rate 0.1 -> 0.001")

    advised = Watch()
    run(tiny_policy_path, prompts, ppo_config(max_steps=4, **settings), advised)
    assert {max(rates) for rates in advised.rates} == {0.1}


def test_an_update_ends_once_its_kl_is_too_large(tiny_policy_path, prompts, ppo_config, monkeypatch):
    scripted(monkeypatch, {1: [action("update_kl", 1e-9)], 2: [action("update_kl", math.inf)]})
    watch = Watch()
    trainer = run(
        tiny_policy_path, prompts, ppo_config(diagnostics="act", beta=0.1, max_steps=12, logging_steps=1), watch
    )
    moved = [not torch.equal(a, b) for a, b in pairwise(watch.weights)]
    # Steps 2 to 12. In the second rollout (steps 5 to 8) the KL is rounding in the first pass and more after it: the step
    # that measures it is taken, the next is not.
    assert moved[:3] == [True] * 3
    assert moved[3:7] == [True, True, False, False]
    assert moved[7:] == [True] * 4
    norms = [row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row]
    assert norms[6] == norms[7] == norms[5] > 0


@pytest.mark.parametrize("stop_at", [6, 7, 9])
def test_a_resumed_run_goes_on_with_its_levers_where_they_stood(
    tiny_policy_path, prompts, ppo_config, tmp_path, monkeypatch, stop_at
):
    plan = {
        1: [action("update_kl", 0.0), action("policy_lr", 0.5)],
        2: [action("beta", 2.0), action("critic_lr", 5.0)],
    }
    scripted(monkeypatch, plan)
    settings = {"diagnostics": "act", "beta": 0.1, "max_steps": 12, "save_strategy": "steps", "save_steps": stop_at}
    whole = run(tiny_policy_path, prompts, ppo_config(output_dir=str(tmp_path / "whole"), **settings))
    folder = tmp_path / "whole" / f"checkpoint-{stop_at}"
    resumed = run(
        tiny_policy_path,
        prompts,
        ppo_config(output_dir=str(tmp_path / "resumed"), **settings),
        resume_from_checkpoint=str(folder),
    )
    for (name, expected), actual in zip(
        whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(expected, actual), name
    assert resumed.kl_controller.state_dict() == whole.kl_controller.state_dict()
    norms = [[row.get("grad_norm") for row in trainer.state.log_history] for trainer in (whole, resumed)]
    assert norms[0] == norms[1]


def test_a_stopped_run_ends_with_the_checkpoint_from_before_the_failure(
    tiny_policy_path, prompts, ppo_config, tmp_path, monkeypatch
):
    scripted(monkeypatch, {3: [action("stop", 1.0, since=10)]})
    settings = {"beta": 0.1, "save_strategy": "steps"}
    # What an earlier run left in the folder is not this run's.
    run(tiny_policy_path, prompts, ppo_config(max_steps=9, save_steps=9, **settings))
    trainer = run(tiny_policy_path, prompts, ppo_config(diagnostics="act", max_steps=40, save_steps=4, **settings))
    assert trainer.state.global_step == 12
    trainer.save_model()
    saved, best = (
        load_file(path)
        for path in (tmp_path / "out" / "model.safetensors", tmp_path / "out" / "checkpoint-8" / "model.safetensors")
    )
    assert saved.keys() == best.keys()
    assert all(torch.equal(saved[name], best[name]) for name in best)
    assert ledger(tmp_path / "out")[0]["result"] == "training stops with the policy of checkpoint-8"
    # The next run of the same trainer ends with its own policy.
    trainer.args.max_steps = 8
    trainer.train()
    last = load_file(tmp_path / "out" / "checkpoint-8" / "model.safetensors")
    assert trainer.state.global_step == 8
    assert all(torch.equal(trainer.model.state_dict()[name], last[name]) for name in last)


def test_a_stopped_run_ends_with_the_best_quality_where_that_was_probed(
    tiny_policy_path, prompts, ppo_config, tmp_path, monkeypatch
):
    scripted(monkeypatch, {5: [action("stop", 1.0, since=4)]})
    qualities = iter([1.0, 2.0, 9.0, -9.0, -9.0])

    def judge(completions, **_):
        quality = next(qualities)
        return [quality] * len(completions)

    args = ppo_config(
        diagnostics="act", beta=0.1, max_steps=40, save_strategy="steps", save_steps=4, save_total_limit=2,
        probe_every=1, probe_size=2,
    )  # fmt: skip
    trainer = PPOTrainer(tiny_policy_path, spread, args, prompts, eval_dataset=prompts, quality_fn=judge)
    trainer.train()
    # Means of the last three probes: 1, 1.5, 4 (the best, at step 12), 0.7, -3.
    assert trainer.state.best_global_step == 12
    assert trainer.state.best_metric == 4.0
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-20"]
    assert ledger(tmp_path / "out")[-1]["result"] == "training stops with the policy of checkpoint-12"
    # A run that is resumed from the best one knows that it is the best.
    state = json.loads((tmp_path / "out" / "checkpoint-12" / "trainer_state.json").read_text())
    assert state["best_metric"] == 4.0
    assert state["best_model_checkpoint"] == str(tmp_path / "out" / "checkpoint-12")


def test_a_lever_that_the_run_lacks_is_left_alone(tiny_policy_path, prompts, ppo_config):
    args = ppo_config(diagnostics="act", beta=0.0, max_steps=4)
    trainer = run(tiny_policy_path, prompts, args)
    levers, control = trainer.diagnostics.apply, TrainerControl()
    assert levers(action("beta", 2.0), control) == "not possible: the run has no KL penalty (beta=0)"
    assert trainer.diagnostics.remediation.disabled == {"beta": "the run has no KL penalty (beta=0)"}
    trainer.lr_scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(trainer.optimizer)
    assert "ReduceLROnPlateau does not take a factor" in levers(action("policy_lr", 0.7), control)
    assert levers(action("stop", 1.0, since=2), control).endswith("there is no checkpoint from before")
    assert control.should_training_stop


def test_a_stopped_run_of_adapters_ends_with_policy_and_critic_of_the_checkpoint(
    tiny_policy_path, prompts, ppo_config, tmp_path, monkeypatch
):
    scripted(monkeypatch, {3: [action("stop", 1.0, since=10)]})
    args = ppo_config(diagnostics="act", beta=0.1, max_steps=40, save_strategy="steps", save_steps=4)
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = PPOTrainer(tiny_policy_path, spread, args, prompts, peft_config=adapter)
    trainer.train()
    trainer.save_model()
    files = sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").glob("*/*.safetensors"))
    files = [path for path in files if not path.parts[0].startswith("checkpoint")] + ["adapter_model.safetensors"]
    assert len(files) > 1
    for name in files:
        saved, best, last = (
            load_file(tmp_path / "out" / folder / name) for folder in ("", "checkpoint-8", "checkpoint-12")
        )
        assert all(torch.equal(saved[key], best[key]) for key in best)
        assert any(not torch.equal(saved[key], last[key]) for key in last)
