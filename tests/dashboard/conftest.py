"""The dashboard as a process of its own, and a headless Chromium."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dashboard_help import free_port

SERVE = """
import sys
from mixquant_agents.dashboard.server import serve
if __name__ in ("__main__", "__mp_main__"):
    serve(sys.argv[1], host=sys.argv[2], port=int(sys.argv[3]), token=sys.argv[4] or None)
"""


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Starts the dashboard over a store; returns its address once it answers."""
    running: list[subprocess.Popen[bytes]] = []
    script = tmp_path_factory.mktemp("serve") / "serve.py"
    script.write_text(SERVE)

    def start(store: Path, host: str = "127.0.0.1", token: str = "") -> str:
        port = free_port()
        command = [sys.executable, str(script), str(store), host, str(port), token]
        # Told of pytest, NiceGUI would start its own test server instead.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
        process = subprocess.Popen(command, env=environment)  # noqa: S603 # our own script
        running.append(process)
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert process.poll() is None, "the dashboard ended at once"
            try:
                with urllib.request.urlopen(f"{url}/mixquant/app.css", timeout=2):  # noqa: S310 # our own address
                    return url
            except urllib.error.HTTPError:
                return url
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the dashboard did not answer within 60 seconds")

    yield start
    for process in running:
        process.terminate()
    for process in running:
        process.wait(timeout=20)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium that keeps a log of its requests."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for flag in (
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
            "--disable-dev-shm-usage", f"--user-data-dir={profile}",
        ):  # fmt: skip
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
        # A window that no desktop holds in front gets no focus events of its own.
        driver.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})
        yield driver
        driver.quit()
