"""Models that the launched programs load."""

import pytest


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
