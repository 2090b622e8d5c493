"""A run's numbers, on cases that can be checked by head."""

import pytest

from burnish.task import Train
from burnish.train.timetable import timetable


def test_steps_are_epochs_times_steps_per_epoch():
    told = timetable(Train(epochs=3, batch_size=16), rows=100, width=2000, rung_rate=5e-5)
    assert (told.steps, told.per_epoch, told.evaluate_every, told.save_every) == (21, 7, 2, 2)
    assert told.peak == pytest.approx(5e-5)


@pytest.mark.parametrize(
    ("epochs", "max_steps", "steps"), [(3, 5, 5), (3, 500, 21), (0, 500, 500), (0.5, 0, 4), (0, 0, 1), (0.01, 0, 1)]
)
def test_max_steps_cuts_epochs_or_stands_alone(epochs, max_steps, steps):
    assert timetable(Train(epochs=epochs, max_steps=max_steps, batch_size=16), 100, 64, 1e-4).steps == steps


def test_a_long_run_is_looked_at_forty_times():
    told = timetable(Train(epochs=100, batch_size=1), rows=100, width=64, rung_rate=1e-4)
    assert told.evaluate_every == 250


def test_what_is_given_is_taken():
    told = timetable(Train(learning_rate=0.01, evaluate_every=7, save_every=3), 1000, 64, 1e-4)
    assert (told.peak, told.evaluate_every, told.save_every) == (0.01, 7, 3)


def test_wider_models_take_smaller_steps():
    assert timetable(Train(), 10, 4000, 1e-4).peak == pytest.approx(1e-4 * 2**-0.78)
    assert timetable(Train(), 10, 500, 1e-4).peak == pytest.approx(1e-4 * 4**0.78)
    assert timetable(Train(), 10, 64, 1e-4).peak == 1e-3  # a random head overshoots above it
    assert timetable(Train(), 10, 64, 1e-2).peak == 1e-2  # a soft prompt's own rate
