"""The command around a real engine, on a stand-in: policy switching, reports, traces."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from openai_double import Server
from stand_in import ENGINES, StandIn

from mixquant_agents import PrecisionPolicy, TurnStore
from mixquant_agents.cli.app import run
from mixquant_agents.config import EngineConfig
from mixquant_agents.engine.base import EngineRequest
from mixquant_agents.errors import EngineDeadError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("bounded_memory", "stand_ins")]


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run([*arguments, "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_agents_command_switches_scores_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("bench", "agents", "--suite", "bundled", "--n", "3", "--seed", "4")
    kept = ("--policies", "exact,mixquant-nvfp4,uniform-nvfp4", "--results", str(tmp_path / "r.jsonl"))
    kept = ("--store", str(tmp_path / "turns.db"), *kept)
    result = command(capsys, *arguments, *kept)
    (engine,) = ENGINES
    assert engine.closed
    assert engine.config.policy.quantizes  # one that can be switched
    assert engine.switched == ["exact", "nvfp4", "nvfp4"]
    figures = result["suites"]["bundled"]
    assert list(figures) == ["exact", "mixquant-nvfp4", "uniform-nvfp4"]
    assert all(row["n"] == 3 for row in figures.values())
    assert figures["exact"]["emulated"] is False
    assert figures["mixquant-nvfp4"]["emulated"] is True
    with TurnStore(tmp_path / "turns.db") as store:
        threads = {thread.thread_id: thread.turns for thread in store.threads()}
    assert len(threads) == 9
    assert {name.rsplit("/", 1)[0] for name in threads} == {f"bundled/{policy}" for policy in figures}
    assert sum(threads.values()) == sum(row["turns"] for row in figures.values())
    again = command(capsys, *arguments, *kept)
    assert len(ENGINES) == 1  # nothing is left to run
    assert again["suites"] == result["suites"]
    assert run([*arguments, *kept[:-1], str(tmp_path / "r.jsonl"), "--max-tokens", "7"]) == 2
    assert "another run" in capsys.readouterr().err


def test_policy_has_its_own_engine_where_engines_are_compiled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StandIn, "device", "NVIDIA H200")
    arguments = ("bench", "agents", "--suite", "bundled:3", "--policy", "exact,uniform-fp8", "--policy", "mixquant-fp8")
    arguments = (*arguments, "--engine", "gpu_memory_utilization=0.3", "--results", str(tmp_path / "r.jsonl"))
    figures = command(capsys, *arguments)["suites"]["bundled"]
    policies = [engine.config.policy for engine in ENGINES]
    assert [(policy.quantizes, policy.uniform) for policy in policies] == [(True, True), (True, False), (False, False)]
    assert all(engine.closed and not engine.switched for engine in ENGINES)
    assert {engine.config.gpu_memory_utilization for engine in ENGINES} == {0.3}
    assert set(figures) == {"exact", "uniform-fp8", "mixquant-fp8"}
    assert all("delta" in figures[name] for name in ("uniform-fp8", "mixquant-fp8"))
    assert run(["bench", "agents", "--suite", "bundled:1", "--engine", "polcy=1"]) == 2
    assert "NAME one of capture_sizes, chat_template" in capsys.readouterr().err


def test_runs_meet_in_one_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, out = tmp_path / "first.jsonl", tmp_path / "docs" / "report.json"
    common = ("bench", "agents", "--policies", "exact,uniform-nvfp4", "--out", str(out))
    command(capsys, *common, "--suite", "bundled:4,bfcl_irrelevance:3", "--results", str(first))
    report = json.loads(out.read_text())
    assert {name: rows["exact"]["n"] for name, rows in report["suites"].items()} == {
        "bundled": 4,
        "bfcl_irrelevance": 3,
    }
    assert {"score", "ci95", "n", "ttft_p50_ms", "prefill_s", "decode_s", "delta"} <= set(
        report["suites"]["bundled"]["uniform-nvfp4"]
    )
    assert report["machine"]["cores"] > 0
    assert "vllm" in " ".join(report["versions"])
    assert report["runs"]["suites"][0]["calls"] == "auto"
    again = command(
        capsys,
        *(*common, "--suite", "bundled:2", "--rerun-of", str(first), "--results", str(tmp_path / "second.jsonl")),
    )
    row = again["rerun"]["bundled"]["exact"]
    assert (row["n"], row["same_scores"], row["within"]) == (2, 2, True)
    assert row["score"] == row["first_score"] == again["suites"]["bundled"]["exact"]["score"]
    command(capsys, *common, "--suite", "bfcl_simple:2", "--calls", "required")
    after = json.loads(out.read_text())
    assert after["suites"] == report["suites"]
    assert list(after["rerun"]) == ["bundled"]
    assert list(after["constrained"]) == ["bfcl_simple"]
    assert after["command"] == report["command"] == report["runs"]["suites"][0]["command"]
    assert all(request.tool_choice == "required" for request in ENGINES[-1].requests)
    for wrong, word in (
        (("--suite", "bundled", "--calls", "required"), "answers in words"),
        (("--suite", "bundled:x"), "number of cases"),
        (("--suite", "bundled", "--rerun-of", str(tmp_path / "none")), "no file of results"),
        (("--suite", "bundled:1", "--out", str(first)), "no report"),
    ):
        assert run([*common, *wrong]) == 2
        assert word in " ".join(capsys.readouterr().err.split())


def test_strict_call_is_asked_for_by_its_mark() -> None:
    from mixquant_tools.calculator import calculator_tool
    from mixquant_workflows.runner.constrained import ConstrainedModel

    engine = StandIn(EngineConfig(model="embedded", policy=PrecisionPolicy.of("exact")))
    model = ConstrainedModel(engine=engine, calls="strict")
    model.bind_tools([calculator_tool()], tool_choice="auto").invoke("37*43?")
    model.bind_tools([calculator_tool()], tool_choice="none").invoke("37*43?")
    free, closed = engine.requests
    assert (free.tool_choice, closed.tool_choice) == ("auto", "none")
    assert free.tools[0]["function"]["strict"] is True
    assert "strict" not in closed.tools[0]["function"]


def test_agents_command_runs_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [
        {"input_length": 700, "output_length": 5, "hash_ids": [7, number], "session_id": "a"} for number in range(3)
    ]
    trace.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"input_length": 10**9, "output_length": 1}]))
    result = command(capsys, "bench", "agents", "--trace", str(trace), "--policies", "exact,mixquant-nvfp4")
    figures = result["suites"]["trace"]
    assert figures["exact"]["turns"] == figures["mixquant-nvfp4"]["turns"] == 3
    assert figures["exact"]["turns_that_did_not_fit"] == 1
    assert figures["exact"]["prompt_tokens"] == 2_100
    assert figures["exact"]["decode_tokens"] == 15
    assert "score" not in figures["exact"]
    assert figures["mixquant-nvfp4"]["ttft_p50_ms_vs_exact"] > 0


def test_dead_engine_ends_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next call would start it anew under the policy it was started with, and score that as another."""
    rows = tmp_path / "rows.jsonl"
    arguments = ["bench", "agents", "--suite", "bundled:6", "--policies", "exact,uniform-nvfp4", "--results", str(rows)]
    say = StandIn._say
    asked: list[None] = []

    def dies(self: StandIn, request: EngineRequest) -> Any:
        asked.append(None)
        if len(asked) == 7:
            raise EngineDeadError("the engine died: its worker was killed; see its log")
        return say(self, request)

    monkeypatch.setattr(StandIn, "_say", dies)
    assert run([*arguments, "--concurrency", "1"]) == 1
    assert "the engine died: its worker was killed" in capsys.readouterr().err
    assert ENGINES[-1].closed
    kept = [json.loads(line) for line in rows.read_text().splitlines() if "score" in line]
    assert 0 < len(kept) < 6
    assert not any(row.get("error") for row in kept), "no case is lost to the engine's death"
    monkeypatch.setattr(StandIn, "_say", say)
    assert run([*arguments, "--concurrency", "1"]) == 0
    assert len([line for line in rows.read_text().splitlines() if "score" in line]) == 12


@contextmanager
def serving(server: Server) -> Iterator[str]:
    """The fake server in a thread of its own: the command has its own event loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def begin() -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/v1/models", server.models)
        app.router.add_post("/v1/chat/completions", server.complete)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    runner = asyncio.run_coroutine_threadsafe(begin(), loop).result()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def test_servers_model_is_scored_by_its_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = Server()
    delta = {"index": 0, "delta": {"role": "assistant", "content": "I do not know."}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
    server.chunks = [{"id": "1", "model": "m", "choices": [delta], "usage": usage}]
    with serving(server) as url:
        arguments = ("bench", "agents", "--suite", "bundled:3", "--base-url", url, "--model", "m")
        arguments = (*arguments, "--results", str(tmp_path / "r.jsonl"))
        result = command(capsys, *arguments)
        asked = len(server.bodies)
        again = command(capsys, *arguments)
        assert run([*arguments, "--policy", "exact", "--engine", "seed=1"]) == 2
        assert "leave out --policy and --engine" in capsys.readouterr().err
    assert not ENGINES
    assert {body["model"] for body in server.bodies} == {"m"}
    assert len(server.bodies) == asked >= 3, "nothing was left to run"
    figures = result["suites"]["bundled"]["server"]
    assert (figures["n"], figures["errors"], figures["decode_tokens"]) == (3, 0, 5 * figures["turns"])
    assert again["suites"] == result["suites"]
