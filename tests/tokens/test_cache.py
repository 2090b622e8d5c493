"""Encoded rows come back from disk as they were, and only as long as nothing they depend on changed."""

import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny

from burnish import store
from burnish.records import Example, Problem, Where
from burnish.tokens import cache, encode
from burnish.tokens.contract import Contract
from burnish.tokens.rows import Count, Tokens

CONTRACT = Contract("answer", "instruction", "answers", "plain", "", 96, "error")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("BURNISH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def row(i, **own):
    told = {"source": None, "label": None, "segments": None} | own
    ids = np.arange(i, 2 * i + 1, dtype=np.int32)
    return Tokens(ids, np.linspace(0, 1, len(ids)).astype(np.float32), f"id{i}", f"däta.csv:{i}", **told)


def same(a, b):
    for name in ("ids", "weights", "source", "segments", "label"):
        x, y = getattr(a, name), getattr(b, name)
        assert type(x) is type(y), name
        if isinstance(x, np.ndarray):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)
        else:
            assert x == y
    assert (a.example, a.where, a.targets) == (b.example, b.where, b.targets)


PROBLEM = Problem("too long", "data.csv:7", "shorten it", "warning", "id7")
EXAMPLE = Example("document", Where("data.csv", 7), text="x")
KINDS = {
    "answers": [row(1), row(5), row(3)],
    "classes": [row(1, label=2), row(4, label=0)],
    "numbers": [row(1, label=0.1), row(4, label=-1e-30)],
    "several classes": [row(2, label=np.array([0, 1, 1], np.float32)), row(1, label=np.array([1, 0, 0], np.float32))],
    "pairs of texts": [row(2, segments=np.array([0, 0, 1], np.int32)), row(1), row(1, segments=np.ones(2, np.int32))],
    "encoder-decoder": [row(2, source=np.array([7, 8], np.int32)), row(1, source=np.array([9], np.int32))],
    "none": [],
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_come_back_as_they_were(kind):
    made = KINDS[kind]
    count = Count(rows=3, kept=12, cut=1)
    for _ in range(2):
        kept = cache.rows("k", lambda: (made, [(EXAMPLE, PROBLEM)], count))
        assert len(kept.rows) == len(made)
        for a, b in zip(kept.rows, made, strict=True):
            same(a, b)
        assert (kept.problems, kept.count, kept.warning) == ([PROBLEM], count, "")
    assert [item.example for item in kept.rows[1:]] == [item.example for item in made[1:]]
    with pytest.raises(IndexError):
        kept.rows[len(made)]


def test_the_second_time_nothing_is_encoded_and_nothing_is_loaded():
    made = [row(i) for i in range(1, 400)]
    cache.rows("k", lambda: (made, [], Count()))
    kept = cache.rows("k", lambda: pytest.fail("encoded again"))
    ids = kept.rows[17].ids
    assert not ids.flags.owndata
    assert not ids.flags.writeable


def entry(home):
    return home / "cache" / "k"


def files():
    return ["manifest.json", "rows.json", "ids.npy", "ids-ends.npy", "weights.npy", "where.npy", "example.npy"]


@pytest.mark.parametrize("how", ["flip", "cut", "empty", "delete"])
@pytest.mark.parametrize("file", files())
def test_damage_is_seen_said_and_mended(file, how, home):
    made = [row(3), row(2)]
    cache.rows("k", lambda: (made, [], Count()))
    path = entry(home) / file
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes(data if how == "flip" else data[: len(data) // 2] if how == "cut" else b"")
    if how == "delete":
        path.unlink()
    kept = cache.rows("k", lambda: (made, [], Count()))
    assert bool(kept.warning) == (file != "manifest.json" or how != "delete")  # then nothing was ever written
    for a, b in zip(kept.rows, made, strict=True):
        same(a, b)
    assert cache.rows("k", lambda: pytest.fail("encoded again")).warning == ""


def test_rows_in_use_outlive_a_repair(home):
    made = [row(3), row(2)]
    kept = cache.rows("k", lambda: (made, [], Count()))
    (entry(home) / "rows.json").unlink()
    cache.rows("k", lambda: ([row(9)], [], Count()))
    same(kept.rows[0], made[0])


def test_a_kill_while_writing_leaves_nothing_that_is_believed(monkeypatch):
    real, calls = store.write_json, []

    def killed(path, value):
        calls.append(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        cache.rows("k", lambda: ([row(3)], [], Count()))
    monkeypatch.setattr(store, "write_json", real)
    kept = cache.rows("k", lambda: ([row(5)], [], Count()))
    assert calls
    same(kept.rows[0], row(5))
    assert kept.warning == ""


def test_who_comes_second_waits_and_reads():
    begun, go, made = threading.Event(), threading.Event(), []

    def slowly():
        begun.set()
        assert go.wait(20)
        made.append(1)
        return [row(3)], [], Count()

    told = []
    first = threading.Thread(target=lambda: told.append(cache.rows("k", slowly)))
    second = threading.Thread(target=lambda: told.append(cache.rows("k", slowly)))
    first.start()
    assert begun.wait(20)
    second.start()
    go.set()
    first.join(20)
    second.join(20)
    assert made == [1]
    for kept in told:
        same(kept.rows[0], row(3))


def test_entries_nobody_used_for_a_month_are_removed(home):
    for name in ("old", "used", "new"):
        cache.rows(name, lambda: ([row(3)], [], Count()))
    for name in ("old", "used"):
        os.utime(home / "cache" / name / "manifest.json", (0, 0))
    cache.rows("used", lambda: pytest.fail("encoded again"))
    cache.rows("another", lambda: ([row(3)], [], Count()))
    assert {path.name for path in (home / "cache").iterdir()} == {"used", "new", "another"}


def test_any_change_of_what_decides_the_ids_changes_the_key(tmp_path_factory, tmp_path, monkeypatch):
    base, data = tmp_path / "base", tmp_path / "train.jsonl"
    shutil.copytree(tiny.folder("llama", tmp_path_factory), base)
    data.write_text("{}\n")

    def key(contract=CONTRACT, kind="decoder"):
        return cache.key(data, contract, kind, base)

    seen = {key()}

    def changed(now):
        assert now not in seen
        seen.add(now)

    assert key() in seen
    for own in (
        {"max_length": 95}, {"too_long": "drop"}, {"template": "raw"}, {"template_text": "{{ x }}"}, {"target": "all"},
        {"instruction": "Say"}, {"labels": ("a",)}, {"labels": ("a", "b")}, {"labels": ("b", "a")}, {"mean": 1.0},
        {"separator": " "},
    ):  # fmt: skip
        changed(key(replace(CONTRACT, **own)))
    changed(key(kind="encoder"))
    data.write_text("{ }\n")
    changed(key())
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        path = base / name
        path.write_text(path.read_text() + " ")
        changed(key())
    (base / "chat_template.jinja").write_text("{{ messages }}")
    changed(key())
    (base / "model.safetensors").write_bytes(b"other weights")
    assert key() in seen
    monkeypatch.setattr(cache, "version", lambda name: "0.0")
    cache._code.cache_clear()
    changed(key())
    copy = tmp_path / "tokens"
    shutil.copytree(Path(encode.__file__).parent, copy)
    monkeypatch.setattr(cache, "__file__", str(copy / "cache.py"))
    for name in ("encode.py", "ask.py", "templates/plain.jinja"):
        (copy / name).write_text((copy / name).read_text() + "\n")
        cache._code.cache_clear()
        changed(key())
    cache._code.cache_clear()
