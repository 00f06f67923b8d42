import re

import pytest

from rlhf_ext.demo.prompts import DOING_FRAMES, HELD_OUT_TOPICS, THING_FRAMES, TRAIN_TOPICS, demo_prompts


def subjects(topics):
    return [subject for topic in topics for subject in topic.things + topic.doings]


def test_there_are_enough_prompts_and_no_two_are_the_same():
    train, held_out = demo_prompts()
    assert len(train) >= 320 and len(held_out) >= 96
    assert len(set(train + held_out)) == len(train) + len(held_out)


def test_every_call_gives_the_same_prompts_in_the_same_order():
    assert demo_prompts() == demo_prompts()
    assert demo_prompts()[0][0] == "Yesterday, the corner bakery made me"


def test_no_subject_of_a_held_out_prompt_is_seen_in_training():
    train, held_out = (" | ".join(prompts) for prompts in demo_prompts())
    assert not [subject for subject in subjects(HELD_OUT_TOPICS) if subject in train]
    assert not [subject for subject in subjects(TRAIN_TOPICS) if subject in held_out]


def test_train_and_held_out_subjects_share_no_noun_that_ends_a_subject():
    last_words = [{subject.split()[-1] for subject in subjects(topics)} for topics in (TRAIN_TOPICS, HELD_OUT_TOPICS)]
    assert not last_words[0] & last_words[1]


def test_prompts_are_short_openings_that_ask_for_a_continuation():
    train, held_out = demo_prompts()
    for prompt in train + held_out:
        assert 4 <= len(prompt.split()) <= 9, prompt
        assert re.fullmatch(r"[A-Z][A-Za-z', ]+[A-Za-z]", prompt), prompt
        assert "  " not in prompt


def test_every_frame_is_used_about_equally_often():
    train, _ = demo_prompts()
    for frames in (THING_FRAMES, DOING_FRAMES):
        patterns = [re.compile(re.escape(frame).replace(r"\{x\}", ".+")) for frame in frames]
        counts = [sum(pattern.fullmatch(prompt) is not None for prompt in train) for pattern in patterns]
        assert max(counts) - min(counts) <= 2, counts


def test_every_prompt_is_neutral_to_the_gold_scorer():
    pytest.importorskip("vaderSentiment")
    from rlhf_ext.demo.gold import gold_scores

    train, held_out = demo_prompts()
    prompts = train + held_out
    assert [prompt for prompt, score in zip(prompts, gold_scores(prompts), strict=True) if score != 0.0] == []
