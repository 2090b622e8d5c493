"""How well passages are found: BoolQ questions among their own passages, by our BM25 and by scikit-learn's TF-IDF.

    BURNISH_SHARED=... python benchmarks/retrieval.py [--json]

Every passage is a text file of its own, so that the right source of each question is known.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from burnish.data import documents
from burnish.prompting._finder import KS, Finder
from burnish.prompting._passages import hits, index, passages
from burnish.records import Example, Message, Where

CHUNK = 150


def main() -> dict[str, object]:
    """Hit rates and mean reciprocal rank of both, and seconds to read, to index and to answer."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    told = Path(os.environ["BURNISH_SHARED"], "data", "bench-boolq", "data.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in told.splitlines()]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BURNISH_HOME"] = f"{folder}/home"
        texts = list(dict.fromkeys(row["passage"] for row in rows))
        names = {text: f"{number:04}.txt" for number, text in enumerate(texts)}
        for text, name in names.items():
            Path(folder, name).write_text(text, encoding="utf-8")
        clock = [time.monotonic()]
        found = [documents.load(*item) for item in documents.find(sorted(names.values()), folder).items()]
        clock.append(time.monotonic())
        again = [documents.load(*item) for item in documents.find(sorted(names.values()), folder).items()]
        assert again == found
        clock.append(time.monotonic())
        pieces = passages(found, CHUNK)
        finder = Finder(pieces, index(pieces, "words", None, None))
        clock.append(time.monotonic())
        asked = [
            Example(
                "prompt",
                Where("boolq", number),
                (Message("user", row["question"]), Message("assistant", "yes")),
                meta={"source": names[row["passage"]]},
            )
            for number, row in enumerate(rows)
        ]
        ours = finder.hits(asked, "answer")
        clock.append(time.monotonic())
        assert ours is not None
        vectors = TfidfVectorizer().fit([item.text for item in pieces])
        alike = vectors.transform([row["question"] for row in rows]) @ vectors.transform([p.text for p in pieces]).T
        ranked = [
            [pieces[i].source == names[row["passage"]] for i in np.argsort(-line, kind="stable")]
            for row, line in zip(rows, alike.toarray(), strict=True)
        ]
        seconds = dict(zip(("read", "read_again", "index", "find"), np.diff(clock).round(2).tolist(), strict=True))
        theirs = hits(ranked, "source", KS)
    sizes = {"questions": len(rows), "documents": len(texts), "passages": len(pieces)}
    return {**sizes, "bm25": ours.to_json(), "tfidf": theirs.to_json(), "seconds": seconds}


if __name__ == "__main__":
    result = main()
    for key, value in result.items() if "--json" not in sys.argv else ():
        print(f"{key:10} {value}")
    print(json.dumps(result))
