import copy
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_ext.demo.preferences import Completion, label_pairs, preference_probability, sample_completions


def completion(text, prompt="The bus was", prompt_ids=(1, 2), ids=(3, 4)):
    return Completion(prompt, text, list(prompt_ids), list(ids))


@pytest.fixture(scope="module")
def tiny_policy(tiny_policy_path):
    return AutoModelForCausalLM.from_pretrained(tiny_policy_path)


def test_samples_of_a_padded_batch_follow_the_models_own_distribution(tiny_policy, tiny_tokenizer):
    prompts = ["A much longer prompt", "Hi"]
    groups = sample_completions(tiny_policy, tiny_tokenizer, prompts, 6000, 1, batch_size=12000, seed=3)
    for prompt, group in zip(prompts, groups, strict=True):
        ids = tiny_tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            expected = tiny_policy.eval()(input_ids=ids).logits[0, -1].double().softmax(-1)
        drawn = torch.bincount(torch.tensor([c.ids[0] for c in group]), minlength=len(expected)) / 6000
        distance = 0.5 * (drawn - expected).abs().sum().item()
        # E|drawn_v - p_v| = sqrt(2 p_v (1 - p_v) / (pi n)); half the sum is the distance that chance alone gives.
        chance = 0.5 * (2 * expected * (1 - expected) / (math.pi * 6000)).sqrt().sum().item()
        assert distance < 1.3 * chance


def test_completions_come_back_in_the_order_of_the_prompts_with_the_prompts_own_ids(tiny_policy, tiny_tokenizer):
    prompts = ["A much longer prompt", "Hi", "Four", "A"]
    groups = sample_completions(tiny_policy, tiny_tokenizer, prompts, 3, 4, batch_size=5)
    assert [[c.prompt for c in group] for group in groups] == [[prompt] * 3 for prompt in prompts]
    for prompt, group in zip(prompts, groups, strict=True):
        assert all(c.prompt_ids == tiny_tokenizer(prompt)["input_ids"] for c in group)


def test_a_completion_ends_with_its_first_eos_or_at_the_limit(tiny_policy, tiny_tokenizer):
    eos = tiny_tokenizer.eos_token_id
    groups = sample_completions(tiny_policy, tiny_tokenizer, ["Hi", "Hello"], 64, 24, batch_size=128)
    drawn = [c for group in groups for c in group]
    ended = [c for c in drawn if eos in c.ids]
    assert 0 < len(ended) < len(drawn)
    for c in drawn:
        assert c.ids.index(eos) == len(c.ids) - 1 if eos in c.ids else len(c.ids) == 24
        assert "<|im_end|>" not in c.text and "<pad>" not in c.text


def test_a_seed_fixes_the_samples_and_leaves_the_callers_random_state_and_mode(tiny_policy, tiny_tokenizer):
    tiny_policy.train()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = sample_completions(tiny_policy, tiny_tokenizer, ["Hi"], 4, 6, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert tiny_policy.training
    assert sample_completions(tiny_policy, tiny_tokenizer, ["Hi"], 4, 6, seed=1) == first
    assert sample_completions(tiny_policy, tiny_tokenizer, ["Hi"], 4, 6, seed=2) != first


def test_progress_counts_up_to_all_sequences(tiny_policy, tiny_tokenizer):
    seen = []
    sample_completions(
        tiny_policy, tiny_tokenizer, ["Hi", "Yes"], 4, 2, batch_size=3, progress=lambda *done: seen.append(done)
    )
    assert seen == [(3, 8), (6, 8), (8, 8)]


@pytest.mark.parametrize("pad_token", [None, "<|im_end|>"])
def test_a_tokenizer_without_padding_or_with_eos_for_padding_is_refused(pad_token, tiny_policy, tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.pad_token = pad_token
    with pytest.raises(ValueError, match="tokenizer: the padding token"):
        sample_completions(tiny_policy, tokenizer, ["Hi"], 1, 1)


def test_preference_probability_by_hand():
    # (0.5 - 0.1) / 0.2 = 2, and 1 / (1 + e^-2) = 0.880797; the other way round 1 - 0.880797 = 0.119203
    assert preference_probability(0.5, 0.1, 0.2) == pytest.approx(0.880797, abs=1e-6)
    assert preference_probability(0.1, 0.5, 0.2) == pytest.approx(0.119203, abs=1e-6)
    assert preference_probability(0.3, 0.3, 0.2) == 0.5
    assert preference_probability(-1.0, 1.0, 1e-4) == 0.0


@pytest.mark.parametrize(("better", "worse", "temperature"), [(0.3, 0.1, 0.2), (0.9, -0.9, 1.5), (0.2, 0.2, 0.1)])
def test_labels_follow_gold_as_often_as_bradley_and_terry_say(better, worse, temperature):
    count = 20_000
    # The better one comes second in half of the pairs, so that a preference for a position would show.
    groups = [[completion("good"), completion("bad")], [completion("bad"), completion("good")]] * (count // 2)
    gold = [[better, worse], [worse, better]] * (count // 2)
    rows = label_pairs(groups, gold, temperature, seed=4)
    rates = [sum(row["chosen"] == "good" for row in rows[start::2]) / (count / 2) for start in (0, 1)]
    expected = 1 / (1 + math.exp(-(better - worse) / temperature))
    margin = 4 * math.sqrt(expected * (1 - expected) / (count / 2))
    assert all(abs(rate - expected) < margin for rate in rates)


def test_a_row_holds_text_ids_and_gold_of_the_same_completion():
    first, second = completion(" fine", ids=(7, 8)), completion(" late", ids=(9,))
    (row,) = label_pairs([[first, second]], [[0.9, -0.9]], temperature=0.01)
    assert row == {
        "prompt": "The bus was",
        "chosen": " fine",
        "rejected": " late",
        "chosen_ids": [1, 2, 7, 8],
        "rejected_ids": [1, 2, 9],
        "gold_chosen": 0.9,
        "gold_rejected": -0.9,
    }


def test_a_group_is_paired_two_by_two_and_a_pair_of_equal_texts_is_left_out():
    group = [completion(text) for text in ("a", "b", "c", "c", "d", "e")]
    rows = label_pairs([group], [[0.1, 0.2, 0.1, 0.1, 0.3, 0.4]], temperature=0.2)
    assert [{row["chosen"], row["rejected"]} for row in rows] == [{"a", "b"}, {"d", "e"}]


def test_a_seed_fixes_the_labels():
    groups, gold = [[completion("a"), completion("b")]] * 200, [[0.1, 0.0]] * 200
    assert label_pairs(groups, gold, 0.2, seed=1) == label_pairs(groups, gold, 0.2, seed=1)
    assert label_pairs(groups, gold, 0.2, seed=1) != label_pairs(groups, gold, 0.2, seed=2)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be positive"):
        label_pairs([], [], temperature)


def test_an_odd_number_of_completions_is_refused():
    with pytest.raises(ValueError, match=r"groups: completions are paired two by two, got groups of \[3\]"):
        label_pairs([[completion("a")] * 3], [[0.1, 0.2, 0.3]], 0.2)


@pytest.mark.parametrize("gold", [[[0.1]], [], [[0.1, 0.2], [0.3]]])
def test_gold_scores_of_another_shape_are_refused(gold):
    with pytest.raises(ValueError, match="gold must hold one score for each completion"):
        label_pairs([[completion("a"), completion("b")]], gold, 0.2)


def test_trl_trains_on_the_ids_as_sampled_and_appends_no_eos(tiny_reward_path, tiny_tokenizer, tmp_path):
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    ids = [tiny_tokenizer(text)["input_ids"] for text in ("Hi", " yes", " no")]
    group = [completion(" yes", "Hi", ids[0], ids[1]), completion(" no", "Hi", ids[0], ids[2])]
    rows = label_pairs([group] * 4, [[0.9, -0.9]] * 4, temperature=0.01)
    config = RewardConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=2, use_cpu=True, bf16=False, report_to=[]
    )
    trainer = RewardTrainer(
        model=tiny_reward_path, args=config, train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer
    )
    batch = next(iter(trainer.get_train_dataloader()))
    seen = [row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert seen == [ids[0] + ids[1]] * 2 + [ids[0] + ids[2]] * 2
