"""The report page: nothing a stranger wrote can act on it, and it says what the records say."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_reports import KINDS, LEARNING, PRICES, classes, climbed, few, numbers, share, tales

from burnish.evaluate import cost as costs
from burnish.evaluate import plain
from burnish.evaluate import report as report_module
from burnish.evaluate.confusion import confusion
from burnish.evaluate.listings import changes, nearest_to, right, wrong
from burnish.evaluate.report import html
from burnish.records import Comparison, Example, Message, Prediction, Report, RungResult, Score, Verdict, Where

CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
TAGS = {
    *("html", "head", "meta", "link", "title", "style", "body", "main", "header", "nav", "section", "article"),
    *("footer", "figure", "figcaption", "p", "span", "small", "b", "a", "h1", "h2", "h3", "h4", "ul", "ol", "li"),
    *("dl", "dt", "dd", "div", "table", "caption", "thead", "tbody", "tr", "th", "td", "details", "summary"),
    *("pre", "code", "svg", "text", "tspan", "line", "circle", "polyline"),
}
VOID = {"meta", "link", "line", "circle", "polyline"}
PAYLOADS = (
    "<script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    '" onfocus=alert(1) autofocus x="',
    "javascript:alert(1)",
    "<a href='javascript:alert(1)'>x</a>",
    "<iframe srcdoc='<script>1</script>'>",
    "{{ 7 * 7 }}{% raw %}",
    "--><!-- <b>",
    "<![CDATA[<x>]]>",
    "&lt;script&gt;&#60;b&#62;",
    "<math><mtext></mtext><mglyph><style><img src=x onerror=1>",
    "https://evil.example/a?b=c",
    "\x00\x1b[2J\x08\u202eevil\u2066\u200b\ud800\U000e0041",
    "style='x:expression(1)' ;} body{background:url(//evil.example)}",
)


FINDING = {
    **{"documents": 450, "passages": 812, "chunk": 60, "mode": "fused", "k": 2},
    **{"found_by": "source", "found_rows": 100, "hit_at_1": 0.7, "hit_at_3": 0.9, "mrr": 0.8, "mrr_error": 0.02},
}


class Page(HTMLParser):
    """Tags, attributes, text, and whether every element is closed where it should be."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.stack == []
        self.text = "\n".join(self.words)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.stack or self.stack[-1] != "style":
            self.words.append(data)


def harmless(page: str) -> Page:
    """Parse a page and check that nothing in it loads, runs, links away or hides."""
    page.encode()  # a lone surrogate would make the file impossible to write
    read = Page(page)
    assert {tag for tag, _ in read.seen} <= TAGS
    for tag, attributes in read.seen:
        assert not any(name.startswith("on") or name in ("src", "srcdoc", "action", "autofocus") for name in attributes)
        if "href" in attributes:
            assert re.fullmatch(r"#[a-z]+|data:,", attributes["href"] or ""), (tag, attributes)
        if "style" in attributes:
            assert re.fullmatch(r"--heat:0\.\d\d", attributes["style"] or "")
    anchors = [attributes["href"] for tag, attributes in read.seen if tag == "a"]
    ids = {attributes["id"] for _, attributes in read.seen if "id" in attributes}
    assert {str(anchor)[1:] for anchor in anchors} <= ids
    assert not re.search("[\x00-\x08\x0e-\x1f\u202a-\u202e\u2066-\u2069\u200b]", page)
    policy = [dict(a)["content"] for tag, a in read.seen if tag == "meta" and a.get("http-equiv")]
    assert policy == [CSP]
    return read


def poisoned_cost(text: str) -> dict[str, Any]:
    said = [Prediction("a", "", prompt_tokens=3, completion_tokens=1, seconds=0.1)]
    table = replace(PRICES, hosted={text: costs.Hosted(1.0, 1.0)})
    return {"making": costs.making(1.0, 3, 3, table), "running": costs.running(said, 3, table)}


def poisoned(text: str) -> tuple[Report, list[Example], dict[str, list[Prediction]]]:
    """A report in which every text a stranger can choose is `text`."""
    examples = [
        Example("labelled", Where(text, index), text=f"{index} {text}", pair=text, label=f"{text}{index % 3}")
        for index in range(9)
    ]
    rungs = (f"few-shot {text}", "lora")
    said = {
        rung: [
            Prediction(row.id, text, label=f"{text}{(index * (place + 1)) % 3}", probabilities={text: 0.9},
                       sources=(text,), problem=text if index == 8 else "")
            for index, row in enumerate(examples)
        ]
        for place, rung in enumerate(rungs)
    }  # fmt: skip
    score = replace(share("accuracy", 0.5, 9), metric=text, method=text)
    results = (
        RungResult(rungs[0], (score,), settings={text: text, "nested": {text: [text, {text: text}]},
                   **FINDING, "mode": text, "found_by": text}),
        RungResult(rungs[1], (score,), 3.0, 12, settings={"best_step": 1}, artifact=text,
                   curve=({"step": 1, "train_loss": 1.0}, {"step": 1, "valid_loss": 2.0, text: 1.0}),  # type: ignore[dict-item]
                   samples=({"prompt": text, "text": text, "reference": text},), cost=poisoned_cost(text),
                   search=({"learning_rate": text, text: [text], "value": 1.0},), prompt=text,
                   seeds=({"seed": 0, "value": 0.5, "artifact": text},)),
        RungResult(f"rag {text}", skipped=text),
    )  # fmt: skip
    nested = {
        text: text,
        "rows": {"read": text, "dropped": {text: 3}},
        "splits": {text: {text: 3}},
        "label_counts": {text: {text: 3}},
        "files": [{text: text, "name": text, "sha256": text}],
        "warnings": [text, text * 9],
        "reading": text,
    }
    report = Report(
        text, {"task": "classify", "metric": text, "target": 0.4}, {"name": text, "license": text}, results,
        (Comparison(rungs[0], rungs[1], 0.1, -0.1, 0.2, 0.3, 0.3, 9, text, 1, 2),),
        Verdict(rungs[1], "met", text, (text, text)), nested, ({"time": text, "verb": text, "run": text},),
        {text: text, "seeds": {text: text}, "prices": {**PRICES.to_json(), "currency": text, "source": text}},
        text, 3.0,
        learning={**LEARNING, "sentence": text, "metric": text, "rung": text}, advice=(text,),
    )  # fmt: skip
    return report, examples, said


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_text_in_every_field_stays_text(payload: str) -> None:
    read = harmless(html(*poisoned(payload)))
    assert plain.visible(plain.line(payload)) in read.text


@settings(max_examples=25, deadline=None)
@given(st.text(min_size=1))
def test_any_text_in_every_field_stays_text(text: str) -> None:
    harmless(html(*poisoned(text)))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_report_is_one_harmless_page(kind: str) -> None:
    report, examples, said = KINDS[kind]()
    read = harmless(html(report, examples, said))
    assert all(part in read.text for part in report.verdict.sentence.split(". "))
    assert f"\n{report.verdict.outcome}\n" in read.text
    assert [tag for tag, _ in read.seen].count("h1") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_scores_stand_with_interval_and_n(kind: str) -> None:
    report, examples, said = KINDS[kind]()
    read = harmless(html(report, examples, said))
    for rung in report.rungs:
        for score in rung.scores:
            assert plain.number(score.value) in read.text
            assert plain.interval(score.low, score.high) in read.text
    assert f"n\u00a0=\u00a0{len(examples):,}" in read.text


def test_costs_say_that_their_seconds_are_of_the_clock() -> None:
    assert "of the clock, on this machine as busy as it was" in harmless(html(*classes())).text


def test_the_pictures_speak_and_the_tables_have_heads() -> None:
    read = Page(html(*classes()))
    pictures = [attributes for tag, attributes in read.seen if tag == "svg" and attributes.get("role") == "img"]
    assert len(pictures) == 8  # the trade-off, the growth, two losses, four of certainty
    assert pictures[0]["aria-label"].startswith("accuracy against USD per 1,000 requests: zero-shot")  # type: ignore[union-attr]
    tables = [tag for tag, _ in read.seen if tag == "table"]
    assert len([tag for tag, _ in read.seen if tag == "thead"]) == len(tables)
    assert all("scope" in attributes for tag, attributes in read.seen if tag == "th")


def test_what_is_found_stands_with_intervals_and_answers_cite_their_passages() -> None:
    report, examples, said = classes()
    rungs = [replace(rung, settings={**rung.settings, **FINDING}) if rung.rung == "few-shot" else rung
             for rung in report.rungs]  # fmt: skip
    said["few-shot"] = [
        replace(item, sources=("[1] tales.md, The Fox", "[2] b.txt, line 3")) for item in said["few-shot"]
    ]
    read = harmless(html(replace(report, rungs=tuple(rungs)), examples, said))
    assert "450 documents, 812 passages of at most 60 words, by fused; 2 in a prompt" in read.text
    assert "hit at 1" in read.text
    for value in ("0.604 to 0.781", "0.761 to 0.839"):  # Wilson's of 70 in 100; 0.8 ± 1.96 · 0.02
        assert value in read.text.replace("\u00a0", " ")
    assert "[1] tales.md, The Fox [2] b.txt, line 3" in read.text
    assert "What is found in the documents" not in html(report, examples, said)


def by_id(said: dict[str, list[Prediction]]) -> dict[str, dict[str, Prediction]]:
    return {rung: {row.id: row for row in rows} for rung, rows in said.items()}


def test_a_bare_report_is_still_a_page() -> None:
    skipped = (RungResult("lora", skipped="too little memory"),)
    bare = replace(
        climbed(skipped, Verdict("", "too few rows", "Nothing was measured."), {"task": "chat", "metric": "chrf"}),
        data={}, readings=(), environment={}, base={},
    )  # fmt: skip
    text = harmless(html(bare, [], {})).text
    for words in ("too little memory", "No rung was scored.", "No data card was kept.", "No reading was recorded."):
        assert words in text


def test_fixed_and_broken_rows_are_those_of_the_best_tuned_and_best_other_rung() -> None:
    report, examples, said = classes()
    near = nearest_to(examples[:50])
    found = changes("classify", [("few-shot", "full"), ("few-shot", "lora")], examples, by_id(said), near)
    (left,) = wrong("classify", "lora", examples, by_id(said), near)
    gold = {row.id: row.label for row in examples}
    hit = {rung: {item.id for item in items if item.label == gold[item.id]} for rung, items in said.items()}
    for item, best in zip(found, ("full", "lora"), strict=True):
        fixed, broken = item.fixed, item.broken
        assert fixed.columns == ("few-shot", best)
        assert (fixed.total, broken.total) == (len(hit[best] - hit["few-shot"]), len(hit["few-shot"] - hit[best]))
        assert item.still == len(gold) - len(hit[best] | hit["few-shot"])
    assert left.total == len(examples) - len(hit["lora"])
    assert len(fixed.rows) == len(left.rows) == 20
    assert all(len(row.near) == 2 and " → " in row.near[0] for row in left.rows)
    sure = [float(row.answers[0].split("(")[1][:-1]) for row in left.rows if "(" in row.answers[0]]
    assert sure == sorted(sure, reverse=True)
    text = Page(html(report, examples, said)).text
    assert f"{fixed.total - 20} more are in the predictions files" in text


def test_numbers_are_listed_by_how_far_the_error_moved() -> None:
    report, examples, said = numbers()
    near = nearest_to([])
    (item,) = changes("regress", [("few-shot", "lora")], examples, by_id(said), near)
    closer, away, off = item.fixed, item.broken, *wrong("regress", "lora", examples, by_id(said), near)
    assert [item.title for item in (closer, away, off)] == [
        "Rows brought closer",
        "Rows moved away",
        "Rows furthest off",
    ]
    assert closer.total > away.total
    text = Page(html(report, examples, said)).text
    assert "Predicted against true" in text
    assert "Less is better: mae." in text


def test_writing_shows_samples_side_by_side_and_no_right_or_wrong() -> None:
    report, examples, said = tales()
    read = Page(html(report, examples, said))
    assert "What each rung writes" in read.text
    assert "the original" in read.text
    assert "Rows fixed" not in read.text
    assert "What is taken for what" not in read.text


def test_many_classes_show_only_the_most_confused_pairs() -> None:
    report, examples, said = KINDS["many"]()
    item = confusion("zero-shot", examples, by_id(said)["zero-shot"])
    assert len(item.pairs) == 15
    assert item.left > 0
    assert [count for _, _, count, _ in item.pairs] == sorted((pair[2] for pair in item.pairs), reverse=True)
    read = Page(html(report, examples, said))
    assert "the most confused of 77 classes" in " ".join(read.text.split())
    assert not [attributes for tag, attributes in read.seen if attributes.get("class") == "matrix"]


def test_confusion_counts_every_row_once() -> None:
    _, examples, said = classes()
    item = confusion("zero-shot", examples, by_id(said)["zero-shot"])
    assert item.n == len(examples)
    assert item.labels == ("negative", "positive", "no answer")
    assert item.golds == ["negative", "positive"]
    assert sum(item.of(gold) for gold in item.golds) == len(examples)
    rows = [Example("labelled", Where("a.csv", at), text=str(at), label="good") for at in range(4)]
    told = [Prediction(row.id, "", label=label) for row, label in zip(rows, ("good", "fair", "bad", None), strict=True)]
    told[2] = replace(told[2], problem="cut off")
    found = confusion("lora", rows, {item.id: item for item in told})
    assert found.counts == {("good", "good"): 1, ("good", "fair"): 1, ("good", "no answer"): 2}
    assert found.labels == ("fair", "good", "no answer")
    several = [replace(row, label=("good", "fair")) for row in rows]
    assert confusion("lora", several, {item.id: item for item in told}).counts == {}


def test_few_rows_and_missing_predictions_do_not_matter() -> None:
    report, examples, said = few()
    text = harmless(html(report, examples, {"lora": said["lora"][:3]})).text
    assert "not proven" in text
    assert "Rows fixed" not in text


def test_right_or_wrong() -> None:
    where = Where("a.csv", 1)
    several = Example("labelled", where, text="x", label=("b", "a"))
    assert right("classify", several, Prediction(several.id, "", label=("a", "b")))
    assert not right("classify", several, Prediction(several.id, "", label=("a",)))
    asked = Example("instruction", where, messages=(Message("user", "2+2"), Message("assistant", "4 ")))
    assert right("answer", asked, Prediction(asked.id, "", text=" 4"))
    assert right("extract", asked, Prediction(asked.id, "", text="4", problem="cut off")) is False
    assert right("write", asked, Prediction(asked.id, "", text="4")) is None
    assert right("regress", Example("labelled", where, text="x", label=2.0), Prediction("", "", number=2.0)) is None


def test_long_text_is_clipped_and_what_is_left_out_is_counted() -> None:
    report, examples, said = classes(n=40, skill={"few-shot": 0.3, "lora": 0.9})
    long = [replace(row, text="word " * 4000) for row in examples]
    page = html(report, long, said)
    assert "(19,500 more characters)" in page
    assert len(page) < 300_000


def test_every_text_colour_can_be_read_on_every_ground() -> None:
    sheet = (Path(report_module.__file__).parent / "report.css").read_text()
    schemes = [
        dict(re.findall(r"--(\w+): (#\w+);", block)) for block in re.findall(r":root \{(.*?)\}", sheet, re.DOTALL)
    ]
    assert len(schemes) == 3  # light, dark, print
    for scheme in schemes:
        for ground in ("paper", "card"):
            for ink in ("ink", "soft", "bronze", "slate", "good", "bad", "unsure"):
                assert contrast(scheme[ink], scheme[ground]) >= 4.5, (ink, ground, scheme)


def contrast(one: str, other: str) -> float:
    """WCAG 2.2 contrast ratio of two hex colours."""

    def light(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
        parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


def test_a_page_of_many_rows_stays_small() -> None:
    assert len(html(*classes(n=3000))) < 200_000


def test_the_data_card_is_told_in_reading_order_and_nothing_of_it_is_lost() -> None:
    text = " ".join(Page(html(*classes())).text.split())
    known = [
        "rows read 3000",
        "kept 2904",
        "exact duplicate 41",
        "split train 2033",
        "rows per class train validation test",
    ]
    known += [
        "negative 1050 150 300",
        "letters per row",
        "reviews.csv data",
        "The rest of the data card",
        "fingerprint",
    ]
    places = [text.find(words) for words in known]
    assert -1 not in places, known[places.index(-1)]
    assert places == sorted(places)
    strange = replace(classes()[0], data={"label_counts": "?", "rows": [1, {"a": 2}], "what": {"x": {"y": {"z": 1}}}})
    assert "z: 1" in " ".join(harmless(html(strange, [], {})).text.split())


def test_a_search_shows_what_varied_and_its_scores_and_says_what_did_not() -> None:
    common = {"order": "last", "calibrate": False, "format": {"turns": True, "question": ""}}
    told = report_module.trace(
        [{**common, "shots": 2, "scores": {"plain": 0.5}}, {**common, "shots": 4, "scores": {"plain": 0.75}}]
    )
    assert told.heads == ("shots", "score, plain")
    assert told.rows == (("2", "0.500"), ("4", "0.750"))
    assert told.same == "order last, calibrate no, format turns"


def test_the_headline_is_one_clause_and_the_figures_follow() -> None:
    claim = "LoRA reaches it: accuracy 0.94 (0.92 to 0.96, n = 600), above the goal of 0.9. Tuning pays: by 0.1."
    headline, rest = report_module._sentences(claim)
    assert headline == "LoRA reaches it."
    assert rest == "Accuracy 0.94 (0.92 to 0.96, n = 600), above the goal of 0.9. Tuning pays: by 0.1."
    assert report_module._sentences("Nothing was measured.") == ("Nothing was measured.", "")


def test_a_metric_that_repeats_another_is_left_out_of_the_table_and_named() -> None:
    def rung(name: str, *values: float) -> RungResult:
        names = ("accuracy", "f1-micro", "recall")
        return RungResult(name, tuple(Score(m, v, v, v, 9, "wilson") for m, v in zip(names, values, strict=True)))

    assert report_module._metrics([rung("a", 0.5, 0.5, 0.4), rung("b", 0.6, 0.6, 0.6)]) == (
        ["accuracy", "recall"],
        ["f1-micro"],
    )


def test_a_narrow_screen_gets_cards_with_a_head_for_every_cell() -> None:
    page = html(*KINDS["many"]())
    tables = re.findall(r'<table class="[^"]*stack[^"]*">.*?</table>', page, re.S)
    assert len(tables) >= 4
    for table in tables:
        body = table.partition("<tbody>")[2]
        assert all("data-head=" in cell or "colspan=" in cell for cell in re.findall(r"<td[^>]*>", body))
