"""What a reward model is shown, and which models are none."""

import copy

import pytest
from transformers import LlamaForSequenceClassification

from rlhf_ext.models.scoring import RewardModelScorer, load_reward_model
from tiny import CHAT_TEMPLATE, tiny_config

CHATML = CHAT_TEMPLATE.replace("<|im_end|>", "<|im_end|>\n")


@pytest.fixture
def chat_tokenizer(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = CHATML
    return tokenizer


def scorer_of(tokenizer, policy_tokenizer, **config):
    return RewardModelScorer(
        LlamaForSequenceClassification(tiny_config(policy_tokenizer, num_labels=1, **config)),
        tokenizer,
        policy_tokenizer,
        "rm",
        batch_size=2,
    )


def chat(*contents):
    roles = ("user", "assistant") * 2
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


def test_a_language_model_is_refused_as_a_reward_model(tiny_policy_path):
    with pytest.raises(ValueError, match=r"LlamaForCausalLM\) is not a reward model: it has no score.weight"):
        load_reward_model(tiny_policy_path)


def test_a_classifier_of_two_labels_is_refused_by_its_folder(tiny_tokenizer, tmp_path):
    LlamaForSequenceClassification(tiny_config(tiny_tokenizer, num_labels=2)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has 2 labels"):
        load_reward_model(str(tmp_path))


@pytest.mark.parametrize("eos", ["<|im_end|>", "<|im_start|>"], ids=["eos", "end-of-turn"])
def test_a_finished_chat_answer_is_read_as_the_reward_model_was_trained_to(eos, chat_tokenizer):
    # In some families, such as Gemma, the token that ends a turn is not the tokenizer's EOS.
    chat_tokenizer.eos_token = eos
    scorer = scorer_of(chat_tokenizer, chat_tokenizer)
    prompts, answers = [chat("Hi"), chat("a", "b", "c")], ["Hello.", "d"]
    end = chat_tokenizer.convert_tokens_to_ids("<|im_end|>")
    completion_ids = [[*chat_tokenizer(answer)["input_ids"], end] for answer in answers]
    completions = [[{"role": "assistant", "content": answer}] for answer in answers]
    trained_on = [
        chat_tokenizer.apply_chat_template(p + c)["input_ids"] for p, c in zip(prompts, completions, strict=True)
    ]
    assert scorer._token_ids(prompts, completions, completion_ids) == trained_on
    # A truncated answer ends with its last token: nothing was written after it.
    cut = [ids[:-1] for ids in completion_ids]
    newline = len(chat_tokenizer("\n")["input_ids"])
    expected = [ids[: -1 - newline] for ids in trained_on]
    assert scorer._token_ids(prompts, completions, cut) == expected


def test_a_chat_template_of_its_own_is_used(chat_tokenizer):
    own = copy.deepcopy(chat_tokenizer)
    own.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    scorer = scorer_of(own, chat_tokenizer)
    ids = [[*chat_tokenizer("Hello")["input_ids"], chat_tokenizer.eos_token_id]]
    completions = [[{"role": "assistant", "content": "Hello"}]]
    assert scorer._token_ids([chat("Hi")], completions, ids) == [own("[Hi][Hello]")["input_ids"]]


def test_a_reward_model_whose_tokenizer_has_no_eos_reads_the_text(tiny_tokenizer):
    without = copy.deepcopy(tiny_tokenizer)
    without.eos_token = None
    scorer = scorer_of(without, tiny_tokenizer)
    found = scorer._token_ids(["Say "], ["it"], [[5, tiny_tokenizer.eos_token_id]])
    assert found == [without("Say it")["input_ids"]]
