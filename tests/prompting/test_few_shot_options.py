"""What each option of the search does to the prompt and to the answers."""

import json
from dataclasses import replace

import asking
import numpy as np
import pytest
import tiny
from test_few_shot import SETTINGS, mood, rows, search, stand, topics

from burnish import artifact as artifacts
from burnish import store
from burnish.artifact import Artifact
from burnish.errors import ArtifactError, TaskError
from burnish.evaluate import predict as predicting
from burnish.prompting import _demonstrations, _encoder, _format, _labels, _pool, _search, few_shot
from burnish.prompting._world import World
from burnish.records import Example, Prediction, Where
from burnish.task import Evaluate

FORM = _format.FORMATS


class TestWays:
    texts = ("sun sun", "sun sun sun", "fog", "rain rain", "sun rain")
    made = tuple(Example("labelled", Where("f", i), text=text, label="ab"[i > 2]) for i, text in enumerate(texts))

    def drawn(self, way, shots, seed=0):
        return [row.text for row in _demonstrations.drawn(way, self.made, _pool.Bm25(self.texts), shots, (seed,))]

    def test_diverse_rows_have_nothing_in_common(self):
        for seed in range(8):
            told = [set(text.split()) for text in self.drawn("diverse", 3, seed)]
            assert len(set.union(*told)) == 3

    def test_balanced_rows_share_the_labels_and_random_ones_need_not(self):
        label = {row.text: row.label for row in self.made}
        assert all({label[text] for text in self.drawn("balanced", 2, seed)} == {"a", "b"} for seed in range(9))
        assert any(len({label[text] for text in self.drawn("random", 2, seed)}) == 1 for seed in range(9))

    def near(self, way, shots, order="last", text="sun sun"):
        recipe = {"choose": way, "shots": shots, "order": order}
        row = Example("labelled", Where("g", 1), text=text, label="a")
        return [item.text for item in _demonstrations.near(recipe, self.made, _pool.Bm25(self.texts), text, row)]

    def test_mmr_is_near_and_not_the_same_again(self):
        assert self.near("nearest", 2, "first", "sun fog") == ["fog", "sun sun sun"]
        assert self.near("nearest", 3, "first", "sun sun rain") == ["sun rain", "rain rain", "sun sun sun"]
        assert self.near("mmr", 2, "first", "sun sun rain") != self.near("nearest", 2, "first", "sun sun rain")

    def test_orders_are_orders_of_the_same_rows(self):
        last, first, shuffled = (self.near("nearest", 4, order) for order in _demonstrations.ORDERS)
        assert last == first[::-1]
        assert sorted(shuffled) == sorted(last)
        assert shuffled == self.near("nearest", 4, "shuffled")


class TestFormats:
    def said(self, name, tmp_path_factory, shown=2, limit=10_000):
        told = asking.answerer("llama", tmp_path_factory)
        ready = replace(told, contract=replace(told.contract, max_length=limit))
        train = rows(["sun", "fog"], lambda _: "good")[:shown]
        asked, kept = _format.behind(ready, FORM[name], train, rows(["dew"], mood)[0])
        return ready.tokenizer.decode(ready.prompt_ids(asked, ready.room)), kept

    def test_each_says_the_same_in_another_way(self, tmp_path_factory):
        asks = "### Input:\n{}\n\n### Answer:\n"
        whole = [f"Name the mood.\n\n{text}" for text in ("sun", "fog", "dew")]
        once = [whole[0], "fog", "dew"]
        turns = [f"{asks.format(a)}good\n\n{asks.format(b)}good\n\n{asks.format(c)}" for a, b, c in (whole, once)]
        assert self.said("turns", tmp_path_factory)[0].endswith(turns[0])
        assert self.said("once", tmp_path_factory)[0].endswith(turns[1])
        text = "Name the mood.\n\nText: sun\nAnswer: good\n\nText: fog\nAnswer: good\n\nText: dew\nAnswer:"
        assert self.said("text", tmp_path_factory)[0].endswith(asks.format(text))
        ready = asking.answerer("llama", tmp_path_factory, max_length=1000)
        arrows, _ = _format.behind(ready, FORM["arrow"], rows(["sun"], lambda _: "good"), rows(["dew"], mood)[0])
        assert arrows.prompt[0].content == "Name the mood.\nsun\n=> good\ndew\n=>"

    @pytest.mark.parametrize("name", FORM)
    def test_none_shows_a_demonstration_that_does_not_fit(self, name, tmp_path_factory):
        said = [self.said(name, tmp_path_factory, limit=limit) for limit in range(60, 200, 10)]
        assert {kept for _, kept in said} == {0, 1, 2}
        assert [kept for _, kept in said] == sorted(kept for _, kept in said)
        assert all(("sun" in text, "fog" in text) == (kept > 1, kept > 0) for text, kept in said)

    def test_the_best_is_found(self, tmp_path_factory):
        """A stand-in that only understands arrows."""
        ready = stand(tmp_path_factory, None)
        rule = lambda shown, text: mood(text.rpartition("\n=>")[0].rpartition("\n")[2]) if "=>" in text else "bad"  # noqa: E731
        ready = replace(ready, rule=rule)
        made = search(ready, rows(topics(30, 0), mood), rows(topics(30, 1), mood), formats=["turns", "text", "arrow"])
        assert made.shown["format"] == "arrow"
        assert made.shown["validation_best"] == 1.0

    def test_zero_shots_are_as_many_as_fit(self, tmp_path_factory):
        ready, train = stand(tmp_path_factory, lambda *_: "bad"), rows(topics(24, 0), mood)
        counts = []
        for limit in (300, 450, 100_000):
            narrow = replace(ready, contract=replace(ready.contract, max_length=limit))
            counts.append(search(narrow, train, [], shots=[0], choose=["balanced"]).recipe["shots"])
        assert 1 < counts[0] < counts[1] < counts[2] == 24


class TestWords:
    def test_the_model_reads_words_and_the_user_labels(self, tmp_path_factory):
        """A stand-in that answers in capitals, whose words the labels are not."""
        words = {"bad": "BAD", "fair": "FAIR", "good": "GOOD"}
        ready = stand(tmp_path_factory, lambda shown, text: mood(text).upper())
        made = search(ready, rows(topics(30, 0), mood), rows(topics(30, 1), mood), words=words)
        assert made.recipe["words"] == words
        told = list(few_shot.answer(ready, made.recipe, made.tensors, rows(topics(9, 2), mood)))
        assert all(item.label == mood(text) for item, text in zip(told, topics(9, 2), strict=True))
        assert made.shown["validation_best"] == 1.0

    def test_labels_are_spelt_as_text_where_that_differs(self):
        assert _labels.plainer(("card_arrival", "Top-up")) == {"card_arrival": "card arrival", "Top-up": "top up"}
        assert _labels.plainer(("bad", "good")) == {}
        assert _labels.plainer(("a_b", "a-b")) == {}  # two labels must not become one

    def test_an_instruction_made_from_the_labels_is_made_from_their_words(self, tmp_path_factory):
        told = asking.answerer(
            "llama", tmp_path_factory, labels=("a_b", "c"), instruction="Classify the text as a_b or c."
        )
        assert _labels.instruction(told, {"a_b": "a b"}) == "Classify the text as a b or c."
        own = asking.answerer("llama", tmp_path_factory, labels=("a_b", "c"), instruction="Which, a_b?")
        assert _labels.instruction(own, {"a_b": "a b"}) == "Which, a_b?"

    @pytest.mark.parametrize("words", [{"awful": "bad"}, {"bad": "good"}])
    def test_words_that_cannot_be_are_refused(self, words, tmp_path_factory):
        with pytest.raises(TaskError, match=r"few-shot\.words"):
            search(stand(tmp_path_factory, lambda *_: "bad"), rows(topics(9, 0), mood), [], words=words)


class TestCalibration:
    def test_it_is_the_papers_formula(self):
        told = Prediction("1", "f:1", label="a", probabilities={"a": 0.6, "b": 0.4})
        blank = [Prediction("", "", probabilities={"a": share, "b": 1 - share}) for share in (0.9, 0.7)]
        made = _labels.calibrated(told, blank)
        odds = np.array([0.6 / 0.8, 0.4 / 0.2])
        assert made.label == "b"
        assert list(made.probabilities.values()) == pytest.approx(odds / odds.sum(), abs=1e-6)

    def test_a_leaning_of_the_prompt_is_taken_out(self, tmp_path_factory):
        """A stand-in that adds a leaning towards `bad` to what it knows; its effect is told."""

        class Leaning(type(stand(tmp_path_factory, None))):
            def answer(self, asked):
                for row in asked:
                    text = row.prompt[-1].content.removeprefix("Name the mood.\n\n")
                    known = mood(text) if text.startswith("topic") else ""
                    shares = {name: (8 if name == "bad" else 1) * (4 if name == known else 1) for name in tiny.LABELS}
                    total = sum(shares.values())
                    shares = {name: share / total for name, share in shares.items()}
                    yield Prediction(row.id, str(row.where), label=max(shares, key=shares.get), probabilities=shares)

        ready = stand(tmp_path_factory, None)
        ready = Leaning(ready.model, ready.tokenizer, ready.contract)
        train, held = rows(topics(30, 0), mood), rows(topics(30, 1), mood)
        tried, never = (search(ready, train, held, calibrate=told) for told in ("try", "never"))
        assert tried.recipe["calibrate"]
        assert tried.shown["calibrated"] == 1.0 > 0.6 > tried.shown["plain"] == never.shown["validation_best"]
        told = list(few_shot.answer(ready, tried.recipe, tried.tensors, held))
        assert [item.label for item in told] == [row.label for row in held]
        plain = list(few_shot.answer(ready, {**tried.recipe, "calibrate": False}, tried.tensors, held))
        assert {item.label for item in plain} == {"bad"}

    def test_a_model_that_is_calibrated_already_is_left_alone(self, tmp_path_factory):
        ready = stand(tmp_path_factory, lambda shown, text: mood(text or "-"))
        made = search(ready, rows(topics(30, 0), mood), [], calibrate="try")
        assert made.recipe["calibrate"] is False


class TestOrders:
    def test_the_best_order_is_found_and_the_spread_is_told(self, tmp_path, tmp_path_factory):
        """A stand-in that knows the mood only when the alphabetically first demonstration stands last."""
        rule = lambda shown, text: mood(text) if shown[-1] == min(shown) else "?"  # noqa: E731
        ready = stand(tmp_path_factory, rule)
        made = search(
            ready,
            rows(topics(30, 0), mood),
            rows(topics(20, 1), mood),
            home=tmp_path,
            shots=[3],
            choose=["balanced"],
            orders=9,
        )
        assert made.shown["validation_best"] == made.shown["orders_max"] == 1.0
        assert made.shown["orders_min"] == 0.0
        trace = [line for line in store.read_jsonl(tmp_path / "search.jsonl") if line["stage"] == "order"]
        values = [line["scores"]["plain"] for line in trace]
        assert made.shown["orders_tried"] == len(values) == len({str(line["demonstrations"]) for line in trace})
        assert made.shown["orders_mean"] == pytest.approx(np.mean(values), abs=1e-4)
        assert len({line["rows"] for line in trace}) == 1  # all on the same rows

    def test_entropy_prefers_an_order_that_does_not_say_one_thing_only(self, tmp_path_factory):
        """It sees no label: the stand-in's answers vary when a certain row stands first, and are all wrong."""
        wrong = {"bad": "fair", "fair": "good", "good": "bad"}
        rule = lambda shown, text: wrong[mood(text)] if shown[0][0] == min(shown)[0] else "bad"  # noqa: E731
        ready = stand(tmp_path_factory, rule)
        train, held = rows(topics(60, 0), mood), rows(topics(30, 1), mood)
        own = {"shots": [3], "choose": ["balanced"], "orders": 9}
        by_rows, by_entropy = (search(ready, train, held, **own, order=told) for told in ("validation", "entropy"))
        first = [
            min(made.recipe["demonstrations"], key=lambda item: item["text"])["text"] for made in (by_rows, by_entropy)
        ]
        assert by_entropy.recipe["demonstrations"][0]["text"] == first[1]
        assert by_rows.recipe["demonstrations"][0]["text"] != first[0]

    def test_entropy_is_the_papers(self):
        told = [
            Prediction("", "", label=name, probabilities={"a": p, "b": 1 - p}) for name, p in (("a", 1.0), ("b", 0.5))
        ]
        assert _demonstrations.entropy(told) == (pytest.approx(np.log(2)), pytest.approx(np.log(2) / 2))

    def test_entropy_needs_labels(self, tmp_path_factory):
        ready = stand(tmp_path_factory, lambda *_: 1.0, "regress")
        with pytest.raises(TaskError, match="needs labels"):
            search(ready, rows(topics(9, 0), lambda _: 1.0), [], "rmse", order="entropy")


class TestBudget:
    @pytest.mark.parametrize("budget", [40, 150, 700])
    def test_no_more_is_asked_than_was_allowed(self, budget, tmp_path_factory):
        asked = []
        ready = stand(tmp_path_factory, lambda shown, text: asked.append(text) or mood(text))
        own = {"choose": ["balanced", "nearest", "random", "diverse", "mmr"], "formats": ["once", "text"], "orders": 4}
        made = search(ready, rows(topics(60, 0), mood), rows(topics(80, 1), mood), budget=budget, **own)
        assert len(asked) == made.shown["asked"] <= budget
        assert made.shown["tried"] > 3

    def test_the_better_half_is_asked_more(self):
        scores = {i: i / 10 for i in range(8)}
        trial = [Example("labelled", Where("f", i), text=f"{i}", label="a") for i in range(100)]

        def ask(recipe, part):
            good = scores[recipe["i"]]
            return {
                "plain": [Prediction(row.id, "", label="a" if int(row.text) % 10 < good * 10 else "b") for row in part]
            }, len(part)

        told = _search.Search("accuracy", ("a", "b"), trial, ask, 400, lambda text: None)
        best = told.among("x", [{"i": i} for i in range(8)], 1.0)
        assert [item.recipe["i"] for item in best[:2]] == [7, 6]
        assert best[0].rows > best[-1].rows >= _search.FEWEST
        assert told.left >= 0

    @staticmethod
    def raced(scores, budget):
        """A search among candidates that are right in so many of ten rows; the trial has 400."""
        trial = [Example("labelled", Where("f", i), text=f"{i}", label="a") for i in range(400)]

        def ask(recipe, part):
            labels = ["a" if int(row.text) % 10 < scores[recipe["i"]] else "b" for row in part]
            return {"plain": [Prediction(r.id, "", label=y) for r, y in zip(part, labels, strict=True)]}, len(part)

        told = _search.Search("accuracy", ("a", "b"), trial, ask, budget, lambda text: None)
        return told, told.among("x", [{"i": i} for i in range(len(scores))], 1.0)

    def test_who_is_shown_to_be_worse_is_asked_no_more(self):
        told, best = self.raced([0, 0, 10, 0, 0, 1], 2400)
        assert best[0].recipe["i"] == 2
        assert {item.rows for item in best} == {400 // 3}  # one round of three, and nobody is left to race with
        assert told.left == 2400 - 6 * (400 // 3)

    def test_candidates_that_no_question_would_tell_apart_are_asked_none(self):
        told, best = self.raced([5] * 8, 3200)
        assert best[0].recipe["i"] == 0  # the cheapest of equals
        assert {item.rows for item in best} == {400 // 3}
        assert told.left == 3200 - 8 * (400 // 3)

    def test_few_rows_are_no_reason_to_give_up(self):
        told, best = self.raced([5] * 4, 320)
        assert [item.rows for item in best] == [120, 120, 40, 40]
        assert told.left == 0

    def test_a_question_without_content_is_asked_once_in_each_context(self, tmp_path_factory):
        blank = []

        def listens(shown, text):
            if text in _labels.BLANK:
                blank.append((text, tuple(shown)))
            return mood(text) if text and len(shown) > 2 else "bad"

        ready = stand(tmp_path_factory, listens)
        made = search(ready, rows(topics(60, 0), mood), rows(topics(80, 1), mood), choose=["random"], calibrate="try")
        assert made.shown["validation_rows"] == 80
        assert len(blank) == len(set(blank)) > 3


class TestVectors:
    @pytest.mark.parametrize("encoder", ["base", "folder"])
    def test_near_by_vectors_is_found_where_it_is_better_and_kept_in_the_artifact(
        self, encoder, tmp_path, tmp_path_factory
    ):
        """A stand-in that is right when shown the row whose vector is nearest."""
        name = str(tiny.folder("bert", tmp_path_factory)) if encoder == "folder" else encoder
        ready = stand(tmp_path_factory, None)
        train, held = rows(topics(20, 0), mood), rows(topics(20, 1), mood)
        own = _encoder.named(name, ".", ready)
        texts = [row.text for row in train]
        index = _pool.Vectors(own.vectors(texts), own.vectors)
        queries = index.queries([row.text for row in held])
        wanted = {r.text: texts[int(np.argmax(index.scores(q)))] for r, q in zip(held, queries, strict=True)}
        ready = replace(ready, rule=lambda shown, text: mood(text) if shown[-1][0] == wanted[text] else "?")
        made = search(ready, train, held, home=tmp_path, choose=["nearest"], shots=[1], encoder=name)
        assert (made.recipe["alike"], made.shown["validation_best"]) == ("encoder", 1.0)
        assert {line["alike"] for line in store.read_jsonl(tmp_path / "search.jsonl")} == {"words", "encoder"}
        told = Artifact("few-shot", ready.model.base, ready.contract, "", made.recipe, {}, None, made.tensors)
        artifacts.save(told, None, tmp_path / "artifact")
        loaded = artifacts.load(tmp_path / "artifact")
        again = list(few_shot.answer(ready, loaded.recipe, loaded.tensors, held))
        assert [item.label for item in again] == [row.label for row in held]


class TestArtifact:
    def saved(self, tmp_path, tmp_path_factory, **own):
        ready = asking.answerer("llama", tmp_path_factory, instruction="")
        settings = SETTINGS | {"shots": [1], "choose": ["balanced"]} | own
        made = few_shot.choose(World(ready, asking.labelled(12, words=1), [], "accuracy", settings))
        told = Artifact("few-shot", ready.model.base, ready.contract, "", made.recipe, {}, None, made.tensors)
        artifacts.save(told, None, tmp_path / "artifact")
        return tmp_path / "artifact"

    def edit(self, folder, change):
        path = folder / "artifact.json"
        told = json.loads(path.read_text())
        change(told["recipe"])
        path.write_text(json.dumps(told))

    def asked(self, folder):
        loaded = artifacts.load(folder)
        row = asking.labelled(1, seed=5, words=1)[0]
        made = few_shot.shown(predicting.answerer(loaded, Evaluate()), loaded.recipe, loaded.tensors, row)
        return made.prompt, next(predicting.predict(loaded, [row], Evaluate())).probabilities

    @pytest.mark.parametrize(
        "change",
        [
            lambda recipe: recipe["demonstrations"][0].update(text="hail hail"),
            lambda recipe: recipe["demonstrations"].clear(),
            lambda recipe: recipe.update(instruction="Say it."),
            lambda recipe: recipe.update(
                format={"turns": False, "question": "Q {}", "answer": "A {}", "separator": "|"}
            ),
            lambda recipe: recipe.update(words={"good": "fine"}),
        ],
    )
    def test_an_edited_recipe_is_what_is_used(self, change, tmp_path, tmp_path_factory):
        folder = self.saved(tmp_path, tmp_path_factory)
        self.edit(folder, lambda recipe: recipe["demonstrations"][0].update(label="good"))
        before = self.asked(folder)
        self.edit(folder, change)
        after = self.asked(folder)
        assert before[0] != after[0]
        assert before[1] != after[1]

    @pytest.mark.parametrize(
        "change",
        [
            lambda recipe: recipe["demonstrations"][0].pop("shape"),
            lambda recipe: recipe.update(format={"colour": "red"}),
            lambda recipe: recipe.update(demonstrations=7),
            lambda recipe: recipe.update(choose="nearest", alike="encoder"),
        ],
    )
    def test_a_spoilt_recipe_is_refused(self, change, tmp_path, tmp_path_factory):
        folder = self.saved(tmp_path, tmp_path_factory)
        self.edit(folder, change)
        with pytest.raises(ArtifactError, match="recipe cannot be used"):
            self.asked(folder)
