"""The README.md that travels with an artifact: what it is, what it was made from, how good, how sure, how to use it.

In: a Report, one of its rungs and a few facts about the saved artifact.  Out: Markdown with the Hub's front matter.
Names and labels come from strangers: in the body they pass `safe`, in the front matter a YAML writer quotes them.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from burnish import kinds
from burnish.evaluate import plain
from burnish.records import Comparison, Report, RungResult, Score
from burnish.task import trains

PIPELINES = {
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForSeq2SeqLM": "text2text-generation",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForCausalLM": "text-generation",
}


Library = Literal["peft", "transformers", "burnish"]


@dataclass(frozen=True)
class Facts:
    """What the card says about the artifact's files.

    loader: what loads them without Burnish; burnish for a prompt recipe or a probe.  auto: the transformers class.
    outputs: classes (or 1 number) of a head; 0 for a language model.  license: of the base ('' when unknown).
    files: name -> SHA-256.
    """

    loader: Library = "transformers"
    auto: str = "AutoModelForCausalLM"
    outputs: int = 0
    license: str = ""
    files: Mapping[str, str] = field(default_factory=dict)


def facts_of(report: Report, rung: RungResult) -> Facts:
    """The facts that the records alone tell, for a page that does not open the artifact."""
    loader: Library = "burnish"
    if rung.rung in kinds.names("adapters"):
        loader = "transformers" if kinds.constants("adapters", rung.rung)["CARRIES_BASE"] else "peft"
    heads = {"classify": len(report.data.get("labels") or ()), "regress": 1}
    outputs = heads.get(str(rung.settings.get("method")), 0)
    speaking = {"encoder": "AutoModelForMaskedLM", "encoder-decoder": "AutoModelForSeq2SeqLM"}
    auto = speaking.get(str(report.base.get("kind")), "AutoModelForCausalLM")
    license = str(report.base.get("license") or "")
    return Facts(loader, "AutoModelForSequenceClassification" if outputs else auto, outputs, license)


def usage(report: Report, rung: RungResult, facts: Facts) -> list[tuple[str, str, str]]:
    """(title, language, code) of each way to run the artifact: Burnish's commands, Python, and without Burnish."""
    folder = rung.artifact or f"{report.folder}/rungs/{rung.rung}/artifact"
    quoted, text = shlex.quote(folder), json.dumps(folder)
    ways = [
        ("In a terminal", "shell", f"burnish predict {quoted} rows.csv --out answers.jsonl\nburnish chat {quoted}"),
        ("In Python", "python", f'import burnish\n\nburnish.predict({text}, "rows.csv", out="answers.jsonl")'),
    ]
    begin = f"from transformers import {facts.auto}, AutoTokenizer\n\nfolder = {text}\n"
    begin += "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
    if facts.loader == "transformers":
        load = f"model = {facts.auto}.from_pretrained(folder)"
        ways.append(("Without Burnish: transformers", "python", begin + load))
    if facts.loader == "peft":
        many = f", num_labels={facts.outputs}" if facts.outputs else ""
        load = "base = PeftConfig.from_pretrained(folder).base_model_name_or_path\n"
        load += f"model = {facts.auto}.from_pretrained(base{many})\nmodel = PeftModel.from_pretrained(model, folder)"
        begin = f"from peft import PeftConfig, PeftModel\n{begin}"
        ways.append(("Without Burnish: transformers and peft", "python", begin + load))
    return ways


def safe(value: object) -> str:
    r"""Text on one line that Markdown shows as written: no markup, HTML, table cell or link.

    >>> safe("a|b <i> [x](http://y)")
    'a\\|b \\<i\\> \\[x\\](http\\://y)'
    """
    told = re.sub(r"([\\`*_{}\[\]<>#|!~$&@])", r"\\\1", plain.visible(plain.line(value, 300)))
    return re.sub(r"www\.", r"www\\.", told.replace("://", r"\://"), flags=re.IGNORECASE)


def card(report: Report, rung: RungResult, facts: Facts | None = None) -> str:
    """README.md of the artifact that `rung` made."""
    facts = facts or facts_of(report, rung)
    parts = [
        f"---\n{yaml.safe_dump(front(report, rung, facts), sort_keys=False, allow_unicode=True, width=10**6)}---",
        f"# {safe(report.name)}",
        _what(report, rung, facts),
        "## Results",
        *_results(report, rung),
        "## Data",
        *_data(report.data),
        "## How it was made",
        _table(("setting", "value"), ((key, plain.setting(value)) for key, value in rung.settings.items())),
        f"Made in {plain.seconds(rung.seconds)}" + (f", {rung.trained:,} parameters trained." if rung.trained else "."),
        "## Limits",
        _limits(report, rung),
        "## How to use it",
        *(f"{title}:\n\n{_fenced(code, language)}" for title, language, code in usage(report, rung, facts)),
        "## How to make it again",
        "The run's folder holds `task.yaml` with every setting and seed written out, and the rows as they were split. "
        "The same task, data and versions give the same result on the same machine.",
        _fenced(f"burnish climb {shlex.quote(f'{report.folder}/task.yaml')}", "shell"),
        _table(("environment", ""), ((key, plain.setting(value)) for key, value in report.environment.items())),
        *(["Files of this artifact:", _table(("file", "SHA-256"), facts.files.items())] if facts.files else []),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def front(report: Report, rung: RungResult, facts: Facts) -> dict[str, Any]:
    """The Hub's metadata; the licence of a derivative is its base's, so an unknown one is said to be unknown."""
    pipeline = PIPELINES.get(facts.auto, "text-generation")
    found: dict[str, Any] = {
        "library_name": facts.loader,
        "license": facts.license or "unknown",
        "base_model": str(report.base.get("name", "")),
        "base_model_relation": "adapter" if facts.loader == "peft" else "finetune",
        "pipeline_tag": pipeline,
        "tags": ["burnish", rung.rung, str(report.goal.get("task", ""))],
        "metrics": [score.metric for score in rung.scores],
    }
    results = [
        {"type": score.metric, "name": score.metric, "value": round(score.value, 6), "verified": False,
         "args": {"low": score.low, "high": score.high, "confidence": score.confidence, "n": score.n}}
        for score in rung.scores
        if score.value == score.value
    ]  # fmt: skip
    if results:
        dataset = {"name": report.name, "type": "private", "split": "test"}
        entry = {"task": {"type": pipeline}, "dataset": dataset, "metrics": results}
        found["model-index"] = [{"name": report.name, "results": [entry]}]
    return _held(found)


def _held(value: Any) -> Any:
    """The same with every text on one line and without what YAML cannot hold, which would lose the whole card."""
    if isinstance(value, dict):
        return {key: _held(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_held(item) for item in value]
    return plain.visible(plain.line(value, 300)) if isinstance(value, str) else value


def _what(report: Report, rung: RungResult, facts: Facts) -> str:
    goal, base = report.goal, report.base
    aim = (
        f", aiming at {safe(goal.get('metric', ''))} {plain.number(goal['target'])}"
        if goal.get("target") is not None
        else ""
    )
    kind = "A recipe for" if facts.loader == "burnish" else f"A {safe(rung.rung)} fine-tune of"
    return (
        f"{kind} {safe(base.get('name', 'the base model'))}, made to {safe(goal.get('task', 'answer'))}{aim}, "
        f"and measured on test rows that neither trained nor chose it.\n\n> {safe(report.verdict.sentence)}"
    )


def _results(report: Report, rung: RungResult) -> list[str]:
    others = [
        item for item in report.rungs if item.scores and not item.skipped and (item is rung or not trains(item.rung))
    ]
    metrics = list(dict.fromkeys(score.metric for item in others for score in item.scores))
    rows = [
        (f"{item.rung} (this one)" if item is rung else item.rung, *(_cell(item.scores, metric) for metric in metrics))
        for item in others
    ]
    sure = plain.percent(rung.scores[0].confidence) if rung.scores else "95 %"
    found = [f"Each cell: value, {sure} interval, number of test rows.", _table(("rung", *metrics), rows)]
    against = [item for item in report.comparisons if rung.rung in (item.a, item.b)]
    return [*found, "\n".join(f"- {_compared(item)}" for item in against)]


def _cell(scores: Sequence[Score], metric: str) -> str:
    score = next((item for item in scores if item.metric == metric), None)
    return (
        "–"
        if score is None
        else f"{plain.number(score.value)} ({plain.interval(score.low, score.high)}; n {score.n:,})"
    )


def _compared(item: Comparison) -> str:
    moved = f", {item.fixed:,} rows fixed and {item.broken:,} broken" if item.fixed or item.broken else ""
    return (
        f"{safe(item.b)} minus {safe(item.a)}: {plain.signed(item.difference)} "
        f"({plain.interval(item.low, item.high, sign=True)}; n {item.n:,}{moved}; {safe(item.test)}, "
        f"p after Holm {plain.chance(item.p_holm)})"
    )


def _data(data: Mapping[str, Any]) -> list[str]:
    """Counts, split, lengths and classes of the data card, then its files with their hashes."""
    flat: list[tuple[str, str]] = []
    for key in ("reading", "rows", "splits", "letters", "label_counts", "fingerprint"):
        value = data.get(key)
        inner = value if isinstance(value, Mapping) else {"": value} if value else {}
        flat += [(f"{key.replace('_', ' ')} {name}".strip(), plain.setting(told)) for name, told in inner.items()]
    files = [file for file in data.get("files") or () if isinstance(file, Mapping)]
    rows = [[file.get(key, "") for key in ("name", "rows", "sha256")] for file in files]
    return [_table(("data", ""), flat), _table(("file", "rows", "SHA-256"), rows)]


def _limits(report: Report, rung: RungResult) -> str:
    told = list(report.verdict.notes)
    if rung.scores:
        told.append(
            f"Measured on {rung.scores[0].n:,} test rows from the same source as the training rows: "
            "other sources, other times and other languages were not measured."
        )
    told.append("Biases of the base model and of the data remain; nothing here measured safety or fairness.")
    return "\n".join(f"- {safe(item)}" for item in told)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    body = [f"| {' | '.join(safe(cell) for cell in row)} |" for row in rows]
    if not body:
        return ""
    return "\n".join([f"| {' | '.join(safe(cell) for cell in head)} |", "|" + " --- |" * len(head), *body])


def _fenced(code: str, language: str) -> str:
    """A code block whose fence no line of the code can close."""
    code = plain.visible(code)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", code)), default=0))
    return f"{fence}{language}\n{code}\n{fence}"
