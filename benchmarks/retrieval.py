"""How well passages are found: by words, by a local model's vectors, by both fused, and by scikit-learn's TF-IDF.

    BURNISH_SHARED=... python benchmarks/retrieval.py [--encoder=NAME ...] [--json]

boolq: questions among the encyclopedia passages they were asked of.  stories: summaries among the stories they are of.
Every document is a text file of its own, so that the right source of each question is known.  NAME is a folder or a
bundled model; relative ones start at BURNISH_SHARED.  Each figure: [value, low, high], 95 % (Wilson; bootstrap over
questions); `more_than_words`: mean reciprocal rank less that by words, on the same questions.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from burnish.data import documents
from burnish.evaluate.statistics import interval, resampled, wilson
from burnish.generate.answer import Answerer
from burnish.models import base as models
from burnish.prompting import _encoder
from burnish.prompting._encoder import Encoder
from burnish.prompting._finder import KS, Finder
from burnish.prompting._passages import Hits, Passage, hits, index, passages, vectors
from burnish.records import Example, Message, Where

CHUNK = 150
Pairs = Sequence[tuple[str, str]]


def pairs(name: str) -> Pairs:
    """(question, the document that answers it) of a set."""
    shared = Path(os.environ["BURNISH_SHARED"], "data")
    place, question, document = {
        "boolq": ("bench-boolq", "question", "passage"),
        "stories": ("summarise-stories", "response", "prompt"),
    }[name]
    rows = [json.loads(line) for line in (shared / place / "data.jsonl").read_text(encoding="utf-8").splitlines()]
    first = 1 if name == "stories" else 0  # the first line is the instruction
    return [(row[question], row[document].split("\n", first)[first]) for row in rows]


def tfidf(pieces: Sequence[Passage], asked: Sequence[Example]) -> Hits:
    """scikit-learn's defaults."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer().fit([item.text for item in pieces])
    alike = words.transform([row.prompt[0].content for row in asked]) @ words.transform([p.text for p in pieces]).T
    ranked = [
        [pieces[i].source == row.meta["source"] for i in np.argsort(-line, kind="stable")]
        for row, line in zip(asked, alike.toarray(), strict=True)
    ]
    return hits(ranked, "source")


def figures(told: Hits, words: Hits) -> dict[str, list[float]]:
    """Hit rates, mean reciprocal rank and how much that is above the one by words, each with its interval."""
    many = len(told.places)
    made = {f"hit_at_{k}": [told.at(k), *wilson(many * told.at(k), many)] for k in KS}
    for name, each in (("mrr", told.reciprocal), ("more_than_words", told.reciprocal - words.reciprocal)):
        draws = resampled(each[:, None], lambda rows: rows[..., 0].mean(-1), 2000, 0)
        made[name] = [float(each.mean()), *interval(draws, many)]
    return {name: [round(number, 4) for number in row] for name, row in made.items()}


def found(name: str, encoders: Sequence[Encoder]) -> dict[str, object]:
    """Hit rates and mean reciprocal rank of every way, and seconds to read, to index and to answer by words."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BURNISH_HOME"] = f"{folder}/home"
        told = pairs(name)
        texts = list(dict.fromkeys(document for _, document in told))
        files = {text: f"{number:04}.txt" for number, text in enumerate(texts)}
        for text, file in files.items():
            Path(folder, file).write_text(text, encoding="utf-8")
        clock = [time.monotonic()]
        read = [documents.load(*item) for item in documents.find(sorted(files.values()), folder).items()]
        clock.append(time.monotonic())
        assert [documents.load(*item) for item in documents.find(sorted(files.values()), folder).items()] == read
        clock.append(time.monotonic())
        pieces = passages(read, CHUNK)
        finder = Finder(pieces, index(pieces, "words", None, None))
        clock.append(time.monotonic())
        asked = [
            Example(
                "prompt",
                Where(name, number),
                (Message("user", question), Message("assistant", "yes")),
                meta={"source": files[document]},
            )
            for number, (question, document) in enumerate(told)
        ]
        ways = {"words": _hits(finder, asked)}
        clock.append(time.monotonic())
        for encoder in encoders:
            dense = vectors(pieces, encoder)
            for mode in ("encoder", "fused"):
                ways[f"{mode} {Path(encoder.reference['name']).name}"] = _hits(
                    Finder(pieces, index(pieces, mode, dense, encoder)), asked
                )
        seconds = dict(zip(("read", "read_again", "index", "find"), np.diff(clock).round(2).tolist(), strict=True))
        ways["tfidf"] = tfidf(pieces, asked)
        told_by_way = {way: figures(own, ways["words"]) for way, own in ways.items()}
    sizes = {"questions": len(asked), "documents": len(texts), "passages": len(pieces)}
    return {**sizes, **told_by_way, "seconds": seconds}


def _hits(finder: Finder, asked: Sequence[Example]) -> Hits:
    told = finder.hits(asked, "answer")
    assert told is not None
    return told


def encoder(name: str) -> Encoder:
    """A model's folder as an encoder, without an answering model beside it."""
    base = models.inspect(name, os.environ["BURNISH_SHARED"])
    reference = {"name": name, "folder": str(base.folder.resolve()), "fingerprint": base.fingerprint}
    ready: Answerer = _encoder._loaded(reference["folder"], base.fingerprint, 16384)
    return Encoder(ready, reference)


def main() -> None:
    """Every set."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--encoder", action="append", default=[], metavar="NAME")
    words.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    asked = words.parse_args()
    if "BURNISH_SHARED" not in os.environ:
        words.error("set BURNISH_SHARED to the folder that holds data/")
    encoders = [encoder(name) for name in asked.encoder]
    result = {name: found(name, encoders) for name in ("boolq", "stories")}
    for name, told in result.items() if not asked.json else ():
        for key, value in told.items():
            print(f"{name:8} {key:28} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
