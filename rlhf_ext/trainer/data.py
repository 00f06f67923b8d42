"""Loads the data of the training programs."""

from pathlib import Path

from datasets import (
    Dataset,
    DatasetDict,
    IterableDataset,
    IterableDatasetDict,
    ReadInstruction,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

_FILE_SUFFIXES = (".json", ".jsonl")


def load_data(
    name: str | None, split: str = "train", config: str | None = None, streaming: bool = False
) -> Dataset | IterableDataset:
    """
    Load one split of a dataset from a file, a folder or the Hub.

    Args:
        name (`str`):
            One of: a `.jsonl` or `.json` file, which has the one split `train`; a folder written by
            [`~datasets.Dataset.save_to_disk`]; a folder of data files such as `train.jsonl` and `test.jsonl`; a
            dataset id of the Hub.
        split (`str`, *optional*, defaults to `"train"`):
            Split, or a slice or sum of splits: `"train[:90%]"`, `"train[90%:]"`, `"train+validation"`.
        config (`str`, *optional*):
            Configuration of a Hub dataset.
        streaming (`bool`, *optional*, defaults to `False`):
            Give an iterable dataset that is read while it is used. Slices and sums of splits are then not possible.

    Returns:
        [`~datasets.Dataset`], or [`~datasets.IterableDataset`] with `streaming`.

    Raises:
        `FileNotFoundError`: if `name` is a path of nothing.
        `ValueError`: if `name` is not given, the file is not JSON, there is no such split, or the split is empty.
    """
    if not name:
        raise ValueError("dataset_name is not set; give a .jsonl or .json file, a folder, or a dataset id of the Hub")
    dataset = _select(_load_splits(name, config, streaming), split, name)
    empty = next(iter(dataset), None) is None if streaming else len(dataset) == 0
    if empty:
        raise ValueError(f"split {split!r} of dataset {name!r} is empty; choose another split or dataset_name")
    return dataset


def _load_splits(name: str, config: str | None, streaming: bool) -> DatasetDict | IterableDatasetDict:
    path = Path(name).expanduser()
    if path.suffix in _FILE_SUFFIXES:
        return _load_file(path, streaming)
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        splits = _load_saved(path)
        return IterableDatasetDict({k: v.to_iterable_dataset() for k, v in splits.items()}) if streaming else splits
    if path.is_file():
        raise ValueError(f"dataset_name: {str(path)!r} is not read. Give a .jsonl or .json file, one object a line")
    if path.is_dir():
        return load_dataset(str(path), name=config, streaming=streaming)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise FileNotFoundError(
            f"dataset_name: there is no folder {name!r}. Give a .jsonl or .json file, a folder, or a dataset id of the Hub"
        )
    try:
        return load_dataset(name, name=config, streaming=streaming)
    except (OSError, DatasetNotFoundError) as error:
        raise ConnectionError(
            f"dataset_name={name!r}: there is no folder of that name here, and the Hub did not give it ({error}). Check "
            f"the name; for a private or gated dataset log in with `hf auth login`; without a network, download it before "
            f"(`hf download --repo-type dataset {name}`)"
        ) from error


def _load_saved(path: Path) -> DatasetDict:
    try:
        loaded = load_from_disk(str(path))
    except IndexError as error:
        # A dataset saved without rows has no files of rows, and `datasets` fails to put none of them together.
        raise ValueError(f"dataset_name: the dataset saved in {str(path)!r} (or a split of it) is empty") from error
    return loaded if isinstance(loaded, DatasetDict) else DatasetDict(train=loaded)


def _load_file(path: Path, streaming: bool) -> DatasetDict | IterableDatasetDict:
    if not path.is_file():
        made = (
            " The recipe reads what `rlhf-ext demo` writes; run that first." if path.parts[:1] == ("demo_run",) else ""
        )
        raise FileNotFoundError(
            f"dataset_name: there is no file {str(path)!r} in {str(Path.cwd())!r}; give a .jsonl or .json file, a folder "
            f"that `save_to_disk` wrote, or the id of a dataset on the Hub.{made}"
        )
    with path.open("rb") as file:
        if not any(line.strip() for line in file):
            raise ValueError(f"dataset_name: the file {str(path)!r} is empty")
    try:
        return load_dataset("json", data_files=str(path), streaming=streaming)
    except (DatasetGenerationError, ValueError) as error:
        # `datasets` 4 lets the error of the JSON reader through.
        raise ValueError(
            f"dataset_name: {str(path)!r} cannot be read as JSON lines (one object a line, the same columns and types "
            f"in each): {error.__cause__ or error}"
        ) from error


def _select(splits: DatasetDict | IterableDatasetDict, split: str, name: str) -> Dataset | IterableDataset:
    if split in splits:
        return splits[split]
    if isinstance(splits, IterableDatasetDict):
        raise ValueError(f"dataset {name!r} has no split {split!r} to stream; its splits are: {', '.join(splits)}")
    lengths = {key: len(dataset) for key, dataset in splits.items()}
    try:
        parts = ReadInstruction.from_spec(split).to_absolute(lengths)
    except ValueError as error:
        raise ValueError(
            f"dataset {name!r} has no split {split!r} ({error}); its splits are: {', '.join(splits)}. A part of a "
            "split is written like train[:90%] or train[90%:]"
        ) from error
    return concatenate_datasets([splits[part.splitname].select(range(part.from_, part.to)) for part in parts])
