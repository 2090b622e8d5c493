"""Passages know their source; the index over them is the textbook's; hits are counted as written."""

import asking
import numpy as np
import pytest
import tiny

from burnish.data.documents import Document, Section
from burnish.prompting import _encoder, _passages
from burnish.prompting._finder import Finder
from burnish.prompting._passages import Passage, hits, index, passages
from burnish.records import Example, Message, Where


def document(text, *sections, name="a.md"):
    return Document(name, "0", text, sections or (Section("", 0, len(text)),))


class TestPassages:
    def test_each_is_the_documents_own_text_at_its_place(self):
        text = "One two. Three four five.\n\nSix seven, eight. " * 30
        found = passages([document(text)], 10)
        assert all(item.text == text[item.start : item.end] for item in found)
        assert [word for item in found for word in item.text.split()] == text.split()
        assert all(len(item.text.split()) <= 10 for item in found)

    def test_they_end_with_a_sentence_where_one_is_near(self):
        found = passages([document("one two three. four five six. seven eight nine ten")], 4)
        assert [item.text for item in found] == ["one two three.", "four five six.", "seven eight nine ten"]

    def test_one_never_spans_two_sections_and_tells_its_heading_or_line(self):
        text = "one\ntwo\nthree"
        found = passages([document(text, Section("", 4, 7), Section("page 2", 8, 13))], 50)
        assert [(item.text, item.cited) for item in found] == [("two", "a.md, line 2"), ("three", "a.md, page 2")]

    def test_a_word_without_end_is_cut(self):
        assert max(len(item.text) for item in passages([document("x" * 10_000)], 10)) == 600

    def test_more_than_can_be_held_are_refused(self, monkeypatch):
        monkeypatch.setattr(_passages, "MOST", 3)
        with pytest.raises(Exception, match="more than 3 passages"):
            passages([document("one two " * 100)], 10)


class TestIndex:
    texts = ("the fog hides the sun", "snow on the hill", "sun and rain and sun")
    found = tuple(Passage(f"{i}.txt", "", 0, 0, text) for i, text in enumerate(texts))

    def test_fusion_is_reciprocal_rank_fusion(self, tmp_path_factory):
        encoder = _encoder.named("base", ".", asking.answerer("llama", tmp_path_factory))
        vectors = _passages.vectors(self.found, encoder)
        pools = {mode: index(self.found, mode, vectors, encoder) for mode in _passages.MODES}
        said = {mode: pool.scores(pool.queries(["sun on the hill"])[0]) for mode, pool in pools.items()}
        places = [np.argsort(np.argsort(-said[mode], kind="stable"), kind="stable") for mode in ("words", "encoder")]
        assert said["fused"] == pytest.approx(sum(1 / (61 + place) for place in places))

    def test_vectors_of_a_document_are_made_once(self, tmp_path, tmp_path_factory, monkeypatch):
        monkeypatch.setenv("BURNISH_HOME", str(tmp_path))
        ready = asking.answerer("llama", tmp_path_factory)
        encoder = _encoder.named(str(tiny.folder("bert", tmp_path_factory)), ".", ready)
        made, seen = _encoder.Encoder.vectors, []
        monkeypatch.setattr(
            _encoder.Encoder, "vectors", lambda self, texts: seen.append(len(texts)) or made(self, texts)
        )
        first = _passages.vectors(self.found, encoder)
        changed = (*self.found[:2], Passage("2.txt", "", 0, 0, "hail"))
        again = _passages.vectors(changed, encoder)
        assert seen == [1, 1, 1, 1]
        assert (first[:2] == again[:2]).all()
        assert not np.allclose(first[2], again[2])


class TestHits:
    def test_hit_rate_and_reciprocal_rank(self):
        told = hits([[True, False], [False, True], [False, False]], "source")
        assert [told.at(1), told.at(2)] == pytest.approx([1 / 3, 2 / 3])
        shown = told.to_json((1, 2))
        assert (shown["found_rows"], shown["hit_at_2"], shown["mrr"]) == (3, 0.6667, 0.5)
        assert shown["mrr_error"] == round(0.5 / 3**0.5, 4)  # of 1, 1/2 and 0

    def row(self, question, answer, **meta):
        turns = (Message("user", question), Message("assistant", answer))
        return Example("prompt", Where("q.jsonl", 1), turns, meta=meta)

    def finder(self):
        found = TestIndex.found
        return Finder(found, index(found, "words", None, None))

    def test_by_the_rows_source_where_it_is_told(self):
        rows = [self.row("sun", "x", source="2.txt"), self.row("hill", "x", source="2.txt")]
        told = self.finder().hits(rows, "answer")
        assert (told.by, told.places) == ("source", (1, 3))

    def test_by_the_answers_words_else_and_only_where_they_stand_somewhere(self):
        rows = [self.row("what is on the hill", "Snow!"), self.row("fog", "no"), self.row("sun", "Hail")]
        told = self.finder().hits(rows, "answer")
        assert (told.by, told.places) == ("answer", (1,))

    def test_the_name_of_a_class_stands_nowhere(self):
        assert self.finder().hits([self.row("what is on the hill", "snow")], "classify") is None
