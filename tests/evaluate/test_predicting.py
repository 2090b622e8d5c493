"""Files of answers: in order, of the same kind, safe in a spreadsheet, never another job's leftovers."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from burnish import store
from burnish.errors import DataError
from burnish.evaluate import predict_file
from burnish.records import Example, Prediction


@dataclass
class Made:
    """An artifact as far as batch use looks at it."""

    rung: str = "lora"
    prompting: str = ""
    facts: dict[str, Any] = field(default_factory=lambda: {"columns": {"prompt": "q", "completion": "a"}})
    folder: Path | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Any] = field(default_factory=dict)
    base: Any = field(default_factory=lambda: SimpleNamespace(fingerprint="f"))
    contract: Any = field(default_factory=lambda: SimpleNamespace(shape="prompt", labels=()))


@pytest.fixture(autouse=True)
def _echo(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that repeats the question, or breaks off at "stop"."""

    def answer(rows: list[Example]) -> Iterator[Prediction]:
        for row in rows:
            said = row.messages[-1].content
            if said == "stop":
                raise KeyboardInterrupt
            yield Prediction(row.id, str(row.where), text=said)

    monkeypatch.setattr(predict_file, "answerer", lambda artifact: SimpleNamespace(answer=answer))
    monkeypatch.setattr(predict_file, "CHUNK", 2)


def run(data: Path, out: Path, made: Made | None = None) -> dict[str, Any]:
    return predict_file.run(made or Made(), str(data), out, lambda phase, event: None)  # type: ignore[arg-type]


def write(path: Path, *said: str) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["q"], *([text] for text in said)])
    return path


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream, delimiter="\t" if path.suffix == ".tsv" else ","))


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl"])
def test_order_commas_tabs_and_lines_survive(ending: str, tmp_path: Path) -> None:
    said = ["a, b", "c\td", "e\nf", 'g "h"', "ümläut 🙂"]
    out = tmp_path / f"out{ending}"
    assert run(write(tmp_path / "in.csv", *said), out)["problems"] == 0
    told = list(store.read_jsonl(out)) if ending == ".jsonl" else read(out)
    assert [row["q"] for row in told] == [row["prediction"] for row in told] == said


def test_what_a_model_says_is_no_formula_in_a_spreadsheet(tmp_path: Path) -> None:
    run(write(tmp_path / "in.csv", "=1+1", "@x"), tmp_path / "out.csv")
    assert [row["prediction"] for row in read(tmp_path / "out.csv")] == ["'=1+1", "'@x"]


def test_the_leftovers_of_other_data_or_another_artifact_are_not_taken(tmp_path: Path) -> None:
    data, out = write(tmp_path / "in.csv", "a", "b", "c", "stop"), tmp_path / "out.csv"
    with pytest.raises(KeyboardInterrupt):
        run(data, out)
    assert (tmp_path / ".out.csv.part").exists()
    write(data, "a", "b", "c", "d")
    assert run(data, out)["done_before"] == 0
    write(data, "a", "b", "c", "stop")
    with pytest.raises(KeyboardInterrupt):
        run(data, out)
    with pytest.raises(KeyboardInterrupt):  # the same job goes on after its two finished rows
        run(data, out)
    assert len(list(store.read_jsonl(tmp_path / ".out.csv.part"))) == 3
    write(data, "a", "b", "c", "d")
    assert run(data, out, Made(rung="full"))["done_before"] == 0


@pytest.mark.parametrize("name", ["out.xlsx", "out", "in.csv"])
def test_outputs_that_cannot_be_are_refused_before_any_work(name: str, tmp_path: Path) -> None:
    data = write(tmp_path / "in.csv", "stop")
    before = data.read_bytes()
    with pytest.raises(DataError):
        run(data, tmp_path / name)
    assert data.read_bytes() == before


def test_an_old_output_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    out.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        run(write(tmp_path / "in.csv", "a", "stop"), out)
    assert out.read_text() == "old"


def test_a_picked_choice_is_told_by_letter_and_word_with_every_log_likelihood(tmp_path, monkeypatch) -> None:
    def answer(rows: list[Example]) -> Iterator[Prediction]:
        for row in rows:
            yield Prediction(row.id, str(row.where), label="B", probabilities={"B": 0.9}, loglikelihoods=(-3.0, -0.5))

    monkeypatch.setattr(predict_file, "answerer", lambda artifact: SimpleNamespace(answer=answer))
    columns = {"columns": {"question": "q", "choices": ["o1", "o2"], "letter": "a"}}
    made = Made(facts=columns, contract=SimpleNamespace(shape="choices", labels=()))
    (tmp_path / "in.csv").write_text("q,o1,o2\nWhat falls?,sun,rain\nWhat shines?,,rain\n")
    assert run(tmp_path / "in.csv", tmp_path / "out.csv", made)["problems"] == 1
    first, second = read(tmp_path / "out.csv")
    assert (first["prediction"], first["choice"], first["loglikelihoods"]) == ("B", "rain", "[-3.0, -0.5]")
    assert (second["prediction"], second["choice"]) == ("", "")
    assert "choice A is empty" in second["problem"]


def test_documents_get_their_likelihood_and_no_empty_answer() -> None:
    found = predict_file._columns(Prediction("a", "a.txt:1", nll=12.34567, tokens=9))
    assert found == {"nll": 12.3457, "tokens": 9, "problem": ""}
