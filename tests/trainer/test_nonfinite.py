"""A loss or gradient that is not finite never reaches the weights, is written down, and the third ends the run."""

import json
import math
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from test_act import Watch, ledger, run, spread

from rlhf_ext import PPOTrainer
from rlhf_ext.trainer.callbacks import JOURNAL_FILE


def broken_loss(monkeypatch, steps):
    """A loss that is not a number at these calls."""
    calls, compute = [], PPOTrainer._compute_loss

    def compute_loss(self, model, inputs):
        loss = compute(self, model, inputs)
        calls.append(1)
        return loss * math.nan if len(calls) in steps else loss

    monkeypatch.setattr(PPOTrainer, "_compute_loss", compute_loss)


def broken_sums(monkeypatch, steps):
    """Sums over an optimizer step that say that its loss is infinite, at these steps."""
    from rlhf_ext.trainer.statistics import UpdateSums

    calls, add = [], UpdateSums.add

    def add_infinity(self, *args):
        add(self, *args)
        calls.append(1)
        if len(calls) in steps:
            self.sums[-1] = math.inf

    monkeypatch.setattr(UpdateSums, "add", add_infinity)


@pytest.mark.parametrize("diagnostics", ["off", "advise", "act"])
@pytest.mark.parametrize("breaks", [broken_loss, broken_sums])
def test_two_steps_are_left_out_and_the_third_ends_the_run_with_a_checkpoint(
    breaks, diagnostics, tiny_policy_path, prompts, ppo_config, tmp_path, monkeypatch
):
    breaks(monkeypatch, {3, 6, 8})
    watch, args = Watch(), ppo_config(diagnostics=diagnostics, beta=0.1, max_steps=12)
    with pytest.raises(RuntimeError, match=r"not finite .*at step 8.*at 2 steps before") as error:
        run(tiny_policy_path, prompts, args, watch)
    moved = [not torch.equal(a, b) for a, b in pairwise(watch.weights)]
    assert moved == [True, False, True, True, False, True, False]  # steps 2 to 8
    # save_strategy is "no", and yet nothing is lost.
    folder = tmp_path / "out" / "checkpoint-8"
    assert str(folder) in str(error.value)
    saved = load_file(folder / "model.safetensors")
    assert all(x.isfinite().all() for x in saved.values())
    names = sorted(path.name for path in (tmp_path / "out" / "_nonfinite").iterdir())
    assert names == [f"step-{n}-rank0.{end}" for n in (3, 6, 8) for end in ("json", "safetensors")]


def test_the_files_hold_the_sequences_of_the_step(tiny_policy_path, prompts, ppo_config, tmp_path, monkeypatch):
    broken_loss(monkeypatch, {5})  # the first half of the third optimizer step
    args = ppo_config(beta=0.1, gradient_accumulation_steps=2, steps_per_generation=4, max_steps=4)
    seen, tokens_of_step = {}, PPOTrainer._tokens_of_step

    def watched(self):
        seen.setdefault(self.state.global_step + 1, self._buffered_inputs)
        return tokens_of_step(self)

    monkeypatch.setattr(PPOTrainer, "_tokens_of_step", watched)
    trainer = run(tiny_policy_path, prompts, args)
    path = tmp_path / "out" / "_nonfinite" / "step-3-rank0"
    tensors = load_file(f"{path}.safetensors")
    # Four micro-batches are two steps, passed over twice: the third step takes the first two of them again.
    for name, x in tensors.items():
        assert torch.equal(x, torch.cat([seen[3][i][name] for i in (0, 1)])), name
    table = json.loads((tmp_path / "out" / "_nonfinite" / "step-3-rank0.json").read_text())
    assert table["reason"] == "The gradient is not finite (its norm is nan)"
    assert len(table["sequences"]) == 8 and table["sequences"][0]["prompt"].startswith("Say ")
    row = tensors["completion_ids"][0][tensors["completion_mask"][0]]
    assert table["sequences"][0]["completion"] == trainer.processing_class.decode(row)
    assert {tuple(sequence["not finite"]) for sequence in table["sequences"]} == {()}


def test_the_numbers_that_are_not_finite_are_named_by_sequence(tiny_policy_path, prompts, ppo_config, tmp_path):
    trainer = PPOTrainer(tiny_policy_path, spread, ppo_config(beta=0.1), prompts)
    prepare = trainer._prepare_inputs

    def with_a_nan(inputs):
        batch = prepare(inputs)
        if trainer._step == 1:
            batch["advantages"][2, 0] = math.nan
        return batch

    trainer._prepare_inputs = with_a_nan
    # The same micro-batch comes again in the second epoch.
    trainer.train()
    assert trainer._steps_left_out == 2
    table = json.loads((tmp_path / "out" / "_nonfinite" / "step-2-rank0.json").read_text())
    assert [sequence["not finite"] for sequence in table["sequences"]] == [[], [], ["advantages"], []]


def test_weights_that_are_not_finite_end_the_run_at_once_and_are_named(
    tiny_policy_path, prompts, ppo_config, tmp_path
):
    trainer = PPOTrainer(tiny_policy_path, spread, ppo_config(beta=0.0, save_steps=1), prompts)
    with torch.no_grad():
        trainer.critic.value_head.linear.bias.fill_(math.nan)
    with pytest.raises(RuntimeError, match=r"weights are not finite: critic\.value_head\.linear\.bias.*step-1-rank0"):
        trainer.train()
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_the_run_goes_on_from_that_checkpoint_and_may_spare_two_more(
    tiny_policy_path, prompts, ppo_config, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        broken_loss(patch, {1, 2, 3})
        with pytest.raises(RuntimeError, match="not finite"):
            run(tiny_policy_path, prompts, ppo_config(beta=0.1))
    with monkeypatch.context() as patch:
        broken_loss(patch, {1, 2})  # steps 4 and 5
        folder = str(tmp_path / "out" / "checkpoint-3")
        trainer = run(tiny_policy_path, prompts, ppo_config(beta=0.1), resume_from_checkpoint=folder)
    assert trainer.state.global_step == 8 and trainer._steps_left_out == 2


def test_a_resumed_run_has_spared_what_the_first_part_did(
    tiny_policy_path, prompts, ppo_config, tmp_path, monkeypatch
):
    settings = {"beta": 0.1, "save_strategy": "steps", "save_steps": 4}
    with monkeypatch.context() as patch:
        broken_loss(patch, {2, 3, 6})
        whole = Watch()
        with pytest.raises(RuntimeError, match="at step 6"):
            run(tiny_policy_path, prompts, ppo_config(**settings), whole)
    broken_loss(monkeypatch, {2})  # step 6
    resumed, folder = Watch(), str(tmp_path / "out" / "checkpoint-4")
    with pytest.raises(RuntimeError, match="at step 6"):
        run(tiny_policy_path, prompts, ppo_config(**settings), resumed, resume_from_checkpoint=folder)
    assert all(torch.equal(a, b) for a, b in zip(whole.weights[4:], resumed.weights, strict=True))


def test_a_disk_that_takes_no_dump_does_not_end_the_run(tiny_policy_path, prompts, ppo_config, tmp_path, monkeypatch):
    broken_loss(monkeypatch, {3})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "_nonfinite").write_text("a file where the folder is to be")
    assert run(tiny_policy_path, prompts, ppo_config(beta=0.1)).state.global_step == 8


def test_steps_left_out_are_logged_and_found(tiny_policy_path, prompts, ppo_config, tmp_path, monkeypatch):
    broken_loss(monkeypatch, {3})
    trainer = run(tiny_policy_path, prompts, ppo_config(beta=0.1))
    rows = [row for row in trainer.state.log_history if "objective/score" in row]
    assert [row["objective/not_finite"] for row in rows] == [1, 0]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    (entry,) = ledger(tmp_path / "out")
    assert (entry["step"], entry["action"]["lever"], entry["action"]["mode"]) == (3, "step", "X1")
    assert entry["action"]["reason"] == "The gradient is not finite (its norm is nan)"
    assert entry["result"].startswith("the step is left out; 1 more may be")
    assert "X1" in {finding.mode for finding in trainer.diagnostics.diagnostics.open_findings}
    assert (tmp_path / "out" / JOURNAL_FILE).is_file()


def test_a_step_left_out_is_counted_where_every_step_has_a_line(tiny_policy_path, prompts, ppo_config, monkeypatch):
    broken_loss(monkeypatch, {3})
    trainer = run(tiny_policy_path, prompts, ppo_config(beta=0.1, max_steps=4, logging_steps=1))
    assert [row.get("objective/not_finite") for row in trainer.state.log_history[:4]] == [0, None, 1, None]
