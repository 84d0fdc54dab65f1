"""What the dashboard's tests share: made-up turns, waiting, pictures."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixquant_agents.records import TurnRecord, utc_now
from mixquant_agents.telemetry import StoreRecorder

ARTIFACTS = Path(__file__).resolve().parents[2] / "artifacts" / "dashboard"
_numbers = itertools.count()


def make_turn(**values: Any) -> TurnRecord:
    """A turn with plausible figures; ``values`` replace them."""
    n = next(_numbers)
    base: dict[str, Any] = {
        "turn_id": f"turn-{n}", "run_id": f"run-{n}", "thread_id": "thread", "turn_index": 0, "model": "model",
        "engine": "scripted", "policy": "exact", "prefill_format": "exact", "decode_format": "exact", "emulated": False,
        "device": "device",
        "started_at": utc_now(), "prompt_tokens": 1000, "cached_tokens": 800, "prefill_tokens": 200,
        "quantized_tokens": 0, "exact_tokens": 200, "decode_tokens": 51, "queue_seconds": 0.002,
        "prefill_seconds": 0.04, "delivery_seconds": 0.001, "ttft_seconds": 0.043, "decode_seconds": 0.5,
        "itl_mean_seconds": 0.01,
        "itl_p50_seconds": 0.01, "itl_p95_seconds": 0.02, "total_seconds": 0.55, "timing_source": "engine",
        "finish_reason": "stop",
    }  # fmt: skip
    return TurnRecord(**{**base, **values})


def turn_read_in(seconds: float, **values: Any) -> TurnRecord:
    """A turn whose prompt took ``seconds`` to read."""
    times = {"prefill_seconds": seconds, "ttft_seconds": 0.003 + seconds, "total_seconds": 9.0}
    return make_turn(**{**times, **values})


@dataclass
class Dashboard:
    url: str
    store: Path
    recorder: StoreRecorder


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def resize(driver: Any, width: int, height: int = 900, dark: bool = False) -> None:
    """Emulate a screen; 390 wide is a phone."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})


def until(condition: Callable[[], Any], what: str, seconds: float = 15.0) -> Any:
    """Wait for a condition; its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"not within {seconds} s: {what}")


def text_of(driver: Any) -> str:
    """The page's visible text."""
    return str(driver.execute_script("return document.body.innerText"))


def picture(driver: Any, name: str) -> None:
    """Keep a picture of the whole page as a test artefact."""
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    width, height = driver.execute_script("return [innerWidth, Math.min(document.documentElement.scrollHeight, 3000)]")
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.save_screenshot(str(ARTIFACTS / f"{name}.png"))
