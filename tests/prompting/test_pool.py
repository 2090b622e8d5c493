"""BM25 against its formula written out."""

import math
import re

import asking
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.prompting._pool import Bm25

TEXTS = st.lists(
    st.lists(st.sampled_from(("sun", "Sun", "rain,", "fog", "it's", "雨", "")), max_size=6).map(" ".join),
    min_size=1,
    max_size=8,
)


def by_formula(texts, query):
    """Robertson and Zaragoza 2009, eq. 3.15, k1 1.2, b 0.75, with Lucene's never negative idf."""
    told = [re.findall(r"\w+", text.casefold()) for text in texts]
    mean = sum(map(len, told)) / len(told)
    scores = []
    for words in told:
        score = 0.0
        for word in set(re.findall(r"\w+", query.casefold())):
            having, times = sum(word in other for other in told), words.count(word)
            idf = math.log(1 + (len(told) - having + 0.5) / (having + 0.5))
            score += idf * times * 2.2 / (times + 1.2 * (0.25 + 0.75 * len(words) / mean)) if times else 0.0
        scores.append(score)
    return scores


@settings(deadline=None, max_examples=60)
@given(texts=TEXTS, query=TEXTS)
def test_scores_are_the_formula(texts, query):
    told = Bm25(texts).scores(" ".join(query))
    assert told == pytest.approx(by_formula(texts, " ".join(query)))


@settings(deadline=None, max_examples=30)
@given(texts=TEXTS, query=TEXTS, k=st.integers(0, 10))
def test_the_nearest_come_best_first_and_ties_by_place(texts, query, k):
    index = Bm25(texts)
    scores = index.scores(" ".join(query))
    wanted = sorted(range(len(texts)), key=lambda i: (-scores[i], i))[:k]
    assert index.nearest(" ".join(query), k) == wanted


def test_a_text_is_most_like_itself():
    texts = [row.text for row in asking.labelled(30)]
    index = Bm25(texts)
    assert [index.nearest(text, 1)[0] for text in texts] == list(range(30))
