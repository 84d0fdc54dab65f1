"""What the tests of benchmarks around engines share."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from stand_in import ENGINES, StandIn

from mixquant_workflows import engines
from mixquant_workflows.runner.peers import compare


@pytest.fixture
def bounded_memory() -> Iterator[None]:
    """A test that runs away with memory fails; it does not take the machine along."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """No benchmark starts a real engine."""
    ENGINES.clear()
    for module in (engines, compare):
        monkeypatch.setattr(module, "VllmEngine", StandIn)
