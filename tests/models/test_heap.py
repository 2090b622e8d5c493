"""What malloc is asked for; that it heeds it shows in benchmarks/sharded.py."""

import pytest

from burnish.models import heap


def test_what_a_cut_model_asks_for_outlives_what_is_made_to_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masters are made after a model is cut, and layers that are fetched in turn left gaps again."""
    asked: list[int] = []
    monkeypatch.setattr(heap, "_apart", asked.append)
    monkeypatch.setattr(heap, "_usual", heap._usual)
    with heap.lasting():
        pass
    heap.give_back()
    with heap.lasting():
        pass
    assert asked == [16 << 10, 32 << 20, 2 << 20, 16 << 10, 2 << 20]
