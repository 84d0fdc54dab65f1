"""Processes: no guard, a killed parent, a killed engine. These run scripts, because the test itself must survive."""

from __future__ import annotations

import asyncio
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
from mixquant_agents.engine.protocol import EngineRequest, Sampling
from mixquant_agents.engine.vllm import VllmEngine
from mixquant_agents.engine.vllm.model import model_path
from mixquant_agents.errors import EngineDeadError

pytestmark = pytest.mark.engine

SHAPE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 49152,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "bos_token_id": 1,
    "eos_token_id": 2, "dtype": "float32",
}  # fmt: skip

RUN = """
import asyncio, json, sys
import psutil
from mixquant_agents import EngineConfig, VllmEngine
from mixquant_agents.engine.protocol import EngineRequest, Sampling

async def main():
    engine = VllmEngine(EngineConfig(model=sys.argv[1], policy="exact", vllm_args={"load_format": "dummy"}))
    request = EngineRequest(request_id="r", messages=[], prompt_token_ids=[5, 6, 7],
                            sampling=Sampling(max_tokens=200, ignore_eos=True))
    async for delta in engine.stream(request):
        pids = [child.pid for child in psutil.Process().children(recursive=True)]
        print(json.dumps(pids), flush=True)
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


def test_killing_the_parent_ends_every_process(tiny: Path) -> None:
    process = start(tiny, GUARDED)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    pids: list[int] = json.loads(line)  # nothing else was written to stdout
    assert len(living(pids)) >= 2  # the engine core and its worker
    process.send_signal(signal.SIGKILL)
    process.wait()
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


@pytest.mark.last
async def test_a_dead_engine_is_told_to_all_at_once(engine: VllmEngine) -> None:
    """The last test of the session's engine: whatever ran after it would start a second one."""

    async def one(place: int) -> Any:
        sampling = Sampling(max_tokens=1000, ignore_eos=True)
        messages = [{"role": "user", "content": f"{place}"}]
        async for delta in engine.stream(EngineRequest(request_id=f"d{place}", messages=messages, sampling=sampling)):
            assert delta

    turns = [asyncio.create_task(one(place)) for place in range(4)]
    while (await engine.stats()).running < 4:  # noqa: ASYNC110  the statistics are the engine's, not an event
        await asyncio.sleep(0.02)
    names = {child.pid: child.name() for child in psutil.Process().children(recursive=True)}
    os.kill(next(pid for pid, name in names.items() if "EngineCore" in name), signal.SIGKILL)
    began = time.monotonic()
    results = await asyncio.gather(*turns, return_exceptions=True)
    assert time.monotonic() - began < 5
    assert [type(result) for result in results] == [EngineDeadError] * 4
    assert "the next call starts a new one" in str(results[0])
    assert engine.start_seconds is None  # nothing is running any more
    assert await asyncio.to_thread(gone, [pid for pid, name in names.items() if "Worker" in name])
