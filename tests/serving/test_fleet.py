"""Servers behind the real router: started, looked at, killed and ended. The servers answer without a model."""

import asyncio
import json
import socket
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import agents_help
import psutil
import pytest

from mixquant_agents.engine.vllm.args import free_port
from mixquant_agents.errors import EngineStartError
from mixquant_agents.serving.command import ServerCommand
from mixquant_agents.serving.fleet import Fleet
from mixquant_agents.serving.health import server_health

STAND_IN = Path(__file__).parent / "stand_in_server.py"


def stand_in(name: str, *more: str) -> ServerCommand:
    port = free_port()
    return ServerCommand((sys.executable, str(STAND_IN), str(port), name, *more), url=f"http://127.0.0.1:{port}")


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    made = Fleet(
        [stand_in("left"), stand_in("right")],
        port=free_port(),
        view_port=free_port(),
        routing="consistent_hash",
        logs=tmp_path,
        say=said.append,
    )
    said.clear()
    async with made:
        yield made


said: list[str] = []


@pytest.mark.slow
async def test_agents_go_on_where_a_replica_is_killed(tmp_path: Path) -> None:
    """32 threads of 5 turns on two replicas; one is killed with SIGKILL in the middle of an answer."""
    said.clear()
    servers = [stand_in("left", "20"), stand_in("right")]
    async with Fleet(servers, port=free_port(), routing="consistent_hash", logs=tmp_path, say=said.append) as fleet:
        store = tmp_path / "turns.sqlite"
        outcome = await agents_help.run_agents(fleet.url, "m", store, threads=32, turns=5)
        view = await fleet.health()
    agents_help.check(outcome, threads=32, turns=5)
    whole = {f"{name} 1234 {number}" for name in ("left", "right") for number in (1, 3, 5, 7, 9)}
    assert {text for thread in outcome.answers.values() for text in thread} <= whole
    answered = {text.split()[0] for thread in outcome.answers.values() for text in thread}
    assert answered == {"left", "right"}, "both have answered"
    assert all(thread[-1].startswith("right") for thread in outcome.answers.values()), "the last turns went elsewhere"
    assert (view["ready"], view["servers"][0]["state"], view["servers"][0]["exit_code"]) == (1, "ended", -9)
    assert view["servers"][1]["prompt_rows"] == 4
    assert view["router"]["state"] == "ready"
    assert any("replica-0 ended with code -9" in line for line in said)


@pytest.mark.slow
async def test_thread_stays_with_its_replica(fleet: Fleet, tmp_path: Path) -> None:
    outcome = await agents_help.run_agents(fleet.url, "m", tmp_path / "turns.sqlite", threads=8, turns=4)
    for thread in outcome.answers.values():
        assert len({text.split()[0] for text in thread}) == 1


@pytest.mark.slow
async def test_view_and_end(fleet: Fleet) -> None:
    assert fleet._view is not None
    view = await asyncio.to_thread(read, f"http://127.0.0.1:{fleet._view[1]}/")
    assert view["ready"] == 2
    assert {server["state"] for server in view["servers"]} == {"ready"}
    processes = [psutil.Process(each.pid) for each in (*fleet.servers, fleet.router) if each is not None]
    await fleet.end()
    assert not [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    await fleet.end()


def read(url: str) -> dict[str, object]:
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own
        return json.load(answer)


@pytest.mark.slow
async def test_server_that_does_not_start_is_told_with_its_log(tmp_path: Path) -> None:
    words = (sys.executable, "-c", "raise SystemExit('no weights here')")
    fleet = Fleet([ServerCommand(words, url="http://127.0.0.1:9")], logs=tmp_path)
    with pytest.raises(EngineStartError, match="no weights here"):
        async with fleet:
            pass


async def test_view_whose_port_is_taken_is_told_before_a_server_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        fleet = Fleet([stand_in("left")], view_port=port, logs=tmp_path)
        with pytest.raises(EngineStartError, match=f"cannot be answered at 127.0.0.1:{port}"):
            await fleet.start()
    assert fleet.servers[0].pid is None


async def test_server_that_breaks_off_its_answer_does_not_answer() -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        writer.close()

    async with await asyncio.start_server(half, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert (await server_health("s", f"http://127.0.0.1:{port}"))["state"] == "starting"


async def test_one_server_needs_no_router(tmp_path: Path) -> None:
    fleet = Fleet([ServerCommand(("true",), url="http://127.0.0.1:8000")], logs=tmp_path)
    assert (fleet.router, fleet.url) == (None, "http://127.0.0.1:8000/v1")
    both = Fleet([], hosts=["http://10.0.0.1:8000/v1", "http://10.0.0.2:8000/"], port=9, logs=tmp_path)
    assert both.hosts == ["http://10.0.0.1:8000", "http://10.0.0.2:8000"]
    assert both.url == "http://127.0.0.1:9/v1"
    nowhere = Fleet([], hosts=[f"http://127.0.0.1:{free_port()}"], port=9, logs=tmp_path)
    assert [server["state"] for server in (await nowhere.health())["servers"]] == ["unreachable"]
