"""BM25 against the rank_bm25 package, on real text where there is some."""

import re
from pathlib import Path

import numpy as np
import pytest

from burnish.prompting._pool import K1, B, Bm25

rank_bm25 = pytest.importorskip("rank_bm25")


def words(text):
    return re.findall(r"\w+", text.casefold())


def ours_and_theirs(texts, queries):
    """Their formula with Lucene's idf, as ours: theirs turns negative for a word in over half of the texts."""
    ours = Bm25(texts)
    theirs = rank_bm25.BM25Okapi([words(text) for text in texts], k1=K1, b=B)
    having = {word: sum(word in counts for counts in theirs.doc_freqs) for word in theirs.idf}
    theirs.idf = {word: np.log(1 + (len(texts) - n + 0.5) / (n + 0.5)) for word, n in having.items()}
    for query in queries:
        yield ours.scores(query), theirs.get_scores(sorted(set(words(query))))


def close(texts, queries):
    """1e-9: both are float64; only the order of the sum differs."""
    for ours, theirs in ours_and_theirs(texts, queries):
        assert ours == pytest.approx(theirs, abs=1e-9)
        assert (np.lexsort((np.arange(len(ours)), -ours.round(9))) == np.argsort(-theirs.round(9), kind="stable")).all()


def test_scores_are_equal_on_the_readme():
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    texts = [part for part in text.split("\n") if words(part)]
    close(texts, texts[:40])


@pytest.mark.real
def test_scores_are_equal_on_bank_questions(shared):
    lines = (shared / "data" / "intent-banking77" / "train.csv").read_text(encoding="utf-8").splitlines()[1:]
    close([line.rpartition(",")[0] for line in lines[::10]], [line.rpartition(",")[0] for line in lines[5::500]])
