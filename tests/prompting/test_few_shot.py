"""The search for demonstrations, on stand-ins for a model that learn from a prompt in a known way."""

import random
from dataclasses import dataclass, replace
from typing import Any

import asking
import pytest

from burnish import store
from burnish.errors import TaskError
from burnish.generate.answer import Answerer
from burnish.prompting import few_shot
from burnish.prompting._world import World
from burnish.records import Example, Message, Prediction, Where

SETTINGS = {"shots": [2, 4, 8], "choose": ["balanced", "nearest"], "orders": 2, "formats": ["turns"]}
SETTINGS |= {"calibrate": "never", "budget": 100_000}


@dataclass(frozen=True)
class Stand(Answerer):
    """Answers by `rule(demonstrations, question)`, where a demonstration is (question, answer); no model runs."""

    rule: Any = None

    def answer(self, rows):
        for row in rows:
            said = [turn.content.removeprefix("Name the mood.\n\n") for turn in row.prompt]
            shown, question = list(zip(said[::2], said[1::2], strict=False)), said[-1]
            label = self.rule(shown, question)
            if self.contract.goal == "regress":
                yield Prediction(row.id, str(row.where), number=label)
            else:
                yield Prediction(row.id, str(row.where), label=label)


def stand(tmp_path_factory, rule, goal="classify"):
    told = asking.answerer("t5", tmp_path_factory, goal)  # t5: a context without end in its config, see below
    return Stand(told.model, told.tokenizer, replace(told.contract, max_length=100_000), rule=rule)


def rows(texts, label):
    return [Example("labelled", Where("rows.csv", i + 2), text=text, label=label(text)) for i, text in enumerate(texts)]


def search(ready, train, validation, metric="accuracy", home=None, **own):
    return few_shot.choose(World(ready, train, validation, metric, SETTINGS | own, home=home))


def mood(text):
    return ("bad", "fair", "good")[sum(map(ord, text.split()[0])) % 3]


def topics(many, seed):
    draw = random.Random(seed)
    return [f"topic{draw.randrange(30)} {asking.text(draw)} {i}" for i in range(many)]


class TestSearch:
    def test_nearest_is_chosen_where_only_alike_rows_help(self, tmp_path_factory):
        """The mood hangs on the topic, and the stand-in knows only the topics that it is shown."""

        def copies(shown, question):
            known = {text.split()[0]: answer for text, answer in shown}
            return known.get(question.split()[0], "bad")

        ready = stand(tmp_path_factory, copies)
        train, held, test = (rows(topics(n, seed), mood) for seed, n in enumerate((200, 60, 60)))
        made = search(ready, train, held)
        assert made.recipe["choose"] == "nearest"
        assert made.shown["validation_best"] > 0.9 > 0.7 > made.shown["validation_worst"]
        told = list(few_shot.answer(ready, made.recipe, {}, test))
        assert sum(a.label == b.label for a, b in zip(told, test, strict=True)) > 54

    def test_as_many_are_shown_as_are_needed_and_no_more(self, tmp_path_factory):
        """A stand-in that gets it right from four demonstrations on; eight are no better and dearer."""
        ready = stand(tmp_path_factory, lambda shown, text: mood(text) if len(shown) >= 4 else "bad")
        train, held = rows(topics(60, 0), mood), rows(topics(30, 1), mood)
        made = search(ready, train, held, choose=["balanced"])
        assert made.recipe["shots"] == made.shown["shots"] == 4
        assert made.shown["validation_best"] == 1.0
        assert len(made.recipe["demonstrations"]) == 4

    def test_every_label_is_shown_before_one_is_shown_twice(self, tmp_path_factory):
        """A stand-in that only knows the labels that it has seen, and rows of which nine in ten have one label."""

        def seen(shown, text):
            return mood(text) if mood(text) in {answer for _, answer in shown} else "?"

        texts = [text for text in topics(400, 0) if mood(text) == "bad"][:90]
        texts += [text for text in topics(400, 0) if mood(text) != "bad"][:10]
        made = search(stand(tmp_path_factory, seen), rows(texts, mood), rows(topics(30, 1), mood), shots=[3])
        assert {row["label"] for row in made.recipe["demonstrations"]} == {"bad", "fair", "good"}
        assert made.shown["validation_best"] == 1.0

    def test_the_spread_of_all_candidates_is_told_in_the_metrics_own_sign(self, tmp_path, tmp_path_factory):
        ready = stand(tmp_path_factory, lambda shown, text: float(len(shown)), "regress")
        train, held = rows(topics(30, 0), lambda _: 4.0), rows(topics(10, 1), lambda _: 4.0)
        made = search(ready, train, held, "rmse", tmp_path)
        assert made.recipe["shots"] == 4
        assert (made.shown["validation_best"], made.shown["validation_worst"]) == (0.0, 4.0)
        trace = list(store.read_jsonl(tmp_path / "search.jsonl"))
        first = [line["scores"]["plain"] for line in trace if line["stage"] == "demonstrations"]
        assert sorted(first) == [0.0] * 3 + [2.0] * 3 + [4.0] * 3
        assert made.shown["tried"] == len(trace)

    def test_a_file_sorted_by_class_is_tried_on_all_classes(self, tmp_path_factory):
        """A stand-in that always says good with few demonstrations, and is right with many."""
        ready = stand(tmp_path_factory, lambda shown, text: mood(text) if len(shown) > 4 else "good")
        held = sorted(rows(topics(300, 1), mood), key=lambda row: row.label, reverse=True)
        made = search(ready, rows(topics(60, 0), mood), held)
        assert made.recipe["shots"] == 8

    def test_without_validation_rows_no_row_is_its_own_demonstration(self, tmp_path_factory):
        asked = []

        def listens(shown, text):
            asked.append((text, [other for other, _ in shown]))
            return "bad"

        made = search(stand(tmp_path_factory, listens), rows(topics(12, 0), mood), [], shots=[8])
        assert made.shown["validation_rows"] == 12
        assert asked
        assert not any(text in shown for text, shown in asked)

    @pytest.mark.parametrize("own", [{"choose": []}, {"formats": []}, {"shots": []}])
    def test_a_search_among_nothing_is_refused(self, own, tmp_path_factory):
        ready = stand(tmp_path_factory, lambda shown, text: "bad")
        with pytest.raises(TaskError, match="nothing to try"):
            search(ready, rows(topics(12, 0), mood), [], **own)

    def test_documents_have_no_question_to_find_near_ones_by(self, tmp_path_factory):
        ready = asking.answerer("llama", tmp_path_factory, "write", "document")
        told = World(
            ready, asking.documents(3), asking.documents(2, 1), "bits-per-byte", SETTINGS | {"choose": ["nearest"]}
        )
        with pytest.raises(TaskError, match="nothing to try"):
            few_shot.choose(told)


class TestPrompt:
    def ask(self, ready, row, train, **recipe):
        told = {"choose": "balanced", "shots": 2, "demonstrations": [item.to_json() for item in train[:2]]}
        return few_shot.shown(ready, told | {"pool": [item.to_json() for item in train]} | recipe, {}, row)

    def text(self, ready, row):
        return ready.tokenizer.decode(ready.prompt_ids(row, ready.room))

    def test_demonstrations_stand_as_earlier_turns_in_the_words_of_training(self, tmp_path_factory):
        ready = stand(tmp_path_factory, None)
        train, row = rows(["sun", "fog", "rain"], mood), rows(["snow"], mood)[0]
        said = self.text(ready, self.ask(ready, row, train))
        parts = [f"### Input:\nName the mood.\n\n{item.text}\n\n### Answer:\n{item.label}\n\n" for item in train[:2]]
        assert said == "".join(parts) + "### Input:\nName the mood.\n\nsnow\n\n### Answer:\n"

    def test_a_conversations_system_turn_stands_first_and_once(self, tmp_path_factory):
        told = asking.answerer("t5", tmp_path_factory, "answer", "conversation")
        ready = replace(told, contract=replace(told.contract, max_length=10_000))
        train, row = asking.spoken(3), asking.spoken(1, 5)[0]
        row = replace(row, messages=(Message("system", "Be brief."), *row.messages))
        said = self.text(ready, self.ask(ready, row, train))
        assert said.startswith("Be brief.\n\n### Input:\n" + train[0].messages[0].content)
        assert "Name the mood." not in said
        assert self.text(ready, self.ask(ready, asking.spoken(1, 5)[0], train)).count("Name the mood.") == 1

    def test_the_nearest_stands_last_and_the_row_itself_is_left_out(self, tmp_path_factory):
        ready = stand(tmp_path_factory, None)
        train = rows(["sun sun sun", "fog fog rain", "fog", "dew"], mood)
        row = train[2]
        said = self.ask(ready, row, train, choose="nearest", shots=2).messages
        assert [turn.content.split("\n\n")[1] for turn in said if turn.role == "user"] == [
            "sun sun sun",
            "fog fog rain",
            "fog",
        ]

    def test_near_rows_are_found_without_the_right_answer(self, tmp_path_factory):
        ready = asking.answerer("llama", tmp_path_factory, "answer", "prompt", instruction="")
        turns = lambda question, answer: (Message("user", question), Message("assistant", answer))  # noqa: E731
        train = [
            Example("prompt", Where("f", i), turns(*said)) for i, said in enumerate([("a b", "hail"), ("c d", "dew")])
        ]
        row = Example("prompt", Where("g", 1), turns("c", "hail hail hail"))
        said = self.ask(ready, row, train, choose="nearest", shots=1).messages
        assert [turn.content for turn in said[:-1]] == ["c d", "dew", "c"]

    @pytest.mark.parametrize("way", ["balanced", "nearest"])
    @pytest.mark.parametrize("goal", ["classify", "regress"])
    def test_what_does_not_fit_is_a_demonstration_and_never_the_question(self, way, goal, tmp_path_factory):
        """Context of 96 letters: the first, or the least alike, goes first, and as many stay as fit."""
        ready = asking.answerer("llama", tmp_path_factory, goal, instruction="")
        train = rows(["fog fog sun", "rain dew dew dew"], mood if goal == "classify" else lambda _: 1.0)
        wide = replace(ready, contract=replace(ready.contract, max_length=1000))
        counts = []
        for text in ("fog", "fog " + "snow " * 3, "fog " + "snow " * 9):
            row = rows([text], mood if goal == "classify" else lambda _: 2.0)[0]
            asked = self.ask(ready, row, train, choose=way, shots=2)
            kept = [turn.content for turn in asked.messages if turn.role == "user"]
            assert kept[-1] == text
            assert ready.prompt_ids(asked, ready.room) == ready.encoding.prompt_ids(asked.prompt)
            every = self.ask(wide, row, train, choose=way, shots=2).prompt
            fitting = [every[4 - 2 * n :] for n in (2, 1, 0)]
            fitting = [turns for turns in fitting if len(ready.encoding.prompt_ids(turns)) + ready.room <= 96]
            assert asked.prompt == fitting[0]
            counts.append(len(kept) - 1)
        assert counts == sorted(counts, reverse=True)
        assert counts[0] > counts[-1] == 0

    def test_a_question_too_long_by_itself_is_shortened_as_zero_shot_shortens_it(self, tmp_path_factory):
        ready = asking.answerer("llama", tmp_path_factory)
        row = rows(["snow " * 60], mood)[0]
        asked = self.ask(ready, row, rows(["sun", "fog"], mood))
        assert ready.prompt_ids(asked, ready.room) == ready.prompt_ids(row, ready.room)

    def test_a_row_without_an_answer_is_asked_like_one_with(self, tmp_path_factory):
        ready = stand(tmp_path_factory, None)
        train, row = rows(["sun", "fog"], mood), rows(["snow"], mood)[0]
        blank = replace(row, label=None)
        assert self.text(ready, self.ask(ready, blank, train)) == self.text(ready, self.ask(ready, row, train))
