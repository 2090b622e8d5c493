"""A prompting rung on a tuned model: `few-shot+lora` is made, judged, kept, taken up again, refused like any rung."""

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import write

from burnish import artifact as artifacts
from burnish import store, taskfile
from burnish.climb import rungs
from burnish.climb.foresee import foresee
from burnish.climb.ladder import cost, ready, rungs_of
from burnish.errors import TaskError
from burnish.evaluate import predict as predicting
from burnish.records import Prediction
from burnish.task import Evaluate, parts, trains

WORDS = {"method": {"kind": "sft"}}


@pytest.fixture(autouse=True)
def short(desk):
    """Rows so short that demonstrations fit into the tiny context."""
    draw = random.Random(0)
    rows = [{"text": "".join(draw.choices("abcdefg", k=4)), "label": ("bad", "good")[i % 2]} for i in range(60)]
    write(desk.folder / "rows.csv", list({row["text"]: row for row in rows}.values()))


def climbed(desk, *names, **own):
    return desk.climb(desk.task(rungs=list(names), **WORDS, **own))


def of(report, rung):
    return next(item for item in report.rungs if item.rung == rung)


class TestNames:
    @pytest.mark.parametrize(
        ("rung", "nearest"),
        [
            ("few-shot+lara", "few-shot+lora"),
            ("lora+few-shot", "few-shot+lora"),
            ("retreival+full", "retrieval+full"),
            ("baseline+lora", "few-shot+lora"),
            ("few-shot+lora+full", "few-shot+lora"),
            ("few-shot+", "few-shot"),
        ],
    )
    def test_what_cannot_be_stacked_is_refused_with_the_nearest(self, rung, nearest, tmp_path):
        with pytest.raises(TaskError) as told:
            taskfile.resolve({"rungs": [rung]}, str(tmp_path / "task.yaml"))
        assert told.value.what == f'Unknown rung "{rung}"'
        assert nearest in told.value.do

    def test_overrides_take_them_and_a_written_task_reads_back(self, tmp_path):
        told = taskfile.parse("base: burnish-tiny", ["rungs=[few-shot+lora, retrieval+prompt-tuning]"])
        assert told.rungs == ("few-shot+lora", "retrieval+prompt-tuning")
        assert taskfile.parse(taskfile.write(told)).rungs == told.rungs

    def test_they_train_and_stand_behind_both_their_parts(self):
        assert parts("few-shot+lora") == ("few-shot", "lora")
        assert [trains(name) for name in ("few-shot", "lora", "few-shot+lora")] == [False, True, True]
        assert cost("few-shot+lora")[0] == cost("few-shot")[0] + cost("lora")[0]
        task = taskfile.resolve({"rungs": ["full", "few-shot+lora", "few-shot+full", "lora", "few-shot"]})
        base = SimpleNamespace(kind="decoder", random=False)
        assert rungs_of(task, base) == ("few-shot", "lora", "few-shot+lora", "full", "few-shot+full")


class TestClimb:
    def test_it_is_judged_beside_its_parts_and_costs_what_both_cost(self, desk):
        told = climbed(desk, "few-shot", "lora", "few-shot+lora")
        tuned, stacked = of(told, "lora"), of(told, "few-shot+lora")
        assert stacked.trained == tuned.trained > 0
        made, before = stacked.cost["making"], tuned.cost["making"]
        assert made["seconds"] > before["seconds"]
        assert made["tokens"] == before["tokens"] > 0
        assert stacked.settings["asked"] <= 30
        assert stacked.settings["method"] == "sft"
        assert stacked.scores
        assert len(told.comparisons) == 3
        assert not any(item.claim and trains(item.a) == trains(item.b) for item in told.comparisons)
        shown = json.loads((Path(stacked.predictions).with_suffix(".json")).read_text())["prompt"]
        assert shown.count("Mood?") > 0
        assert stacked.cost["running"]["prompt_tokens"] > tuned.cost["running"]["prompt_tokens"]

    @pytest.mark.parametrize("trained", ["lora", "full", "prompt-tuning", "partial"])
    def test_its_artifact_alone_answers_as_it_was_measured(self, desk, trained):
        rung = f"few-shot+{trained}"
        own = {"prompt-tuning": {"length": 4}}
        told = climbed(desk, rung, **own)
        assert [item.rung for item in told.rungs] == [rung]  # what it stands on was trained, and is not judged
        artifact = artifacts.load(of(told, rung).artifact)
        under = artifacts.load(Path(told.folder) / "rungs" / trained / "artifact")
        assert (artifact.rung, artifact.prompting, artifact.adapter) == (rung, "few-shot", trained)
        assert artifact.recipe["demonstrations"]
        weights = [path for path in under.folder.glob("*.safetensors") if path.name != "probe.safetensors"]
        assert weights
        assert all((artifact.folder / path.name).read_bytes() == path.read_bytes() for path in weights)
        rows = ready(desk.task(rungs=[rung], **WORDS, **own)).rows("test")
        kept = [Prediction.from_json(row) for row in store.read_jsonl(Path(of(told, rung).predictions))]
        again = list(predicting.predict(artifact, rows, Evaluate(max_new_tokens=4)))
        plain = list(predicting.answerer(under, Evaluate(max_new_tokens=4)).answer(rows))
        assert [item.probabilities for item in again] == [item.probabilities for item in kept]
        assert [item.probabilities for item in again] != [item.probabilities for item in plain]

    def test_it_is_made_once_and_anew_when_its_model_is(self, desk):
        first = climbed(desk, "few-shot+lora")
        climbed(desk, "few-shot+lora")
        assert ("few-shot+lora", "few-shot+lora: already made") in desk.heard
        stamp = (Path(of(first, "few-shot+lora").artifact) / "artifact.json").stat().st_mtime_ns
        changed = Path(first.folder) / "rungs/lora/artifact/artifact.json"  # only the recipe may be edited
        changed.write_text(json.dumps(json.loads(changed.read_text()) | {"recipe": {"note": "another model"}}))
        second = climbed(desk, "few-shot+lora")
        assert ("few-shot+lora", "few-shot+lora: already made") not in desk.heard
        assert (Path(of(second, "few-shot+lora").artifact) / "artifact.json").stat().st_mtime_ns > stamp

    def test_again_trains_once_for_both(self, desk):
        task = desk.task(rungs=["lora", "few-shot+lora"], **WORDS)
        desk.climb(task)
        desk.climb(task, again=True)
        assert [rung for rung, text in desk.heard if text == "started"] == ["lora"]
        assert not any("already made" in text for _, text in desk.heard)

    def test_a_head_reads_no_prompt_and_nothing_is_trained_for_it(self, desk):
        told = desk.climb(desk.task(rungs=["zero-shot", "few-shot+lora"]))  # classify trains a head
        reason = of(told, "few-shot+lora").skipped
        assert "head" in reason
        assert "method.kind: sft" in reason
        assert any("Few-shot+lora was skipped" in note or reason in note for note in told.verdict.notes)
        assert not (Path(told.folder) / "rungs/lora").exists()

    @pytest.mark.parametrize(("kind", "why"), [("bert", "an encoder takes"), ("t5", "takes no demonstrations")])
    def test_other_models_say_why(self, desk, kind, why):
        task = desk.task(kind, rungs=["few-shot+lora"], **(WORDS if kind == "t5" else {}))
        assert why in rungs.unfit(ready(task), "few-shot+lora")

    def test_passages_before_a_tuned_models_questions(self, desk):
        draw = random.Random(1)
        (desk.folder / "docs").mkdir()
        names = sorted({"".join(draw.choices("abcdefg", k=4)) for _ in range(30)})
        write(desk.folder / "asked.jsonl", [{"prompt": name, "completion": name[::-1]} for name in names])
        for name in names:
            (desk.folder / "docs" / f"{name}.txt").write_text(f"{name} {name[::-1]}")
        own = {"retrieval": {"documents": ["docs"], "k": [1], "chunk": [10], "budget": 12}}
        told = desk.climb(desk.task(goal="answer", file="asked.jsonl", rungs=["retrieval+lora"], **own))
        artifact = artifacts.load(of(told, "retrieval+lora").artifact)
        asked = ready(desk.task(goal="answer", file="asked.jsonl", rungs=["retrieval+lora"], **own)).rows("test")
        said = list(predicting.predict(artifact, asked, Evaluate(max_new_tokens=4)))
        kept = [Prediction.from_json(row) for row in store.read_jsonl(Path(of(told, "retrieval+lora").predictions))]
        assert [item.text for item in said] == [item.text for item in kept]
        assert [item.sources[0] for item in said] == [f"[1] {row.prompt[0].content}.txt, line 1" for row in asked]


def test_the_plan_says_what_it_needs_or_why_not(desk):
    task = desk.task(rungs=["few-shot+lora"], **WORDS)
    told = foresee(ready(task, begin=False))
    assert list(told["rungs"]) == ["lora"]
    assert told["stacked"] == {"few-shot+lora": "what lora needs, and then at most 24 questions to find the prompt"}
    told = foresee(ready(desk.task(rungs=["few-shot+lora"]), begin=False))
    assert told["rungs"] == {}
    assert "head" in told["stacked"]["few-shot+lora"]
