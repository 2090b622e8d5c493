"""A whole climb: what it leaves on disk, what it does again, and what it never does."""

import json
import random
import shutil
import sys
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import labelled, words, write

from burnish import artifact as artifacts
from burnish import store, taskfile, workflow
from burnish.climb import run
from burnish.climb.run import climb
from burnish.data import prepare
from burnish.errors import Interrupted, TaskError
from burnish.evaluate import plain, scores
from burnish.records import Prediction
from burnish.store import read_jsonl


def weights(report, rung="lora"):
    made = next(item for item in report.rungs if item.rung == rung)
    return {path.name: path.read_bytes() for path in Path(made.artifact).glob("*.safetensors")}


def test_everything_is_on_disk_and_every_score_can_be_traced(desk):
    told = desk.climb(desk.task())
    run = Path(told.folder)
    assert [item.rung for item in told.rungs] == ["baseline", "zero-shot", "few-shot", "lora", "full"]
    resolved = taskfile.read(run / "task.yaml")
    assert resolved.train.epochs == 1
    assert resolved.method["kind"] == "classify"
    assert resolved.base.name == desk.task().base.name
    assert json.loads((run / "environment.json").read_text())["torch"]
    assert "<html" in (run / "report.html").read_text()
    report = json.loads((run / "report.json").read_text())
    assert report["verdict"]["sentence"] == told.verdict.sentence
    assert report["data"]["splits"] == {"train": 42, "validation": 6, "test": 12}
    data = next(store.home().glob("cache/data/*/test.jsonl")).parent
    rows = prepare.examples(data, "test")
    for item in report["rungs"]:
        said = [Prediction.from_json(row) for row in read_jsonl(Path(item["predictions"]))]
        assert [row.id for row in said] == [row.id for row in rows]
        for score in item["scores"]:
            again = scores.Scoring(score["metric"], rows, ("bad", "good"), 0.95, 100).score(said)
            assert again.to_json() == score
        assert artifacts.load(item["artifact"]).rung == item["rung"]
        assert (Path(item["artifact"]) / "README.md").exists()
    for rung in ("lora", "full"):
        events = list(read_jsonl(run / "rungs" / rung / "events.jsonl"))
        assert [row["step"] for row in events if row["kind"] == "step"] == [1, 2, 3]
    assert len(told.comparisons) == 10


class TestAgain:
    def test_the_same_task_reuses_everything_and_opens_the_test_set_no_second_time(self, desk):
        first = desk.climb(desk.task())
        assert len(desk.readings()) == 1
        stamps = {path: path.stat().st_mtime_ns for path in Path(first.folder).glob("rungs/*/*/*")}
        second = desk.climb(desk.task())
        assert second.folder == first.folder
        assert len(desk.readings()) == 1
        cards = {path for path in stamps if path.name == "README.md"}
        assert all(path.stat().st_mtime_ns == stamps[path] for path in stamps.keys() - cards)
        assert [rung for rung, text in desk.heard if "already made" in text] == [item.rung for item in first.rungs]
        assert [item.to_json() for item in second.rungs] == [item.to_json() for item in first.rungs]
        assert second.verdict == first.verdict

    def test_what_the_climb_took_is_the_sum_of_its_sittings(self, desk, monkeypatch):
        clock = count(0, 10)
        monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        task = desk.task(rungs=["baseline", "zero-shot"])
        say = lambda rung, event: store.request_stop() if rung == "baseline" else None  # noqa: E731
        with pytest.raises(Interrupted):
            climb(task, False, say)
        monkeypatch.setattr(store, "_stop", False)
        kept = store.runs() / next(store.runs().iterdir()).name / "sittings.json"
        stopped = sum(json.loads(kept.read_text()))
        assert stopped >= 10
        first = desk.climb(task)
        assert first.seconds > stopped
        found = desk.climb(task)  # everything is done
        assert found.seconds > first.seconds
        assert json.loads(Path(found.folder, "report.json").read_text())["seconds"] == found.seconds
        assert f"whole climb {plain.seconds(found.seconds)}" in Path(found.folder, "report.html").read_text()
        assert desk.climb(task, again=True).seconds == found.seconds - first.seconds  # begins anew

    def test_another_confidence_judges_anew_and_makes_nothing(self, desk):
        first = desk.climb(desk.task())
        second = desk.climb(desk.task(evaluate={"confidence": 0.8}))
        assert second.folder == first.folder
        assert len(desk.readings()) == 1
        assert weights(second) == weights(first)
        for old, new in zip(first.rungs, second.rungs, strict=True):
            assert new.scores[0].value == old.scores[0].value
            assert new.scores[0].high - new.scores[0].low < old.scores[0].high - old.scores[0].low

    def test_again_trains_again_and_is_an_opening_of_its_own(self, desk):
        first = desk.climb(desk.task(rungs=["zero-shot", "lora"]))
        second = desk.climb(desk.task(rungs=["zero-shot", "lora"]), again=True)
        assert weights(second) == weights(first)  # the seed is the same
        assert not any("already made" in text for _, text in desk.heard)
        assert [row["rows"] for row in desk.readings()] == [12, 12]
        assert any("opened 2 times" in note for note in second.verdict.notes)
        assert not any("opened" in note for note in first.verdict.notes)

    def test_the_ledger_says_when_and_what_for(self, desk):
        told = desk.climb(desk.task(rungs=["baseline"]))
        row = desk.readings()[0]
        assert row["time"].endswith("Z")
        assert (row["verb"], row["run"], row["suite"]) == ("climb", told.name, "test")
        assert told.readings == (row,)

    def test_another_run_on_the_same_test_rows_is_counted_too(self, desk):
        desk.climb(desk.task(rungs=["lora"]))
        other = desk.climb(desk.task(rungs=["lora"], train={"learning_rate": 0.01}))
        assert len(other.readings) == 2
        assert len({row["run"] for row in other.readings}) == 2

    def test_a_rung_added_later_is_made_and_answers_alone(self, desk):
        desk.climb(desk.task(rungs=["baseline"]))
        told = desk.climb(desk.task(rungs=["baseline", "zero-shot"]))
        assert ("baseline", "baseline: already made") in desk.heard
        assert not any(rung == "baseline" and "test rows" in text for rung, text in desk.heard)
        assert len(told.readings) == 2

    def test_a_changed_data_file_is_another_run(self, desk):
        first = desk.climb(desk.task(rungs=["baseline"]))
        write(desk.folder / "rows.csv", labelled(seed=1))
        second = desk.climb(desk.task(rungs=["baseline"]))
        assert second.name != first.name
        assert Path(first.folder, "report.json").exists()
        assert len(second.readings) == 1

    def test_a_damaged_artifact_is_made_again_and_scores_the_same(self, desk):
        first = desk.climb(desk.task(rungs=["lora"]))
        artifact = Path(first.rungs[0].artifact)
        (artifact / "tokenizer.json").write_text("{}")
        second = desk.climb(desk.task(rungs=["lora"]))
        assert weights(second) == weights(first)
        assert artifacts.load(artifact)
        assert second.rungs[0].scores == first.rungs[0].scores

    def test_longer_answers_are_made_anew(self, desk):
        write(desk.folder / "pairs.jsonl", [{"prompt": row["text"], "completion": "yes"} for row in labelled()])
        own = {"kind": "llama", "goal": "answer", "file": "pairs.jsonl", "rungs": ["zero-shot"]}
        short = desk.climb(desk.task(**own))
        long = desk.climb(desk.task(**own, evaluate={"max_new_tokens": 9}))
        assert long.folder == short.folder
        lengths = [max(len(row["text"]) for row in read_jsonl(Path(long.rungs[0].predictions)))]
        assert lengths[0] > 4
        assert len(long.readings) == 2

    def test_another_metric_chooses_other_demonstrations_and_trains_nothing(self, desk):
        first = desk.climb(desk.task(rungs=["few-shot", "lora"]))
        second = desk.climb(desk.task(rungs=["few-shot", "lora"], metric="f1-macro"))
        assert second.folder == first.folder
        assert ("lora", "lora: already made") in desk.heard
        assert ("few-shot", "few-shot: already made") not in desk.heard
        assert [item.settings.get("metric") for item in second.rungs] == ["f1-macro", None]


class TestNever:
    def test_the_test_rows_decide_nothing_but_the_scores(self, desk):
        """Two climbs that differ in their test rows alone end in the same weights and the same prompts."""
        own = {"test_files": ["test.csv"], "validation_files": ["valid.csv"]}
        write(desk.folder / "valid.csv", labelled(8, seed=5))
        told = []
        for seed in (7, 8):
            write(desk.folder / "test.csv", labelled(12, seed=seed))
            told.append(desk.climb(desk.task(data=own)))
        assert told[0].name != told[1].name
        for rung in ("lora", "full"):
            assert weights(told[0], rung) == weights(told[1], rung)
        for one, other in zip(told[0].rungs, told[1].rungs, strict=True):
            assert artifacts.load(one.artifact).recipe == artifacts.load(other.artifact).recipe

    def test_no_test_row_is_read_before_the_last_rung_is_made(self, desk, monkeypatch):
        log = []
        real = prepare.examples
        heard = lambda folder, split: log.append(split) or real(folder, split)  # noqa: E731
        monkeypatch.setattr(prepare, "examples", heard)
        for module in [module for name, module in sys.modules.items() if name.startswith("burnish.train.")]:
            if hasattr(module, "examples"):
                monkeypatch.setattr(module, "examples", heard)
        package = sys.modules["burnish.climb.run"]
        judged = package.judge
        monkeypatch.setattr(package, "judge", lambda *a, **k: log.append("judge") or judged(*a, **k))
        desk.climb(desk.task())
        before = log[: log.index("judge")]
        assert before.count("test") == 2  # whether there are any, and what judge is given
        assert before[0] == "test"
        assert before[-1] == "test"

    def test_no_test_rows_no_climb(self, desk):
        with pytest.raises(TaskError, match="no test rows"):
            desk.climb(desk.task(data={"test": 0.0}))
        assert not list(store.runs().glob("*/rungs/*"))

    def test_a_rung_that_does_not_fit_is_listed_with_the_reason(self, desk):
        told = desk.climb(desk.task("bert", rungs=["baseline", "zero-shot", "few-shot", "linear-probe"]))
        skipped = {item.rung: item.skipped for item in told.rungs}
        assert skipped["zero-shot"] == "an encoder is not prompted"
        assert skipped["few-shot"] == "an encoder takes no demonstrations"
        assert skipped["baseline"] == skipped["linear-probe"] == ""
        report = json.loads(Path(told.folder, "report.json").read_text())
        assert {item["rung"]: item["skipped"] for item in report["rungs"]} == skipped
        assert "an encoder is not prompted" in Path(told.folder, "report.html").read_text()


class TestOneClass:
    def test_there_is_nothing_to_tell_apart(self, desk):
        """It used to train every rung, and to end in an error of transformers' when the full one was loaded."""
        write(desk.folder / "one.csv", [{**row, "label": "good"} for row in labelled()])
        with pytest.raises(TaskError, match="Every row has the same class"):
            desk.climb(desk.task(file="one.csv"))


class TestStopping:
    @pytest.mark.parametrize("after", ["baseline", "zero-shot", "few-shot"])
    def test_a_stop_is_heard_between_rungs_and_the_same_command_goes_on(self, desk, monkeypatch, after):
        rungs = ["baseline", "zero-shot", "few-shot", "lora"]
        task = desk.task(rungs=rungs)
        say = lambda rung, event: store.request_stop() if rung == after else None  # noqa: E731
        with pytest.raises(Interrupted):
            climb(task, False, say)
        assert desk.readings() == []
        monkeypatch.setattr(store, "_stop", False)
        told = desk.climb(task)
        made = [rung for rung, text in desk.heard if "already made" in text]
        assert made == rungs[: rungs.index(after) + (after != "few-shot")]
        assert [item.rung for item in told.rungs] == rungs
        assert len(told.readings) == 1

    def test_a_stop_in_training_goes_on_to_the_same_weights(self, desk, monkeypatch):
        straight = desk.climb(desk.task(rungs=["lora"], train={"epochs": 3}))
        monkeypatch.setenv("BURNISH_HOME", str(desk.folder / "other"))
        task = desk.task(rungs=["lora"], train={"epochs": 3})
        say = lambda rung, event: store.request_stop() if event.kind == "step" and event.step == 4 else None  # noqa: E731
        with pytest.raises(Interrupted, match="after step 4"):
            climb(task, False, say)
        monkeypatch.setattr(store, "_stop", False)
        assert weights(desk.climb(task)) == weights(straight)


def rows_of(name):
    draw = random.Random(3)
    if name == "numbers":
        return "n.csv", [{"text": words(draw), "score": round(draw.gauss(50, 9), 2)} for _ in range(60)]
    if name == "several":
        return "s.jsonl", [
            {"text": words(draw), "labels": draw.sample(["red", "green", "blue"], draw.randint(1, 2))}
            for _ in range(60)
        ]
    if name == "pairs":
        return "p.jsonl", [{"prompt": words(draw), "completion": words(draw, 1)} for _ in range(60)]
    if name == "chat":
        return "c.jsonl", [
            {"messages": [{"role": "user", "content": words(draw)}, {"role": "assistant", "content": words(draw, 2)}]}
            for _ in range(60)
        ]
    if name == "documents":
        return "d.jsonl", [{"text": words(draw, 30)} for _ in range(40)]
    return "rows.csv", labelled()


SFT = {"method": {"kind": "sft"}}
CLIMBS = [
    ("llama", "regress", "numbers", {}),
    ("albert", "classify", "several", {}),
    ("bert", "classify", "labelled", {}),
    ("bart", "answer", "pairs", {}),
    ("gpt2", "classify", "labelled", SFT),
    ("llama", "chat", "chat", {}),
    ("gpt2", "write", "documents", {}),
    ("t5", "write", "documents", {}),
]
SLOWER = [
    ("bert", "regress", "numbers", {}),
    ("llama", "classify", "several", {}),
    ("bart", "classify", "several", SFT),
    ("t5", "classify", "labelled", {}),
    ("t5", "regress", "numbers", SFT),
    ("gpt2", "extract", "pairs", {}),
    ("bert", "write", "documents", {}),
    ("bart", "write", "documents", {}),
]
CLIMBS += [pytest.param(*case, marks=pytest.mark.slow) for case in SLOWER]


@pytest.mark.parametrize(("kind", "goal", "name", "own"), CLIMBS)
def test_every_goal_climbs_on_every_kind_of_model(kind, goal, name, own, desk):
    data, rows = rows_of(name)
    write(desk.folder / data, rows)
    told = desk.climb(desk.task(kind, goal, data, **own))
    ran = [item for item in told.rungs if not item.skipped]
    assert {item.rung for item in ran} >= {"lora", "full"}
    metric = scores.pick_metric(goal)
    for item in ran:
        assert item.scores[0].metric == metric
        assert item.scores[0].n == (12 if name != "documents" else 8)
        assert item.scores[0].low <= item.scores[0].value <= item.scores[0].high
    assert told.verdict.sentence
    assert Path(told.folder, "report.html").exists()
    assert desk.climb(desk.task(kind, goal, data, **own)).verdict == told.verdict
    assert len(desk.readings()) == 1


def test_an_encoder_without_a_language_head_gives_its_features(desk, tmp_path):
    """all-MiniLM and its like are bare bodies: nothing is predicted with a head that they never had."""
    from transformers import AutoModel

    bare = tmp_path / "bare"
    shutil.copytree(desk.make_base("bert"), bare)
    AutoModel.from_pretrained(str(bare)).save_pretrained(bare)
    assert json.loads((bare / "config.json").read_text())["architectures"] == ["BertModel"]
    told = desk.climb(desk.task("bert", base={"name": str(bare)}))
    assert [item.rung for item in told.rungs if not item.skipped] == [
        "baseline",
        "nearest-neighbour",
        "linear-probe",
        "lora",
        "full",
    ]


def test_retrieval_without_documents_is_left_out_and_the_others_are_made(desk):
    told = desk.climb(desk.task("llama", rungs=["baseline", "retrieval"]))
    skipped = {item.rung: item.skipped for item in told.rungs}
    assert skipped == {"baseline": "", "retrieval": "it has nothing to look in; set retrieval.documents"}


@pytest.mark.parametrize(("metric", "reason"), [("exact-match", ""), ("perplexity", "it gives no likelihoods")])
def test_answers_have_a_floor_too(metric, reason, desk):
    rows = [{"prompt": row["text"], "completion": "none" if i % 3 else row["text"]} for i, row in enumerate(labelled())]
    write(desk.folder / "asked.csv", rows)
    told = desk.climb(desk.task(goal="answer", file="asked.csv", metric=metric, rungs=["baseline", "zero-shot"]))
    floor = told.rungs[0]
    assert floor.skipped.startswith(reason)
    assert bool(floor.skipped) == bool(reason)
    if not reason:
        assert floor.settings["always"] == "none"
        assert floor.scores[0].value > 0.4


class TestTooLong:
    """A verdict loses no row: one that is longer than the model reads is answered from what fits, and that is noted."""

    @pytest.mark.parametrize("rule", ["error", pytest.param("drop", marks=pytest.mark.slow), "cut-prompt"])
    @pytest.mark.parametrize("kind", ["llama", "bert"])
    def test_a_test_row_is_answered_all_the_same(self, rule, kind, desk):
        long = [{"text": words(random.Random(9), 40), "label": "good"}]
        write(desk.folder / "test.csv", labelled(11, seed=7) + long)
        rungs = ["baseline", "zero-shot", "few-shot", "nearest-neighbour", "linear-probe", "lora"]
        told = desk.climb(desk.task(kind, rungs=rungs, data={"test_files": ["test.csv"], "too_long": rule}))
        for item in told.rungs:
            if not item.skipped:
                said = list(read_jsonl(Path(item.predictions)))
                assert len(said) == item.scores[0].n == 12
                assert not any(row.get("problem") for row in said)
        assert "1 of 12 rows have more than 96 tokens and were answered from what fits" in told.verdict.notes

    def test_training_rows_done_without_are_told(self, desk):
        long = [{"text": words(random.Random(i), 40), "label": "good"} for i in range(20)]
        write(desk.folder / "rows.csv", labelled(40) + long)
        write(desk.folder / "test.csv", labelled(12, seed=7))
        own = {"test_files": ["test.csv"], "on_problem": "drop", "validation": 0}
        told = desk.climb(desk.task(rungs=["zero-shot", "lora"], data=own))
        assert any(note.startswith("lora learned from 40 of 60 rows: ") for note in told.verdict.notes)

    def test_two_texts_too_long_together_count_as_wrong(self, desk):
        rows = [{"text": row["text"], "text2": row["text"][::-1], "label": row["label"]} for row in labelled()]
        write(desk.folder / "twos.csv", rows)
        draw = random.Random(9)
        bad = [{"text": words(draw, 12), "text2": words(draw, 12), "label": "good"}]
        write(desk.folder / "test.csv", [{**row, "text": row["text"] + " z"} for row in rows[:11]] + bad)
        own = {"test_files": ["test.csv"], "columns": {"text": "text", "pair": "text2", "label": "label"}}
        told = desk.climb(desk.task("bert", file="twos.csv", rungs=["linear-probe", "lora"], data=own))
        for item in told.rungs:
            said = list(read_jsonl(Path(item.predictions)))
            assert len(said) == item.scores[0].n
            assert [row["where"] for row in said if row.get("problem")] == [said[-1]["where"]]
            assert item.scores[0].value <= 1 - 1 / len(said)

    def test_a_chat_keeps_its_perplexity_when_an_answer_fills_the_context(self, desk):
        draw = random.Random(3)
        turns = lambda many: [  # noqa: E731
            {"role": "user", "content": words(draw)},
            {"role": "assistant", "content": words(draw, many)},
        ]
        write(desk.folder / "c.jsonl", [{"messages": turns(2)} for _ in range(40)])
        write(desk.folder / "test.jsonl", [{"messages": turns(2 if i else 40)} for i in range(6)])
        told = desk.climb(
            desk.task("llama", "chat", "c.jsonl", rungs=["zero-shot", "lora"], data={"test_files": ["test.jsonl"]})
        )
        assert [item.scores[0].n for item in told.rungs] == [6, 6]


def test_the_verb_evaluate_reuses_the_answers_too(desk):
    told = desk.climb(desk.task(rungs=["baseline", "lora"]))
    again = workflow.evaluate(told.name)
    assert [item.scores for item in again.rungs] == [item.scores for item in told.rungs]
    assert len(desk.readings()) == 1
