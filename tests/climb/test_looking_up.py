"""Retrieval as a rung of the ladder: when it is tried, and where its files are."""

from types import SimpleNamespace

import pytest

from burnish import taskfile
from burnish.climb import ladder
from burnish.data import prepare as data


def task(folder, **own):
    return taskfile.resolve({"retrieval": {"documents": ["docs"], "encoder": "base"}, **own}, str(folder / "task.yaml"))


@pytest.mark.parametrize(("kind", "tried"), [("decoder", True), ("encoder-decoder", True), ("encoder", False)])
def test_documents_bring_the_rung(kind, tried, tmp_path):
    base = SimpleNamespace(kind=kind, random=False)
    assert ("retrieval" in ladder.rungs_of(task(tmp_path), base)) == tried
    assert "retrieval" not in ladder.rungs_of(task(tmp_path, retrieval={}), base)
    assert ladder.rungs_of(task(tmp_path, rungs=["zero-shot"]), base) == ("zero-shot",)


def test_a_runs_task_finds_its_documents_from_anywhere(tmp_path):
    (tmp_path / "docs").mkdir()
    own = ladder._anchored(task(tmp_path)).rung_settings["retrieval"]
    assert own["documents"] == [str((tmp_path / "docs").resolve())]
    assert own["encoder"] == "base"


@pytest.mark.parametrize(("columns", "source"), [({}, "a.md"), ({"prompt": "source", "completion": "label"}, None)])
def test_a_source_column_says_where_the_answer_stands_unless_it_is_the_question(columns, source, tmp_path):
    (tmp_path / "rows.csv").write_text("prompt,completion,source,label\n" + "what rains,water,a.md,x\n")
    told = {
        "files": ["rows.csv"],
        "shape": "prompt",
        "columns": columns or {"prompt": "prompt", "completion": "completion"},
    }
    made = data.prepare(
        task(tmp_path, goal={"task": "answer"}, data=told | {"test": 0, "validation": 0}), tmp_path / "out"
    )
    assert data.examples(made.folder, "train")[0].meta.get("source") == source
