"""The commands around real engines, on stand-ins: policy switching, traces, and the comparison with a server."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mixquant_agents import PrecisionPolicy, ScriptedEngine, TurnStore
from mixquant_agents.cli.app import run
from mixquant_agents.config import EngineConfig
from mixquant_agents.engine.protocol import EngineRequest
from mixquant_agents.engine.scripted import ScriptedTurn
from mixquant_agents.errors import EngineStartError, MissingDependencyError
from mixquant_workflows.bench import peers, peers_llama, real
from mixquant_workflows.bench.server import serve

pytestmark = pytest.mark.slow

ENGINES: list[StandIn] = []


class StandIn(ScriptedEngine):
    """A scripted engine with the switches of the real one. It calls the calculator right, unless it reads quantized."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(self._say, policy=config.policy)
        self.config = config
        self.switched: list[str] = []
        self.closed = False
        ENGINES.append(self)

    def _say(self, request: EngineRequest) -> Any:
        if request.messages and request.messages[-1]["role"] == "user" and request.tools:
            wrong = self._policy.uniform
            call = {"name": request.tools[0]["function"]["name"], "args": {"expression": "1+1" if wrong else "37*43"}}
            return ScriptedTurn(tool_calls=[call])
        return f"It is {request.messages[-1]['content']}." if request.messages else "a b c d e f g h i j k l"

    async def start(self) -> None:
        """Nothing to start."""

    async def set_policy(self, policy: PrecisionPolicy) -> dict[str, Any]:
        self._policy = policy
        self.switched.append(policy.prefill_format.value)
        return {}

    async def reset_prefix_cache(self) -> None:
        """Nothing kept."""

    async def aclose(self) -> None:
        self.closed = True
        await super().aclose()


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """A test that runs away with memory fails; it does not take the machine along."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    ENGINES.clear()
    monkeypatch.setattr(real, "VllmEngine", StandIn)
    monkeypatch.setattr(peers, "VllmEngine", StandIn)


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


def test_a_strict_call_is_asked_for_by_its_mark() -> None:
    from mixquant_tools.calculator import calculator_tool
    from mixquant_workflows.bench.constrained import ConstrainedModel

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


# -- the comparison with a server --

SERVER = """
import json, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

port = int(sys.argv[sys.argv.index("--port") + 1])
if "--fail" in sys.argv:
    raise ValueError("Error: the model is made of cheese")
spent = 0.0

class Handler(BaseHTTPRequestHandler):
    def reply(self, text):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self):
        lines = [f'vllm:request_{phase}_time_seconds_sum{{engine="0"}} {spent / 2}' for phase in ("prefill", "decode")]
        self.reply("\\n".join(lines) if self.path == "/metrics" else "{}")

    def do_POST(self):
        global spent
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(0.02)
        spent += 0.01
        if body.get("stream") or body.get("tools") or body.get("response_format"):
            return self.send_error(400)
        usage = {"prompt_tokens": 50, "completion_tokens": 24, "total_tokens": 74}
        message = {"role": "assistant", "content": "hello"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "model"}
        self.reply(json.dumps({**answer, "choices": [choice], "usage": usage}))

    def log_message(self, *_):
        pass

ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def fake_vllm(tmp_path: Path) -> Path:
    script = tmp_path / "vllm"
    script.write_text(f"#!{sys.executable}\n{SERVER}")
    script.chmod(0o755)
    return script


def servers(script: Path) -> list[str]:
    """Processes of ``script`` that are still there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes()
        except OSError:
            continue
        found += [path.parent.name] * (os.fsencode(script) in text)
    return found


async def test_server_is_ended(fake_vllm: Path) -> None:
    async with serve(Path("model"), command=fake_vllm) as server:
        assert server.ready()
        assert await server.engine_seconds() == 0
        assert servers(fake_vllm)
    assert servers(fake_vllm) == []
    with pytest.raises(RuntimeError, match="body failed"):
        async with serve(Path("model"), command=fake_vllm):
            raise RuntimeError("body failed")
    assert servers(fake_vllm) == []


async def test_server_that_fails_is_told_with_its_reason(fake_vllm: Path) -> None:
    with pytest.raises(EngineStartError, match="made of cheese"):
        async with serve(Path("model"), ["--fail"], command=fake_vllm):
            pass
    assert servers(fake_vllm) == []
    with pytest.raises(MissingDependencyError, match="vLLM's command line"):
        async with serve(Path("model"), command=fake_vllm.with_name("none")):
            pass


async def test_comparison(fake_vllm: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from rich.console import Console

    monkeypatch.setattr(peers, "serve", lambda folder, arguments: serve(folder, arguments, command=fake_vllm))
    plan = peers.PeersPlan(model=str(tmp_path), turns=2, words=10, agents=3, rounds=2, out=tmp_path / "report.json")
    began = time.monotonic()
    result = await peers.compare_peers(plan, Console(quiet=True))
    assert time.monotonic() - began < 30
    peer = result["peers"]["chat_openai_vllm_serve"]
    assert len(peer["overhead_ms"]) == len(result["ours"]["overhead_ms"]) == 4
    assert peer["overhead_p50_ms"] > 9  # the server sleeps 20 ms and owns up to 10
    assert peer["overhead_ratio_1"] > 0
    assert set(peer) >= {"overhead_ratio_1", "wall_ratio_1", "tokens_ratio_16", "tokens_ratio_ci95"}
    features = result["features"]["prefill and decode seconds per turn"]
    assert features == {"ours": True, "chat_openai_vllm_serve": False}
    assert "GGUF" in result["not_run"]["chat_llama_cpp"]
    report = json.loads(plan.out.read_text())
    assert report["peers"]["chat_openai_vllm_serve"]["wall_ratio_1"] == pytest.approx(peer["wall_ratio_1"], rel=1e-4)
    assert "GGUF" in report["peers"]["chat_llama_cpp"]["not_run"]
    assert report["runs"]["peers"][0]["agents"] == 3
    json.dumps(result)


async def test_llama_cpp_that_is_not_there_or_dies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    plan = {**asdict(peers.PeersPlan()), "llama_packages": str(tmp_path)}
    monkeypatch.setattr(sys, "argv", ["child", json.dumps(plan)])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as ended:
        await asyncio.to_thread(peers_llama._main)
    assert sys.path[-1] == str(tmp_path)
    child = tmp_path / "python"
    child.write_text(f"#!/bin/sh\necho {shlex.quote(str(ended.value))} >&2\nexit 1\n")
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))
    with pytest.raises(MissingDependencyError, match="--llama-packages FOLDER"):
        await peers.PEERS["chat_llama_cpp"](peers.PeersPlan())
    child.write_text("#!/bin/sh\necho GGML_ASSERT failed >&2\nkill -ABRT $$\n")
    with pytest.raises(EngineStartError, match="ended with status -6: GGML_ASSERT"):
        await peers.PEERS["chat_llama_cpp"](peers.PeersPlan())
