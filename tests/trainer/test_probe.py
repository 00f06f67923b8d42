"""The quality probe: held-out, on the same prompts each time, within its share of the cost, and without a trace."""

from types import SimpleNamespace

import pytest
import torch

from rlhf_ext import PPOTrainer
from rlhf_ext.trainer.probe import Probe, check_probe


def spread(completions, **_):
    return [sum(ord(character) % 7 for character in text) / 10 for text in completions]


class Judge:
    __name__ = "judge"

    def __init__(self):
        self.calls = []

    def __call__(self, prompts, completions, completion_ids, topic, **_):
        self.calls.append((prompts, completions, topic))
        torch.rand(3)  # a judge that draws takes no random numbers from the training
        return [float(len(text)) for text in completions[:-1]] + [None]


@pytest.fixture
def held_out(prompts):
    return prompts.select(range(24, 32)).add_column("topic", [f"t{i}" for i in range(8)])


def make(policy, prompts, held_out, args, judge):
    return PPOTrainer(policy, spread, args, prompts, eval_dataset=held_out, quality_fn=judge)


def rows_of(trainer):
    times = ("time/", "step_time", "train_", "eval_runtime", "eval_samples_per", "eval_steps_per")
    return [
        {k: v for k, v in row.items() if not k.startswith(("probe/", *times))} for row in trainer.state.log_history
    ]


def test_it_judges_the_same_held_out_prompts_and_leaves_no_trace(tiny_policy_path, prompts, held_out, ppo_config):
    settings = {"beta": 0.1, "max_steps": 16, "eval_strategy": "steps", "eval_steps": 8}
    judge = Judge()
    probed = make(tiny_policy_path, prompts, held_out, ppo_config(probe_every=2, probe_size=3, **settings), judge)
    probed.train()
    plain = PPOTrainer(tiny_policy_path, spread, ppo_config(**settings), prompts, eval_dataset=held_out)
    plain.train()
    assert rows_of(probed) == rows_of(plain)
    assert [call[0] for call in judge.calls] == [["Say aaaa 24", "Say  25", "Say a 26"]] * 2
    assert judge.calls[0][2] == ["t0", "t1", "t2"]
    probes = [row for row in probed.state.log_history if "probe/quality" in row]
    assert [row["step"] for row in probes] == [4, 12]
    for row, (_, completions, _) in zip(probes, judge.calls, strict=True):
        assert row["probe/quality"] == sum(map(len, completions[:-1])) / 2
        # Three answers every two rollouts of eight, nearly all cut off at eight tokens.
        assert row["probe/token_share"] == pytest.approx(3 / 16, rel=0.1)
    assert probed.diagnostics.diagnostics.history.latest("quality") == probes[-1]["probe/quality"]


@pytest.mark.parametrize(
    ("batch", "settings", "expected"),
    [
        (64, {}, (5, 16)),  # 5 % of 5 x 64
        (256, {}, (5, 64)),
        (16, {}, (20, 16)),  # 16 completions are 5 % of 20 x 16
        (16, {"probe_size": 4}, (20, 4)),
        (64, {"probe_every": 10}, (10, 32)),
        (64, {"num_generations": 4, "probe_size": 30}, (5, 28)),
        (32, {"num_generations": 32}, (20, 32)),  # 32 completions of one prompt are 5 % of 20 x 32
    ],
)
def test_it_costs_five_percent_unless_told_otherwise(batch, settings, expected, ppo_config, prompts):
    args = ppo_config(per_device_train_batch_size=batch, steps_per_generation=1, **settings)
    probe = Probe(spread, [{"prompt": "x"}] * 100, args)
    assert (probe.every, probe.size) == expected
    assert len(probe.rows) == probe.size


def test_more_processes_than_held_out_prompts_are_refused_before_a_model_loads(held_out):
    args = SimpleNamespace(world_size=2, probe_every=1, probe_size=None)
    check_probe(spread, held_out.select(range(2)), args)
    with pytest.raises(ValueError, match=r"has 1 prompts; a probe needs one for each of the 2 processes\. Pass more"):
        check_probe(spread, {"first": held_out.select([0]), "second": held_out}, args)


def test_a_judge_that_returns_too_few_is_refused(tiny_policy_path, prompts, held_out, ppo_config):
    def short(completions, **_):
        return [1.0]

    trainer = make(tiny_policy_path, prompts, held_out, ppo_config(probe_size=2), short)
    with pytest.raises(ValueError, match="returned 1 values for 2 completions"):
        trainer.train()


def test_without_a_judge_it_looks_at_the_diversity(tiny_policy_path, prompts, held_out, ppo_config):
    trainer = make(tiny_policy_path, prompts, held_out, ppo_config(probe_every=1, probe_size=2, max_steps=4), None)
    trainer.train()
    (row,) = [row for row in trainer.state.log_history if "objective/score" in row]
    assert "probe/quality" not in row
    assert row["probe/duplicate_fraction"] == 0.0
    assert row["probe/mean_length"] == 8
