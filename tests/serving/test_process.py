"""A process that its owner starts does not outlive it, however the owner ends."""

import subprocess
import sys
import time

import psutil

OWNER = """
import asyncio, pathlib, sys
from mixquant_agents.serving.process import OwnedProcess

async def own():
    server = OwnedProcess("server", ["sleep", "300"], url="", log=pathlib.Path(sys.argv[1]))
    await server.start()
    print(server.pid, flush=True)
    raise KeyboardInterrupt  # a second Ctrl-C, which breaks the ending off

asyncio.run(own())
"""


def test_broken_off_ending_leaves_nothing(tmp_path: object) -> None:
    words = [sys.executable, "-c", OWNER, f"{tmp_path}/log"]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603 - our own
    pid = int(ended.stdout)
    for _ in range(500):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.01)
    raise AssertionError(f"process {pid} is still there: {ended.stderr}")
