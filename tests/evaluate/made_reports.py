"""Made-up reports of every kind, for looking at and testing the page and the card."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from burnish.evaluate import cost as costs
from burnish.evaluate.curve import Learning
from burnish.records import Comparison, Example, Message, Outcome, Prediction, Report, RungResult, Score, Verdict, Where

Made = tuple[Report, list[Example], dict[str, list[Prediction]]]

READINGS = ({"time": "2026-11-21T09:14:02+00:00", "verb": "climb", "run": "reviews-0b7d11aa"},)
ENVIRONMENT = {
    "burnish": "0.1.0",
    "python": "3.11.9",
    "torch": "2.13.0",
    "transformers": "5.6.0",
    "platform": "Linux x86_64",
    "cpu": "16 cores",
    "device": "cpu",
    "seeds": {"data": 0, "train": 0},
}
WORDS = [
    *("the", "plot", "was", "slow", "but", "its", "actors", "were", "warm", "and", "I", "would", "see", "this"),
    *("film", "again", "with", "my", "whole", "family"),
]


def curve(steps: int, floor: float, seed: int = 0) -> tuple[dict[str, float], ...]:
    """A training loss that falls and a validation loss that turns up again."""
    rng, points = random.Random(seed), []
    for step in range(1, steps + 1):
        share = step / steps
        point = {
            "step": step,
            "train_loss": floor + 1.8 * math.exp(-4 * share) + rng.gauss(0, 0.06),
            "learning_rate": 3e-4 * min(1, step / 12) * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share))),
        }
        points.append(point)
        if step % max(1, steps // 12) == 0:
            points.append({"step": step, "valid_loss": floor + 0.08 + 1.7 * math.exp(-4.4 * share) + 0.3 * share**3})
    return tuple(points)


def share(metric: str, value: float, n: int) -> Score:
    """A made-up score with a plausible interval."""
    half = 1.96 * math.sqrt(max(value * (1 - value), 0.02) / n)
    return Score(
        metric,
        value,
        max(0.0, value - half),
        min(1.0, value + half),
        n,
        "wilson" if metric == "accuracy" else "bootstrap",
    )


def card(labels: Mapping[str, int] | None = None, rows: int = 3000) -> dict[str, Any]:
    """A data card as `data.prepare` writes it."""
    kept, splits = rows - 96, {"train": 0.7, "validation": 0.1, "test": 0.2}
    return {
        "fingerprint": "0b7d11aa93c2f05e",
        "shape": "labelled",
        "columns": {"text": "review", "label": "sentiment"},
        "guessed": ["text"],
        "reading": "labelled: text = review (guessed), label = sentiment",
        "notes": [],
        "labels": list(labels or ()),
        "multi": False,
        "files": [{"name": "reviews.csv", "use": "data", "sha256": "1f0c9e" * 10 + "abcd", "rows": rows, "kept": kept}],
        "rows": {
            "read": rows,
            "kept": kept,
            "dropped": {"exact duplicate": 41, "problem": 17, "also in your own test or validation": 38},
        },
        "splits": {name: round(kept * part) for name, part in splits.items()},
        "bytes": {"train": 214_003, "validation": 30_402, "test": 61_010},
        "label_counts": {
            name: {label: round(count * part) for label, count in (labels or {}).items()}
            for name, part in splits.items()
        },
        "letters": {"min": 3.0, "median": 96.5, "p95": 251.0, "max": 1802.0},
        "groups": {"count": 12, "rows": 31, "largest": 5},
        "problems": 17,
        "first_problems": ["reviews.csv:42 label: is empty, fill it in", "reviews.csv:97 text: is empty, fill it in"],
        "warnings": [
            "41 exact duplicates dropped, dropped.jsonl lists them",
            "positive has 3 times the rows of negative",
        ],
    }


LEARNING = Learning(
    "lora",
    "accuracy",
    tuple({"rows": rows, "value": value} for rows, value in ((262, 0.81), (525, 0.87), (1050, 0.915), (2100, 0.942))),
    0.018,
    0.006,
    0.033,
    True,
    "Twice the data would bring about +1.8 points of accuracy (0.6 to 3.3, 95 % interval), judging by 4 trainings "
    "from 262 to 2,100 training rows.",
    tuple(
        (rows, 1 - (e := 0.19 * (rows / 262) ** -0.56), 1 - 1.2 * e, 1 - 0.8 * e)
        for rows in (262, 400, 525, 800, 1050, 1500, 2100, 3000, 4200)
    ),
).to_json()


def climbed(
    rungs: Sequence[RungResult],
    verdict: Verdict,
    goal: Mapping[str, Any],
    comparisons: Sequence[Comparison] = (),
    data: Mapping[str, Any] | None = None,
    name: str = "reviews",
) -> Report:
    """A report around the given parts."""
    base = {"name": "burnish-tiny", "parameters": 3_146_240, "sha256": "9ab1" * 16, "license": "apache-2.0"}
    seconds = sum(rung.seconds for rung in rungs)
    return Report(
        name,
        goal,
        base,
        tuple(rungs),
        tuple(comparisons),
        verdict,
        data or card(),
        READINGS,
        {**ENVIRONMENT, "prices": PRICES.to_json()},
        f"burnish_home/runs/{name}",
        seconds,
        learning=LEARNING if name == "reviews" else {},
        advice=("Ship it: `burnish chat burnish_home/runs/reviews/rungs/lora/artifact`.", "Gather more rows."),
    )


RUNNING = {"zero-shot": (61, 9.0), "few-shot": (412, 38.0), "lora": (31, 4.1), "full": (31, 3.9)}
TRIALS = (
    {"learning_rate": 3e-4, "epochs": 3.0, "validation_loss": 0.31, "pruned": False},
    {"learning_rate": 9e-4, "epochs": 3.0, "validation_loss": 0.27, "pruned": False},
    {"learning_rate": 1e-4, "epochs": 3.0, "validation_loss": 0.44, "pruned": True},
)
PRICES = costs.Prices("USD", 0.1, 65.0, {"a small hosted model": costs.Hosted(0.15, 0.6)}, "prices.yaml")


def cost(rung: str) -> dict[str, Any]:
    """What a rung costs, as `judge` tells it."""
    tokens, seconds = RUNNING.get(rung, (0, 0.0))
    said = [Prediction("a", "", prompt_tokens=tokens, completion_tokens=2, seconds=seconds / 1000)]
    made = {"zero-shot": 0.0, "few-shot": 41.2, "lora": 214.0, "full": 388.0}.get(rung, 0.0)
    making = costs.making(made, 48_000 if rung in ("lora", "full") else 0, 812_000_000, PRICES)
    return {"making": making, "running": costs.running(said, 640_000_000, PRICES)}


def classes(
    n: int = 600,
    labels: Sequence[str] = ("negative", "positive"),
    skill: Mapping[str, float] | None = None,
    outcome: Outcome = "met",
    rung: str = "lora",
    sentence: str = "",
    target: float | None = 0.9,
) -> Made:
    """A classification climb; `skill` is the share each rung gets right."""
    skill = skill or {"zero-shot": 0.62, "few-shot": 0.79, "lora": 0.942, "full": 0.948}
    rng = random.Random(7)
    examples = [
        Example(
            "labelled",
            Where("reviews.csv", index + 2),
            text=" ".join(rng.choices(WORDS, k=rng.randint(6, 40))) + f" {index}",
            label=rng.choice(labels),
        )
        for index in range(n)
    ]
    said: dict[str, list[Prediction]] = {}
    for name, chance in skill.items():
        said[name] = []
        for row in examples:
            gold = str(row.label)
            others = [label for label in labels if label != gold][:3]
            answer = gold if rng.random() < chance else rng.choice(others)
            sure = rng.uniform(0.5, 1.0)
            problem = "the answer names no class" if name == "zero-shot" and rng.random() < 0.04 else ""
            rest = {label: (1 - sure) / (len(labels) - 1) for label in labels if label != answer}
            said[name].append(
                Prediction(
                    row.id,
                    str(row.where),
                    label=None if problem else answer,
                    probabilities={answer: sure, **rest},
                    problem=problem,
                )
            )
    trained = {"lora": 98_304, "full": 3_146_240}
    rungs = []
    for name in skill:
        rightly = sum(a.label == b.label for a, b in zip(said[name], examples, strict=True)) / n
        settings: dict[str, Any] = {"shots": 8, "order": "nearest"} if name == "few-shot" else {}
        if name in trained:
            settings = {
                "rank": 8,
                "learning_rate": 3e-4,
                "epochs": 3.0,
                "best_step": 84,
                "batch_size": 16,
                "method": "classify",
            }
        rungs.append(
            RungResult(
                name,
                (
                    share("accuracy", rightly, n),
                    share("f1-macro", rightly - 0.007, n),
                    share("roc-auc", min(rightly + 0.02, 1), n),
                ),
                seconds={"zero-shot": 0.0, "few-shot": 41.2, "lora": 214.0, "full": 388.0}[name],
                trained=trained.get(name, 0),
                settings=settings,
                curve=curve(120, 0.2) if name in trained else (),
                artifact=f"burnish_home/runs/reviews/rungs/{name}/artifact",
                cost=cost(name),
                search=TRIALS if name == "lora" else (),
                prompt=f"<|user|>Is this review negative or positive? {examples[0].text}"
                if name not in trained
                else "",
            )
        )
    rungs.insert(2, RungResult("rag", skipped="no documents were given (rag.documents)"))
    best_value = next((item.scores[0].value for item in rungs if item.rung == rung), 0.0)
    comparisons = [
        Comparison("zero-shot", "few-shot", 0.17, 0.12, 0.22, 1e-9, 3e-9, n, "mcnemar", 130, 28),
        Comparison("few-shot", "lora", 0.152, 0.118, 0.188, 2e-14, 6e-14, n, "mcnemar", 112, 21),
        Comparison("lora", "full", 0.006, -0.011, 0.024, 0.52, 0.52, n, "mcnemar", 17, 13),
    ]
    told = (
        sentence
        or f"LoRA meets the goal: accuracy {best_value:.3f} on {n} test rows, in 3 min 34 s; few-shot does not."
    )
    notes = (
        "The full fine-tune is no better than LoRA beyond luck (p = 0.52).",
        "3 test rows may carry a wrong gold label.",
    )
    report = climbed(
        rungs,
        Verdict(rung, outcome, told, notes),
        {"task": "classify", "metric": "accuracy", "target": target},
        comparisons,
        card(dict.fromkeys(labels, 5 * n // len(labels)), 5 * n),
    )
    return report, examples, said


def failing() -> Made:
    """Nothing meets the target."""
    return classes(
        n=400,
        skill={"zero-shot": 0.51, "few-shot": 0.55, "lora": 0.74, "full": 0.73},
        outcome="not met",
        rung="",
        sentence="No rung meets the goal: the best, LoRA, reaches accuracy 0.74 on 400 test rows; the target is 0.90.",
    )


def few() -> Made:
    """Twelve test rows cannot tell."""
    return classes(
        n=12,
        outcome="too few rows",
        rung="",
        sentence="Twelve test rows cannot tell whether LoRA meets the goal: its accuracy lies between 0.62 and 0.99.",
    )


def many() -> Made:
    """77 classes."""
    return classes(
        n=900,
        labels=[f"card_{index}_{'payment_not_recognised' if index % 3 else 'arrival'}" for index in range(77)],
        skill={"zero-shot": 0.06, "few-shot": 0.41, "lora": 0.87},
        target=None,
        outcome="best",
        sentence="LoRA is the cheapest rung that nothing dearer beats: accuracy 0.87 on 900 test rows and 77 classes.",
    )


def numbers(n: int = 300) -> Made:
    """A regression climb, lower is better."""
    rng = random.Random(3)
    examples = [
        Example(
            "labelled",
            Where("ratings.csv", index + 2),
            text=" ".join(rng.choices(WORDS, k=12)) + f" {index}",
            label=round(rng.uniform(1, 10), 1),
        )
        for index in range(n)
    ]
    said = {
        rung: [Prediction(row.id, str(row.where), number=float(row.label) + rng.gauss(0, spread)) for row in examples]  # type: ignore[arg-type]
        for rung, spread in (("few-shot", 2.4), ("lora", 0.7))
    }
    rungs = [
        RungResult(
            "few-shot", (Score("mae", 1.92, 1.75, 2.1, n, "bootstrap", higher=False), share("spearman", 0.55, n)), 30.0
        ),
        RungResult(
            "lora",
            (Score("mae", 0.56, 0.51, 0.61, n, "bootstrap", higher=False), share("spearman", 0.95, n)),
            190.0,
            98_304,
            settings={"best_step": 60, "method": "regress"},
            curve=curve(90, 0.3, 1),
            artifact="burnish_home/runs/ratings/rungs/lora/artifact",
        ),
    ]
    verdict = Verdict(
        "lora", "met", "LoRA meets the goal: it is off by 0.56 points on average; few-shot prompting by 1.92."
    )
    goal = {"task": "regress", "metric": "mae", "target": 0.75}
    difference = [Comparison("few-shot", "lora", -1.36, -1.55, -1.18, 5e-4, 5e-4, n, "random swaps")]
    return climbed(rungs, verdict, goal, difference, name="ratings"), examples, said


def tales(n: int = 40) -> Made:
    """A writing climb with perplexity and samples."""
    opening = "There was once a miller who had nothing in the world but"
    text = (
        "a cat, a cracked millstone and three daughters. The eldest could spin, the second could sing, and the "
        "youngest could neither, but she could count the stars.\n\nOne night the millstone spoke. "
    ) * 4
    prompts = [f"{opening}", "Deep in the forest, where the charcoal burners keep their fires,"]
    examples = [
        Example(
            "document",
            Where(f"tales/{index:02}.txt"),
            messages=(Message("user", prompts[index % 2]), Message("assistant", text)),
            meta={"index": index},
        )
        for index in range(n)
    ]
    rungs = []
    for name, value, seconds in (
        ("zero-shot", 812.0, 0.0),
        ("few-shot", 540.0, 12.0),
        ("lora", 41.3, 600.0),
        ("full", 28.7, 1260.0),
    ):
        samples = tuple({"prompt": prompt, "text": f"[{name}] {text}", "reference": text} for prompt in prompts)
        scores = (
            Score("perplexity", value, value * 0.9, value * 1.12, n, "bootstrap", higher=False),
            Score(
                "bits-per-byte",
                math.log2(value) / 4.1,
                math.log2(value) / 4.4,
                math.log2(value) / 3.9,
                n,
                "bootstrap",
                higher=False,
            ),
        )
        trains = name in ("lora", "full")
        rungs.append(
            RungResult(
                name,
                scores,
                seconds,
                {"lora": 98_304, "full": 3_146_240}.get(name, 0),
                samples=samples,
                curve=curve(400, 3.2, 2) if trains else (),
                settings={"best_step": 210} if trains else {},
                artifact=f"burnish_home/runs/tales/rungs/{name}/artifact",
            )
        )
    verdict = Verdict(
        "full",
        "probably met",
        "Full fine-tuning probably meets the goal: perplexity 28.7 on 40 unseen tales.",
        ("Its interval reaches beyond the target of 30.",),
    )
    said = {
        rung.rung: [Prediction(row.id, str(row.where), nll=900.0, tokens=250, bytes=1000) for row in examples]
        for rung in rungs
    }
    goal = {"task": "write", "metric": "perplexity", "target": 30.0}
    difference = [Comparison("lora", "full", -12.6, -15.1, -10.4, 5e-4, 1e-3, n, "random swaps")]
    return climbed(rungs, verdict, goal, difference, name="tales"), examples, said


KINDS = {"classes": classes, "failing": failing, "few": few, "many": many, "numbers": numbers, "tales": tales}
