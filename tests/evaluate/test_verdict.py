"""The truth table of the verdict: every branch, both directions, and sentences a manager can read."""

import dataclasses

import pytest

from burnish.evaluate.verdict import _number, decide
from burnish.records import Comparison, RungResult, Score

TRAINED = ("lora", "full")


def rung(name, value, low=None, high=None, metric="accuracy", higher=True, n=172):
    low, high = value - 0.05 if low is None else low, value + 0.05 if high is None else high
    other = Score("f1-macro", 0.99, 0.98, 1.0, n, "bootstrap")
    return RungResult(name, scores=(Score(metric, value, low, high, n, "wilson", higher), other))


def versus(a, b, difference, p=0.001, width=0.05, test="mcnemar", n=172):
    fixed, broken = (
        (max(0, round(difference * n)) + 5, max(0, round(-difference * n)) + 5) if test == "mcnemar" else (0, 0)
    )
    return Comparison(a, b, difference, difference - width, difference + width, p, p, n, test, fixed, broken)


def judge(rungs, comparisons=(), target=None, n=172, metric="accuracy"):
    goal = {"task": "classify", "metric": metric, "target": target}
    return decide(goal, rungs, comparisons, n, trained=TRAINED)


FLOOR = rung("baseline", 0.31)
FEW, LORA, FULL = rung("few-shot", 0.61), rung("lora", 0.89, 0.84, 0.92), rung("full", 0.91, 0.86, 0.94)


@pytest.mark.parametrize(
    ("rungs", "target", "n", "chosen", "outcome"),
    [
        ([FLOOR, FEW, LORA, FULL], 0.60, 172, "few-shot", "probably met"),  # cheapest value that reaches it
        ([FLOOR, FEW, LORA, FULL], 0.55, 172, "few-shot", "met"),
        ([FLOOR, FEW, LORA, FULL], 0.80, 172, "lora", "met"),
        ([FLOOR, FEW, LORA, FULL], 0.84, 172, "lora", "met"),  # the limit itself is beyond
        ([FLOOR, FEW, LORA, FULL], 0.85, 172, "lora", "probably met"),  # although full meets it surely
        ([FLOOR, FEW, LORA, FULL], 0.89, 172, "lora", "probably met"),  # the value itself reaches
        ([FLOOR, FEW, LORA, FULL], 0.90, 172, "full", "probably met"),
        ([FLOOR, FEW, LORA, FULL], 0.93, 172, "", "too few rows"),  # only an interval holds it
        ([FLOOR, FEW, LORA, FULL], 0.95, 172, "", "not met"),  # every interval excludes it
        ([FLOOR, FEW, LORA, FULL], 0.80, 9, "lora", "probably met"),  # nothing is sure with 9 rows
        ([FLOOR, FEW, LORA, FULL], 0.95, 9, "", "too few rows"),
        ([FLOOR], 0.20, 172, "", "not met"),  # the floor is never recommended
        ([FLOOR, FEW], 0.20, 172, "few-shot", "met"),
        ([RungResult("few-shot", skipped="no template"), LORA], 0.5, 172, "lora", "met"),
        ([RungResult("few-shot", skipped="no template")], 0.5, 172, "", "not met"),
        ([RungResult("few-shot")], 0.5, 172, "", "not met"),  # ran, but without this metric
        ([rung("few-shot", float("nan")), LORA], 0.5, 172, "lora", "met"),
        ([], 0.5, 172, "", "not met"),
    ],
)
def test_with_a_target(rungs, target, n, chosen, outcome):
    found = judge(rungs, target=target, n=n)
    assert (found.rung, found.outcome) == (chosen, outcome)
    assert found.met is (outcome in ("met", "probably met"))


def perplexity(name, value, low, high):
    return rung(name, value, low, high, "perplexity", higher=False)


@pytest.mark.parametrize(
    ("target", "chosen", "outcome"),
    [
        (9.0, "few-shot", "met"),
        (8.0, "few-shot", "probably met"),
        (6.0, "lora", "met"),
        (5.0, "lora", "probably met"),
        (4.4, "", "too few rows"),
        (4.0, "", "not met"),
    ],
)
def test_with_a_target_where_lower_is_better(target, chosen, outcome):
    rungs = [perplexity("few-shot", 7.5, 7.0, 8.5), perplexity("lora", 5.0, 4.2, 5.9)]
    found = judge(rungs, [versus("few-shot", "lora", -2.5, test="random swaps")], target, metric="perplexity")
    assert (found.rung, found.outcome) == (chosen, outcome)
    assert "Tuning pays: LoRA improves perplexity over few-shot prompting by 2.50" in found.sentence


BEATS_FLOOR = [versus("baseline", name, gain) for name, gain in (("few-shot", 0.3), ("lora", 0.58), ("full", 0.6))]
LUCK = 0.4


@pytest.mark.parametrize(
    ("rungs", "comparisons", "n", "chosen", "outcome"),
    [
        # lora beats few-shot, full does not beat lora
        ([FLOOR, FEW, LORA, FULL], [*BEATS_FLOOR, versus("few-shot", "lora", 0.28), versus("lora", "full", 0.02, LUCK),
                                    versus("few-shot", "full", 0.3)], 172, "lora", "best"),
        # every rung beats the one before it
        ([FLOOR, FEW, LORA, FULL], [*BEATS_FLOOR, versus("few-shot", "lora", 0.28), versus("lora", "full", 0.02),
                                    versus("few-shot", "full", 0.3)], 172, "full", "best"),
        # nothing beats the cheapest
        ([FLOOR, FEW, LORA], [*BEATS_FLOOR, versus("few-shot", "lora", 0.02, LUCK)], 172, "few-shot", "best"),
        # dearer is worse
        ([FLOOR, FEW, LORA], [*BEATS_FLOOR, versus("few-shot", "lora", -0.2)], 172, "few-shot", "best"),
        # few-shot ties with lora but is not shown to beat the floor: lora is
        ([FLOOR, FEW, LORA], [versus("baseline", "few-shot", 0.03, LUCK), versus("baseline", "lora", 0.07),
                              versus("few-shot", "lora", 0.04, LUCK)], 172, "lora", "best"),
        # nothing beats the floor, but it might
        ([FLOOR, FEW], [versus("baseline", "few-shot", 0.03, LUCK)], 172, "", "too few rows"),
        # nothing beats the floor, and it cannot
        ([FLOOR, FEW], [versus("baseline", "few-shot", -0.1)], 172, "", "not met"),
        # not compared with the floor: not shown
        ([FLOOR, FEW], [], 172, "", "too few rows"),
        # too few rows for any verdict
        ([FLOOR, FEW], BEATS_FLOOR, 9, "", "too few rows"),
        # without a floor the cheapest unbeaten rung is taken
        ([FEW, LORA], [versus("few-shot", "lora", 0.28)], 172, "lora", "best"),
        ([RungResult("baseline", skipped="no classes"), FEW], [], 172, "few-shot", "best"),
        # nine long documents can tell, four cannot: not even if all agreed
        ([FEW, LORA], [versus("few-shot", "lora", 0.28)], 9, "lora", "best"),
        ([FEW, LORA], [versus("few-shot", "lora", 0.28)], 4, "", "too few rows"),
        # a comparison told the other way round means the same
        ([FLOOR, FEW, LORA], [*BEATS_FLOOR, versus("lora", "few-shot", -0.28)], 172, "lora", "best"),
        # beaten by a cheaper rung: not chosen although no dearer one beats it
        ([FLOOR, FEW, LORA, FULL], [*BEATS_FLOOR, versus("few-shot", "lora", -0.2), versus("few-shot", "full", 0.2),
                                    versus("lora", "full", 0.4, LUCK)], 172, "full", "best"),
        ([FLOOR], [], 172, "", "not met"),
        ([RungResult("lora", skipped="out of memory")], [], 172, "", "not met"),
    ],
)  # fmt: skip
def test_without_a_target(rungs, comparisons, n, chosen, outcome):
    found = judge(rungs, comparisons, n=n)
    assert (found.rung, found.outcome) == (chosen, outcome)
    assert found.met is bool(chosen)


def test_of_four_rows_nothing_is_promised():
    found = judge([FEW, LORA], [versus("few-shot", "lora", 0.28, 0.067, 0.01, "random swaps", 4)], n=4)
    assert found.sentence.startswith("4 test rows cannot tell the rungs apart: the best, LoRA, has accuracy 0.89")
    assert not any("cannot reliably be told" in note for note in found.notes)  # none of any size can


def test_without_a_target_where_lower_is_better():
    rungs = [rung("baseline", 1.4, metric="rmse", higher=False), rung("few-shot", 1.2, metric="rmse", higher=False),
             rung("lora", 0.8, metric="rmse", higher=False)]  # fmt: skip
    comparisons = [
        versus("baseline", "few-shot", -0.2),
        versus("baseline", "lora", -0.6),
        versus("few-shot", "lora", -0.4),
    ]
    found = judge(rungs, comparisons, metric="rmse")
    assert (found.rung, found.outcome) == ("lora", "best")
    assert "improves rmse over few-shot prompting by 0.40 (0.35 to 0.45, p = 0.001)" in found.sentence


def test_the_sentence_of_a_goal_that_is_met():
    found = judge([FLOOR, FEW, LORA], [*BEATS_FLOOR, versus("few-shot", "lora", 0.28, 1e-9)], 0.8)
    assert found.sentence == (
        "LoRA reaches accuracy 0.89 (0.84 to 0.92, n = 172), above the goal of 0.80; "
        "few-shot prompting, the cheaper rung, reaches 0.61. "
        "Tuning pays: LoRA improves accuracy over few-shot prompting by 0.28 (0.23 to 0.33, p < 0.001)."
    )


def test_the_sentence_of_a_goal_that_nobody_meets():
    found = judge([FLOOR, FEW, LORA], [versus("few-shot", "lora", 0.28, 1e-9)], 0.97)
    assert found.sentence.startswith(
        "No rung reaches the goal of 0.97: the best, LoRA, has accuracy 0.89 (0.84 to 0.92, n = 172). Tuning pays:"
    )


@pytest.mark.parametrize(
    ("rungs", "comparisons", "told"),
    [
        ([FEW, LORA], [versus("few-shot", "lora", 0.28)], "Tuning pays: LoRA improves accuracy"),
        ([FEW, LORA], [versus("few-shot", "lora", -0.28)], "better than LoRA by 0.28 (0.23 to 0.33,"),
        ([FEW, LORA], [versus("few-shot", "lora", 0.01, 0.7)], "Tuning is not shown to pay"),
        ([FEW, LORA], [], "were not compared"),
        ([FEW], [], "No trained rung was measured"),
        ([LORA], [], "Only trained rungs were measured"),
    ],
)  # fmt: skip
def test_was_tuning_worth_it(rungs, comparisons, told):
    for target in (None, 0.5, 0.99):
        assert told in judge(rungs, comparisons, target).sentence


def test_a_value_is_never_printed_like_a_goal_it_misses():
    found = judge([rung("lora", 0.8496, 0.80, 0.90)], target=0.85)
    assert "0.8496" in found.sentence
    assert "goal of 0.85:" in found.sentence
    assert _number(0.0) == "0"
    assert _number(-0.0001) == "-0.00010"
    assert _number(float("inf")) == "inf"
    assert (_number(1.12e33), _number(-2e9), _number(1234567.0)) == ("1.12e+33", "-2e+09", "1234567")


def notes(*arguments, **options):
    return "\n".join(judge(*arguments, **options).notes)


def test_notes_for_a_sceptic():
    tie = [*BEATS_FLOOR, versus("few-shot", "lora", 0.02, LUCK)]
    assert "With 172 test rows a difference in accuracy under 5.8 points cannot" in notes([FLOOR, FEW, LORA], tie)
    assert "LoRA and few-shot prompting are within noise of each other" in notes([FLOOR, FEW, LORA], tie)
    assert "small (60 rows)" in notes([FLOOR, FEW], BEATS_FLOOR, n=60)
    assert "9 test rows are too few" in notes([FLOOR, FEW], BEATS_FLOOR, n=9)
    assert "1 test row is too few" in notes([FLOOR, FEW], BEATS_FLOOR, n=1)
    assert "lora was skipped: out of memory" in notes([FEW, RungResult("lora", skipped="out of memory")]).replace(
        "LoRA", "lora"
    )
    assert "reaches the goal too" in notes([FLOOR, FEW], BEATS_FLOOR, target=0.2)
    assert "not shown to be better" in notes([FLOOR, FEW], [versus("baseline", "few-shot", 0.03, LUCK)], target=0.5)
    assert "Full fine-tuning, dearer, meets the goal" in notes([FEW, LORA, FULL], target=0.855)
    swaps = [versus("few-shot", "lora", -0.4, test="random swaps", width=0.196)]
    pair = [rung("few-shot", 1.2, metric="rmse", higher=False), rung("lora", 0.8, metric="rmse", higher=False)]
    assert "a difference in rmse under 0.28" in notes(pair, swaps, metric="rmse")


def test_a_rung_nobody_named_keeps_its_own_name():
    assert judge([rung("retrieve", 0.9)], target=0.5).sentence.startswith("Retrieve reaches accuracy 0.90")


def test_beating_a_bad_prompt_alone_is_not_said_to_pay():
    rungs = [rung("baseline", 0.50), rung("few-shot", 0.30), rung("lora", 0.52)]
    comparisons = [versus("few-shot", "lora", 0.22), versus("baseline", "lora", 0.02, p=0.6)]
    sentence = judge(rungs, comparisons).sentence
    assert "Tuning is not shown to pay: LoRA improves accuracy over few-shot prompting by 0.22" in sentence
    assert sentence.endswith("but is not shown to be better than always giving the same answer.")


def test_the_pair_chosen_beforehand_speaks_and_its_p_stands_alone():
    from dataclasses import replace

    chosen = replace(versus("few-shot", "lora", 0.28, p=0.03), p_holm=0.2, claim=True)
    other = replace(versus("few-shot", "full", 0.30, p=0.01), p_holm=0.06)
    rungs = [FEW, LORA, FULL]
    assert (
        "Tuning pays: LoRA (chosen by validation rows, before the test) improves"
        in judge(rungs, [chosen, other]).sentence
    )
    assert (
        "Tuning is not shown to pay: full fine-tuning" in judge(rungs, [replace(chosen, claim=False), other]).sentence
    )


@pytest.mark.parametrize(("claimed", "said"), [("lora", True), ("full", False)])
def test_a_claim_about_another_rung_than_the_best_says_who_chose_it(claimed, said):
    pairs = [versus("few-shot", name, 0.28) for name in ("lora", "full")]
    told = judge([FLOOR, FEW, LORA, FULL], [dataclasses.replace(item, claim=item.b == claimed) for item in pairs])
    assert ("(chosen by validation rows, before the test)" in told.sentence) is said


@pytest.mark.parametrize(
    ("task", "words"), [("classify", "always giving the same answer"), ("choose", "place or length")]
)
def test_the_floor_is_named_for_what_it_does(task, words):
    goal = {"task": task, "metric": "accuracy", "target": None}
    rungs = [FLOOR, rung("few-shot", 0.32)]
    assert words in decide(goal, rungs, [versus("baseline", "few-shot", 0.01, p=0.9)], 172, trained=TRAINED).sentence


@pytest.mark.parametrize(("seeds", "told"), [(0, False), (2, True), (3, False)])
def test_two_seeds_are_said_to_tell_little(seeds, told):
    score = Score("accuracy", 0.8, 0.7, 0.9, 100, "rows and seeds")
    rung = RungResult("lora", (score,), seeds=tuple({"seed": i, "value": 0.8} for i in range(seeds)))
    notes = decide({"task": "classify", "metric": "accuracy", "target": None}, [rung], [], 100).notes
    assert any("Two seeds tell little" in note for note in notes) is told
