"""What a run will need, in words."""

from __future__ import annotations

import io

import fake_workflow as fake

from burnish.cli import show
from burnish.cli.progress import Progress
from burnish.cli.screen import Screen
from burnish.records import Event


def told(*words: str, **asked: str) -> list[str]:
    stream = io.StringIO()
    show.VIEWS["plan"](Screen(stream), fake.plan(*words, **asked), asked)
    return stream.getvalue().splitlines()


def test_a_rung_that_fits_has_one_line_and_bounds_only_where_there_is_doubt() -> None:
    row = next(line for line in told("t.yaml") if line.startswith("lora"))
    assert "134,515,008" in row
    assert "134,515,008 ±" not in row
    assert "± 20%" in row
    assert "3.0 GB ± 10%" in row


def test_a_rung_that_does_not_fit_is_followed_by_what_would() -> None:
    lines = told("t.yaml", rung="full")
    remedies = [line for line in lines if line.strip().startswith("do ")]
    assert "leaves out 7 of 300 training rows" in remedies[0]
    assert remedies[0].endswith("--set data.max_length=512 --set data.too_long=drop")
    assert remedies[1].endswith("--rung qlora")
    assert any("activations made again" in line for line in lines)


def test_what_runs_once_is_said_and_why_not(monkeypatch) -> None:
    plain = fake.needs

    def frozen(reason: str) -> list[str]:
        saved = {"layers": 4, "splits": [] if reason else ["train"], "bytes": 35e6, "seconds": 12.0, "reason": reason}
        monkeypatch.setattr(fake, "needs", lambda *told: plain(*told) | {"states": saved})
        return [line.strip() for line in told("t.yaml") if "frozen" in line]

    assert frozen("")[0] == "the 4 frozen layers run once (train): 12 s saved, 35 MB on disk"
    assert frozen("dropout")[0] == "the 4 frozen layers run in every pass: dropout"


def test_without_a_task_the_largest_bases_are_named() -> None:
    lines = told("")
    assert any("lora" in line and "Llama 3.1 8B" in line and "8,030,261,248" in line for line in lines)
    assert any("full" in line and "none" in line for line in lines)


def test_the_first_line_of_a_run_tells_its_needs() -> None:
    stream = io.StringIO()
    counts = {f"tokens_{kind}": 9 for kind in ("trained", "masked", "cut")}
    numbers = {"method": "sft", "trained": 5, "parameters": 7, "rows": 3, "tokens": counts, "steps": 2, "per_epoch": 1}
    with Progress(Screen(stream)) as say:
        say("lora", Event("started", 0, 0.0, numbers | {"needs": fake.needs("tight")}))
    first = stream.getvalue().splitlines()[0]
    assert first.endswith("3.0 GB ± 10% of 21 GB: tight · 80 MB on disk")
