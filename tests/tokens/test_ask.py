"""A labelled row as a question, its label as the answer."""

import pytest

from burnish.records import Example, Message, Where
from burnish.tokens import ask

ROW = Example("labelled", Where("t.csv", 2), text="good", label="yes")


@pytest.mark.parametrize(
    ("label", "told"),
    [("yes", "yes"), (("a", "b"), "a; b"), ((), "none"), (3.0, "3"), (0.25, "0.25"), (None, ""), ("", "")],
)
def test_a_label_is_spelt_as_an_answer(label: object, told: str) -> None:
    assert ask.label_text(label) == told


@pytest.mark.parametrize("number", [1234567.0, 0.1234567, 1e-9, 123456.789, -2.5, 1e20])
def test_a_number_is_spelt_without_loss(number: float) -> None:
    assert float(ask.label_text(number)) == number


def test_a_labelled_row_becomes_one_question_with_the_same_id_and_place() -> None:
    made = ask.as_messages(ROW, "Is it good?")
    assert made.messages == (Message("user", "Is it good?\n\ngood"), Message("assistant", "yes"))
    assert (made.id, made.where, made.label) == (ROW.id, ROW.where, ROW.label)
    assert ask.as_messages(ROW, "", with_answer=False).messages == (Message("user", "good"),)


def test_a_pair_is_asked_in_one_turn() -> None:
    made = ask.as_messages(Example("labelled", Where("t", 1), text="a", pair="b", label="x"), "")
    assert made.messages[0].content == "a\nb"


def test_messages_keep_their_own_system_turn() -> None:
    turns = (Message("user", "q"), Message("assistant", "a"))
    row = Example("conversation", Where("t", 1), messages=turns)
    assert ask.as_messages(row, "Be brief.").messages == (Message("system", "Be brief."), *turns)
    assert ask.as_messages(row, "").messages == turns
    assert ask.as_messages(row, "", with_answer=False).messages == turns[:1]
    own = Example("conversation", Where("t", 1), messages=(Message("system", "s"), *turns))
    assert ask.as_messages(own, "Be brief.").messages == own.messages


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("classify", ["yes", "no"]), "Classify the text as yes or no."),
        (("classify", ["a", "b", "c"]), "Classify the text as one of: a, b, c."),
        (("regress", []), "Answer with a number."),
        (("regress", ["0", "5"]), "Answer with a number from 0 to 5."),
        (("chat", []), ""),
        (("classify", ["a"], "Say it."), "Say it."),
        (("classify", ["a", "b"], "", True), "Name every label that fits the text, separated by ';': a, b."),
    ],
)
def test_the_instruction_is_the_persons_or_a_plain_sentence(given: tuple[object, ...], told: str) -> None:
    assert ask.instruction(*given) == told  # type: ignore[arg-type]


def test_many_labels_are_not_all_listed() -> None:
    told = ask.instruction("classify", [f"l{i}" for i in range(50)])
    assert "l19" in told
    assert "l20" not in told
    assert "..." in told
