"""Models that are not there or damaged are refused by name, before anything of them is loaded."""

from typing import Any

from transformers.utils import find_adapter_config_file

from ..models.scoring import hub_arguments
from ..models.sources import read_config, reading


def trusts_remote_code(args: Any) -> bool:
    """Whether a model may bring code: as in TRL, `model_init_kwargs` win over the setting."""
    return bool((args.model_init_kwargs or {}).get("trust_remote_code", args.trust_remote_code))


def check_repository(what: str, path: str, args: Any, *own: str) -> None:
    """
    Refuse a model other than PPO's policy that is not there or damaged.

    Args:
        what, path (`str`):
            See [`read_config`].
        args (`PPOConfig`, `RewardConfig` or `SFTConfig`):
            Settings of the trainer.
        own (`str`):
            Loading arguments that hold for this model alone, such as `"revision"`.

    Raises:
        OSError: If so.
    """
    given = args.model_init_kwargs or {}
    where = hub_arguments(given) | {name: given[name] for name in own if given.get(name)}
    with reading(what, path):
        adapter = find_adapter_config_file(path, **where)
    if adapter is None:
        read_config(what, path, trusts_remote_code(args), **where)


def check_trained_model(model: Any, args: Any) -> None:
    """
    Refuse the id or folder of a model that TRL's trainers would train, if it is not there or damaged.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            What was given as `model`.
        args (`RewardConfig` or `SFTConfig`):
            Settings of the trainer.

    Raises:
        OSError: If so.
    """
    if isinstance(model, str) and "gguf_file" not in (args.model_init_kwargs or {}):
        check_repository("model", model, args, "revision", "subfolder")
