"""Mean and standard deviation of a reward model's scores on reference completions, as its report card has them."""

import json
import math
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import nn

from ..report_card import REPORT_CARD_FILE


def read_score_normalization(
    path_or_model: str | Path | nn.Module, **hub_arguments: Any
) -> tuple[float, float] | None:
    """
    Read the numbers that centre and scale the scores of a reward model: (score - mean) / std.

    A model saved by [`RewardTrainer`] has them as `score_mean` and `score_std` in its config. A saved PEFT adapter has
    no config, and there they are under `normalization` in `report_card.json` beside the adapter; the config is read
    first.

    Args:
        path_or_model (`str`, `Path` or `nn.Module`):
            Folder or Hub id of a reward model or of an adapter, or a model that is already loaded. A loaded model is
            asked for its config only: for an adapter, give its folder.
        hub_arguments:
            Passed to [`~huggingface_hub.hf_hub_download`], such as `token` and `cache_dir`.

    Returns:
        `tuple[float, float]`: mean and standard deviation, in units of the score; `None` if none were recorded.

    Raises:
        `ValueError`: if the recorded numbers are not finite, or the standard deviation is not positive.
    """
    if isinstance(path_or_model, nn.Module):
        config = getattr(path_or_model, "config", None)
        stored = {name: getattr(config, name, None) for name in ("score_mean", "score_std")}
        return _checked(stored, f"the config of {type(path_or_model).__name__}")
    from_config = _checked(_read_json(path_or_model, "config.json", hub_arguments), f"the config of {path_or_model}")
    if from_config is not None:
        return from_config
    card = read_report_card(path_or_model, **hub_arguments)
    return _checked(card.get("normalization") or {}, f"the {REPORT_CARD_FILE} of {path_or_model}")


def read_report_card(path_or_id: str | Path, **hub_arguments: Any) -> dict[str, Any]:
    """
    The report card that [`RewardTrainer`] saved beside a reward model, as [`ReportCard.to_dict`] gives it.

    Args:
        path_or_id (`str` or `Path`):
            Folder or Hub id.
        hub_arguments:
            Passed to [`~huggingface_hub.hf_hub_download`], such as `token` and `cache_dir`.

    Returns:
        `dict`: empty where there is none.
    """
    return _read_json(path_or_id, REPORT_CARD_FILE, hub_arguments)


def _checked(stored: dict[str, Any], where: str) -> tuple[float, float] | None:
    mean: Any = stored.get("score_mean")
    std: Any = stored.get("score_std")
    if mean is None and std is None:
        return None
    if not (_is_finite(mean) and _is_finite(std) and std > 0):
        raise ValueError(
            f"{where} holds score_mean = {mean!r} and score_std = {std!r}; both must be finite numbers, and score_std "
            "positive. Remove both, or train the reward model again with an eval_dataset to have them measured."
        )
    return float(mean), float(std)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _read_json(path_or_id: str | Path, filename: str, hub_arguments: dict[str, Any]) -> dict[str, Any]:
    """The JSON file of a folder or Hub repository; empty where there is no such file."""
    path = Path(path_or_id) / filename
    if not Path(path_or_id).is_dir():
        try:
            path = Path(hf_hub_download(str(path_or_id), filename, **hub_arguments))
        except EntryNotFoundError:
            return {}
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
