"""Fixtures for the whole suite. A session starts one real engine, if a test asks for it; one test has it made again."""

from __future__ import annotations

import gc
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import pytest_asyncio

from mixquant_agents.config import EngineConfig, PrecisionPolicy
from mixquant_agents.engine.vllm import VllmEngine
from mixquant_agents.engine.vllm.core import RunningEngine

sys.path.extend(sorted({str(path.parent) for path in Path(__file__).parent.glob("*/**/*.py")}))
"""Helpers lie beside the tests that use them and are imported by their name."""

# No deadline: a busy machine is no failure. Few examples each time, other ones every time; `make test-full` tries many.
hypothesis.settings.register_profile("steady", deadline=None, max_examples=30)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=500)
hypothesis.settings.load_profile("steady")

KV_BYTES = 96 * 2**20
"""About 2,100 tokens of SmolLM2's float32 KV cache: small enough that tests can provoke preemption."""


gc.disable()  # while everything is imported: see below


def pytest_collection_finish() -> None:
    """What the imports made stays until the end: the garbage collector need not look at it again and again.

    Nor at what tests keep: with Python's thresholds it takes a fifth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    gc.enable()
    if (torch := sys.modules.get("torch")) is not None:
        # Tensors of tests are small: a second thread waits, busily, for longer than it works. Engines have processes
        # of their own and keep their threads.
        torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _at_most_two_engines() -> Iterator[None]:
    """The session's engine and its successor (``engine/vllm/test_lifecycle.py``); the scripts there start none."""
    started: list[EngineConfig] = []
    start = RunningEngine.__init__

    def counted(engine: RunningEngine, config: EngineConfig, *more: Any) -> None:
        start(engine, config, *more)
        if engine.processes:  # stand-ins have none
            started.append(config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunningEngine, "__init__", counted)
        yield
    assert len(started) <= 2, started


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def session_engine() -> AsyncIterator[VllmEngine]:
    """The one real engine of the session."""
    config = EngineConfig(
        model="embedded",
        policy="mixquant-nvfp4-plain",
        max_model_len=2048,
        max_num_seqs=16,
        max_num_batched_tokens=512,
        kv_cache_bytes=KV_BYTES,
    )
    engine = VllmEngine.shared(config)
    yield engine
    await engine.aclose()


@pytest_asyncio.fixture
async def engine(session_engine: VllmEngine) -> AsyncIterator[VllmEngine]:
    """The session's engine, idle and under policy ``mixquant-nvfp4-plain``, whatever the test before did."""
    await session_engine.start()
    if session_engine.policy != PrecisionPolicy.of("mixquant-nvfp4-plain"):
        await session_engine.set_policy("mixquant-nvfp4-plain")
    yield session_engine
    if session_engine.policy != PrecisionPolicy.of("mixquant-nvfp4-plain"):
        await session_engine.set_policy("mixquant-nvfp4-plain")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may ask a hub for anything: neither the processes that it starts, nor this one, whose hub client may have
    read the variable long ago (and would then try for minutes where a network answers nothing)."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if (hub := sys.modules.get("huggingface_hub.constants")) is not None:
        monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
