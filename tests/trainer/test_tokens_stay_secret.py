"""Tokens are in nothing that settings are written to."""

import copy
import io
import json

import pytest
import torch

from rlhf_ext import PPOConfig, RewardConfig, SFTConfig
from rlhf_ext.trainer.secrets import without_tokens

TOKEN, OTHER = "hf_" + "a" * 30, "hf_" + "b" * 30


@pytest.mark.parametrize("settings", [PPOConfig, RewardConfig, SFTConfig])
def test_settings_do_not_give_their_tokens_away(settings, tmp_path):
    init = {"token": OTHER, "dtype": "float32"}
    args = settings(
        str(tmp_path), use_cpu=True, bf16=False, hub_token=TOKEN, model_init_kwargs=init, per_device_train_batch_size=4
    )
    buffer = io.BytesIO()
    torch.save(args, buffer)
    written = [repr(args), str(args), args.to_json_string(), json.dumps(args.to_sanitized_dict(), default=str)]
    for text in (*written, buffer.getvalue().decode("latin-1")):
        assert TOKEN not in text and OTHER not in text
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    assert (again.hub_token, again.model_init_kwargs) == (None, {"dtype": "float32"})
    assert again.learning_rate == args.learning_rate
    # In memory they are what they were.
    for copied in (copy.copy(args), copy.deepcopy(args)):
        assert (copied.hub_token, copied.model_init_kwargs) == (TOKEN, init)
    assert copy.deepcopy(args).model_init_kwargs is not init


def test_a_message_is_freed_of_known_tokens_and_of_what_looks_like_one(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "odd-token-of-a-proxy")
    text = without_tokens(f"no {TOKEN}, no odd-token-of-a-proxy, no mine, hf_short", "mine")
    assert text == "no <token>, no <token>, no <token>, hf_short"
