import math
import sys

import pytest

from rlhf_ext.demo import gold
from rlhf_ext.demo.gold import gold_scores


@pytest.fixture
def fresh_analyzer():
    gold._analyzer.cache_clear()
    yield
    gold._analyzer.cache_clear()


def test_the_score_of_one_lexicon_word_is_its_valence_normalised():
    # VADER: compound = v / sqrt(v^2 + 15); the lexicon gives "good" 1.9 and "horrible" -2.5.
    # 1.9 / sqrt(3.61 + 15) = 0.4404; -2.5 / sqrt(6.25 + 15) = -0.5423 (both rounded to four digits by VADER)
    assert gold_scores([" good", " horrible"]) == [
        round(1.9 / math.sqrt(1.9**2 + 15), 4),
        round(-2.5 / math.sqrt(2.5**2 + 15), 4),
    ]


def test_negation_turns_the_sign_and_plain_or_empty_text_scores_zero():
    negated, plain, empty = gold_scores([" not a good meal.", " on the table by the door", ""])
    assert negated < 0
    assert plain == empty == 0.0


def test_a_missing_scorer_says_how_to_install_it(monkeypatch, fresh_analyzer):
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(ImportError, match=r"pip install rlhf-ext\[demo\]"):
        gold_scores(["good"])
