"""The verbs end to end on a tiny model: what they return, what they leave on disk, and what they refuse."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

import burnish
from burnish import store
from burnish.data.validate import BadRows
from burnish.errors import ArtifactError, BurnishError, DataError, Interrupted, ModelError, TaskError
from burnish.evaluate import predict_file
from burnish.records import Event, Report

WORDS = [
    *("amber", "brook", "cedar", "delta", "ember", "frost", "grove", "heron", "ivory", "juniper", "kestrel"),
    *("lagoon", "meadow", "north", "onyx", "pearl"),
]
SHORT = ["train.max_steps=4", "rungs=[baseline, zero-shot, lora]", "evaluate.resamples=100"]


def rows(count: int, start: int = 0) -> list[tuple[str, str]]:
    """Short texts, each unlike the others, and their class."""
    told = []
    for i in range(start, start + count):
        words = [WORDS[(i * step + shift) % len(WORDS)] for step, shift in ((1, 0), (3, 5), (7, i // 16))]
        told.append((" ".join(words), "good" if i % 2 else "bad"))
    return told


def write(path: Path, told: list[tuple[str, str]], heads: tuple[str, str] = ("review", "stars")) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([heads, *told])
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with reviews.csv, a task.yaml that `init` wrote, and a home of its own."""
    folder = tmp_path_factory.mktemp("workflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BURNISH_HOME", str(folder / "home"))
        write(folder / "reviews.csv", rows(80))
        base = str(tiny.folder("llama", tmp_path_factory))
        burnish.init(str(folder / "reviews.csv"), out=str(folder / "task.yaml"), base=base)
        yield folder


@pytest.fixture(scope="module")
def climbed(home: Path) -> Report:
    return burnish.climb(str(home / "task.yaml"), set=SHORT)  # type: ignore[no-any-return]


@pytest.fixture
def lora(climbed: Report) -> str:
    return next(rung.artifact for rung in climbed.rungs if rung.rung == "lora")


def files(folder: str | Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


# --- init and check ------------------------------------------------------------------------------------------


def test_init_writes_a_task_that_needs_no_edits(home: Path, climbed: Report) -> None:
    assert {rung.rung for rung in climbed.rungs} == {"baseline", "zero-shot", "lora"}
    assert all(rung.scores for rung in climbed.rungs)
    told = (home / "task.yaml").read_text()
    assert "labels: [bad, good]" in told
    assert "on_problem: drop" in told
    assert "files: [reviews.csv]" in told


def test_init_counts_rows_it_cannot_use_and_doubts_itself_when_they_are_many(tmp_path: Path) -> None:
    few = write(tmp_path / "few.csv", [*rows(30), ("amber", ""), ("the same", "good"), ("the same", "bad")])
    told = burnish.init(str(few), out=str(tmp_path / "few.yaml"))
    assert told["on_problem"] == "drop"
    assert any("3 of 33 rows cannot be used" in note for note in told["notes"])
    many = write(tmp_path / "many.csv", [*rows(9), ("amber", ""), ("brook", "")])
    assert burnish.init(str(many), out=str(tmp_path / "many.yaml"))["on_problem"] == "stop"


def test_init_refuses_data_without_one_usable_row(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("text,label\ngood\nbad,neg,more\n,pos\n")
    with pytest.raises(BadRows, match="3 problems"):
        burnish.init(str(tmp_path / "x.csv"), out=str(tmp_path / "x.yaml"))
    assert not (tmp_path / "x.yaml").exists()


def test_init_keeps_a_task_that_is_there(home: Path) -> None:
    before = (home / "task.yaml").read_text()
    with pytest.raises(TaskError, match="already there"):
        burnish.init(str(home / "reviews.csv"), out=str(home / "task.yaml"))
    assert (home / "task.yaml").read_text() == before


def test_init_reads_one_long_text_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "tale.txt").write_text("\n".join(text for text, _ in rows(40)))
    told = burnish.init(str(tmp_path / "tale.txt"), out=str(tmp_path / "tale.yaml"))
    assert (told["goal"], told["columns"], told["rows"]) == ("write", {"document": "line"}, 40)
    assert len(told["first"][0]["text"]) < 40


def test_check_begins_no_run(home: Path, climbed: Report) -> None:
    before = {run["name"] for run in burnish.runs()}
    told = burnish.check(str(home / "task.yaml"), set=[*SHORT, "data.seed=5"], show=2)
    assert told["ok"]
    assert told["tokens"]["train"]["rows"] == told["data"]["splits"]["train"]
    assert len(told["shown"]) == 2
    assert {run["name"] for run in burnish.runs()} == before


def test_check_names_bad_rows_and_still_looks_at_the_others(home: Path) -> None:
    write(home / "bad.csv", [*rows(60), ("amber", ""), ("", "good")])
    stop = ["data.files=[bad.csv]", "data.on_problem=stop"]
    told = burnish.check(str(home / "task.yaml"), set=stop)
    assert (told["ok"], told["count"]) == (False, 2)
    errors = [item for item in told["problems"] if item["severity"] == "error"]
    assert [Path(item["where"]).name for item in errors] == ["bad.csv:62", "bad.csv:63"]
    assert told["tokens"]["test"]["rows"]
    dropped = burnish.check(str(home / "task.yaml"), set=["data.files=[bad.csv]"])
    assert dropped["ok"]
    assert not any(item["severity"] == "error" for item in dropped["problems"])


def test_check_shows_two_texts_apart(home: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    told = [{"text1": one, "text2": one[::-1], "label": label} for one, label in rows(60)]
    (home / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    own = ["data.files=[two.jsonl]", "data.columns={text: text1, pair: text2, label: label}"]
    base = f"base.name={tiny.folder('gpt2', tmp_path_factory)}"
    row = burnish.check(str(home / "task.yaml"), set=[*own, base], show=1)["shown"][0]
    one, line, two = "".join(text for text, _ in row["spans"]).partition("\n")
    assert line
    assert two == one[::-1]


def test_check_advises_dropping_only_where_it_helps(home: Path) -> None:
    (home / "none.csv").write_text("")
    for own in ("stop", "drop"):
        told = burnish.check(str(home / "task.yaml"), set=["data.files=[none.csv]", f"data.on_problem={own}"])
        assert (told["ok"], told["on_problem"]) == (False, "drop")  # what is shown does not offer it then


def test_check_shows_rows_that_fit_and_counts_the_others(home: Path) -> None:
    write(home / "long.csv", [(text * 99 if i % 2 else text, label) for i, (text, label) in enumerate(rows(60))])
    files = ["data.files=[long.csv]", "data.on_problem=drop", "data.too_long=error", "data.near_duplicates=0"]
    told = burnish.check(str(home / "task.yaml"), set=files, show=9)
    assert told["ok"]
    assert 5 < told["tokens"]["train"]["rows"] < told["data"]["splits"]["train"]
    assert len(told["shown"]) == 9
    assert all(row["label"] in ("good", "bad") for row in told["shown"])


def test_check_is_not_ready_without_test_rows(home: Path) -> None:
    told = burnish.check(str(home / "task.yaml"), set=["data.test=0"])
    assert not told["ok"]
    assert any("No row is left to prove anything with" in item["what"] for item in told["problems"])


def test_check_is_not_ready_when_no_row_fits(home: Path) -> None:
    told = burnish.check(str(home / "task.yaml"), set=["data.max_length=4", "data.too_long=drop"])
    assert not told["ok"]
    assert told["problems"][-1]["what"].startswith("No row is left")


# --- climb and train -----------------------------------------------------------------------------------------


def test_climbing_twice_in_one_process_takes_what_was_made(home: Path, climbed: Report) -> None:
    events: list[tuple[str, Event]] = []
    again = burnish.climb(str(home / "task.yaml"), set=SHORT, say=lambda rung, event: events.append((rung, event)))
    assert again.folder == climbed.folder
    assert [rung.scores for rung in again.rungs] == [rung.scores for rung in climbed.rungs]
    assert not any(event.kind == "step" for _, event in events)
    assert len(again.readings) == 1  # the test set was opened once


def test_training_after_a_climb_is_the_climbs_own_rung(home: Path, climbed: Report, lora: str) -> None:
    told = burnish.train(str(home / "task.yaml"), rung="lora", set=SHORT)
    assert Path(told.artifact) == Path(lora)
    other = burnish.train(str(home / "task.yaml"), rung="lora", set=[*SHORT, "train.seed=3"])
    assert Path(other.artifact) != Path(lora)


def test_a_trained_rung_says_what_it_sets_out_to_do(home: Path) -> None:
    events: list[Event] = []
    burnish.train(
        str(home / "task.yaml"), rung="lora", set=[*SHORT, "train.seed=4"], say=lambda _, event: events.append(event)
    )
    first = events[0].numbers
    assert events[0].kind == "started"
    assert 0 < first["trained"] < first["parameters"]
    assert first["steps"] == 4
    assert {"tokens_trained", "tokens_masked", "tokens_cut"} <= set(first["tokens"])


def test_a_plan_needs_no_weights(home: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One asks what a base would need before fetching it."""
    shutil.copytree(tiny.folder("llama", tmp_path_factory), tmp_path / "base", ignore=shutil.ignore_patterns("*.saf*"))
    bare = f"base.name={tmp_path / 'base'}"
    rungs = 'rungs=["lora", "qlora", "prompt-tuning", "partial", "full"]'
    whole, told = (burnish.plan(str(home / "task.yaml"), set=[rungs, *more])["rungs"] for more in ((), (bare,)))
    for rung, one in whole.items():
        assert [told[rung][key] for key in ("parameters", "trained", "verdict")] == [
            one[key] for key in ("parameters", "trained", "verdict")
        ]
    with pytest.raises(ModelError, match="no weights"):
        burnish.train(str(home / "task.yaml"), rung="lora", set=[bare])


def test_only_adapters_are_trained(home: Path) -> None:
    with pytest.raises(TaskError, match='Unknown trained rung "few-shot"'):
        burnish.train(str(home / "task.yaml"), rung="few-shot")
    with pytest.raises(TaskError, match='Unknown trained rung "few-shot"'):
        burnish.launch(str(home / "task.yaml"), rung="few-shot")


def test_a_runs_own_task_file_is_the_same_run(home: Path, climbed: Report) -> None:
    told = burnish.train(str(Path(climbed.folder) / "task.yaml"), rung="lora")
    assert Path(told.artifact).parent.parent.parent.name[-8:] == climbed.folder[-8:]


# --- evaluate ------------------------------------------------------------------------------------------------


def test_evaluating_one_artifact_leaves_the_runs_report_alone(climbed: Report, lora: str) -> None:
    before = files(climbed.folder)
    runs = {run["name"] for run in burnish.runs()}
    told = burnish.evaluate(lora)
    after = files(climbed.folder)
    assert {name: after[name] for name in before} == before
    assert [rung.rung for rung in told.rungs] == ["lora"]
    assert Path(told.page).name == "report-lora-test.html"
    assert Path(told.page).exists()
    assert {run["name"] for run in burnish.runs()} == runs


def test_evaluating_a_run_is_what_the_climb_found(climbed: Report) -> None:
    told = burnish.evaluate(Path(climbed.folder).name)
    assert [rung.scores for rung in told.rungs] == [rung.scores for rung in climbed.rungs]


def test_evaluating_other_data_has_its_own_page(home: Path, climbed: Report, lora: str) -> None:
    write(home / "test.csv", rows(30, start=80))
    before = files(climbed.folder)
    told = burnish.evaluate(lora, data=str(home / "test.csv"))
    assert told.rungs[0].scores[0].n == 30
    assert Path(told.page).name == "report-lora-data-test-csv.html"
    assert not any("trained on" in note for note in told.verdict.notes)
    after = files(climbed.folder)
    assert {name: after[name] for name in before} == before


def test_evaluating_on_training_rows_says_so(home: Path, lora: str) -> None:
    told = burnish.evaluate(lora, data=str(home / "reviews.csv"))
    assert any("of these 80 rows were trained on" in note for note in told.verdict.notes)


def test_evaluating_on_a_class_nobody_trained_names_the_line(home: Path, lora: str) -> None:
    write(home / "odd.csv", [*rows(10, start=100), ("amber pearl", "middling")])
    with pytest.raises(DataError) as caught:
        burnish.evaluate(lora, data=str(home / "odd.csv"), set=["data.on_problem=stop"])
    assert "odd.csv:12" in str(caught.value)


def test_a_run_whose_data_changed_is_not_judged_on_rows_it_may_have_trained_on(home: Path) -> None:
    data = write(home / "moving.csv", rows(60))
    asked = [*SHORT, "data.files=[moving.csv]"]
    report = burnish.climb(str(home / "task.yaml"), set=asked)
    write(data, rows(66))
    with pytest.raises(DataError, match="not what this run was made with"):
        burnish.evaluate(report.folder)
    told = burnish.evaluate(report.folder, data=str(write(home / "held.csv", rows(20, start=200))))
    assert any("is not known" in note for note in told.verdict.notes)


def test_a_home_that_was_moved_is_still_evaluated(
    home: Path, climbed: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    shutil.copytree(home / "home", tmp_path / "home")
    monkeypatch.setenv("BURNISH_HOME", str(tmp_path / "home"))
    told = burnish.evaluate(Path(climbed.folder).name)
    assert all(Path(rung.artifact).is_relative_to(tmp_path) for rung in told.rungs)


def test_a_folder_with_a_task_file_is_no_run(home: Path) -> None:
    with pytest.raises(ArtifactError, match="No run or artifact"):
        burnish.evaluate(str(home))


def test_a_slip_in_a_runs_name_is_answered_with_the_nearest(climbed: Report) -> None:
    name = Path(climbed.folder).name
    with pytest.raises(ArtifactError) as caught:
        burnish.evaluate(name[:-1])
    assert f"did you mean {name}?" in caught.value.do


# --- predict and chat ----------------------------------------------------------------------------------------


def test_predicting_goes_on_after_a_kill_and_keeps_every_row(
    home: Path, lora: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = [(text, str(i)) for i, (text, _) in enumerate(rows(25, start=40))]
    new[7] = ("", "7")
    write(home / "new.csv", new, ("review", "number"))
    whole = home / "whole.csv"
    burnish.predict(lora, str(home / "new.csv"), out=str(whole))
    monkeypatch.setattr(predict_file, "CHUNK", 10)
    append, calls = store.append_jsonl, []

    def killed(path: Path, told: Any) -> None:
        if calls:
            raise KeyboardInterrupt
        calls.append(path)
        append(path, told)

    out = home / "out.csv"
    with monkeypatch.context() as patch:
        patch.setattr(store, "append_jsonl", killed)
        with pytest.raises(KeyboardInterrupt):
            burnish.predict(lora, str(home / "new.csv"), out=str(out))
    assert not out.exists()
    part = out.with_name(".out.csv.part")
    part.write_bytes(part.read_bytes() + b'{"id": "torn')
    told = burnish.predict(lora, str(home / "new.csv"), out=str(out))
    assert (told["rows"], told["done_before"], told["problems"]) == (25, 10, 1)
    assert not part.exists()
    with out.open() as left, whole.open() as right:
        found, expected = list(csv.DictReader(left)), list(csv.DictReader(right))
    assert [row["number"] for row in found] == [str(i) for i in range(25)]
    assert "empty" in found[7]["problem"]
    assert [row["prediction"] for row in found] == [row["prediction"] for row in expected]


def test_predicting_stops_when_asked_and_goes_on(home: Path, lora: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home / "more.csv", rows(25, start=40))
    monkeypatch.setattr(predict_file, "CHUNK", 10)
    out = str(home / "more.jsonl")
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="after 10 of 25 rows"):
        burnish.predict(lora, str(home / "more.csv"), out=out, say=lambda _, event: patch.setattr(store, "_stop", True))
    assert burnish.predict(lora, str(home / "more.csv"), out=out)["done_before"] == 10
    answers = [json.loads(line) for line in Path(out).read_text().splitlines()]
    assert [row["review"] for row in answers] == [text for text, _ in rows(25, start=40)]
    assert {row["prediction"] for row in answers} <= {"bad", "good"}


def test_a_run_stands_for_its_recommended_rung_or_asks_which(climbed: Report, home: Path) -> None:
    folder = Path(climbed.folder)
    if climbed.verdict.rung:
        assert burnish.chat(folder.name).artifact.rung == climbed.verdict.rung
    else:
        with pytest.raises(ArtifactError, match="recommends no rung") as caught:
            burnish.chat(folder.name)
        assert str(folder / "rungs/lora/artifact") in caught.value.do


def test_chat_reads_a_class(lora: str) -> None:
    told = "".join(burnish.chat(lora).reply("amber brook"))
    assert told.split(" (")[0] in ("bad", "good")


# --- runs ----------------------------------------------------------------------------------------------------


def test_runs_tell_the_goal_and_the_state(climbed: Report) -> None:
    told = {run["name"]: run for run in burnish.runs()}
    run = told[Path(climbed.folder).name]
    assert run["state"] == "judged"
    assert run["goal"]["task"] == "classify"
    assert run["rungs"] == ["baseline", "lora", "zero-shot"]
    begun = Path(climbed.folder) / "rungs" / "full"
    begun.mkdir()
    try:
        state = {run["name"]: run["state"] for run in burnish.runs()}
        assert state[Path(climbed.folder).name] == "stopped in full"
        with store.locked(begun):
            state = {run["name"]: run["state"] for run in burnish.runs()}
        assert state[Path(climbed.folder).name] == "working on full"
    finally:
        (begun / ".lock").unlink()
        begun.rmdir()


def test_a_broken_run_folder_does_not_hide_the_others(home: Path, climbed: Report) -> None:
    folder = home / "home" / "runs" / "broken-00000000"
    folder.mkdir()
    for name in ("task.yaml", "environment.json", "report.json"):
        (folder / name).write_text("{")
    try:
        assert {"broken-00000000", Path(climbed.folder).name} <= {run["name"] for run in burnish.runs()}
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def test_what_is_no_artifact_is_refused_by_name(home: Path) -> None:
    with pytest.raises(BurnishError, match="No run or artifact"):
        burnish.predict("../../etc", str(home / "reviews.csv"), out=str(home / "x.csv"))


def test_checking_a_task_loads_no_model_library(home: Path) -> None:
    code = f"""
import sys, burnish
assert burnish.check({str(home / "task.yaml")!r}, show=1)["ok"]
heavy = {{"torch", "transformers", "scipy", "pandas", "sklearn"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_two_rungs_of_a_run_compare_on_its_test_rows(climbed: Report) -> None:
    run = Path(climbed.folder)
    before = list(store.read_jsonl(store.home() / "readings.jsonl"))
    told = burnish.compare(str(run / "rungs/zero-shot/artifact"), str(run / "rungs/lora/artifact"))
    assert told["comparison"]["n"] == climbed.rungs[0].scores[0].n
    pair = next(item for item in climbed.comparisons if (item.a, item.b) == ("zero-shot", "lora"))
    assert told["comparison"]["difference"] == pytest.approx(pair.difference)
    assert told["change"]["fixed"]["total"] == pair.fixed
    assert "zero-shot" in told["sentence"]
    page = Path(told["page"]).read_text()
    assert "Rows fixed and broken" in page
    assert "What it costs" in page
    assert "lora" in page
    assert list(store.read_jsonl(store.home() / "readings.jsonl")) == before  # nothing had to be answered anew


def test_runs_on_other_rows_do_not_compare(climbed: Report, home: Path) -> None:
    write(home / "other.csv", rows(60, 100))
    task = (home / "task.yaml").read_text().replace("reviews.csv", "other.csv")
    (home / "other.yaml").write_text(task)
    other = burnish.climb(str(home / "other.yaml"), set=[*SHORT, "rungs=[zero-shot]"])
    one, two = (str(Path(report.folder) / "rungs/zero-shot/artifact") for report in (climbed, other))
    with pytest.raises(DataError, match="same rows"):
        burnish.compare(one, two)
    write(home / "fresh.csv", rows(30, 300))
    assert burnish.compare(one, two, data=str(home / "fresh.csv"))["comparison"]["n"] == 30


def test_advice_rests_on_figures(home: Path) -> None:
    told = burnish.advise(str(home / "task.yaml"))
    assert told["facts"]["rows"]["train"] > 0
    assert told["facts"]["tried"] > 0
    assert told["facts"]["fits"]["lora"] in ("fits", "tight", "does not fit")
    assert all(item["because"] for item in told["points"])
    assert burnish.advise(str(home / "task.yaml"), changing="daily")["points"][0]["advice"] == "retrieval"
    with pytest.raises(TaskError, match="changing"):
        burnish.advise(str(home / "task.yaml"), changing="sometimes")


def test_multiple_choice_from_file_to_answers(home: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """ARC's own columns; every rung that makes sense, answers for rows nobody answered, and rows of another file."""
    told = [
        {
            "question": f"{text}?",
            "choices": {"text": [f"{word} {j}" for j, word in enumerate(text.split())], "label": [*"ABC"]},
            "answerKey": "ABC"[i % 3],
        }
        for i, (text, _) in enumerate(rows(60))
    ]
    store.write_jsonl(home / "quiz.jsonl", told)
    base = str(tiny.folder("llama", tmp_path_factory))
    made = burnish.init(str(home / "quiz.jsonl"), out=str(home / "quiz.yaml"), base=base)
    assert (made["goal"], made["metric"], made["columns"]["letter"]) == ("choose", "accuracy", "answerKey")
    assert burnish.check(str(home / "quiz.yaml"))["ok"]
    rungs = "rungs=[baseline, zero-shot, few-shot, linear-probe, lora]"
    few = [*SHORT, rungs, "few-shot.budget=20", "few-shot.shots=[1]", "few-shot.orders=1"]
    report = burnish.climb(str(home / "quiz.yaml"), set=few)
    ran = {rung.rung: [score.metric for score in rung.scores] for rung in report.rungs}
    assert ran.pop("linear-probe") == []
    assert all(metrics[:2] == ["accuracy", "accuracy-norm"] for metrics in ran.values())
    kept = list(store.read_jsonl(Path(next(rung for rung in report.rungs if rung.rung == "lora").predictions)))
    assert all(len(row["loglikelihoods"]) == 3 for row in kept)
    lora = next(rung.artifact for rung in report.rungs if rung.rung == "lora")
    new = [{key: value for key, value in row.items() if key != "answerKey"} for row in told[:4]]
    store.write_jsonl(home / "asked.jsonl", new)
    burnish.predict(lora, str(home / "asked.jsonl"), out=str(home / "said.jsonl"))
    for row in store.read_jsonl(home / "said.jsonl"):
        assert row["choice"] == row["choices"]["text"]["ABC".index(row["prediction"])]
    other = [{**row, "question": f"Or {row['question']}"} for row in told[:12]]
    store.write_jsonl(home / "other.jsonl", other)
    assert burnish.evaluate(lora, data=str(home / "other.jsonl")).rungs[0].scores[0].n == 12
    with pytest.raises(TaskError, match="do not serve the goal"):
        burnish.check(str(home / "quiz.yaml"), set=["goal.task=answer"])
