"""The model card: a front matter the Hub reads, a body that says how good and how sure, and nothing injected."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from made_reports import KINDS, classes, few, tales
from test_report import PAYLOADS, poisoned

from burnish.evaluate import plain
from burnish.evaluate.card import Facts, card, facts_of, safe, usage
from burnish.records import Report, RungResult


def chosen(report: Report) -> RungResult:
    return next(rung for rung in reversed(report.rungs) if rung.scores and rung.rung != "full")


@pytest.mark.parametrize("kind", KINDS)
def test_the_hub_reads_the_front_matter(kind: str) -> None:
    report, _, _ = KINDS[kind]()
    rung = chosen(report)
    data = ModelCard(card(report, rung)).data
    assert data.library_name == "peft"
    assert data.base_model == "burnish-tiny"
    assert data.license == "apache-2.0"
    assert "burnish" in data.tags
    told = {result.metric_type: result.metric_value for result in data.eval_results}
    assert told == {score.metric: pytest.approx(score.value, abs=1e-6) for score in rung.scores}


def test_results_stand_beside_the_prompt_rungs_with_intervals() -> None:
    report, _, _ = classes()
    rung = next(item for item in report.rungs if item.rung == "lora")
    text = card(report, rung)
    table = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    assert [row.split("|")[1].strip() for row in table[:4]] == ["rung", "zero-shot", "few-shot", "lora (this one)"]
    score = rung.scores[0]
    assert f"{plain.number(score.value)} ({plain.interval(score.low, score.high)}; n {score.n:,})" in text
    assert "lora minus few-shot: +0.152" in text
    assert "zero-shot minus" not in text
    for words in (
        "## Data",
        "1f0c9e",
        "## Limits",
        "wrong gold label",
        "## How to make it again",
        "burnish climb",
        "rank",
    ):
        assert words in text


def test_each_library_has_its_own_way_in() -> None:
    report, _, _ = classes()
    rungs = {rung.rung: rung for rung in report.rungs}
    assert facts_of(report, rungs["few-shot"]).loader == "burnish"
    assert "PeftModel.from_pretrained" in card(report, rungs["lora"])
    full = card(report, rungs["full"])
    assert "PeftModel" not in full
    assert "AutoModelForSequenceClassification.from_pretrained" in full
    assert "A recipe for" in card(report, rungs["few-shot"])
    facts = Facts("transformers", files={"model.safetensors": "ab" * 32})
    given = card(report, rungs["lora"], facts)
    assert "license: unknown" in given
    assert "ab" * 32 in given


def test_commands_survive_a_strange_folder() -> None:
    report, _, _ = tales()
    rung = RungResult("lora", trained=1, artifact='my runs/it\'s; rm -rf "x"')
    ways = usage(report, rung, facts_of(report, rung))
    assert ways[0][2].startswith("burnish predict 'my runs/it'\"'\"'s; rm -rf \"x\"' ")
    for title, language, code in ways:
        if language == "python":
            compile(code, title, "exec")


@pytest.mark.parametrize("payload", [*PAYLOADS, "---\nlicense: mit\n---", "```\nx", "a | b\n| c |", "[x](http://y)"])
def test_hostile_names_change_nothing(payload: str) -> None:
    report, _, _ = poisoned(payload)
    text = card(report, report.rungs[1], Facts("peft", files={payload: payload}))
    text.encode()
    _, front, body = text.split("---\n", 2)
    data = yaml.safe_load(front)
    assert data["library_name"] == "peft"
    assert data["base_model"] == plain.visible(plain.line(payload))
    outside = re.sub(r"^(`{3,})\w*\n.*?\n\1$", "", body, flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"(?<!\\)<", outside)
    assert not re.search(r"(?<!\\)\]\(", outside)
    assert "http://" not in outside
    assert "https://" not in outside
    heads = [line for line in outside.splitlines() if line.startswith("## ")]
    assert heads == [
        "## Results",
        "## Data",
        "## How it was made",
        "## Limits",
        "## How to use it",
        "## How to make it again",
    ]


def test_a_rung_that_was_never_scored_has_a_card() -> None:
    report, _, _ = classes()
    text = card(replace(report, rungs=(), comparisons=(), data={}, environment={}, base={}), RungResult("lora"))
    assert ModelCard(text).data.library_name == "peft"


def test_few_rows_are_said_to_be_few() -> None:
    report, _, _ = few()
    assert "Measured on 12 test rows" in card(report, chosen(report))


def test_safe_keeps_plain_words_readable() -> None:
    assert safe("f1-macro of run 3, 95 %") == "f1-macro of run 3, 95 %"


@pytest.mark.slow
@pytest.mark.parametrize("rung", ["lora", "full"])
def test_the_loading_snippets_run(rung: str, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

    size = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForSequenceClassification(LlamaConfig(**size, num_labels=2))
    model.save_pretrained(tmp_path / "base")
    if rung == "lora":
        model = get_peft_model(LlamaForSequenceClassification.from_pretrained(tmp_path / "base"), LoraConfig("SEQ_CLS"))
    model.save_pretrained(tmp_path / "made")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a"))).save_pretrained(
        tmp_path / "made"
    )
    report, _, _ = classes()
    result = next(item for item in report.rungs if item.rung == rung)
    result = replace(result, artifact=str(tmp_path / "made"))
    title, _, code = usage(report, result, facts_of(report, result))[-1]
    assert title.startswith("Without Burnish")
    found: dict[str, Any] = {}
    exec(compile(code, title, "exec"), found)
    assert found["model"].config.num_labels == 2
    assert len(found["tokenizer"]) == 1
