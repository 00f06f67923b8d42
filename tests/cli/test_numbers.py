"""Ranges of numbers on the command line."""

from dataclasses import fields

import pytest

from rlhf_ext.cli import main
from rlhf_ext.cli.numbers import real, whole
from rlhf_ext.diagnostics import RunSettings


@pytest.mark.parametrize(
    ("read", "taken", "refused", "bounds"),
    [
        (whole(1), {"1": 1, "007": 7}, ["0", "-1", "1.5", "x", "", "inf"], "a whole number of at least 1, got"),
        (whole(0, 3), {"0": 0, "3": 3}, ["-1", "4"], "a whole number from 0 to 3, got"),
        (real(), {"-1e3": -1000.0, "2": 2.0}, ["inf", "-inf", "nan", "x"], "a number, got"),
        (real(above=0), {"1e-9": 1e-9}, ["0", "-6", "nan", "inf"], "a number above 0, got"),
        (real(at_least=0), {"0": 0.0}, ["-1e-9", "nan", "inf"], "a number of at least 0, got"),
        (real(above=0, below=1), {"0.2": 0.2}, ["0", "1", "5"], "a number above 0 and below 1, got"),
        (real(above=0, or_infinite=True), {"inf": float("inf"), "2": 2.0}, ["0", "-inf", "nan"],
         "a number above 0, or inf, got"),
    ],
)  # fmt: skip
def test_a_number_out_of_its_range_is_refused_with_it(read, taken, refused, bounds):
    assert {text: read(text) for text in taken} == taken
    for text in refused:
        with pytest.raises(Exception, match="must be ") as raised:
            read(text)
        assert str(raised.value) == f"must be {bounds} {text!r}"


WRONG = {
    "planned_rollouts": "0", "kl_target": "-6", "kl_unit": "nats", "kl_controller": "pid", "beta": "-0.1",
    "num_epochs": "1.5", "rollout_size": "-4", "max_completion_length": "0", "epsilon": "5", "learning_rate": "nan",
    "critic_learning_rate": "-1", "critic_warmup_rollouts": "-1", "max_grad_norm": "inf", "entropy_coef": "nan",
    "value_clip_range": "0", "score_clip": "-1", "missing_eos_penalty": "-1", "temperature": "0", "dtype": "fp16",
}  # fmt: skip


@pytest.mark.parametrize("name", [field.name for field in fields(RunSettings)])
def test_no_setting_of_a_diagnosed_run_takes_nonsense(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["diagnose", "run.jsonl", f"--{name}={WRONG[name]}"])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1
    assert error.startswith(f"rlhf-ext diagnose: error: argument --{name}: ") and repr(WRONG[name]) in error
    assert error.endswith("; `rlhf-ext diagnose --help` says what it takes.\n")
