"""Processes: Ctrl-C, a killed engine, a killed parent, no guard. What would end the test itself runs in scripts."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from mixquant_agents.config import EngineConfig
from mixquant_agents.engine.base import Delta, EngineRequest, Sampling
from mixquant_agents.engine.vllm import VllmEngine
from mixquant_agents.engine.vllm.checkpoint import model_path
from mixquant_agents.errors import EngineDeadError

SHAPE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 49152,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "bos_token_id": 1,
    "eos_token_id": 2, "dtype": "float32",
}  # fmt: skip

START = """
import asyncio, signal, sys
from mixquant_agents import EngineConfig, VllmEngine

async def main():
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C may mean one turn: the owner goes on
    engine = VllmEngine(EngineConfig(model=sys.argv[1], policy="exact", vllm_args={"load_format": "dummy"}))
    await engine.start()
    print("started")
"""
GUARDED = START + '\nif __name__ == "__main__":\n    asyncio.run(main())\n'
UNGUARDED = START + "\nasyncio.run(main())\n"

TREE = """
import multiprocessing, os, sys, time

def work(*_):
    while True:
        sum(range(1000))  # as in an engine's step

def core(way, owner, said):
    if way == "late":
        said.send([os.getpid()])
        while os.getppid() == owner:
            time.sleep(0.01)
    if way == "pipe":
        del os.pidfd_open
    from mixquant_agents.engine.vllm import child_process as child
    child.GuardedMultiprocExecutor()._init_executor()
    worker = multiprocessing.Process(target=work, daemon=True)
    worker.start()
    if way != "late":
        said.send([os.getpid(), worker.pid])
    work()

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    os.environ["MIXQUANT_ENGINE_LOG"] = f"{os.getpid()}:{sys.argv[1]}/log"
    heard, said = multiprocessing.Pipe()
    multiprocessing.Process(target=core, args=(sys.argv[2], os.getpid(), said)).start()
    said.close()
    print(heard.recv(), flush=True)
    work()
"""


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


def start(folder: Path, script: str, *arguments: str) -> subprocess.Popen[str]:
    path = folder / "script.py"
    path.write_text(script)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("VLLM_LOGGING_LEVEL", None)
    return subprocess.Popen(  # noqa: S603  our own script
        [sys.executable, str(path), str(folder), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,  # as a job of a terminal: a process group of its own
    )


def below(process: psutil.Process) -> list[psutil.Process]:
    return process.children(recursive=True)


def spawned(process: psutil.Process) -> list[psutil.Process]:
    """An engine's processes, under the name of their beginning or the one that vLLM gives them: core, then worker."""
    found = []
    for child in below(process):
        with suppress(psutil.NoSuchProcess):  # others come and go
            if re.search("spawn_main|VLLM::", " ".join(child.cmdline())):
                found.append(child)
    return found


def living(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; a zombie waits for its parent and does nothing."""
    alive = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
        except psutil.NoSuchProcess:
            continue
    return alive


def gone(processes: list[psutil.Process], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while living(processes) and time.monotonic() < end:
        time.sleep(0.05)
    return not living(processes)


async def turn(engine: VllmEngine, name: str, tokens: int) -> Delta:
    sampling = Sampling(max_tokens=tokens, ignore_eos=True)
    async for delta in engine.stream(
        EngineRequest(request_id=name, messages=[], prompt_token_ids=[5, 6, 7], sampling=sampling)
    ):
        last = delta
    return last


@pytest.mark.engine
async def test_ctrl_c_spares_the_engine_and_a_killed_one_is_told_to_all_and_made_again(
    engine: VllmEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    """The session's engine: from here on the tests run on its successor. No further engine is started anywhere."""
    capfd.readouterr()
    children = below(psutil.Process())
    core = next(child for child in children if "EngineCore" in child.name())
    processes = [core, *below(core)]
    assert len(processes) >= 2  # the engine core and its worker
    for child in children:
        if os.getpgid(child.pid) == os.getpgrp():  # whom Ctrl-C in a terminal reaches beside their owner
            child.send_signal(signal.SIGINT)
    await asyncio.sleep(0.5)
    assert (await turn(engine, "after Ctrl-C", 2)).finish_reason == "length"
    turns = [asyncio.create_task(turn(engine, f"killed {n}", 240)) for n in range(20)]
    while (stats := await engine.stats()).running < 4 or not stats.waiting:
        assert not any(task.done() for task in turns)
        await asyncio.sleep(0.005)
    core.kill()
    began = time.monotonic()
    ends = await asyncio.gather(*turns, return_exceptions=True)
    assert time.monotonic() - began < 5
    for end in ends:
        assert type(end) is EngineDeadError
        assert "the next call starts a new one" in str(end)
    assert engine.start_seconds is None  # nothing runs any more
    last = await turn(engine, "again", 3)
    assert last.finish_reason == "length"
    assert last.counts is not None
    assert (last.counts.quantized_tokens, last.counts.exact_tokens, last.counts.decode_tokens) == (2, 1, 3)
    assert engine.start_seconds is not None
    assert gone(processes), living(processes)
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.count("Engine ready") == 1
    os.unlink(str(ends[0]).rpartition(" ")[2])  # the log of the dead engine, named by the error


@pytest.mark.engine
def test_a_parent_killed_while_its_engine_starts_leaves_nothing(tiny: Path) -> None:
    """Killed as soon as the worker exists, so that the start is never completed; Ctrl-C had not ended it."""
    process = start(tiny, GUARDED)
    parent = psutil.Process(process.pid)
    while len(spawned(parent)) < 2:  # the engine core and its worker
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    children = below(parent)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.5)
    assert len(living(spawned(parent))) == 2
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert gone(children), living(children)
    out, err = process.communicate()
    assert out == ""
    assert "Engine ready" not in err
    for log in Path(tempfile.gettempdir()).glob(f"mixquant-engine-{process.pid}-*.log"):
        log.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["pidfd", "pipe", "late"])
def test_whatever_runs_below_a_killed_parent_ends_with_it(tmp_path: Path, way: str) -> None:
    """A busy core and its busy worker, long after their start, under what our engine adds to vLLM's processes (vLLM is
    stood in for): by the parent's pidfd, where there are none by its pipe, and where it died before the core looked."""
    package = tmp_path / "vllm" / "v1" / "executor"
    package.mkdir(parents=True)
    for folder in (package, *package.parents[:2]):
        (folder / "__init__.py").touch()
    for name in ("Multiproc", "UniProc"):
        stand_in = f"class {name}Executor:\n    def _init_executor(self):\n        pass\n"
        (package / f"{name.lower()}_executor.py").write_text(stand_in)
    process = start(tmp_path, TREE, way)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    processes = [psutil.Process(pid) for pid in json.loads(line)]
    assert len(processes) == (1 if way == "late" else 2)
    time.sleep(0.3)
    assert living(processes) == processes
    process.send_signal(signal.SIGKILL)
    process.wait()
    try:
        assert gone(processes), living(processes)
    finally:
        for each in living(processes):
            for child in (*below(each), each):
                child.kill()
    process.communicate()


@pytest.mark.engine
def test_a_script_without_guard_gets_one_readable_error(tiny: Path) -> None:
    process = start(tiny, UNGUARDED)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert out == ""
    assert "Engine ready" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("mixquant_agents.errors.MainGuardError: ")
    assert '__name__ == "__main__"' in last
