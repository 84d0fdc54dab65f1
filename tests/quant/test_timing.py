"""What measurements leave of the garbage collector's state."""

from __future__ import annotations

import gc

import pytest

from mixquant_agents.quant.timing import unwatched_objects


def test_objects_frozen_for_good_stay_frozen() -> None:
    gc.freeze()
    frozen = gc.get_freeze_count()
    with unwatched_objects():
        pass
    assert gc.get_freeze_count() >= frozen


def test_objects_are_frozen_for_the_measurement_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of the suite's objects stay frozen: looking at all of them takes seconds."""
    calls: list[str] = []
    monkeypatch.setattr(gc, "get_freeze_count", lambda: 0)
    for name in ("collect", "freeze", "unfreeze"):
        monkeypatch.setattr(gc, name, lambda name=name: calls.append(name))
    with unwatched_objects():
        assert calls == ["collect", "freeze"]
    assert calls[2:] == ["unfreeze"]
