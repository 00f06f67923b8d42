"""Keeps access tokens out of everything that is written or printed."""

import copy
import re
from typing import Any

from huggingface_hub import get_token

_TOKEN = re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{8,}")
HIDDEN = "<token>"


def without_tokens(text: str, *tokens: str | bool | None) -> str:
    """The text with `tokens`, the one that the process is logged in with, and whatever looks like one, taken out."""
    for token in (*tokens, get_token()):
        if isinstance(token, str) and token:
            text = text.replace(token, HIDDEN)
    return _TOKEN.sub(HIDDEN, text)


def _token_free(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without tokens: their own, and those among arguments of `from_pretrained`."""
    kept = {k: v for k, v in settings.items() if not (k in ("hub_token", "token") and isinstance(v, str))}
    return {k: _token_free(v) if isinstance(v, dict) else v for k, v in kept.items()}


class TokenFree:
    """
    For a class of settings, [`~transformers.TrainingArguments`] in the first place: its token is in no file, tracker or
    message. `training_args.bin`, which Trainer saves and uploads, is otherwise a pickle with the token in it, and
    `to_dict`, which trackers log, has the one of `model_init_kwargs`.

    A copy in memory keeps the token.
    """

    def __getstate__(self) -> dict[str, Any]:
        return _token_free(self.__dict__)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def __copy__(self) -> Any:
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def to_dict(self) -> dict[str, Any]:
        """As [`~transformers.TrainingArguments.to_dict`], without tokens in any depth."""
        return _token_free(super().to_dict())  # type: ignore[misc]

    def __str__(self) -> str:
        lines = [f"{name}={value},\n" for name, value in sorted(self.to_dict().items())]
        return f"{type(self).__name__}(\n{''.join(lines)})"

    __repr__ = __str__
