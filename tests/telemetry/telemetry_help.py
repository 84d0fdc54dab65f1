"""Made-up turns for the telemetry tests."""

from __future__ import annotations

import itertools
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from mixquant_agents.records import TurnRecord
from mixquant_agents.telemetry import StoreRecorder
from mixquant_agents.telemetry.store.reader import TurnStore
from mixquant_agents.telemetry.store.schema import APPLICATION_ID, MIGRATIONS

_numbers = itertools.count()
EPOCH = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def at(seconds: float) -> str:
    """An instant, ISO 8601."""
    return (EPOCH + timedelta(seconds=seconds)).isoformat(timespec="microseconds")


def make_turn(seconds: float = 0.0, **values: Any) -> TurnRecord:
    """A turn that started ``seconds`` after a fixed instant; ``values`` replace its figures."""
    n = next(_numbers)
    base: dict[str, Any] = {
        "turn_id": f"turn-{n}", "run_id": f"run-{n}", "thread_id": "thread", "model": "model", "engine": "scripted",
        "policy": "exact", "prefill_format": "exact", "decode_format": "exact", "emulated": False,
        "device": "device",
        "started_at": at(seconds), "prompt_tokens": 1000, "cached_tokens": 800, "prefill_tokens": 200,
        "quantized_tokens": 0, "exact_tokens": 200, "decode_tokens": 51, "queue_seconds": 0.002,
        "prefill_seconds": 0.04, "delivery_seconds": 0.001, "ttft_seconds": 0.043, "decode_seconds": 0.5,
        "itl_mean_seconds": 0.01, "itl_p50_seconds": 0.01, "itl_p95_seconds": 0.02, "total_seconds": 0.55,
        "timing_source": "engine", "finish_reason": "stop",
    }  # fmt: skip
    return TurnRecord(**{**base, **values})


def stored(path: Path, *turns: TurnRecord, **options: Any) -> TurnStore:
    """A store at ``path`` that holds ``turns``."""
    recorder = StoreRecorder(path, **options)
    for turn in turns:
        recorder.record(turn)
    recorder.close()
    assert recorder.problem is None
    assert recorder.dropped == 0
    return TurnStore(path)


def old_store(path: Path, version: int) -> sqlite3.Connection:
    """An empty store as a program of that schema version made it."""
    connection = sqlite3.connect(path, isolation_level=None)
    for script in MIGRATIONS[:version]:
        connection.executescript(script)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    return connection
