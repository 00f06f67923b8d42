"""TRL's formats of prompts: text, conversations, settings of the chat template, and images, which are refused."""

import copy

import pytest
from datasets import Dataset

from rlhf_ext import PPOTrainer

# A template with a setting of its own, as Qwen3's `enable_thinking`.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'think' if thinking else 'answer' }}{% endif %}"
)
BLOCKS = [{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What is this?"}]}]


def user(text):
    return {"role": "user", "content": text}


@pytest.fixture
def seen(tiny_policy_path, tiny_tokenizer, ppo_config):
    """A function that trains one rollout on 16 prompts and gives what was put before the policy, and the completions."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = THINKING

    def run(prompt, **settings):
        texts, completions = [], []

        def score(prompts, completions, **_):
            seen_completions.extend(completions)
            return [float(i % 3) for i in range(len(completions))]

        seen_completions = completions
        rows = Dataset.from_dict({"prompt": [prompt] * 16, "subject": ["weather"] * 16})
        args = ppo_config(max_steps=1, num_iterations=1, steps_per_generation=1, **settings)
        trainer = PPOTrainer(tiny_policy_path, score, args, rows, processing_class=tokenizer)
        generate = trainer._generate_single_turn

        def watch(prompt_ids, *rest):
            texts.extend(tokenizer.batch_decode(prompt_ids))
            return generate(prompt_ids, *rest)

        trainer._generate_single_turn = watch
        trainer.train()
        return set(texts), completions

    return run


@pytest.mark.parametrize(
    ("prompt", "settings", "text"),
    [
        ("Say hi", {}, "Say hi"),
        ([user("Say hi")], {}, "<|im_start|>Say hianswer"),
        ([{"role": "system", "content": "Be brief."}, user("Hi")], {}, "<|im_start|>Be brief.<|im_start|>Hianswer"),
        ([user("Say hi")], {"chat_template_kwargs": {"thinking": True}}, "<|im_start|>Say hithink"),
    ],
    ids=["text", "conversation", "system", "template-settings"],
)
def test_a_prompt_reaches_the_policy_as_its_format_says(seen, prompt, settings, text):
    texts, completions = seen(prompt, **settings)
    assert texts == {text}
    kind = str if isinstance(prompt, str) else list
    assert completions and all(isinstance(completion, kind) for completion in completions)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"prompt": [[user("Hi")]] * 16, "images": [["x"]] * 16},
            r"column \['images'\]; PPOTrainer trains on text only",
        ),
        ({"prompt": [BLOCKS] * 16}, "Row 0 .* content is a list with image, text. PPOTrainer trains language models"),
        (
            {"prompt": [[{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]] * 16},
            "a list with text. Join the texts",
        ),
        (
            {"prompt": [[user("Hi")]] * 16, "chat_template_kwargs": [{"thinking": True}] * 16},
            r"set PPOConfig\(chat_template_kwargs=\{'thinking': True\}\) and remove the column",
        ),
    ],
    ids=["image-column", "image-part", "text-part", "template-settings"],
)
def test_what_would_be_ignored_is_refused_with_a_reason(columns, message, tiny_policy_path, ppo_config):
    with pytest.raises(ValueError, match=message):
        PPOTrainer(tiny_policy_path, lambda completions, **_: [0.0], ppo_config(), Dataset.from_dict(columns))


def test_a_column_of_empty_template_settings_is_no_reason_to_refuse(tiny_policy_path, ppo_config):
    rows = Dataset.from_dict({"prompt": [[user("Hi")]] * 16, "chat_template_kwargs": [{"thinking": None}] * 16})
    PPOTrainer(tiny_policy_path, lambda completions, **_: [0.0], ppo_config(), rows)
