"""From files to train, validation and test: every flaw is named by line, and nothing straddles."""

from __future__ import annotations

import gzip
import json
from collections import Counter

import pytest
from made_data import reviews, task, write

from burnish.data import files
from burnish.data import preparation as floor
from burnish.data.prepare import examples, iterate, look, prepare
from burnish.data.split import NAMES
from burnish.data.validate import BadRows, label_key, ordered, spellings, told
from burnish.errors import DataError
from burnish.records import Example, Problem
from burnish.taskfile import read


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def stopped(folder, *names, goal="classify", **data):
    with pytest.raises(BadRows) as caught:
        prepare(task(folder, list(names), goal, **data), folder / "out")
    return caught.value


# --- every flaw of the list, by file and line


def test_every_bad_row_is_told_in_one_pass(tmp_path):
    good = [json.dumps(row) for row in reviews(30)]
    rows = list(good)
    rows[2] = '{"text": "a", "label": "good"'
    rows[5] = json.dumps({"text": "no label here"})
    rows[7] = json.dumps({"text": "misspelt", "lable": "good"})
    rows[9] = json.dumps({"text": "", "label": "good"})
    rows[11] = json.dumps({"text": "nul \0 here", "label": "bad"})
    rows[13] = json.dumps({"text": "cased", "label": "Good"})
    rows[15] = '{"text": "\\ud800", "label": "good"}'
    rows[17] = "[1]"
    rows[19] = json.dumps({"text": "the same", "label": "good"})
    rows[21] = json.dumps({"text": "The  Same", "label": "bad"})
    data = "\n".join(rows).encode()
    data = data.replace(rows[23].encode(), rows[23].encode() + b"\xff")
    write(tmp_path, "a.jsonl", data)
    problem = stopped(tmp_path, "a.jsonl")
    assert [(int(item.where.rpartition(":")[2]), item.what, item.do) for item in problem.problems] == [
        (3, "row: is not valid JSON: expecting ',' delimiter at column 30", "mend it"),
        (6, "label: is missing", 'add "label", or name another column under data.columns'),
        (8, "label: is missing", 'rename "lable" to "label"'),
        (10, "text: is empty", "fill it in, or remove the row"),
        (12, "text: holds a NUL byte at letter 5", "remove it; if there are many, save the file as UTF-8"),
        (14, 'label: "Good" is spelt "good" in 15 rows', 'write "good"'),
        (16, "text: holds half a character (a lone surrogate) at letter 1", "write the character whole, or remove it"),
        (18, "row: is not a JSON object", 'write {"column": value, ...}'),
        (
            20,
            f'label: the same text is "good" here and "bad" in {tmp_path}/a.jsonl:22',
            "decide on one label, or remove both rows",
        ),
        (
            22,
            f'label: the same text is "bad" here and "good" in {tmp_path}/a.jsonl:20',
            "decide on one label, or remove both rows",
        ),
        (24, "line: is not UTF-8: byte 0xFF at column 80", "save the file as UTF-8"),
    ]
    assert problem.count == 11
    assert f"{tmp_path}/a.jsonl:8 label: is missing, rename" in str(problem)
    listed = [told(Problem(**row)) for row in lines(tmp_path / "out/problems.jsonl")]
    assert sorted(listed) == sorted(told(item) for item in problem.problems)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["problems.jsonl"]


def test_unknown_roles_and_missing_answers(tmp_path):
    user, reply = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
    rows = [{"messages": [user, reply]}, {"messages": [user, {**reply, "role": "asistant"}]}, {"messages": [user]}]
    write(tmp_path, "a.jsonl", rows)
    told_ = [told(item) for item in stopped(tmp_path, "a.jsonl", goal="chat").problems]
    assert told_[0].startswith(f'{tmp_path}/a.jsonl:2 messages[1].role: unknown role "asistant", use one of')
    assert told_[1] == f"{tmp_path}/a.jsonl:3 messages: has no assistant turn, add the answer, or remove the row"


def test_a_huge_line_is_refused_by_number(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LINE", 2**16)
    rows = reviews(10)
    rows[4] = {"text": "x" * 2**17, "label": "good"}
    write(tmp_path, "a.jsonl", rows)
    (problem,) = stopped(tmp_path, "a.jsonl").problems
    assert problem.where.endswith("a.jsonl:5")
    assert problem.what.startswith("line: is longer than")


def test_dropping_lists_what_was_dropped_and_goes_on(tmp_path):
    rows = [*reviews(40), {"text": "", "label": "good"}, reviews(1)[0], {"text": "odd", "label": "GOOD"}]
    write(tmp_path, "a.jsonl", rows)
    done = prepare(task(tmp_path, ["a.jsonl"], on_problem="drop"), tmp_path / "out")
    dropped = lines(tmp_path / "out/dropped.jsonl")
    assert [(row["category"], row["where"].rpartition(":")[2]) for row in dropped] == [
        ("problem", "41"),
        ("problem", "43"),
        ("exact duplicate", "42"),
    ]
    assert dropped[2]["reason"] == f"the same text and label as {tmp_path}/a.jsonl:1"
    assert dropped[2]["text"].startswith("0 ")
    assert done.card["rows"] == {"read": 43, "kept": 40, "dropped": {"problem": 2, "exact duplicate": 1}}
    assert sum(done.card["splits"].values()) == 40
    assert [item.severity for item in done.problems[:3]] == ["error", "error", "note"]


def test_a_message_lists_twenty_and_counts_the_rest(tmp_path):
    write(tmp_path, "a.jsonl", [*reviews(5), *[{"text": "", "label": "good"}] * 30])
    problem = stopped(tmp_path, "a.jsonl")
    assert problem.count == len(problem.problems) == 30
    assert str(problem).count("text: is empty") == 20
    assert f"and 10 more, all in {tmp_path}/out/problems.jsonl" in str(problem)


def test_memory_holds_only_so_many_problems(tmp_path, monkeypatch):
    monkeypatch.setattr(floor, "KEPT", 7)
    write(tmp_path, "a.jsonl", [*reviews(5), *[{"text": "", "label": "good"}] * 30])
    problem = stopped(tmp_path, "a.jsonl")
    assert (problem.count, len(problem.problems)) == (30, 7)
    assert len(lines(tmp_path / "out/problems.jsonl")) == 30


def test_messages_carry_no_terminal_codes_and_no_half_characters(tmp_path):
    write(tmp_path, "a.jsonl", [*reviews(9), {"text": "a", "label\x1b[2J": "x"}, {"text": "b", "\ud800label": "x"}])
    problem = stopped(tmp_path, "a.jsonl")
    assert str(problem).replace("\n", "").isprintable()
    assert problem.problems[0].do == 'rename "label\\u001b[2J" to "label"'
    assert problem.to_json()["count"] == 2


def test_an_error_about_a_key_names_its_line_in_the_task(tmp_path):
    write(tmp_path, "a.jsonl", reviews(9))
    write(tmp_path, "task.yaml", "data:\n  files: a.jsonl\n  columns: {txt: text}\n")
    with pytest.raises(DataError, match="Unknown role") as caught:
        prepare(read(tmp_path / "task.yaml"), tmp_path / "out")
    assert caught.value.where == f"{tmp_path}/task.yaml line 3"


def test_a_file_of_which_no_row_can_be_read(tmp_path):
    write(tmp_path, "a.jsonl", "{\n{\n")
    assert stopped(tmp_path, "a.jsonl").count == 2
    assert len(lines(tmp_path / "out/problems.jsonl")) == 2


@pytest.mark.parametrize("on_problem", ["stop", "drop"])
def test_a_file_that_breaks_off_is_refused_whatever_on_problem_says(tmp_path, on_problem):
    whole = "".join(json.dumps(row) + "\n" for row in reviews(20_000)).encode()
    write(tmp_path, "whole.jsonl", reviews(90))
    write(tmp_path, "cut.jsonl.gz", gzip.compress(whole)[:-100_000])
    write(tmp_path, "cut.json", json.dumps(reviews(40), indent=1)[:-2])
    write(tmp_path, "names.csv", "text,text\na,b\n")
    for name in ("cut.jsonl.gz", "cut.json", "names.csv"):
        problem = stopped(tmp_path, "whole.jsonl", name, on_problem=on_problem, columns={"text": "text"})
        assert any(name in item.where and "nothing after it is read" in item.what for item in problem.problems)
        assert "on_problem" not in problem.do
    write(tmp_path, "empty.jsonl", "")
    assert "on_problem" not in stopped(tmp_path, "empty.jsonl", on_problem=on_problem).do


# --- labels


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Not_Spam.", "not spam", True),
        ("card-arrival", "Card Arrival", True),
        ("1", "1.0", True),
        ("1", "-1", False),
        ("C++", "C#", False),
        ("!", "?", False),
    ],
)
def test_spellings_of_one_label(one, other, same):
    assert (label_key(one) == label_key(other)) is same


def test_the_frequent_spelling_wins_and_a_list_of_labels_decides():
    assert list(spellings({"pos": 5, "Pos": 6, "neg": 3})) == ["pos"]
    wrong = spellings({"pos": 5, "Pos": 6, "neutral": 1}, ["pos", "neg"])
    assert wrong["Pos"] == ('"Pos" is spelt "pos" in data.labels', 'write "pos"')
    assert wrong["neutral"][0] == '"neutral" is not in data.labels'
    assert "pos" not in wrong


def test_labels_are_ordered_by_number_then_by_letter():
    assert ordered(["b", "10", "2", "a"]) == ("2", "10", "a", "b")


def test_given_labels_keep_their_order(tmp_path):
    write(tmp_path, "a.jsonl", reviews(20))
    assert prepare(task(tmp_path, ["a.jsonl"], labels=["good", "bad"]), tmp_path / "out").labels == ("good", "bad")


def test_a_label_column_that_is_no_class(tmp_path, monkeypatch):
    monkeypatch.setattr(floor, "CLASSES", 20)
    write(tmp_path, "a.jsonl", [{**row, "label": f"label {at}"} for at, row in enumerate(reviews(50))])
    with pytest.raises(DataError, match="more than 20 different values"):
        prepare(task(tmp_path, ["a.jsonl"]), tmp_path / "out")


def test_numbers_and_several_classes(tmp_path):
    write(tmp_path, "n.jsonl", [{**row, "label": at * 0.7} for at, row in enumerate(reviews(30))])
    done = prepare(task(tmp_path, ["n.jsonl"], "regress"), tmp_path / "n")
    assert (done.columns, done.labels, done.multi) == ({"text": "text", "number": "label"}, (), False)
    assert all(isinstance(row.label, float) for row in iterate(tmp_path / "n", "train"))
    write(tmp_path, "m.jsonl", [{**row, "label": ["a", "b", "c"][: at % 4]} for at, row in enumerate(reviews(40))])
    done = prepare(task(tmp_path, ["m.jsonl"]), tmp_path / "m")
    assert (done.labels, done.multi) == (("a", "b", "c"), True)
    assert done.card["label_counts"]["train"]["a"] > done.card["label_counts"]["train"]["c"]


def test_one_text_with_two_numbers_is_a_warning_and_stays_on_one_side(tmp_path):
    rows = [{"text": row["text"], "score": at * 0.7} for at, row in enumerate(reviews(30))]
    write(tmp_path, "a.jsonl", rows + [{**row, "score": row["score"] + 1} for row in rows])
    done = prepare(task(tmp_path, ["a.jsonl"], "regress"), tmp_path / "out")
    assert any("several numbers" in item.what for item in done.problems)
    for side in NAMES:
        assert set(Counter(row.text for row in iterate(tmp_path / "out", side)).values()) <= {2}


# --- sides


def planted(count):
    rows = reviews(count)
    return rows + [{**row, "text": row["text"] + "!"} for row in rows[: count // 2]]


def test_near_duplicates_never_straddle(tmp_path):
    write(tmp_path, "a.jsonl", planted(200))
    done = prepare(task(tmp_path, ["a.jsonl"]), tmp_path / "out")
    side = {row.text: name for name in NAMES for row in iterate(tmp_path / "out", name)}
    assert len(side) == 300
    assert all(side[text] == side[text.removesuffix("!")] for text in side)
    assert done.card["groups"] == {"count": 100, "rows": 200, "largest": 2}
    counts = done.card["splits"]
    assert abs(counts["validation"] - 30) <= 2  # pairs cannot halve: one row a class
    assert abs(counts["test"] - 60) <= 2


def test_the_same_question_asked_again_stays_on_one_side(tmp_path):
    rows = [
        {"prompt": row["text"], "completion": f"{word} {at}"}
        for at, row in enumerate(reviews(60))
        for word in ("Yes", "No")
    ]
    write(tmp_path, "a.jsonl", rows)
    prepare(task(tmp_path, ["a.jsonl"], "answer", near_duplicates=1), tmp_path / "out")
    for name in NAMES:
        assert set(Counter(row.messages[0].content for row in iterate(tmp_path / "out", name)).values()) == {2}


def test_your_own_test_rows_are_kept_apart(tmp_path):
    rows = reviews(80)
    write(tmp_path, "train.jsonl", rows[:60])
    write(tmp_path, "dev.jsonl", [rows[0], *rows[60:70]])
    write(tmp_path, "test.jsonl", [rows[1], {**rows[2], "text": rows[2]["text"] + "!!"}, *rows[70:]])
    settings = {"validation_files": ["dev.jsonl"], "test_files": ["test.jsonl"]}
    done = prepare(task(tmp_path, ["train.jsonl"], **settings), tmp_path / "out")
    assert done.card["splits"] == {"train": 57, "validation": 11, "test": 12}
    assert done.card["rows"]["dropped"] == {"also in your own test or validation": 3}
    reasons = {row["where"]: row["reason"] for row in lines(tmp_path / "out/dropped.jsonl")}
    assert reasons[f"{tmp_path}/train.jsonl:3"] == f"nearly the same as {tmp_path}/test.jsonl:2"
    assert {row.where.file for row in examples(tmp_path / "out", "test")} == {f"{tmp_path}/test.jsonl"}


def test_one_file_cannot_both_train_and_judge(tmp_path):
    write(tmp_path, "a.jsonl", reviews(10))
    with pytest.raises(DataError, match="named twice"):
        prepare(task(tmp_path, ["a.jsonl"], test_files=["a.jsonl"]), tmp_path / "out")


def test_a_limit_draws_rows_by_id(tmp_path):
    write(tmp_path, "a.jsonl", reviews(100))
    done = prepare(task(tmp_path, ["a.jsonl"], limit=30), tmp_path / "out")
    assert done.card["splits"] == {"train": 21, "validation": 3, "test": 6}
    assert done.card["rows"]["dropped"] == {"limit": 70}


# --- the folder


def test_the_folder_is_the_same_byte_for_byte_and_its_card_adds_up(tmp_path):
    write(tmp_path, "a.jsonl", planted(60))
    first = prepare(task(tmp_path, ["a.jsonl"]), tmp_path / "one")
    second = prepare(task(tmp_path, ["a.jsonl"]), tmp_path / "two")
    assert first.card == second.card
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    card = json.loads((tmp_path / "one/card.json").read_text())
    assert card == first.card
    assert card["rows"]["read"] == card["rows"]["kept"] + sum(card["rows"]["dropped"].values()) == 90
    assert card["files"] == [
        {"name": f"{tmp_path}/a.jsonl", "use": "data", "sha256": card["files"][0]["sha256"], "rows": 90, "kept": 90}
    ]
    assert card["reading"] == "labelled: text = text (guessed), label = label (guessed)"
    assert {name: sum(counts.values()) for name, counts in card["label_counts"].items()} == card["splits"]
    rows = [row for name in NAMES for row in examples(tmp_path / "one", name)]
    assert len({row.id for row in rows}) == 90
    assert all(Example.from_json(row.to_json()) == row for row in rows)


def test_a_finished_folder_is_used_again_until_something_changes(tmp_path):
    write(tmp_path, "a.jsonl", reviews(30))
    out = tmp_path / "out"
    first = prepare(task(tmp_path, ["a.jsonl"]), out)
    stamp = (out / "train.jsonl").stat().st_mtime_ns
    again = prepare(task(tmp_path, ["a.jsonl"]), out)
    assert again == first
    assert (out / "train.jsonl").stat().st_mtime_ns == stamp
    assert prepare(task(tmp_path, ["a.jsonl"], seed=1), out).card["fingerprint"] != first.card["fingerprint"]
    write(tmp_path, "a.jsonl", reviews(31))
    assert prepare(task(tmp_path, ["a.jsonl"], seed=1), out).card["rows"]["read"] == 31
    (out / "test.jsonl").write_bytes(b"")
    assert prepare(task(tmp_path, ["a.jsonl"], seed=1), out).card["splits"]["test"] == len(examples(out, "test")) == 6


def test_bad_rows_take_away_an_older_card(tmp_path):
    write(tmp_path, "a.jsonl", reviews(30))
    prepare(task(tmp_path, ["a.jsonl"]), tmp_path / "out")
    write(tmp_path, "a.jsonl", [*reviews(30), {"text": "", "label": "bad"}])
    stopped(tmp_path, "a.jsonl")
    assert not (tmp_path / "out/card.json").exists()


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    write(tmp_path, "a.jsonl", reviews(30))
    write(tmp_path / "out/.staging-999999999", "rows.jsonl", "half")
    prepare(task(tmp_path, ["a.jsonl"]), tmp_path / "out")
    names = {f"{name}.jsonl" for name in (*NAMES, "dropped", "problems")} | {"card.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


def test_reading_back_says_what_is_missing(tmp_path):
    with pytest.raises(DataError, match="not been prepared"):
        examples(tmp_path, "train")
    with pytest.raises(DataError, match='no split "tset"'):
        iterate(tmp_path, "tset")


# --- look


@pytest.mark.parametrize(
    ("rows", "task_", "columns"),
    [
        (reviews(20), "classify", {"text": "text", "label": "label"}),
        ([{"text": row["text"], "score": at * 0.7} for at, row in enumerate(reviews(20))], "regress", None),
        ([{"prompt": row["text"], "completion": "Yes"} for row in reviews(5)], "answer", None),
        ([{"prompt": row["text"], "completion": '{"a": 1}'} for row in reviews(5)], "extract", None),
        ([{"instruction": "Say", "output": "Yes"}], "answer", None),
        ([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2}], "chat", None),
        ([{"text": row["text"]} for row in reviews(5)], "write", None),
    ],
)
def test_look_guesses_the_task(tmp_path, rows, task_, columns):
    write(tmp_path, "a.jsonl", rows)
    guess = look(tmp_path / "a.jsonl")
    assert guess.task == task_
    assert guess.rows == len(rows)
    assert guess.first[0].where.line == 1
    if columns:
        assert guess.columns == columns
        assert guess.labels == {"bad": 10, "good": 10}
        assert str(guess) == "labelled: text = text (guessed), label = label (guessed)"


def test_look_goes_on_past_bad_rows_and_says_so(tmp_path):
    write(tmp_path, "a.jsonl", [*reviews(10), {"text": "", "label": "good"}])
    guess = look(tmp_path / "a.jsonl")
    assert guess.problems == 1
    assert any("1 problem; the first" in note and "a.jsonl:11 text: is empty" in note for note in guess.notes)


def test_an_answer_marked_as_bad_is_not_learned(tmp_path):
    """KTO's data: one answer a row and whether it is wanted.  Read as a conversation, both kinds would be learned."""
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    for row in ({"messages": turns}, {"prompt": "q", "completion": "a"}, {"instruction": "q", "output": "a"}):
        write(tmp_path, "kto.jsonl", [{**row, "label": True}, {**row, "label": False}, {**row, "kto_tag": False}])
        guess = look(tmp_path / "kto.jsonl")
        assert (guess.rows, guess.problems) == (1, 2)
        assert "kto.jsonl:2 label: is false: the answer is marked as a bad one" in guess.notes[-1]
