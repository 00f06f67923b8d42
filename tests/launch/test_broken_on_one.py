"""A loss that is NaN on one process is left out on every process."""

import json
from itertools import pairwise

import broken_on_one
import pytest
from launching import ON_CPU, accelerate, finish, start
from safetensors.torch import load_file

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("config", ["ddp"])
def test_every_process_leaves_the_step_out_and_ends_with_the_checkpoint(config, tiny_policy_path, tmp_path):
    two = accelerate(config, "--num_processes", "2", "--main_process_port", "0")
    program = [broken_on_one.__file__, tiny_policy_path, str(tmp_path)]
    finish(start([*two, ON_CPU, str(tmp_path / "facts.json"), *program]))
    runs = [json.loads((tmp_path / f"run-{rank}.json").read_text()) for rank in (0, 1)]
    for run in runs:
        assert run["step"] == 5 and "checkpoint-5" in run["error"] and "not finite" in run["error"]
        moved = [a != b for a, b in pairwise(run["sums"])]
        assert moved == [False, False, True, False]  # steps 2 to 5
    if config == "ddp":
        assert runs[0]["sums"] == runs[1]["sums"]
    assert all(x.isfinite().all() for x in load_file(tmp_path / "checkpoint-5" / "model.safetensors").values())
    names = {path.name for path in (tmp_path / "_nonfinite").iterdir()}
    assert names == {
        f"step-{step}-rank{rank}.{end}"
        for step in broken_on_one.BROKEN
        for rank in (0, 1)
        for end in ("json", "safetensors")
    }
