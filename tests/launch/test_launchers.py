"""The same run by every launcher: what wraps the model, what is measured, what is saved."""

import json
from pathlib import Path

import numpy as np
import pytest
import scripted
import torch
from launching import CONFIGS, launch, torchrun
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.slow

EXACT = [case for case, settings in scripted.CASES.items() if not settings.get("bf16")]
BF16 = [case for case, settings in scripted.CASES.items() if settings.get("bf16")]
SCRIPTED = scripted.__file__
# The class that wraps the model, the stage of ZeRO, and whether parameters are divided over the processes.
EXPECTED = {
    "ddp": ("DistributedDataParallel", None, False),
    "zero1": ("DeepSpeedEngine", 1, False),
    "zero2": ("DeepSpeedEngine", 2, False),
    "zero3": ("DeepSpeedEngine", 3, True),
    "zero3_offload": ("DeepSpeedEngine", 3, True),
    "fsdp2": ("FSDPModule", None, True),
}


@pytest.fixture(scope="session")
def models(tiny_policy_path, tiny_reward_path, tiny_reward_adapter_path):
    return [tiny_policy_path, tiny_reward_path, tiny_reward_adapter_path]


@pytest.fixture(scope="session")
def alone(models, tmp_path_factory) -> Path:
    """Every exact case in this very process."""
    folder = tmp_path_factory.mktemp("alone")
    policy, *reward_models = models
    for case in EXACT:
        scripted.run(case, policy, reward_models, folder / case)
    return folder


def measured(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def rows(log: list[dict]) -> list[dict]:
    """The logged numbers, without what depends on the machine."""
    timed = ("time/", "step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second")
    return [{name: x for name, x in row.items() if not name.startswith(timed)} for row in log]


def assert_same_log(log: list[dict], expected: list[dict]) -> None:
    for row, reference in zip(rows(log), rows(expected), strict=True):
        assert row.keys() == reference.keys()
        for name, value in reference.items():
            assert row[name] == pytest.approx(value, rel=1e-4, abs=1e-5), (name, reference["step"])


def tokens(rollout: list[dict], name: str) -> np.ndarray:
    """A column of a rollout over all processes, token by token."""
    return np.concatenate([np.concatenate(process[name]) for process in rollout])


def assert_same_rollouts(rollouts: list, expected: list) -> None:
    assert len(rollouts) == len(expected) == scripted.ROLLOUTS
    for rollout, reference in zip(rollouts, expected, strict=True):
        for name in reference[0]:
            np.testing.assert_allclose(tokens(rollout, name), tokens(reference, name), rtol=1e-4, atol=1e-5)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All that a run saved: the policy, and the critic beside it."""
    files = [*folder.glob("*.safetensors"), *(folder / "critic").glob("*.safetensors")]
    return {f"{path.relative_to(folder)}:{k}": v for path in files for k, v in load_file(path).items()}


def assert_same_weights(folder: Path, expected: Path) -> None:
    ours, theirs = weights(folder), weights(expected)
    assert ours.keys() == theirs.keys()
    assert any("value_head" in name for name in ours) and len(ours) > 2
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-5)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.tensor([[5, 6, 7, 8]])).logits


def assert_loads_and_has_learned(folder: Path, policy: str, expected: Path | None) -> None:
    """A plain AutoModelForCausalLM or PeftModel, without anything of ours."""

    def load(path: Path) -> torch.Tensor:
        if (path / "adapter_config.json").is_file():
            return logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(policy), str(path)))
        return logits(AutoModelForCausalLM.from_pretrained(path, dtype="float32"))

    loaded = load(folder)
    assert (loaded - logits(AutoModelForCausalLM.from_pretrained(policy))).abs().max() > 1e-3
    if expected is not None:
        torch.testing.assert_close(loaded, load(expected), rtol=1e-4, atol=1e-4)


def assert_global_statistics(run: dict) -> None:
    """With data that differ between two processes, what is logged is about their union."""
    log = [row for row in run["log"] if "objective/score" in row]
    for row, rollout in zip(log, run["rollouts"], strict=True):
        first, second = (np.concatenate(process["returns"]).mean() for process in rollout)
        assert second - first > 0.5 * tokens(rollout, "returns").std()
        advantages = tokens(rollout, "advantages")
        assert (advantages.mean(), advantages.std()) == pytest.approx((0.0, 1.0), abs=1e-4)
        returns, values = tokens(rollout, "returns"), tokens(rollout, "old_values")
        explained = 1 - (returns - values).var() / returns.var()
        assert row["value/explained_variance"] == pytest.approx(explained, rel=1e-4, abs=1e-5)
        lengths = [len(x) for process in rollout for x in process["returns"]]
        assert row["completions/mean_length"] == pytest.approx(np.mean(lengths))
        # Gamma is 1 and the whole reward is at the last token, where the return is that reward.
        final = [x[-1] for process in rollout for x in process["returns"]]
        assert row["objective/reward"] == pytest.approx(np.mean(final), rel=1e-4)


def assert_all_as_alone(folder: Path, alone: Path, policy: str) -> None:
    for case in EXACT:
        run, reference = measured(folder / case), measured(alone / case)
        assert_same_log(run["log"], reference["log"])
        assert_same_rollouts(run["rollouts"], reference["rollouts"])
        assert_same_weights(folder / case, alone / case)
        assert_loads_and_has_learned(folder / case, policy, alone / case)
    for case in scripted.RESUMED:
        resumed = measured(folder / f"{case}-resumed")
        # The summary at the end is of the steps since the checkpoint.
        assert_same_log(resumed["log"][:-1], measured(alone / case)["log"][:-1])
        assert_same_weights(folder / f"{case}-resumed", alone / case)


def assert_bf16_runs(folder: Path, policy: str) -> None:
    for case in BF16:
        rollout = measured(folder / case)["rollouts"][-1]
        # Both are computed in float32 whatever the weights are kept in, and stay so.
        for name in ("old_values", "old_logprobs"):
            outputs = torch.tensor(tokens(rollout, name), dtype=torch.float32)
            assert (outputs.bfloat16().float() != outputs).float().mean() > 0.5, name
        assert_loads_and_has_learned(folder / case, policy, None)


def test_the_configuration_for_one_process_starts_one(models, alone, tmp_path):
    facts = launch("single", tmp_path, SCRIPTED, *models, str(tmp_path))
    assert {(run["world_size"], run["distributed_type"]) for run in facts} == {(1, "NO")}
    assert_all_as_alone(tmp_path, alone, models[0])


@pytest.mark.parametrize("config", EXPECTED)
def test_two_processes_make_the_run_of_one(config, models, alone, tmp_path):
    facts = launch(config, tmp_path, SCRIPTED, *models, str(tmp_path))
    wrapper, stage, divided = EXPECTED[config]
    assert len(facts) == len(scripted.CASES) + len(scripted.RESUMED)
    for run in facts:
        assert (run["world_size"], run["steps"]) == (2, scripted.ROLLOUTS * scripted.STEPS_PER_ROLLOUT)
        assert wrapper in run["wrapped"]
        assert (run["zero_stage"], run["divided"] > 0) == (stage, divided)
        assert config != "zero3_offload" or run["offload"] == ["cpu", "cpu"]
    assert_all_as_alone(tmp_path, alone, models[0])
    for case in EXACT:
        assert_global_statistics(measured(tmp_path / case))
    assert_bf16_runs(tmp_path, models[0])


def test_a_recipe_that_names_deepspeed_makes_the_run_of_one_with_no_parameter_kept_whole(models, alone, tmp_path):
    config = json.loads((CONFIGS / "deepspeed" / "zero3.json").read_text())
    # By default ZeRO-3 keeps parameters whole that are as small as those of a tiny model.
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (tmp_path / "zero3.json").write_text(json.dumps(config))
    arguments = ["--deepspeed", str(tmp_path / "zero3.json")]
    facts = torchrun(tmp_path, SCRIPTED, *models, str(tmp_path), *arguments)
    assert {(run["world_size"], run["zero_stage"], run["whole"]) for run in facts} == {(2, 3, 0)}
    assert_all_as_alone(tmp_path, alone, models[0])
