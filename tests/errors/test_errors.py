"""Every wrong input of the table gives one message that names the thing, its value and the remedy."""

import pytest
from rows_of_commands import COMMANDS
from rows_of_data import DATA
from rows_of_models import MEMORY, MODELS
from rows_of_runs import LOGS, NO_LOGS, RUNS
from rows_of_settings import SETTINGS

from rlhf_ext.cli import main

TABLE = [*COMMANDS, *SETTINGS, *DATA, *MODELS, *MEMORY, *RUNS, *LOGS]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_a_wrong_input_is_named_with_its_value_and_the_remedy(row, world, no_model_is_loaded):
    if not row.loads:
        no_model_is_loaded()
    with pytest.raises(row.error) as raised:
        row.act(world)
    message = str(raised.value)
    assert [words for words in row.words if words not in message] == [], message


@pytest.mark.parametrize(("name", "content", "words"), NO_LOGS, ids=[name for name, *_ in NO_LOGS])
def test_on_the_command_line_it_is_one_line(name, content, words, world, capsys):
    path = world.file(name, content)
    with pytest.raises(SystemExit) as exit_:
        main(["diagnose", path])
    printed = capsys.readouterr()
    assert exit_.value.code == 2 and not printed.out
    assert printed.err.startswith("rlhf-ext diagnose: error: ") and words in printed.err
    assert printed.err.count("\n") == 1


def test_the_table_has_every_kind_of_wrong_input():
    assert len(TABLE) >= 60 and len({row.name for row in TABLE}) == len(TABLE)
    kinds = ("settings", "launch", "data", "file", "model", "tokenizer", "adapter", "reward", "scores", "checkpoint", "log",
             "Hub", "disk", "memory", "recipe", "command")  # fmt: skip
    assert [kind for kind in kinds if not any(row.name.startswith(f"{kind}:") for row in TABLE)] == []
