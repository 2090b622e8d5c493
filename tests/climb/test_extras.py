"""What a climb does when asked: several seeds, a search, a learning curve; and openings that a kill repeats."""

from pathlib import Path

import pytest
from conftest import labelled, write

from burnish import store
from burnish.artifact import load
from burnish.climb import judge
from burnish.climb.run import climb
from burnish.climb.rungs import nested
from burnish.errors import TaskError
from burnish.records import Example, Where

HEAR = lambda rung, event: None  # noqa: E731


def rung(report, name="lora"):
    return next(item for item in report.rungs if item.rung == name)


class TestSeeds:
    def test_every_seed_is_told_and_the_interval_covers_them(self, desk):
        told = climb(desk.task(rungs=["zero-shot", "lora"]), False, HEAR, seeds=3)
        found = rung(told)
        assert [item["seed"] for item in found.seeds] == [0, 1, 2]
        mean = sum(item["value"] for item in found.seeds) / 3
        assert found.scores[0].value == pytest.approx(mean)
        assert found.scores[0].method == "rows and seeds"
        assert told.comparisons[0].test == "rows and seeds"
        weights = {
            (Path(item.get("artifact") or found.artifact) / "adapter_model.safetensors").read_bytes()
            for item in found.seeds
        }
        assert len(weights) == 3
        assert len(desk.readings()) == 1

    def test_more_seeds_later_make_only_the_new_ones(self, desk):
        task = desk.task(rungs=["zero-shot", "lora"])
        climb(task, False, HEAR, seeds=1)
        heard = []
        climb(task, False, lambda name, event: heard.append((name, event.kind)), seeds=2)
        assert heard.count(("lora", "finished")) == 1


class TestSearch:
    def test_the_best_trial_on_validation_rows_becomes_the_rung(self, desk):
        found = rung(climb(desk.task(rungs=["lora"]), False, HEAR, search=4))
        assert len(found.search) == 4
        best = min(found.search, key=lambda item: item["validation_loss"])
        assert found.settings["learning_rate"] == pytest.approx(best["learning_rate"])
        rates = [item["learning_rate"] for item in found.search]
        assert rates[1] == pytest.approx(3 * rates[0])
        assert found.search[3]["epochs"] == 2 * found.search[0]["epochs"]
        assert load(found.artifact).facts["valid_loss"] == pytest.approx(best["validation_loss"])

    def test_a_stopped_search_goes_on_where_it_was(self, desk):
        task = desk.task(rungs=["lora"])
        started = []

        def stop(name, event):
            if event.kind == "started":
                started.append(name)
                if len(started) == 3:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            climb(task, False, stop, search=3)
        again = []
        told = climb(task, False, lambda name, event: again.append(event.kind), search=3)
        assert again.count("started") == 1
        assert len(rung(told).search) == 3

    @pytest.mark.slow
    def test_beyond_the_grid_optuna_asks_the_same_again(self, desk):
        pytest.importorskip("optuna")
        task = desk.task(rungs=["lora"])
        first = rung(climb(task, False, HEAR, search=8)).search
        again = rung(climb(task, True, HEAR, search=8)).search
        assert first == again
        assert len({item["learning_rate"] for item in first}) == 8

    def test_without_validation_rows_there_is_no_search(self, desk):
        with pytest.raises(TaskError, match="needs validation rows"):
            climb(desk.task(rungs=["lora"], data={"validation": 0.0}), False, HEAR, search=2)


class TestCurve:
    def test_the_best_trained_rung_is_trained_on_growing_shares(self, desk):
        told = climb(desk.task(rungs=["zero-shot", "lora"]), False, HEAR, curve=True)
        rows = [point["rows"] for point in told.learning["points"]]
        assert rows == [6, 12, 22, 42]
        assert told.learning["rung"] == "lora"
        assert told.learning["points"][-1]["value"] == pytest.approx(rung(told).scores[0].value)
        assert told.learning["sentence"]
        assert len(desk.readings()) == 1

    def test_shares_lie_inside_each_other_and_keep_the_balance(self):
        rows = [Example("labelled", Where("a", i), text=str(i), label="ab"[i % 4 == 0]) for i in range(80)]
        small, large = nested(rows, 0.125), nested(rows, 0.5)
        assert {row.id for row in small} < {row.id for row in large}
        assert sum(row.label == "b" for row in large) == 10


class TestOpenings:
    def test_a_climb_killed_while_judging_is_one_opening(self, desk, monkeypatch):
        task = desk.task(rungs=["baseline", "zero-shot", "lora"])
        heard = []

        def kill(name, event):
            heard.append(name)
            if "lora" in str(event.numbers.get("text")) and "test rows" in str(event.numbers.get("text")):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            climb(task, False, kill)
        assert len(desk.readings()) == 1
        told = climb(task, False, HEAR)
        assert len(desk.readings()) == len(told.readings) == 1

    def test_a_killed_judging_that_goes_on_with_other_artifacts_is_another_opening(self, desk):
        def kill(name, event):
            if "zero-shot" in str(event.numbers.get("text")) and "test rows" in str(event.numbers.get("text")):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            climb(desk.task(rungs=["baseline", "zero-shot"]), False, kill)
        climb(desk.task(rungs=["baseline", "zero-shot", "lora"]), False, HEAR)
        assert len(desk.readings()) == 2

    def test_later_openings_correct_every_p(self, desk):
        climb(desk.task(rungs=["zero-shot", "lora"]), False, HEAR)
        told = climb(desk.task(rungs=["zero-shot", "lora"], train={"learning_rate": 0.02}), False, HEAR)
        assert "every p of this verdict is multiplied by 2" in told.verdict.notes[0]


def test_the_pair_that_speaks_is_chosen_on_some_validation_rows(desk, monkeypatch):
    monkeypatch.setattr(judge, "CHOOSING", 4)
    told = climb(desk.task(rungs=["zero-shot", "few-shot", "lora", "full"]), False, HEAR)
    assert [item.claim for item in told.comparisons].count(True) == 1
    pair = next(item for item in told.comparisons if item.claim)
    assert pair.a in ("zero-shot", "few-shot")
    assert pair.b in ("lora", "full")
    asked = [
        list(store.read_jsonl(Path(told.folder) / "rungs" / name / "predictions" / "validation.jsonl"))
        for name in ("few-shot", "lora")
    ]
    assert [len(rows) for rows in asked] == [4, 4]  # of 6
    assert [row["id"] for row in asked[0]] == [row["id"] for row in asked[1]]


def test_every_rung_has_a_cost_from_its_own_records(desk):
    short = [{**row, "text": row["text"][:9]} for row in labelled()]  # room for demonstrations
    write(desk.folder / "rows.csv", short)
    told = climb(desk.task(rungs=["baseline", "zero-shot", "few-shot", "lora"]), False, HEAR)
    for item in told.rungs:
        rows = list(store.read_jsonl(Path(item.predictions)))
        running = item.cost["running"]
        assert running["seconds"] == pytest.approx(1000 * sum(row.get("seconds", 0) for row in rows) / len(rows))
        prompt = 1000 * sum(row.get("prompt_tokens", 0) for row in rows) / len(rows)
        assert running["prompt_tokens"] == pytest.approx(prompt)
        assert running["memory"] > 0
    cost = {item.rung: item.cost for item in told.rungs}
    assert cost["few-shot"]["running"]["prompt_tokens"] > cost["zero-shot"]["running"]["prompt_tokens"]
    assert cost["lora"]["making"]["tokens"] > 0
    assert cost["lora"]["making"]["memory"] > 1 << 20
    assert (store.home() / "prices.yaml").exists()
