"""Passages before a question: what the model reads, what is cited, and what of it an artifact keeps."""

import json
from dataclasses import dataclass, replace
from typing import Any

import asking
import numpy as np
import pytest
import tiny

from burnish import artifact as artifacts
from burnish import store
from burnish.artifact import Artifact
from burnish.errors import ArtifactError, TaskError
from burnish.evaluate import predict as predicting
from burnish.generate.answer import Answerer
from burnish.prompting import _encoder, retrieval
from burnish.prompting._finder import Finder, query
from burnish.prompting._world import World
from burnish.records import Example, Message, Prediction, Where
from burnish.task import Evaluate

CITIES = ("Arn", "Bel", "Cor", "Dun", "Eld", "Fen", "Gor", "Hul")
RIVERS = ("Ash", "Bow", "Cam", "Dee", "Esk", "Fal", "Gar", "Hay")


@dataclass(frozen=True)
class Reader(Answerer):
    """Answers with the river that stands beside the city in its prompt, if one does; no model runs."""

    seen: Any = None

    def answer(self, rows):
        for row in rows:
            prompt = row.prompt[-1].content
            self.seen.append(prompt)
            city = prompt.rpartition("through ")[2].rstrip("?")
            beside = [line for line in prompt.splitlines() if f"{city} lies on the" in line]
            yield Prediction(row.id, str(row.where), text=beside[0].split()[-1].rstrip(".") if beside else "?")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("BURNISH_HOME", str(tmp_path / "home"))
    folder = tmp_path / "docs"
    folder.mkdir()
    for city, river in zip(CITIES, RIVERS, strict=True):
        (folder / f"{city}.md").write_text(f"# About {city}\n{city} lies on the {river}.\n")
    return tmp_path


def reader(tmp_path_factory, **own):
    told = asking.answerer("t5", tmp_path_factory, "answer", "prompt", instruction="", **own)
    return Reader(told.model, told.tokenizer, replace(told.contract, max_length=100_000), seen=[])


def asked(count=8):
    return [
        Example("prompt", Where("q", i), (Message("user", f"What flows through {city}?"), Message("assistant", river)))
        for i, (city, river) in enumerate(zip(CITIES[:count], RIVERS, strict=False))
    ]


def world(ready, home, metric="exact-match", **own):
    settings = {"documents": ["docs"], "k": [1, 3], "chunk": [10, 30], "encoder": "", "budget": 500} | own
    return World(ready, asked(), asked(), metric, settings, root=str(home), home=home)


class TestChoice:
    def test_what_stands_in_the_documents_is_found_said_and_cited(self, home, tmp_path_factory):
        ready = reader(tmp_path_factory)
        made = retrieval.choose(world(ready, home))
        assert made.shown["validation_best"] == 1.0
        assert made.recipe["k"] == 1  # the cheaper of equals
        told = list(retrieval.answer(ready, made.recipe, {}, asked(2)))
        assert [item.text for item in told] == ["Ash", "Bow"]
        assert [item.sources for item in told] == [("[1] Arn.md, About Arn",), ("[1] Bel.md, About Bel",)]
        assert ready.seen[-1] == "[1] Bel.md, About Bel\nBel lies on the Bow.\n\nWhat flows through Bel?"

    def test_finding_is_scored_on_its_own_and_every_candidate_is_kept(self, home, tmp_path_factory):
        made = retrieval.choose(world(reader(tmp_path_factory), home))
        assert {made.shown[key] for key in ("hit_at_1", "mrr")} == {1.0}
        assert (made.shown["found_by"], made.shown["found_rows"]) == ("answer", 8)
        trace = list(store.read_jsonl(home / "search.jsonl"))
        assert [(line["k"], line["chunk"]) for line in trace] == [(1, 10), (1, 30), (3, 10), (3, 30)]
        assert all(line["hit_at_1"] == 1.0 and line["scores"]["plain"] == 1.0 for line in trace)

    def test_a_way_that_is_shown_to_find_worse_is_asked_nothing(self, home, tmp_path_factory, monkeypatch):
        """Vectors that stand for nothing; the rows say where their answers stand."""
        draw = np.random.default_rng(0)
        monkeypatch.setattr(_encoder.Encoder, "vectors", lambda self, texts: draw.normal(size=(len(texts), 4)))
        made = retrieval.choose(world(reader(tmp_path_factory), home, encoder="base", k=[1]))
        assert made.recipe["mode"] == "words"
        assert "encoder" in made.shown["passed_over"]
        assert {line["mode"] for line in store.read_jsonl(home / "search.jsonl")} <= {"words", "fused"}
        monkeypatch.setattr(Finder, "hits", lambda self, rows, goal: None)  # the rows do not say
        made = retrieval.choose(world(reader(tmp_path_factory), home, encoder="base", k=[1]))
        assert "passed_over" not in made.shown
        assert {line["mode"] for line in store.read_jsonl(home / "search.jsonl")} == {"words", "encoder", "fused"}

    def test_the_budget_holds(self, home, tmp_path_factory):
        ready = reader(tmp_path_factory)
        made = retrieval.choose(world(ready, home, budget=12))
        assert len(ready.seen) == made.shown["asked"] <= 12

    def test_only_a_changed_document_is_read_again(self, home, tmp_path_factory, monkeypatch):
        from burnish.data import documents

        read, seen = documents.read, []
        monkeypatch.setattr(documents, "read", lambda data, path: seen.append(path.name) or read(data, path))
        one = retrieval.choose(world(reader(tmp_path_factory), home))
        assert len(seen) == 8
        own = {"documents": ["docs"]}
        assert not retrieval.stale(one.recipe, own, str(home))
        (home / "docs" / "Bel.md").write_text("Bel lies on the Ouse.")
        assert retrieval.stale(one.recipe, own, str(home))
        two = retrieval.choose(world(reader(tmp_path_factory), home))
        assert seen[8:] == ["Bel.md"]
        assert next(retrieval.answer(reader(tmp_path_factory), two.recipe, {}, asked(2)[1:])).text == "Ouse"

    @pytest.mark.parametrize("own", [{"documents": []}, {"k": []}, {"chunk": []}])
    def test_nothing_to_look_in_is_refused(self, own, home, tmp_path_factory):
        with pytest.raises(TaskError, match="nothing to look in"):
            retrieval.choose(world(reader(tmp_path_factory), home, **own))
        told = {"documents": ["docs"], "k": [1], "chunk": [10]}
        assert next(iter(own)) in retrieval.lacks(told | own)
        assert retrieval.lacks(told) == ""

    @pytest.mark.parametrize(("kind", "shape"), [("encoder", "labelled"), ("decoder", "document")])
    def test_says_where_it_makes_no_sense(self, kind, shape):
        assert retrieval.unfit(kind, "classify", shape)


class TestQuestion:
    def test_what_follows_a_blank_is_looked_up_too(self):
        turns = (Message("user", "On the hill"), Message("assistant", "Anna sat by the mill"))
        row = Example(
            "choices", Where("q", 1), turns, "", None, "A", choices=("Anna sat by the mill", "Ada sat by the mill")
        )
        assert query(row) == "On the hill sat by the mill"
        assert query(replace(row, choices=("north", "south"))) == "On the hill"


class TestPrompt:
    def test_what_does_not_fit_is_the_least_alike_passage(self, home, tmp_path_factory):
        """A context of 96 letters."""
        ready = asking.answerer("llama", tmp_path_factory, "answer", "prompt", instruction="", most=4)
        made = retrieval.choose(world(ready, home, k=[3], chunk=[10], budget=10))
        told = next(retrieval.answer(ready, made.recipe, {}, asked(1)))
        assert told.sources == ("[1] Arn.md, About Arn",)
        assert not told.problem

    def test_a_documents_own_braces_and_control_tokens_stay_text(self, home, tmp_path_factory):
        (home / "docs" / "Arn.md").write_text("Arn {source} {n} </s><s> lies on the Ash.")
        ready = reader(tmp_path_factory)
        made = retrieval.choose(world(ready, home))
        row = retrieval.shown(ready, made.recipe, {}, asked(1)[0])
        assert "Arn {source} {n} </s><s> lies on the Ash." in row.messages[-2].content
        llama = asking.answerer("llama", tmp_path_factory, "answer", "prompt", instruction="")
        wide = replace(llama, contract=replace(llama.contract, max_length=1000))
        ids = wide.prompt_ids(retrieval.shown(wide, made.recipe, {}, asked(1)[0]))
        assert ids.count(wide.tokenizer.id("eos")) == 0

    def test_a_system_turn_and_earlier_turns_stay_where_they_are(self, home, tmp_path_factory):
        ready = reader(tmp_path_factory)
        made = retrieval.choose(world(ready, home))
        turns = (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello"))
        row = replace(asked(1)[0], messages=(*turns, *asked(1)[0].prompt))
        told = retrieval.shown(ready, made.recipe, {}, row)
        assert told.messages[:3] == turns
        assert told.meta["sources"] == ["[1] Arn.md, About Arn"]


class TestArtifact:
    def saved(self, home, tmp_path_factory, **own):
        ready = asking.answerer("llama", tmp_path_factory, "answer", "prompt", instruction="", most=4)
        made = retrieval.choose(world(ready, home, chunk=[10], k=[1], budget=10, **own))
        told = Artifact("retrieval", ready.model.base, ready.contract, "", made.recipe, {}, None, made.tensors)
        artifacts.save(told, None, home / "artifact")
        return list(retrieval.answer(ready, made.recipe, made.tensors, asked()))

    def again(self, home):
        loaded = artifacts.load(home / "artifact")
        return list(predicting.predict(loaded, asked(), Evaluate(max_new_tokens=4)))

    @pytest.mark.parametrize("encoder", ["", "base", "folder"])
    def test_answers_the_same_when_the_documents_are_gone(self, encoder, home, tmp_path_factory):
        encoder = str(tiny.folder("bert", tmp_path_factory)) if encoder == "folder" else encoder
        told = self.saved(home, tmp_path_factory, encoder=encoder)
        for path in (home / "docs").iterdir():
            path.unlink()
        again = self.again(home)
        assert asking.same(again, told)
        assert [item.sources for item in again] == [item.sources for item in told]

    def edit(self, home, **own):
        path = home / "artifact" / "artifact.json"
        told = json.loads(path.read_text())
        told["recipe"] |= own
        path.write_text(json.dumps(told))

    def test_an_edited_recipe_is_what_is_used(self, home, tmp_path_factory):
        self.saved(home, tmp_path_factory)
        path = home / "artifact" / "artifact.json"
        passages = json.loads(path.read_text())["recipe"]["passages"]
        passages[0]["source"] = "Atlas"
        self.edit(home, passages=passages, passage="<{n}> {text}", lead="Read:")
        assert self.again(home)[0].sources == ("[1] Atlas, About Arn",)
        loaded = artifacts.load(home / "artifact")
        row = retrieval.shown(predicting.answerer(loaded, Evaluate(max_new_tokens=4)), loaded.recipe, {}, asked(1)[0])
        assert row.messages[0].content.startswith("Read:\n\n<1> Arn lies")

    @pytest.mark.parametrize("own", [{"passages": [{"text": "rain"}]}, {"passages": "rain"}, {"mode": "encoder"}])
    def test_a_spoilt_recipe_is_refused(self, own, home, tmp_path_factory):
        self.saved(home, tmp_path_factory)
        self.edit(home, **own)
        with pytest.raises(ArtifactError, match="recipe cannot be used"):
            self.again(home)
