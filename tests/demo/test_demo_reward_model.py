"""What the demo's reward model reads, and what of it is trained."""

import pytest
import torch

from rlhf_ext.demo.reward_model import READOUT, readout_tokenizer, untrained_reward_model, with_readout
from rlhf_ext.models.scoring import RewardModelScorer, same_tokens


def test_the_readout_closes_every_text_and_survives_saving(tiny_policy_path, tiny_tokenizer, tmp_path):
    from transformers import AutoTokenizer

    readout_tokenizer(tiny_policy_path).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text, readout = (tiny_tokenizer(part)["input_ids"] for part in ("The bus was late", READOUT))
    assert loaded("The bus was late")["input_ids"] == text + readout
    assert loaded("The bus was late", add_special_tokens=False)["input_ids"] == text
    assert not same_tokens(loaded, tiny_tokenizer)
    assert same_tokens(loaded, readout_tokenizer(tiny_policy_path))


def test_scoring_reads_what_training_read(tiny_policy_path, tiny_tokenizer):
    model, tokenizer = untrained_reward_model(tiny_policy_path), readout_tokenizer(tiny_policy_path)
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(0))
    scorer = RewardModelScorer(model, tokenizer, tiny_tokenizer, "reward", batch_size=2)
    prompt, completion = tiny_tokenizer("The bus was")["input_ids"], tiny_tokenizer(" late")["input_ids"]
    pair = {"chosen_ids": prompt + completion, "rejected_ids": prompt}
    ids = with_readout(pair, tokenizer("")["input_ids"])["chosen_ids"]
    (score,) = scorer(prompts=["The bus was"], completions=[" late"], completion_ids=[completion])
    assert score == pytest.approx(model(torch.tensor([ids])).logits.item(), rel=1e-4)
    assert score != pytest.approx(model(torch.tensor([pair["chosen_ids"]])).logits.item(), rel=1e-2)


def test_only_the_head_and_the_upper_layers_are_trained_and_the_head_starts_at_zero(tiny_policy_path):
    model = untrained_reward_model(tiny_policy_path)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[2] for name in trained if ".layers." in name} == {"1"}
    assert {name for name in trained if ".layers." not in name} == {"model.norm.weight", "score.weight"}
    assert not model.score.weight.any()
