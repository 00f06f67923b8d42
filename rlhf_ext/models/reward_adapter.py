"""A reward model that is an adapter of the policy's base."""

import os
from typing import Any

import torch
from peft import PeftConfig, PeftModel, load_peft_weights, set_peft_model_state_dict
from torch import Tensor, nn
from transformers.utils import find_adapter_config_file

_SCORE_HEADS = ("score", "classifier")


def is_adapter_of(path: str, base: str, revision: str | None, config: PeftConfig, **hub_arguments: Any) -> bool:
    """
    Whether a saved reward model can be attached to the policy's base instead of loading that base again.

    Args:
        path (`str`):
            Hub id or folder of the reward model.
        base (`str`):
            Hub id or folder that the policy's base was loaded from.
        revision (`str`, *optional*):
            Revision that the policy's base was loaded from.
        config ([`~peft.PeftConfig`]):
            Configuration of the policy's adapter, whose type the reward model's must share.
        hub_arguments:
            How to reach the Hub, such as `token` and `cache_dir`.
    """
    if find_adapter_config_file(path, **hub_arguments) is None:
        return False
    adapter = PeftConfig.from_pretrained(path, **hub_arguments)
    return (
        adapter.peft_type == config.peft_type
        and _same_place(adapter.base_model_name_or_path, base)
        and (adapter.revision or "main") == (revision or "main")
        and set(getattr(adapter, "modules_to_save", None) or ()) <= set(_SCORE_HEADS)
        and getattr(adapter, "bias", "none") == "none"
    )


def _same_place(first: str | None, second: str) -> bool:
    if first is None:
        return False
    if os.path.isdir(first) and os.path.isdir(second):
        return os.path.samefile(first, second)
    return first == second


class RewardAdapter:
    """
    Scores of a reward model whose adapter and score head sit on the policy's base, called as a classifier is.

    Args:
        path (`str`):
            Hub id or folder that `is_adapter_of` accepted.
        hub_arguments:
            How to reach the Hub.
    """

    def __init__(self, path: str, **hub_arguments: Any):
        self.path = path
        self.hub_arguments = hub_arguments

    def attach(self, policy: PeftModel, name: str) -> nn.Linear:
        """
        Add the frozen adapter to the policy under `name`.

        Returns:
            `torch.nn.Linear`: The frozen score head.

        Raises:
            ValueError: If the folder holds no score head, or weights that do not fit the policy's base.
        """
        config = PeftConfig.from_pretrained(self.path, **self.hub_arguments)
        config.modules_to_save, config.inference_mode = None, True
        trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        policy.add_adapter(name, config)
        for parameter in trained:
            # PEFT before 0.21 freezes the adapters that are there together with the one that is added frozen.
            parameter.requires_grad_(True)
        weights = load_peft_weights(self.path, device="cpu", **self.hub_arguments)
        head = _take_score_head(weights, self.path)
        loaded = set_peft_model_state_dict(policy, weights, adapter_name=name)
        missing = [key for key in loaded.missing_keys if f".{name}." in f"{key}."]
        if missing or loaded.unexpected_keys:
            raise ValueError(
                f"The adapter of the reward model `{self.path}` does not fit the policy's base: missing {missing[:3]}, "
                f"unexpected {loaded.unexpected_keys[:3]}. Train it on the very model that PPO starts from."
            )
        self.policy, self.name = policy, name
        return head.to(policy.device)

    @property
    def device(self) -> torch.device:
        return self.policy.device

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self.policy(input_ids=input_ids, attention_mask=attention_mask, role=self.name)


def _take_score_head(weights: dict[str, Tensor], path: str) -> nn.Linear:
    """Remove the score head from the weights of an adapter and make a frozen layer of it."""
    found = {key: weights.pop(key) for key in list(weights) if set(key.split(".")) & set(_SCORE_HEADS)}
    shapes = {key: tuple(tensor.shape) for key, tensor in found.items()}
    weight = next((tensor for key, tensor in found.items() if key.endswith("weight")), None)
    if weight is None or weight.size(0) != 1 or len(found) > 2:
        raise ValueError(
            f"The adapter of the reward model `{path}` should hold one score head with one output, found {shapes}. Train "
            "it with `num_labels=1` and the score head in `modules_to_save`."
        )
    bias = next((tensor for key, tensor in found.items() if key.endswith("bias")), None)
    head = nn.Linear(weight.size(1), 1, bias=bias is not None, dtype=weight.dtype).requires_grad_(False)
    head.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    return head
