"""What is too old or too much is deleted with all that belongs to it."""

from __future__ import annotations

import math
import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from telemetry_help import at, make_turn, stored

from mixquant_agents.errors import ConfigError
from mixquant_agents.telemetry import Retention, Span, SpanKind, StoreRecorder, TurnContent
from mixquant_agents.telemetry.analysis.collect import collect
from mixquant_agents.telemetry.store.connection import connect_writer
from mixquant_agents.telemetry.store.filters import TurnFilter
from mixquant_agents.telemetry.store.reader import TurnStore
from mixquant_agents.telemetry.store.retention import retain
from mixquant_agents.telemetry.store.rows import to_microseconds


def test_retention_by_age_deletes_all_that_belongs(path: Path) -> None:
    recorder = StoreRecorder(path, content=True)
    for n in range(40):
        recorder.record_span(
            Span(
                kind=SpanKind.TOOL,
                name="x",
                span_id=f"s{n}",
                started_at=at(n * 86400 - 1),
                seconds=1,
                thread_id=f"t{n}",
            )
        )
        recorder.record(
            make_turn(n * 86400, thread_id=f"t{n}"), content=TurnContent(), prompt_token_ids=list(range(64))
        )
    recorder.record(make_turn(39 * 86400 + 1, thread_id="t5"))
    recorder.close()
    connection = connect_writer(path)
    now = to_microseconds(at(39 * 86400 + 10)) / 1e6
    assert retain(connection, Retention(max_age_days=10), now=now, seconds=60) == 30
    store = TurnStore(path)
    assert len(store.turns(limit=99)) == 11
    counts = {
        table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 # our names
        for table in ("blocks", "contents", "spans", "thread_stats")
    }
    assert counts == {"blocks": 10, "contents": 10, "spans": 9, "thread_stats": 11}
    assert [one.turns for one in store.threads(TurnFilter(thread="t5"))] == [1], "the half that stays is counted anew"
    assert collect(store, TurnFilter(), now=now).total().turns == 11
    assert connection.execute("SELECT min(start) FROM rollups WHERE level = 86400").fetchone()[
        0
    ] * 10**6 > to_microseconds(at(28 * 86400))


def test_retention_by_size_keeps_the_newest_and_gives_space_back(path: Path) -> None:
    recorder = StoreRecorder(path, content=True)
    noise = random.Random(1).randbytes(4000).hex()  # noqa: S311 # test data
    for n in range(1000):
        recorder.record(make_turn(n), content=TurnContent(messages=[{"role": "user", "content": f"{n}{noise}"}]))
    recorder.close()
    before = path.stat().st_size
    connection = connect_writer(path)
    limit = before // 2
    assert retain(connection, Retention(max_bytes=limit), seconds=60) > 0
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    assert path.stat().st_size < before
    newest = TurnStore(path).turns(limit=2000)
    assert 0 < len(newest) < 1000
    assert newest[0].started_at == at(999)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_age_days": 0},
        {"max_age_days": -1},
        {"max_age_days": math.nan},
        {"max_age_days": math.inf},
        {"max_age_days": "7"},
        {"max_bytes": 5},
        {"max_bytes": math.nan},
        {"max_bytes": "7 GB"},
    ],
)
def test_retention_refuses_nonsense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Retention(**wrong)


def test_age_that_reaches_before_all_calendars_keeps_everything(path: Path) -> None:
    store = stored(path, make_turn(0), make_turn(1), retention=Retention(max_age_days=1e300))
    assert len(store.turns()) == 2


@pytest.mark.slow
def test_deletion_is_tried_again_without_a_new_turn(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def locked_once(*_: Any) -> int:
        tried.append(1)
        if len(tried) == 1:
            raise sqlite3.OperationalError("database is locked")
        return 0

    monkeypatch.setattr("mixquant_agents.telemetry.store.writer.retain", locked_once)
    recorder = StoreRecorder(path, retention=Retention(max_age_days=1), gather_seconds=0)
    recorder.record(make_turn())
    assert recorder.flush(4)
    assert (len(tried), recorder.problem) == (2, None)
    recorder.close()
