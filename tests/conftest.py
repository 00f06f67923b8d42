"""Tiny random models, built once and without the network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from tiny import CHAT_TEMPLATE, tiny_config


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """Bytes plus `<pad>`, `<|im_end|>` (EOS) and `<|im_start|>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<pad>", "<|im_end|>", "<|im_start|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        padding_side="left",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture(scope="session")
def tiny_policy_path(tmp_path_factory, tiny_tokenizer):
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    folder = str(tmp_path_factory.mktemp("tiny") / "tiny-policy")
    LlamaForCausalLM(tiny_config(tiny_tokenizer)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_reward_path(tmp_path_factory, tiny_tokenizer):
    import torch
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(1)
    folder = str(tmp_path_factory.mktemp("tiny") / "tiny-reward")
    LlamaForSequenceClassification(tiny_config(tiny_tokenizer, num_labels=1)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def prompts():
    from datasets import Dataset

    return Dataset.from_dict({"prompt": [f"Say {'a' * (i % 5)} {i}" for i in range(32)]})


@pytest.fixture
def ppo_config(tmp_path):
    """A function that makes a small PPOConfig; keyword arguments override."""
    from rlhf_ext import PPOConfig

    def make(**overrides):
        settings = {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 4,
            "steps_per_generation": 2,
            "num_iterations": 2,
            "max_completion_length": 8,
            "max_steps": 8,
            "learning_rate": 1e-3,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "seed": 1,
        }
        return PPOConfig(**{**settings, **overrides})

    return make


@pytest.fixture(scope="session")
def tiny_reward_adapter_path(tmp_path_factory, tiny_policy_path, tiny_tokenizer):
    """A reward model that is an adapter of the policy's base."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(2)
    folder = str(tmp_path_factory.mktemp("tiny") / "tiny-reward-adapter")
    base = AutoModelForSequenceClassification.from_pretrained(tiny_policy_path, num_labels=1)
    config = LoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS", init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder
