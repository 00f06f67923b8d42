"""The loader of the training programs: files, folders, splits, and what it says when something is missing."""

import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from rlhf_ext import load_data

ROWS = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(10)]


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(params=["jsonl", "json", "saved dataset", "saved splits", "folder of files"])
def source(request, tmp_path) -> str:
    """The ten rows as split `train`, in each kind of place; the last two kinds have a split `test` too."""
    folder = tmp_path / "data"
    if request.param in ("jsonl", "json"):
        return str(write_lines(tmp_path / f"rows.{request.param}", ROWS))
    if request.param == "saved dataset":
        Dataset.from_list(ROWS).save_to_disk(folder)
    elif request.param == "saved splits":
        DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:2])).save_to_disk(folder)
    else:
        write_lines(folder / "train.jsonl", ROWS)
        write_lines(folder / "test.jsonl", ROWS[:2])
    return str(folder)


def test_every_kind_of_source_gives_its_rows_slices_and_streams(source) -> None:
    assert load_data(source).to_list() == ROWS
    assert load_data(source, "train[80%:]").to_list() == ROWS[8:]
    assert load_data(source, "train[:2]+train[-1:]").to_list() == [*ROWS[:2], ROWS[9]]
    assert list(load_data(source, streaming=True)) == ROWS


@pytest.mark.parametrize("streaming", [False, True])
def test_a_missing_split_is_named_with_those_that_exist(source, streaming) -> None:
    with pytest.raises(ValueError, match=r"no split 'validation'.*its splits are: .*train") as error:
        load_data(source, "validation", streaming=streaming)
    assert repr(source) in str(error.value)


def test_an_empty_dataset_is_refused_however_it_was_written(tmp_path) -> None:
    Dataset.from_dict({"prompt": []}).save_to_disk(tmp_path / "none")
    with pytest.raises(ValueError, match=r"none'.*is empty"):
        load_data(str(tmp_path / "none"))
    blank = tmp_path / "blank.jsonl"
    blank.write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        load_data(str(blank), streaming=True)
