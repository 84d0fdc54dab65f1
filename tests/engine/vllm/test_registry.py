"""One engine per setting, counted, closed once, replaced when dead: on stand-ins for the engine itself."""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from mixquant_agents import MixQuantChatModel
from mixquant_agents.config import EngineConfig
from mixquant_agents.engine.vllm import VllmEngine, close_all, registry
from mixquant_agents.engine.vllm.startup import StartControl
from mixquant_agents.errors import ConfigError, EngineClosedError, ModelNotFoundError


class StubEngine:
    """Counts starts and closings; ``alive`` can be taken away."""

    made: list[StubEngine]
    failures: list[Exception]

    def __init__(self, config: EngineConfig, control: StartControl) -> None:
        time.sleep(0.02)
        if self.failures:
            raise self.failures.pop()
        self.config, self.alive, self.closed, self.start_seconds = config, True, 0, 0.02
        self.policy, self.turns = config.policy, 0
        self.made.append(self)

    def close(self) -> None:
        self.closed += 1

    def submit(self, work: Coroutine[Any, Any, None]) -> concurrent.futures.Future[None]:
        return asyncio.run_coroutine_threadsafe(work, asyncio.get_running_loop())

    async def check_idle(self, refusal: str) -> None:
        if self.turns:
            raise ConfigError(f"{refusal} while {self.turns} turns are running")

    def held_bytes(self) -> int:
        return 0 if self.closed else 1000


@pytest.fixture(autouse=True)
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[StubEngine]]:
    before, apart = dict(registry._shared), set(registry._handles)
    registry._shared.clear()
    registry._handles.clear()
    StubEngine.made, StubEngine.failures = [], []
    monkeypatch.setattr(registry, "RunningEngine", StubEngine)
    yield StubEngine
    registry._shared.clear()
    registry._handles.clear()
    registry._shared.update(before)
    registry._handles.update(apart)


CONFIG = EngineConfig(model="some/model")


async def test_equal_settings_share_one_engine_that_ends_with_its_last_holder(stub: Any) -> None:
    first, second = VllmEngine.shared(CONFIG), VllmEngine.shared(EngineConfig(model="some/model"))
    other = VllmEngine.shared(EngineConfig(model="some/model", seed=1))
    await asyncio.gather(first.start(), second.start(), other.start())
    assert len(stub.made) == 2
    await first.aclose()
    await first.aclose()  # idempotent: the second holder is not robbed
    assert [engine.closed for engine in stub.made] == [0, 0]
    await second.aclose()
    assert sum(engine.closed for engine in stub.made) == 1
    with pytest.raises(EngineClosedError, match="closed"):
        await second.start()
    await other.aclose()


async def test_a_holder_that_is_forgotten_does_not_keep_the_engine_from_ending(stub: Any) -> None:
    first = VllmEngine.shared(CONFIG)
    await first.start()
    for _ in range(3):
        VllmEngine.shared(CONFIG)  # as the models that LangChain makes for one call each
    gc.collect(1)  # what is new
    assert stub.made[0].closed == 0
    await first.aclose()
    assert stub.made[0].closed == 1
    VllmEngine.shared(CONFIG)
    again = VllmEngine.shared(CONFIG)
    gc.collect(1)
    await again.start()
    again.close()
    again.close()
    assert [made.closed for made in stub.made] == [1, 1]


async def test_an_engine_of_ones_own_is_not_shared(stub: Any) -> None:
    mine, shared_one = VllmEngine(CONFIG), VllmEngine.shared(CONFIG)
    await mine.start()
    await shared_one.start()
    assert len(stub.made) == 2
    mine.close()
    shared_one.close()


def test_many_loops_in_many_threads_wait_for_one_start(stub: Any) -> None:
    engine = VllmEngine.shared(CONFIG)
    threads = [threading.Thread(target=lambda: asyncio.run(engine.start())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stub.made) == 1
    assert engine.start_seconds == 0.02
    engine.close()


async def test_a_waiter_that_gives_up_does_not_stop_the_start(stub: Any) -> None:
    engine = VllmEngine.shared(CONFIG)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(engine.start(), 0.001)
    await engine.start()
    assert len(stub.made) == 1
    await engine.aclose()


async def test_sleeping_engine_gives_all_back_and_starts_anew(stub: Any) -> None:
    engine, other = VllmEngine.shared(CONFIG), VllmEngine.shared(CONFIG)
    assert (await engine.sleep()).freed_bytes == 0
    await engine.start()
    stub.made[0].turns = 2
    with pytest.raises(ConfigError, match="2 turns are running"):
        await engine.sleep()
    stub.made[0].turns = 0
    report = await engine.sleep()
    assert (report.way, report.freed_bytes, report.held_bytes) == ("ended", 1000, 1000)
    assert stub.made[0].closed == 1
    assert (await other.sleep()).freed_bytes == 0
    await other.start()  # the next turn of anybody wakes it
    assert [made.closed for made in stub.made] == [1, 0]
    await engine.aclose()
    await other.aclose()


async def test_the_next_call_after_a_death_starts_a_new_engine(stub: Any) -> None:
    engine = VllmEngine.shared(CONFIG)
    await engine.start()
    stub.made[0].alive = False
    await asyncio.gather(engine.start(), engine.start())
    assert len(stub.made) == 2
    assert stub.made[0].closed == 1
    await engine.aclose()
    assert stub.made[1].closed == 1


async def test_a_failed_start_is_told_to_all_and_tried_again(stub: Any) -> None:
    stub.failures.append(ModelNotFoundError("no such model"))
    engine = VllmEngine.shared(CONFIG)
    results = await asyncio.gather(engine.start(), engine.start(), return_exceptions=True)
    assert [type(result) for result in results] == [ModelNotFoundError] * 2
    await engine.start()
    assert len(stub.made) == 1
    await engine.aclose()


@pytest.fixture
def hold(stub: Any, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Until it is set, no start comes to its end."""
    event = threading.Event()

    def held(config: EngineConfig, control: StartControl) -> StubEngine:
        event.wait(5)
        return stub(config, control)

    monkeypatch.setattr(registry, "RunningEngine", held)
    return event


async def test_closing_during_the_start_ends_what_was_started(stub: Any, hold: threading.Event) -> None:
    engine = VllmEngine(CONFIG)
    starting = asyncio.create_task(engine.start())
    await asyncio.sleep(0.005)
    await engine.aclose()
    hold.set()
    with pytest.raises(EngineClosedError):
        await starting
    assert [made.closed for made in stub.made] == [1]


async def test_closing_all_ends_every_engine(stub: Any) -> None:
    engines = [VllmEngine(CONFIG), VllmEngine.shared(CONFIG)]
    for engine in engines:
        await engine.start()
    close_all()
    assert [made.closed for made in stub.made] == [1, 1]
    for engine in engines:
        with pytest.raises(EngineClosedError):
            await engine.start()


async def test_a_dead_engine_that_cannot_be_cleared_away_keeps_nobody_waiting(
    stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = VllmEngine(CONFIG)
    await engine.start()
    stub.made[0].alive = False

    def close() -> None:
        raise OSError("its socket is gone")

    monkeypatch.setattr(stub.made[0], "close", close)
    with pytest.raises(OSError, match="socket is gone"):
        await asyncio.wait_for(engine.start(), 5)
    await asyncio.wait_for(engine.start(), 5)
    assert len(stub.made) == 2
    await engine.aclose()


async def test_closing_waits_until_a_start_that_has_launched_has_ended(
    stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = threading.Event()

    def late(config: EngineConfig, control: StartControl) -> StubEngine:
        with control.launching():
            pass
        launched.set()
        time.sleep(0.2)
        return stub(config, control)

    monkeypatch.setattr(registry, "RunningEngine", late)
    engine = VllmEngine(CONFIG)
    starting = asyncio.create_task(engine.start())
    await asyncio.to_thread(launched.wait, 5)
    await engine.aclose()
    assert [made.closed for made in stub.made] == [1]
    with pytest.raises(EngineClosedError):
        await starting


async def test_a_forked_child_forgets_the_parents_engines(stub: Any) -> None:
    engine = VllmEngine.shared(CONFIG)
    await engine.start()
    child = os.fork()
    if child == 0:
        close_all()  # must not touch the parent's engine, nor wait for its threads
        os._exit(0 if not registry._shared and stub.made[0].closed == 0 else 1)
    assert (await asyncio.to_thread(os.waitpid, child, 0))[1] == 0
    await engine.aclose()


def test_a_forked_child_starts_an_engine_of_its_own(stub: Any) -> None:
    engine = VllmEngine.shared(CONFIG)
    asyncio.run(engine.start())
    child = os.fork()
    if child == 0:
        right = False
        try:
            asyncio.run(engine.start())
            right = [made.closed for made in stub.made] == [0, 0] and VllmEngine.shared(
                CONFIG
            )._handle is engine._handle
        finally:
            os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
    engine.close()
    assert [made.closed for made in stub.made] == [1]


async def test_exit_does_not_wait_for_a_start(stub: Any, hold: threading.Event) -> None:
    engine = VllmEngine(CONFIG)
    starting = asyncio.create_task(engine.start())
    await asyncio.sleep(0.01)
    close_all(wait=False)
    assert stub.made == [], "the start that is held has not come to its end"
    hold.set()
    with pytest.raises(EngineClosedError):
        await starting
    assert [made.closed for made in stub.made] == [1]  # it came up after all, for nobody


def test_importing_the_engine_is_light() -> None:
    code = "import sys, mixquant_agents.engine.vllm; print([m for m in ('torch', 'vllm') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert ran.stdout == "[]\n"


async def test_copies_by_pickle_have_an_engine_of_their_own_or_the_shared_one(stub: Any) -> None:
    owner, holder = VllmEngine(CONFIG), VllmEngine.shared(CONFIG)
    await asyncio.gather(owner.start(), holder.start())
    copies = [pickle.loads(pickle.dumps(engine)) for engine in (owner, holder)]  # noqa: S301 - our own
    assert len(stub.made) == 2, "a copy starts with its first turn"
    await asyncio.gather(*(engine.start() for engine in copies))
    assert [engine.config for engine in copies] == [CONFIG, CONFIG]
    assert len(stub.made) == 3, "the owner's copy started an engine, the holder's shares one"
    assert copy.deepcopy({"engine": owner})["engine"] is owner
    await owner.aclose()
    with pytest.raises(EngineClosedError):
        await pickle.loads(pickle.dumps(owner)).start()  # noqa: S301
    for engine in (*copies, holder):
        await engine.aclose()
    assert [engine.closed for engine in stub.made] == [1, 1, 1]


async def test_chat_model_on_a_given_engine_can_be_pickled(stub: Any) -> None:
    engine = VllmEngine(CONFIG)
    copied = pickle.loads(pickle.dumps(MixQuantChatModel(engine=engine)))  # noqa: S301
    assert copied.engine.config == CONFIG
    assert copied.engine is not engine
    await copied.engine.aclose()
    await engine.aclose()
