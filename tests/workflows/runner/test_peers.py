"""The comparison with a server and with llama.cpp, on stand-ins."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel

from mixquant_agents.errors import EngineStartError, MissingDependencyError
from mixquant_workflows.runner.peers import compare, llama, measure
from mixquant_workflows.runner.peers.server import serve
from mixquant_workflows.runner.stats import paired_ratio

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("bounded_memory", "stand_ins")]


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

    monkeypatch.setattr(compare, "serve", lambda folder, arguments: serve(folder, arguments, command=fake_vllm))
    plan = compare.PeersPlan(model=str(tmp_path), turns=2, words=10, agents=3, rounds=2, out=tmp_path / "report.json")
    began = time.monotonic()
    result = await compare.compare_peers(plan, Console(quiet=True))
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


async def test_missing_llama_cpp_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    plan = {**asdict(compare.PeersPlan()), "llama_packages": str(tmp_path)}
    monkeypatch.setattr(sys, "argv", ["child", json.dumps(plan)])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as ended:
        await asyncio.to_thread(llama._main)
    assert sys.path[-1] == str(tmp_path)
    child = tmp_path / "python"
    child.write_text(f"#!/bin/sh\necho {shlex.quote(str(ended.value))} >&2\nexit 1\n")
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))
    with pytest.raises(MissingDependencyError, match="--llama-packages FOLDER"):
        await compare.PEERS["chat_llama_cpp"](compare.PeersPlan())
    child.write_text("#!/bin/sh\necho GGML_ASSERT failed >&2\nkill -ABRT $$\n")
    with pytest.raises(EngineStartError, match="ended with status -6: GGML_ASSERT"):
        await compare.PEERS["chat_llama_cpp"](compare.PeersPlan())


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_paired_ratio_and_its_interval(factor: float) -> None:
    below = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    ratio, (low, high) = paired_ratio([factor * value for value in below], below, fmean)
    assert [low, ratio, high] == pytest.approx([factor] * 3), "pairs are drawn together, so their spread cancels"
    ratio, (low, high) = paired_ratio([factor] * 3 + [2 * factor] * 3, [1.0] * 6, fmean)
    assert low < ratio < high
    assert ratio == pytest.approx(1.5 * factor)


async def test_sides_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    order: list[str] = []

    class Named(measure.Side):
        async def mark(self) -> float:
            order.append(self.name)
            return 0.0

        async def engine_seconds(self, answer: Any, mark: float) -> float:
            return 0.0

    model = FakeListChatModel(responses=["well"])
    sides = [Named(name, model) for name in "ab"]
    plan = compare.PeersPlan(turns=1, words=3, agents=2, rounds=3)
    figures = await measure.measure(sides, plan, Console(quiet=True))
    assert order == ["a", "b", "b", "a", "a", "b"], "who begins changes"
    assert [len(one["tokens_per_second"]) for one in figures] == [3, 3]
