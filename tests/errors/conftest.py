"""The world in which the wrong inputs of the table happen."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import trl.trainer.rloo_trainer
from datasets import Dataset
from transformers import PreTrainedModel

from rlhf_ext import PPOTrainer


def ones(completions, **_):
    return [1.0] * len(completions)


class World:
    """
    Tiny models, and ways to break them.

    Args:
        policy, reward: Folders.
        tokenizer: Of both.
        config: Makes a small PPOConfig.
        tmp_path: A folder of this row's own.
        monkeypatch: Of this row.
    """

    def __init__(self, policy, reward, tokenizer, config, tmp_path, monkeypatch):
        self.policy, self.reward, self._tokenizer = policy, reward, tokenizer
        self.config, self.tmp_path, self.monkeypatch = config, tmp_path, monkeypatch
        self.prompts = Dataset.from_dict({"prompt": [f"Say {'a' * (i % 5)} {i}" for i in range(32)]})

    def trainer(self, model=None, reward=ones, data=None, settings=None, **arguments):
        """A trainer in which all is right but what is given."""
        args = self.config(**settings or {})
        data = self.prompts if data is None else data
        return PPOTrainer(self.policy if model is None else model, reward, args, data, **arguments)

    def tokenizer(self, **attributes):
        """The tokenizer with other tokens."""
        tokenizer = copy.deepcopy(self._tokenizer)
        for name, value in attributes.items():
            setattr(tokenizer, name, value)
        return tokenizer

    def rows(self, **columns):
        return Dataset.from_dict(columns)

    def file(self, name, content):
        path = self.tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def folder(self, like=None, **changes):
        """A copy of a model's folder, with files removed (`None`), changed, or settings of its config changed."""
        folder = self.tmp_path / "copy"
        shutil.copytree(like or self.policy, folder)
        for name, change in changes.items():
            path = folder / name.replace("__", ".")
            if change is None:
                path.unlink()
            elif isinstance(change, dict):
                path.write_text(json.dumps(json.loads(path.read_text()) | change))
            else:
                path.write_bytes(change(path.read_bytes()))
        return str(folder)

    def checkpoint(self):
        """The second of four steps on a rollout."""
        self.trainer(settings={"max_steps": 2, "save_strategy": "steps", "save_steps": 2, "beta": 0.1}).train()
        return Path(self.config().output_dir) / "checkpoint-2"

    def resume(self, folder, **settings):
        self.trainer(settings={"beta": 0.1, **settings}).train(resume_from_checkpoint=str(folder))


@pytest.fixture
def world(tiny_policy_path, tiny_reward_path, tiny_tokenizer, ppo_config, tmp_path, monkeypatch):
    return World(tiny_policy_path, tiny_reward_path, tiny_tokenizer, ppo_config, tmp_path, monkeypatch)


@pytest.fixture
def no_model_is_loaded(monkeypatch):
    """A function that makes every load of a model fail the test."""

    def refuse(*_, **__):
        pytest.fail("a model was loaded before the input was checked")

    def forbid():
        monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)
        monkeypatch.setattr(trl.trainer.rloo_trainer, "create_model_from_path", refuse)

    return forbid
