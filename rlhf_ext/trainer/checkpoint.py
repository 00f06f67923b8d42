"""Files of a checkpoint: made complete before they get their name, and checked before they are read."""

import errno
import json
import os
import re
import shutil
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

logger = logging.get_logger(__name__)

# The underscore keeps a half-written checkpoint out of uploads of the output folder, which Trainer makes meanwhile.
STAGING_FOLDER = "_saving"
MANIFEST_FILE = "ppo_checkpoint.json"
VERSION = 1

# With another value the data, the rollout or the micro-batches would not be those that the counters stand for; another
# `beta` would be without effect, since the controller goes on from its own.
FIXED_SETTINGS = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "num_generations",
    "num_iterations",
    "temperature",
    "seed",
    "shuffle_dataset",
    "beta",
)


def run_state_file(rank: int) -> str:
    """Counters and pending logs of one process."""
    return f"ppo_state_{rank}.json"


def rollout_file(rank: int) -> str:
    """The rollout that one process is in the middle of."""
    return f"rollout_{rank}.safetensors"


def save_json(value: Any, path: str) -> None:
    """Write plain values; a column that a reward function logged may hold anything, and is only printed as text."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, default=str)


def read_json(path: str) -> Any:
    """Read what [`save_json`] wrote."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


# ---- The rollout and the logs ---------------------------------------------------------------------------------------


def save_rollout(batches: list[dict[str, torch.Tensor]], path: str) -> None:
    """Write the micro-batches of a rollout, each tensor as `index.name`."""
    tensors = {
        f"{i}.{name}": x.detach().cpu().contiguous() for i, batch in enumerate(batches) for name, x in batch.items()
    }
    save_file(tensors, path)


def load_rollout(path: str, device: torch.device) -> list[dict[str, torch.Tensor]]:
    """The micro-batches that [`save_rollout`] wrote."""
    batches: dict[int, dict[str, torch.Tensor]] = defaultdict(dict)
    for key, tensor in load_file(path).items():
        index, name = key.split(".", 1)
        batches[int(index)][name] = tensor.to(device)
    return [batches[i] for i in range(len(batches))]


def plain_logs(logs: dict[str, Any]) -> dict[str, Any]:
    """The columns of the completions table, some of them grouped by name, as lists."""
    return {k: plain_logs(v) if isinstance(v, dict) else list(v) for k, v in logs.items()}


def fill_logs(logs: dict[str, Any], saved: dict[str, Any]) -> None:
    """Put back what [`plain_logs`] gave, in the bounded columns that `logs` has."""
    for name, column in logs.items():
        column.clear()
        if isinstance(column, deque):
            column.extend(saved[name])
            continue
        for key, values in saved[name].items():
            column[key].extend(values)


# ---- Completing a checkpoint ----------------------------------------------------------------------------------------


def write_manifest(folder: Path, settings: dict[str, Any], model: str, run_folder: str) -> None:
    """
    List the files of a checkpoint that has all of them, the settings that a run must share to continue from it, and the
    id or folder of the model that the run began with.
    """
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in _files(folder)}
    began = _place_in_run(model, run_folder) or model
    save_json({"version": VERSION, "settings": settings, "model": began, "files": files}, str(folder / MANIFEST_FILE))


def publish(staged: Path, final: Path) -> None:
    """
    Give a checkpoint its name, once every process has written its files.

    Everything is flushed to the disk first, so a crash at any moment leaves either no folder of that name, or a whole
    one. A checkpoint of the same step is replaced.

    Args:
        staged (`Path`):
            The complete folder, in a temporary one on the same file system.
        final (`Path`):
            The folder it becomes.
    """
    for path in _files(staged):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    if final.is_dir():
        os.rename(final, staged.parent / "replaced")
    os.rename(staged, final)
    shutil.rmtree(staged.parent)


def is_failed_write(error: Exception) -> bool:
    """Whether a file could not be written, by whichever library."""
    return isinstance(error, OSError | SafetensorError) or "PytorchStreamWriter" in str(error)


def explained(error: Exception, folder: str, step: int) -> OSError:
    """
    What to do about a checkpoint that could not be saved.

    Args:
        error (`Exception`): What was raised.
        folder (`str`): Where the run saves.
        step (`int`): The optimizer step.
    """
    free = shutil.disk_usage(folder).free / 2**30 if os.path.isdir(folder) else 0.0
    whole = _checkpoints(folder)
    last = f"the last whole one is `{whole[0]}`" if whole else "there is no earlier one"
    return OSError(
        getattr(error, "errno", None) or errno.EIO,
        f"The checkpoint of step {step} could not be saved in `{folder}` ({free:.1f} GiB free): {error}. What there is of "
        f"it lies in `{STAGING_FOLDER}` and may be deleted; {last}. Make room (save_total_limit=2 keeps two checkpoints, "
        "save_only_model=True leaves the optimizer out) or correct the permissions, then run the same again with "
        "resume_from_checkpoint=True.",
    )


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# ---- Choosing and checking ------------------------------------------------------------------------------------------


def checkpoint_to_resume(wanted: str | bool, output_dir: str, skip_damaged: bool) -> str:
    """
    The folder to continue from, after a look at every file in it.

    Args:
        wanted (`str` or `True`):
            A folder, or `True` for the newest checkpoint in `output_dir`.
        output_dir (`str`):
            The run's folder.
        skip_damaged (`bool`):
            With `wanted=True`, go back to the newest checkpoint that is whole.

    Raises:
        ValueError: If there is none, or it is damaged; the message names the file.
    """
    candidates = _checkpoints(output_dir) if wanted is True else [str(wanted)]
    if not candidates:
        raise ValueError(
            f"There is no checkpoint in `{output_dir}` to resume from. Start without resume_from_checkpoint."
        )
    for folder in candidates:
        problem = damage(folder)
        if problem is None:
            return folder
        if wanted is not True or not skip_damaged:
            raise ValueError(
                f"Cannot resume from `{folder}`: {problem}. Resume from another checkpoint by its folder, or from the "
                "newest whole one with resume_from_checkpoint=True and skip_damaged_checkpoints=True."
            )
        logger.warning(f"Passing over `{folder}`: {problem}.")
    raise ValueError(
        f"None of the {len(candidates)} checkpoints in `{output_dir}` is whole: the last error is {problem}."
    )


def _checkpoints(folder: str) -> list[str]:
    """Checkpoints of a run, the newest first."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    steps = [int(match[1]) for name in names if (match := re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", name))]
    return [os.path.join(folder, f"{PREFIX_CHECKPOINT_DIR}-{step}") for step in sorted(steps, reverse=True)]


def checkpoint_before(folder: str, step: int, log_history: list[dict[str, float]]) -> str | None:
    """
    The newest checkpoint of a run that was saved before an optimizer step.

    Args:
        folder (`str`): Where the run saves; an earlier run may have saved there too.
        step (`int`): The optimizer step.
        log_history (`list[dict]`): Of the run, on its main process. A checkpoint of another run began with another log.
    """
    for path in _checkpoints(folder):
        state = os.path.join(path, TRAINER_STATE_NAME)
        if int(path.rpartition("-")[2]) >= step or not os.path.isfile(state):
            continue
        log = read_json(state)["log_history"]
        # As text, in which NaN equals NaN.
        if json.dumps(log, sort_keys=True) == json.dumps(log_history[: len(log)], sort_keys=True):
            return path
    return None


def damage(folder: str) -> str | None:
    """What is wrong with a checkpoint, naming the file; `None` if nothing is."""
    if not os.path.isdir(folder):
        return "there is no such folder"
    path = os.path.join(folder, MANIFEST_FILE)
    if not os.path.isfile(path):
        return f"it has no `{MANIFEST_FILE}`, so it was saved by another trainer or with save_only_model=True"
    problem = _json_problem(path)
    if problem is None:
        for name, size in read_json(path)["files"].items():
            problem = _file_problem(os.path.join(folder, name), size)
            if problem is not None:
                return f"`{name}` {problem}"
        return None
    return f"`{MANIFEST_FILE}` {problem}"


def _file_problem(path: str, size: int) -> str | None:
    if not os.path.isfile(path):
        return "is missing"
    if path.endswith(".json"):
        # Users do edit these, so the size says nothing.
        return _json_problem(path)
    if os.path.getsize(path) != size:
        return f"has {os.path.getsize(path)} bytes instead of {size}"
    if path.endswith(".safetensors"):
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            return f"is not a safetensors file ({error})"
    return None


def _json_problem(path: str) -> str | None:
    try:
        read_json(path)
    except ValueError as error:
        return f"is not valid JSON ({error})"
    return None


def _place_in_run(model: str, run_folder: str) -> str | None:
    """Path of a model from the folder of the run that it is in; `None` if it is elsewhere."""
    path = os.path.relpath(os.path.realpath(model), os.path.realpath(run_folder))
    return path if os.path.isdir(model) and not path.startswith(os.pardir) else None


def check_beginning(folder: str, model: str) -> None:
    """
    Refuse to continue a checkpoint with a model that its run has saved instead of the one that it began with.

    Args:
        folder (`str`):
            The checkpoint.
        model (`str`):
            Id or folder that the policy comes from.

    Raises:
        ValueError: If the model is in the run's own folder: the reference would be a policy that is trained already.
    """
    place = _place_in_run(model, os.path.dirname(os.path.abspath(folder)))
    began = read_json(os.path.join(folder, MANIFEST_FILE)).get("model")
    if place is not None and place != began:
        raise ValueError(
            f"`{model}` was saved by the run that is to be continued from `{folder}`. The reference is made from `model`, "
            "so KL would be measured from a policy that is trained already. Pass the model that the run began with"
            f"{f' ({began})' if began else ''}: resuming brings the trained weights back."
        )


def check_settings(folder: str, settings: dict[str, Any]) -> None:
    """
    Refuse a run that cannot continue a checkpoint.

    Raises:
        ValueError: If a setting that both must share differs; the message gives both values.
    """
    manifest = read_json(os.path.join(folder, MANIFEST_FILE))
    if manifest["version"] != VERSION:
        raise ValueError(
            f"`{folder}` has checkpoint version {manifest['version']}, this release reads {VERSION}. Resume with the "
            "release that wrote it."
        )
    saved = manifest["settings"]
    different = [f"{k} was {saved.get(k)!r} and is {v!r}" for k, v in settings.items() if saved.get(k) != v]
    if different:
        raise ValueError(
            f"`{folder}` cannot be continued with these settings: {'; '.join(different)}. Resume with the saved values, or "
            "start a new run from its weights by passing the folder as `model`."
        )
