"""Questions with choices as the benchmarks of the field write them, and what is refused of them."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_data import task, write

from burnish.data import questions
from burnish.data.guess import choose
from burnish.data.prepare import examples, look, prepare
from burnish.data.rows import Row, ShapeProblem
from burnish.data.shapes import choices
from burnish.data.validate import BadRows
from burnish.records import LETTERS, Example, Where

HERE = Where("a.jsonl", 1)
FOUR = ["the sun", "rain", "a bell", "old snow"]


def chosen(rows, **given):
    return choose([Row(row, Where("a.jsonl", at)) for at, row in enumerate(rows, 1)], given=given)


def read(rows, **given):
    choice = chosen(rows, **given)
    assert choice.shape == "choices"
    return [choices.to_example(row, choice.columns, HERE) for row in rows]


def refused(row, columns=None):
    with pytest.raises(ShapeProblem) as caught:
        choices.to_example(row, columns or {"question": "question", "choices": "choices", "index": "answer"}, HERE)
    return caught.value


@pytest.mark.parametrize(
    ("rows", "asked", "letter", "picked"),
    [
        (  # ARC
            [{"id": "x", "question": "What falls?", "choices": {"text": FOUR, "label": ["1", "2", "3", "4"]},
              "answerKey": "2"}],
            "Question: What falls?\nAnswer:", "B", "rain",
        ),
        (  # OpenBookQA
            [{"question_stem": "What falls is", "choices": {"text": FOUR, "label": [*"ABCD"]}, "answerKey": "B"}],
            "What falls is", "B", "rain",
        ),
        (  # CommonsenseQA before it was flattened: pairs
            [{"question": "What falls?", "choices": [{"label": "A", "text": "sun"}, {"label": "B", "text": "rain"}],
              "answerKey": "B"}],
            "Question: What falls?\nAnswer:", "B", "rain",
        ),
        (  # HellaSwag
            [{"ctx": "Clouds come. Then", "endings": FOUR, "label": at} for at in ("1", "0")],
            "Clouds come. Then", "B", "rain",
        ),
        (  # PIQA
            [{"goal": "Get wet", "sol1": "stand in the sun ", "sol2": "stand in the rain ", "label": 1}],
            "Question: Get wet\nAnswer:", "B", "stand in the rain",
        ),
        (  # Winogrande: numbers from 1, and the rest of the sentence belongs to each choice
            [{"sentence": "The _ fell.", "option1": "sun", "option2": "rain", "answer": "2"}],
            "The", "B", "rain fell.",
        ),
        (  # MMLU
            [{"question": "What falls?", "subject": "weather", "choices": ["2", "1", "4", "3"], "answer": 1}],
            "Question: What falls?\nAnswer:", "B", "1",
        ),
        (  # MMLU as CSV: letters
            [{"prompt": "What falls?", "A": "the sun", "B": "rain", "C": "a bell", "answer": "B"}],
            "What falls?", "B", "rain",
        ),
        (  # Social IQa: a context and a question, numbers from 1
            [{"context": "It was wet.", "question": "Why?", "answerA": "sun", "answerB": "rain", "answerC": "snow",
              "label": at} for at in ("2", "3", "1")],
            "It was wet.\nQuestion: Why?\nAnswer:", "B", "rain",
        ),
        (  # the right choice's own text; a list as a CSV cell holds it
            [{"question": "What falls?", "options": json.dumps(FOUR), "answer": "rain"}],
            "Question: What falls?\nAnswer:", "B", "rain",
        ),
        (  # texts that are numbers: 4 is no place among three
            [{"question": "2 + 2?", "choices": ["3", "4", "5"], "answer": "4"}] * 3,
            "Question: 2 + 2?\nAnswer:", "B", "4",
        ),
    ],
)  # fmt: skip
def test_the_benchmarks_of_the_field(rows, asked, letter, picked):
    found = read(rows)[0]
    assert [turn.content for turn in found.messages] == [asked, picked]
    assert (found.label, found.choices[LETTERS.index(found.label)]) == (letter, picked)


def test_a_row_may_have_fewer_choices_than_others():
    rows = [
        {"question": "Why?", "option_a": "x", "option_b": "y", "option_c": "z", "answer": "c"},
        {"question": "How?", "option_a": "x", "option_b": "y", "option_c": "", "answer": "a"},
    ]
    found = read([{**row, "answer": row["answer"].upper()} for row in rows])
    assert [row.choices for row in found] == [("x", "y", "z"), ("x", "y")]


@pytest.mark.parametrize(
    ("change", "field", "what", "do"),
    [
        ({"answer": 4}, "answer", '"4" is no number from 0 to 3', "mend"),
        ({"answer": -1}, "answer", '"-1" is no number from 0 to 3', "mend"),
        ({"answer": ""}, "answer", "is empty", "fill it in"),
        ({"choices": ["one"]}, "choices", "holds 1 of at least two choices", "add the others"),
        ({"choices": []}, "choices", "holds 0 of at least two choices", "add the others"),
        ({"choices": ["rain", "sun", " rain"]}, "choices", "choices A and C are the same", "make them different"),
        ({"choices": ["rain", " "]}, "choices", "choice B is empty", "fill it in"),
        ({"choices": "rain"}, "choices", "is text, not a list of texts", "write ["),
        ({"choices": ["rain", ["sun"]]}, "choices", "is a list, not a list of texts", "write ["),
        ({"choices": [str(at) for at in range(27)]}, "choices", "holds 27 choices, more than there are letters", ""),
        ({"question": " "}, "question", "is empty", "fill it in"),
    ],
)
def test_rows_that_are_refused(change, field, what, do):
    problem = refused({"question": "What falls?", "choices": FOUR, "answer": 1, **change})
    assert (problem.field, problem.what) == (field, what)
    assert do in problem.do


def test_an_answer_that_is_no_choice_is_refused():
    row = {"question": "What falls?", "choices": FOUR, "answer": "hail"}
    columns = {"question": "question", "choices": "choices"}
    assert "none of the choices" in refused(row, {**columns, "answer": "answer"}).what
    assert "write one of A, B, C, D" in refused(row, {**columns, "letter": "answer"}).do


@pytest.mark.parametrize("sentence", ["No blank.", "_ and _.", "_ fell."])
def test_a_sentence_without_one_blank_within_it_is_refused(sentence):
    row = {"sentence": sentence, "option1": "sun", "option2": "rain", "answer": "1"}
    assert (
        refused(row, {"blank": "sentence", "choices": ["option1", "option2"], "number": "answer"}).field == "sentence"
    )


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Why?", "answer": "because"},
        {"question": "Why?", "choices": "many", "answer": "because"},
        {"text": "x", "a": "b", "label": "c"},
        {"question": "Is it?", "passage": "It is so.", "answer": True},
        {"question": "q", "answer1": "x", "label": 0},
    ],
)
def test_other_rows_are_not_taken_for_it(row):
    assert choose([Row(row, HERE)] * 3).shape != "choices"


texts = st.text(string.ascii_letters + " 0123456789.", min_size=1, max_size=12).filter(str.strip).map(str.strip)
some = st.lists(texts, min_size=2, max_size=6, unique=True)


@given(several=some, at=st.integers(0, 5), asked=texts, naming=st.sampled_from(["answer", "letter", "index", "number"]))
def test_however_the_right_one_is_named_the_row_is_the_same(several, at, asked, naming):
    at %= len(several)
    told = {"answer": several[at], "letter": LETTERS[at], "index": at, "number": str(at + 1)}[naming]
    columns = {"question": "q", "choices": "c", naming: "a"}
    found = choices.to_example({"q": asked, "c": several, "a": told}, columns, HERE)
    assert (found.label, found.answer, found.choices) == (LETTERS[at], several[at], tuple(several))
    assert Example.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert choices.question({"q": asked, "c": several}, columns, HERE).messages == found.prompt


@given(rows=st.lists(st.tuples(some, st.integers(0, 5)), min_size=1, max_size=5), first=st.sampled_from([0, 1, "A"]))
def test_a_file_of_places_or_letters_is_read_as_what_it_is(rows, first):
    """One row that has the last place and one that has the first say from where is counted."""
    words = ["north", "south", "east"]
    rows = [(several, at % len(several)) for several, at in rows] + [(words, 0), (words, 2)]
    rows = [([f"{text} x" for text in several], at) for several, at in rows]  # no choice is itself a number or letter
    told = [
        {"question": "Q", "choices": several, "answer": LETTERS[at] if first == "A" else at + first}
        for several, at in rows
    ]
    assert [row.label for row in read(told)] == [LETTERS[at] for _, at in rows]


@given(several=some, other=some)
def test_the_content_decides_the_id_and_its_choices_are_part_of_it(several, other):
    def made(texts):
        return Example("choices", HERE, choices=tuple(texts))

    assert (made(several).id == made(other).id) == (several == other)


class TestPrepared:
    def rows(self, many=30):
        return [
            {"question": f"Which is number {at} of the {at % 7} hills?", "answer": "ABC"[at % 3],
             "choices": [f"hill {at}", f"hill {at + 1}", f"dale {at}"]}
            for at in range(many)
        ]  # fmt: skip

    def test_bad_rows_are_told_by_file_and_line(self, tmp_path):
        bad = [{"question": "Odd?", "choices": ["x", "x"], "answer": "A"}, {**self.rows()[0], "answer": "D"}]
        made = task(tmp_path, [write(tmp_path, "a.jsonl", [*self.rows(), *bad])], "choose")
        with pytest.raises(BadRows) as caught:
            prepare(made, tmp_path / "out")
        where = [problem.where.rpartition("/")[2] for problem in caught.value.problems]
        assert where == ["a.jsonl:31", "a.jsonl:32"]

    def test_the_same_question_with_two_answers_is_a_contradiction_and_with_other_choices_another_row(self, tmp_path):
        first = self.rows()[0]
        twin, other = {**first, "answer": "B"}, {**first, "choices": ["hill 0", "hill 1", "a lake"]}
        made = task(tmp_path, [write(tmp_path, "a.jsonl", [*self.rows(), twin])], "choose")
        with pytest.raises(BadRows, match='the same text is "A" here and "B"'):
            prepare(made, tmp_path / "out")
        made = task(tmp_path, [write(tmp_path, "b.jsonl", [*self.rows(), first, other])], "choose")
        done = prepare(made, tmp_path / "out")
        assert done.card["rows"]["dropped"] == {"exact duplicate": 1}
        sides = {row.choices: side for side in ("train", "validation", "test") for row in examples(done.folder, side)}
        assert sides[tuple(first["choices"])] == sides[tuple(other["choices"])]  # one question is never parted

    def test_init_sees_it_and_no_class_is_called_rare(self, tmp_path):
        write(tmp_path, "a.jsonl", self.rows())
        guess = look(tmp_path / "a.jsonl")
        assert (guess.task, guess.shape, guess.columns["letter"]) == ("choose", "choices", "answer")
        done = prepare(task(tmp_path, ["a.jsonl"], "choose"), tmp_path / "out")
        assert not any("class" in problem.what for problem in done.problems)

    def test_questions_to_be_answered_need_no_answer(self, tmp_path):
        rows = [{key: value for key, value in row.items() if key != "answer"} for row in self.rows(3)]
        rows[1]["choices"] = ["one"]
        name = tmp_path / write(tmp_path, "new.jsonl", rows)
        columns = {"question": "question", "choices": "choices", "letter": "answer"}
        told = list(questions.questions(str(name), "choices", columns, tuple(LETTERS)))
        assert [row.example.choices if row.example else None for row in told] == [
            tuple(rows[0]["choices"]), None, tuple(rows[2]["choices"]),
        ]  # fmt: skip
        assert told[0].example.answer == ""
        assert "holds 1 of at least two choices" in told[1].problem.what
