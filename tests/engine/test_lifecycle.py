"""Processes: no guard, a killed parent, a killed engine. These run scripts, because the test itself must survive."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from mixquant_agents.config import EngineConfig
from mixquant_agents.engine.vllm.model import model_path

pytestmark = pytest.mark.engine

SHAPE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 49152,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "bos_token_id": 1,
    "eos_token_id": 2, "dtype": "float32",
}  # fmt: skip

RUN = """
import asyncio, json, os, signal, sys, time
import psutil
from mixquant_agents import EngineConfig, VllmEngine
from mixquant_agents.engine.protocol import EngineRequest, Sampling

def below():
    return {child.pid: child.name() for child in psutil.Process().children(recursive=True)}

def request(name, tokens):
    return EngineRequest(request_id=name, messages=[], prompt_token_ids=[5, 6, 7],
                         sampling=Sampling(max_tokens=tokens, ignore_eos=True))

async def turn(engine, name, tokens):
    async for delta in engine.stream(request(name, tokens)):
        pass
    return delta.finish_reason

async def main():
    engine = VllmEngine(EngineConfig(model=sys.argv[1], policy="exact", vllm_args={"load_format": "dummy"}))
    await turn(engine, "first", 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.killpg(os.getpgrp(), signal.SIGINT)  # Ctrl-C in a terminal
    await asyncio.sleep(0.5)
    interrupted = await turn(engine, "after Ctrl-C", 2)
    turns = [asyncio.create_task(turn(engine, f"t{n}", 240)) for n in range(4)]
    while (await engine.stats()).running < 4:
        await asyncio.sleep(0.005)
    first = below()
    os.kill(next(pid for pid, name in first.items() if "EngineCore" in name), signal.SIGKILL)
    began = time.monotonic()
    ends = await asyncio.gather(*turns, return_exceptions=True)
    told, running = time.monotonic() - began, engine.start_seconds
    again = await turn(engine, "again", 3)
    said = {"ends": [f"{type(end).__name__}: {end}" for end in ends], "told": told, "running": running,
            "first": list(first), "again": again, "interrupted": interrupted, "second": list(below())}
    print(json.dumps(said), flush=True)
    await turn(engine, "long", 240)
    await asyncio.sleep(600)
"""
GUARDED = RUN + '\nif __name__ == "__main__":\n    asyncio.run(main())\n'
UNGUARDED = RUN + "\nasyncio.run(main())\n"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random layers behind the embedded model's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    source = Path(model_path(EngineConfig(model="embedded"))[0])
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (source / name).is_file():
            shutil.copy(source / name, folder / name)
    (folder / "config.json").write_text(json.dumps(SHAPE))
    return folder


def start(folder: Path, script: str) -> subprocess.Popen[str]:
    path = folder / "script.py"
    path.write_text(script)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("VLLM_LOGGING_LEVEL", None)
    return subprocess.Popen(  # noqa: S603  our own script
        [sys.executable, str(path), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,  # as a job of a terminal: a process group of its own
    )


def living(pids: list[int]) -> list[int]:
    """Those that still run; a zombie waits for its parent and does nothing."""
    alive = []
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                alive.append(pid)
        except psutil.NoSuchProcess:
            continue
    return alive


def gone(pids: list[int], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while living(pids) and time.monotonic() < end:
        time.sleep(0.05)
    return not living(pids)


def test_a_killed_engine_is_told_to_all_and_made_again_and_a_killed_parent_leaves_nothing(tiny: Path) -> None:
    process = start(tiny, GUARDED)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    said: dict[str, Any] = json.loads(line)  # nothing else was written to stdout
    assert said["interrupted"] == "length"  # its owner was interrupted, the engine was not
    assert len(said["ends"]) == 4
    for end in said["ends"]:
        assert end.startswith("EngineDeadError: ")
        assert "the next call starts a new one" in end
    assert said["told"] < 5
    assert said["running"] is None  # start_seconds: nothing ran any more
    assert said["again"] == "length"  # the next call did start a new one
    second = sorted(set(said["second"]) - set(said["first"]))
    assert len(living(second)) >= 2  # the engine core and its worker
    process.send_signal(signal.SIGKILL)
    process.wait()
    pids = [*said["first"], *second]
    assert gone(pids), [psutil.Process(pid).cmdline() for pid in living(pids)]
    process.communicate()


def test_a_script_without_guard_gets_one_readable_error(tiny: Path) -> None:
    process = start(tiny, UNGUARDED)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert out == ""
    last = err.strip().splitlines()[-1]
    assert last.startswith("mixquant_agents.errors.MainGuardError: ")
    assert '__name__ == "__main__"' in last
