"""What each shape takes and refuses."""

from __future__ import annotations

import pytest

from burnish import kinds
from burnish.data.guess import choose
from burnish.data.rows import Row, ShapeProblem
from burnish.errors import DataError
from burnish.records import Message, Where

HERE = Where("a.jsonl", 1)


def chosen(values, **options):
    return choose([Row(row, Where("a.jsonl", at)) for at, row in enumerate(values, 1)], **options)


def example(row, shape="auto", goal="", **columns):
    choice = chosen([row], shape=shape, given=columns, goal=goal)
    return kinds.load("data/shapes", choice.shape).to_example(row, choice.columns, HERE)


def refused(row, shape, columns):
    with pytest.raises(ShapeProblem) as caught:
        kinds.load("data/shapes", shape).to_example(row, columns, HERE)
    return caught.value


# --- labelled


def many(label, count=12, **others):
    return [{"text": f"Some words about matter {at}", "label": label(at), **others} for at in range(count)]


@pytest.mark.parametrize(
    ("label", "goal", "role", "value"),
    [
        (lambda at: ["x", "y"][at % 2], "", "label", "x"),
        (lambda at: at % 3, "", "label", "0"),
        (lambda at: at % 3, "regress", "number", 0.0),
        (lambda at: at * 0.7, "", "number", 0.0),
        (lambda at: f"{at * 0.7:.2f}", "", "number", 0.0),
        (lambda at: at * 0.5, "classify", "label", "0"),
        (lambda at: at % 2 == 0, "", "label", "true"),
        (lambda at: ["x", "y"][: at % 3], "", "labels", ()),
        (lambda at: ["y|z", "x;y", "x", "z; y", "x; z", "y"][at % 6], "", "labels", ("y", "z")),
        (lambda at: "" if at == 3 else ["a|b", "a", "b"][at % 3], "", "labels", ("a", "b")),
    ],
)
def test_what_a_label_is(label, goal, role, value):
    rows = many(label)
    choice = chosen(rows, goal=goal)
    assert choice.columns == {"text": "text", role: "label"}
    found = kinds.load("data/shapes", "labelled").to_example(rows[0], choice.columns, HERE)
    assert found.label == value
    assert type(found.label) is type(value)


def test_one_bad_number_does_not_turn_numbers_into_classes():
    rows = many(lambda at: "n/a" if at == 5 else at * 0.7, 30)
    assert chosen(rows).columns["number"] == "label"
    assert '"n/a" is not a finite number' in refused(rows[5], "labelled", {"text": "text", "number": "label"}).what


def test_columns_of_0_and_1_are_classes_and_blanks_are_unknown():
    rows = [{"smiles": "CCO" + "C" * at, "NR-AR": "1", "NR-ER": "1" if at else "", "SR-p53": "0"} for at in range(4)]
    choice = chosen(rows)
    assert choice.columns == {"text": "smiles", "label": ["NR-AR", "NR-ER", "SR-p53"]}
    found = example(rows[0], text="smiles", label=["NR-AR", "NR-ER"])
    assert found.label == ("NR-AR",)
    assert found.meta == {"unknown": ["NR-ER"]}
    assert "neither 0 nor 1" in refused({**rows[0], "NR-AR": "2"}, "labelled", choice.columns).what
    assert "every class is blank" in refused({**rows[0], "NR-AR": "", "SR-p53": ""}, "labelled", choice.columns).what


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"class": "1", "tweet": "Hello there"}, {"text": "tweet", "label": "class"}),
        ({"idx": 3, "sentence1": "A b", "sentence2": "C d", "label": "x"}, None),
        ({"question": "Is it?", "passage": "It is so.", "answer": True}, None),
        ({"Review Text": "Nice dress", "Class": "tops"}, {"text": "Review Text", "label": "Class"}),
    ],
)
def test_usual_names(row, columns):
    choice = chosen([row] * 3)
    assert choice.shape == "labelled"
    assert ("pair" in choice.columns) if columns is None else choice.columns == columns


def test_unusual_names_are_told_apart_by_content():
    rows = [{"kunde": f"Das ist ein langer Satz, Nummer {at}", "art": "ab"[at % 2], "nummer": at} for at in range(9)]
    assert chosen(rows).columns == {"text": "kunde", "label": "art"}


def test_a_time_or_a_name_of_the_row_is_neither_text_nor_label():
    rows = [
        {"answer_id": f"x{at}", "tstamp": 1683.5 + at, "userId": f"u{at}", "created_at": at * 0.5} for at in range(30)
    ]
    with pytest.raises(DataError, match="do not look like"):
        chosen(rows)
    assert chosen([{**row, "note": "a longer text", "mark": at % 2} for at, row in enumerate(rows)]).columns == {
        "text": "note",
        "label": "mark",
    }
    intents = [{"text": f"Some words {at}", "intent_id": at % 3} for at in range(12)]
    assert chosen(intents).columns == {"text": "text", "label": "intent_id"}


@pytest.mark.parametrize("cell", ["nan", "NaN", "inf", "-inf"])
def test_what_a_program_writes_for_no_number_is_no_class(cell):
    rows = many(lambda at: cell if at % 2 else f"{at * 0.7:.3f}", 60)
    assert chosen(rows).columns["number"] == "label"
    assert "is not a finite number" in refused(rows[1], "labelled", {"text": "text", "number": "label"}).what
    assert f'"{cell}"' in refused(rows[1], "labelled", {"text": "text", "label": "label"}).what


@pytest.mark.parametrize(
    ("row", "field", "what", "do"),
    [
        ({"text": "a", "lable": "x"}, "label", "is missing", 'rename "lable" to "label"'),
        ({"label": "x"}, "text", "is missing", "add"),
        ({"text": "  ", "label": "x"}, "text", "is empty", "fill it in"),
        ({"text": None, "label": "x"}, "text", "is empty", "fill it in"),
        ({"text": ["a"], "label": "x"}, "text", "is a list, not text", "write it as text"),
        ({"text": "a", "label": ["x", "y"]}, "label", "is a list where other rows have one class", "one class"),
        ({"text": "a", "label": None}, "label", "is empty", "fill it in"),
    ],
)
def test_labelled_rows_that_are_refused(row, field, what, do):
    problem = refused(row, "labelled", {"text": "text", "label": "label"})
    assert problem.field == field
    assert problem.what == what
    assert do in problem.do


# --- turns


def test_openai_messages_keep_their_weights():
    found = example(
        {
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "No.", "weight": 0},
                {"role": "user", "content": [{"type": "text", "text": "Wh"}, {"type": "text", "value": "y?"}]},
                {"role": "assistant", "content": "Yes.", "loss_weight": 0.5},
            ]
        }
    )
    assert [(turn.content, turn.weight) for turn in found.messages] == [
        ("Hi", 1),
        ("No.", 0),
        ("Why?", 1),
        ("Yes.", 0.5),
    ]


def test_sharegpt_with_tools_and_calls():
    found = example(
        {
            "conversations": [
                {"from": "human", "value": "Weather?"},
                {"from": "function_call", "value": '{"name": "weather"}'},
                {"from": "observation", "value": "rain"},
                {"from": "gpt", "value": "Rain."},
            ],
            "system": "Be short.",
            "tools": '[{"name": "weather"}]',
        }
    )
    assert [turn.role for turn in found.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert found.messages[0].content.startswith("Be short.\n\nYou can call these functions:\n")


def test_openai_tool_calls_become_the_turns_text():
    call = {"id": "1", "function": {"name": "weather", "arguments": "{}"}}
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert '"weather"' in example({"messages": turns}).answer


USER, REPLY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


@pytest.mark.parametrize(
    ("turns", "field", "what"),
    [
        ([USER], "messages", "has no assistant turn"),
        ([USER, REPLY, USER], "messages", "ends with a user turn"),
        ([REPLY], "messages", "has no turn before the answer"),
        ([], "messages", "has no turns"),
        ("hello", "messages", "is text, not a list of turns"),
        ([USER, {**REPLY, "role": "asistant"}], "messages[1].role", 'unknown role "asistant"'),
        ([USER, {"role": "assistant", "contnet": "Hello"}], "messages[1].content", "is missing"),
        ([USER, {**REPLY, "content": " "}], "messages[1].content", "is empty"),
        ([USER, {**REPLY, "content": None}], "messages[1].content", "is empty"),
        ([USER, {**REPLY, "weight": "x"}], "messages[1].weight", "is not a number of 0 or more"),
        ([USER, {**REPLY, "weight": 0}], "messages", "gives every assistant turn weight 0: nothing is learned"),
        ([{**USER, "content": [{"type": "image_url"}]}, REPLY], "messages[0].content[0]", "is not text"),
        ([USER, 7], "messages[1]", "is a number, not an object"),
    ],
)
def test_turns_that_are_refused(turns, field, what):
    problem = refused({"messages": turns}, "conversation", {"messages": "messages"})
    assert (problem.field, problem.what) == (field, what)


def test_an_unknown_role_is_told_the_nearest():
    problem = refused({"m": [USER, {**REPLY, "role": "asistant"}]}, "conversation", {"messages": "m"})
    assert "(nearest: assistant)" in problem.do


# --- prompt and instruction


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "completion": "Hello"},
        {"question": "Hi", "answer": "Hello"},
        {"input": "Hi", "target": "Hello"},
        {"prompt": [USER], "completion": [REPLY]},
        {"prompt": [USER], "response": "Hello"},
    ],
)
def test_prompts(row):
    found = example(row)
    assert found.shape == "prompt"
    assert found.messages == (Message("user", "Hi"), Message("assistant", "Hello"))


def test_two_columns_of_free_text_are_prompt_and_completion():
    rows = [{"word": word, "phonemes": word[::-1]} for word in ("abet", "abele", "bread", "table")]
    assert chosen(rows).columns == {"prompt": "word", "completion": "phonemes"}
    assert chosen([{"title": row["word"], "text": row["phonemes"]} for row in rows]).shape == "document"


def test_an_instruction_with_its_input_on_the_next_line():
    found = example({"instruction": "Shorten", "input": "A long text", "output": "Text", "system": "Be brief"})
    assert found.messages == (
        Message("system", "Be brief"),
        Message("user", "Shorten\nA long text"),
        Message("assistant", "Text"),
    )
    assert example({"instruction": "Shorten", "input": "", "output": "Text"}).messages[0].content == "Shorten"


def test_nested_instances_become_one_row_each():
    module = kinds.load("data/shapes", "instruction")
    row = {"instruction": "Say it", "instances": [{"input": "", "output": "a"}, {"input": "b", "output": "c"}]}
    columns = chosen([row]).columns
    found = [module.to_example(one, columns, HERE) for one in module.expand(row, columns)]
    assert [(one.messages[0].content, one.answer) for one in found] == [("Say it", "a"), ("Say it\nb", "c")]
    with pytest.raises(ShapeProblem, match="instances"):
        module.expand({"instruction": "x", "instances": []}, columns)


# --- choosing


def test_given_columns_override_and_the_rest_is_guessed():
    rows = [{"text": "short", "review": "A long review of it", "label": "x", "stars": at} for at in range(5)]
    choice = chosen(rows, given={"text": "review"})
    assert choice.columns == {"text": "review", "label": "label"}
    assert choice.guessed == ("label",)
    assert str(choice) == "labelled: text = review, label = label (guessed)"


@pytest.mark.parametrize(
    ("given", "goal", "what"),
    [
        ({"text": "txet"}, "", 'Unknown column "txet"'),
        ({"txet": "text"}, "", 'Unknown role in data.columns "txet"'),
        ({}, "chat", "do not look like rows for `chat`"),
    ],
)
def test_choices_that_cannot_be_made(given, goal, what):
    with pytest.raises(DataError, match=what) as caught:
        chosen([{"text": "a", "label": "x"}] * 3, given=given, goal=goal)
    assert caught.value.do


def test_a_goal_to_write_takes_the_text_of_labelled_rows():
    assert chosen([{"text": "a", "label": "x"}] * 3, goal="write").columns == {"document": "text"}
