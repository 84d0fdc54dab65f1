"""Which cores the engines run on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from mixquant_agents.bench.prefill.cores import by_speed, pin_threads


def test_threads_are_pinned_to_the_cores_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept: dict[int, list[int]] = {}

    def keep(thread: int, cores: Iterable[int]) -> None:
        if thread == 9:
            raise ProcessLookupError  # ended since it was listed
        kept[thread] = list(cores)

    monkeypatch.setattr(os, "sched_setaffinity", keep)
    for thread in (os.getpid(), 7, 8, 9):
        (tmp_path / str(thread)).mkdir()
    assert pin_threads([2, 3, 4], tmp_path) == 4
    assert kept == {os.getpid(): [2], 7: [3, 4], 8: [3, 4]}


def test_fastest_core_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    now: list[set[int]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5, 6})
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: now.append(set(cores)))
    assert by_speed(lambda: {4: 2.0, 5: 1.0, 6: 3.0}[min(now[-1])]) == [5, 4, 6]
    assert now[-1] == {4, 5, 6}
