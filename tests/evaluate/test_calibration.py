"""The verdict is wrong as seldom as it says, and finds what it says it can; fewer draws of benchmarks/verdict.py."""

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "verdict.py"


@pytest.fixture(scope="module")
def simulated():
    if not PATH.exists():
        pytest.skip("the benchmarks are not beside the tests")
    spec = importlib.util.spec_from_file_location("verdict_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    module.RESAMPLES = 100
    return module


@pytest.mark.parametrize("rungs", [("few-shot", "lora"), ("zero-shot", "few-shot", "lora", "full")])
def test_equal_rungs_are_seldom_called_different(simulated, rungs):
    assert simulated.claims(simulated.Case("accuracy", 100, rungs), 150)[0] <= 0.10


def test_a_planted_difference_is_found_in_about_80_percent(simulated):
    case = simulated.Case("accuracy", 120)
    assert simulated.claims(case, 150, simulated.stated(case, 20))[0] == pytest.approx(0.8, abs=0.12)


@pytest.mark.parametrize("metric", ["f1-macro", "rouge-l", "bits-per-byte", "rmse", "pearson"])
def test_every_kind_of_metric_is_simulated(simulated, metric):
    last, any_pair = simulated.claims(simulated.Case(metric, 30), 40)
    assert last <= 0.2
    assert any_pair <= last  # of two rungs the floor's pairs only make Holm stricter


def test_a_test_set_opened_again_and_again_makes_no_more_claims(simulated):
    last, _ = simulated.claims(simulated.Case("accuracy", 60, openings=4), 80)
    assert last <= 0.05


@pytest.mark.slow
def test_every_case_of_the_benchmark(simulated):
    simulated.RESAMPLES = 200
    for case in simulated.NULLS:
        if case.n <= 120:
            # 300 draws of 4 % are 12 with a deviation of 3.4: a bound of three deviations either side
            least = 0.0 if case.alike or case.openings > 1 or case.seeds > 1 else 0.005
            assert least <= simulated.claims(case, 300)[0] <= 0.085, case
