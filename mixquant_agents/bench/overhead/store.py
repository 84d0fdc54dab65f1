"""``mixquant bench store``: how fast the turn store is read and written, and what recording costs a turn.

The turns are synthetic and say so (model ``synthetic-demo``): their times follow made-up laws, so they show the
store's and the dashboard's speed, never a model's.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from mixquant_agents.records import TurnRecord, percentile, utc_now
from mixquant_agents.telemetry import RunLink, Span, SpanKind, StoreRecorder, TurnContent
from mixquant_agents.telemetry.analysis.collect import collect
from mixquant_agents.telemetry.analysis.overview import overview
from mixquant_agents.telemetry.recorder import Recorder
from mixquant_agents.telemetry.store.filters import TurnFilter
from mixquant_agents.telemetry.store.reader import TurnStore

__all__ = ["SYNTHETIC_MODEL", "bench_store", "fill", "synthetic_turns"]

SYNTHETIC_MODEL = "synthetic-demo"
_POLICIES = (("exact", "exact", 1.0), ("mixquant-fp8", "fp8", 1.45), ("uniform-fp8", "fp8", 1.48))
_TOOLS = ("search_notes", "calculator", "read_file", "run_sql")

Progress = Callable[[str, int, int], None]
"""``(what, done, of)``."""


def _quiet(what: str, done: int, of: int) -> None:
    """No progress shown."""


def synthetic_turns(
    count: int, *, days: float = 30.0, seed: int = 0, end: datetime | None = None, content: bool = False
) -> Iterator[tuple[TurnRecord, list[Span | RunLink], list[int], TurnContent | None]]:
    """Made-up agent turns in the order of time: ``(turn, what precedes it, prompt token ids, content)``.

    Threads of 4 to 16 turns; each turn reads the thread so far from the cache plus a tool's result; about 1 in 50 has
    its prompt changed in the middle (a prefix miss), 1 in 200 fails, 1 in 100 is aborted. Token ids are only given
    for a few threads: hashing a million made-up prompts would measure the generator.
    """
    rng = random.Random(seed)  # noqa: S311 # made-up data, not secrets
    begin = (end or datetime.now(UTC)) - timedelta(days=days)
    number = 0
    while number < count:
        now = begin + timedelta(days=days) * (number / count)
        thread = f"synthetic-{seed}-{number:07d}"
        policy = rng.choice(_POLICIES)
        tokens = [rng.randrange(50_000) for _ in range(rng.randint(600, 3_000))]
        with_tokens = rng.random() < 0.02 or count <= 5_000
        cached, run = 0, f"run-{thread}"
        for index in range(min(rng.randint(4, 16), count - number)):
            missed = index > 0 and rng.random() < 0.02
            if missed:
                cut = rng.randrange(16, len(tokens))
                tokens[cut] = (tokens[cut] + 1) % 50_000
                cached = min(cached, cut // 16 * 16)
            tools: list[Span | RunLink] = []
            busy = 0.0
            if index:
                busy = rng.lognormvariate(-1.2, 0.9)
                started = now.isoformat(timespec="microseconds")
                now += timedelta(seconds=busy + rng.uniform(0.001, 0.02))
                tools.append(
                    Span(
                        kind=SpanKind.TOOL,
                        name=rng.choice(_TOOLS),
                        span_id=f"{run}-tool-{index}",
                        parent_id=run,
                        run_id=run,
                        thread_id=thread,
                        started_at=started,
                        seconds=busy,
                        arguments='{"query": "made-up"}' if content else None,
                        result="made-up result" if content else None,
                    )
                )
            call = f"{run}-call-{index}"
            tools.append(RunLink(call, run, "model", run))
            turn = _turn(rng, thread, call, index, policy, len(tokens), cached, now)
            turn_content = _content(index, turn) if content else None
            yield turn, tools, list(tokens) if with_tokens else [], turn_content
            number += 1
            cached = len(tokens) // 16 * 16
            tokens += [rng.randrange(50_000) for _ in range((turn.decode_tokens or 0) + rng.randint(40, 900))]
            now += timedelta(seconds=(turn.total_seconds or 0) + rng.uniform(0.005, 0.12))


def _turn(
    rng: random.Random, thread: str, run: str, index: int, policy: tuple[str, str, float], prompt: int, cached: int,
    at: datetime,
) -> TurnRecord:  # fmt: skip
    name, kind, speed = policy
    prefill = prompt - cached
    quantized = 0 if kind == "exact" else prefill - 1
    queue = rng.expovariate(120)
    read = (0.012 + prefill * (28e-6 + prompt * 4e-10) / speed) * rng.lognormvariate(0, 0.08)
    failed, aborted = rng.random() < 0.005, rng.random() < 0.01
    decode = rng.randint(20, 400)
    itl = 0.0068 * rng.lognormvariate(0, 0.05)
    write = itl * (decode - 1)
    calls = rng.random() < 0.8
    return TurnRecord(
        turn_id=f"{run}-{rng.getrandbits(48):012x}", run_id=run, thread_id=thread, turn_index=index,
        model=SYNTHETIC_MODEL, engine="scripted", policy=name, prefill_format=kind, decode_format="exact",
        emulated=False, device="made-up device", started_at=at.isoformat(timespec="microseconds"),
        prompt_tokens=prompt, cached_tokens=cached, prefill_tokens=prefill, quantized_tokens=quantized,
        exact_tokens=prefill - quantized, decode_tokens=decode, reasoning_tokens=0, recomputed_rows=0, preemptions=0,
        queue_seconds=queue, prefill_seconds=read, delivery_seconds=0.0004, ttft_seconds=queue + read + 0.0004,
        decode_seconds=write, itl_mean_seconds=itl, itl_p50_seconds=itl * 0.98, itl_p95_seconds=itl * 1.2,
        total_seconds=queue + read + 0.0004 + write, timing_source="engine",
        finish_reason="abort" if aborted else "tool_calls" if calls else "stop",
        tool_calls=(rng.choice(_TOOLS),) if calls else (), aborted=aborted,
        error="EngineDeadError: made-up failure" if failed else None,
    )  # fmt: skip


def _content(index: int, turn: TurnRecord) -> TurnContent:
    question = {"role": "user", "content": "Which of my notes mention the budget? (made-up conversation)"}
    results = [
        {"role": "tool", "tool_call_id": f"c{n}", "content": f"note {n}: the budget of team {n} (made-up)"}
        for n in range(index)
    ]
    calls = [{"id": "c", "type": "function", "function": {"name": name, "arguments": "{}"}} for name in turn.tool_calls]
    answer = {"role": "assistant", "content": "" if calls else "Three notes mention it. (made-up)", "tool_calls": calls}
    return TurnContent(messages=[question, *results], answer=answer)


def fill(recorder: Recorder, count: int, *, progress: Progress = _quiet, **options: Any) -> None:
    """Record ``count`` synthetic turns, as fast as the recorder takes them without dropping any."""
    for done, (turn, before, tokens, content) in enumerate(synthetic_turns(count, **options)):
        for event in before:
            if isinstance(event, Span):
                recorder.record_span(event)
            else:
                recorder.link(event)
        recorder.record(turn, prompt_token_ids=tokens or None, content=content)
        if done % 2_000 == 1_999:
            recorder.flush(60)
            progress("filling the store", done + 1, count)


def _p95_ms(call: Callable[[int], object], times: int) -> tuple[float, float]:
    """p50 and p95 of ``call(n)``, milliseconds."""
    milliseconds = []
    for n in range(times):
        began = time.perf_counter()
        call(n)
        milliseconds.append((time.perf_counter() - began) * 1e3)
    return percentile(milliseconds, 0.5) or 0.0, percentile(milliseconds, 0.95) or 0.0


def _overview(store: TurnStore, turn_filter: TurnFilter, _: int) -> object:
    return overview(store, turn_filter)


def read_figures(path: Path, *, repeats: int = 40) -> dict[str, Any]:
    """Times of the overview over several windows and filters, and of one thread with its spans."""
    store = TurnStore(path)
    newest = store.turns(limit=1)[0]
    end = datetime.fromisoformat(newest.started_at) + timedelta(seconds=1)

    def window(days: float | None, **more: Any) -> TurnFilter:
        since = None if days is None else (end - timedelta(days=days)).isoformat()
        return TurnFilter(since=since, until=end.isoformat(), **more)

    windows = {
        "all": window(None), "30d": window(30), "7d": window(7), "24h": window(1), "1h": window(1 / 24),
        "all, one policy": window(None, policy="exact"), "all, failures": window(None, status="bad"),
    }  # fmt: skip
    by_window = {
        name: _p95_ms(partial(_overview, store, turn_filter), repeats)[1] for name, turn_filter in windows.items()
    }
    rng = random.Random(1)  # noqa: S311 # picks threads to read
    with store.reading() as connection:
        last = connection.execute("SELECT max(id) FROM turns").fetchone()[0]
        numbers = [rng.randint(1, last) for _ in range(repeats * 5)]
        threads = [
            connection.execute("SELECT thread_id FROM turns WHERE id >= ? LIMIT 1", (n,)).fetchone()[0] for n in numbers
        ]
    thread = _p95_ms(lambda n: (store.thread(threads[n]), store.spans(thread=threads[n])), len(threads))
    listed = _p95_ms(lambda n: store.threads(windows["7d"], limit=50, offset=50 * (n % 4)), repeats)
    turns = collect(store, windows["all"]).total().turns
    store.close()
    return {
        "turns": turns,
        "overview_p95_ms": round(max(by_window.values()), 2),
        "overview_p95_ms_by_window": {name: round(value, 2) for name, value in by_window.items()},
        "thread_p95_ms": round(thread[1], 2),
        "thread_list_p95_ms": round(listed[1], 2),
        "store_bytes": path.stat().st_size,
    }


def write_figures(folder: Path, *, rate: int = 10_000, seconds: float = 5.0) -> dict[str, Any]:
    """Offer ``rate`` turns a second; then as many as are taken. Records are made beforehand: their making is not
    measured. ``sync_delay_ms_…`` is the time from a commit until the disk had it."""
    turns = [turn for turn, *_ in synthetic_turns(int(rate * seconds), seed=7, days=seconds / 86_400)]
    recorder = StoreRecorder(folder / "paced.sqlite")
    recorder.check()
    cost, began = [], time.perf_counter()
    for n, turn in enumerate(turns):
        if (ahead := began + n / rate - time.perf_counter()) > 0.001:
            time.sleep(ahead)
        before = time.perf_counter()
        recorder.record(turn)
        cost.append((time.perf_counter() - before) * 1e6)
    recorder.flush(60)
    paced = time.perf_counter() - began
    dropped, synced = recorder.dropped, recorder.sync_delays()
    recorder.close()
    written = _count(folder / "paced.sqlite")

    recorder = StoreRecorder(folder / "burst.sqlite")
    recorder.check()
    began = time.perf_counter()
    for n, turn in enumerate(turns):
        recorder.record(turn)
        if n % 8_000 == 7_999:
            recorder.flush(60)
    recorder.flush(60)
    burst = time.perf_counter() - began
    dropped += recorder.dropped
    recorder.close()
    return {
        "offered_per_s": rate,
        "offered_turns": len(turns),
        "written_turns": written,
        "paced_turns_per_s": round(written / paced),
        "turns_per_s": round(_count(folder / "burst.sqlite") / burst),
        "dropped": dropped,
        "write_us_per_turn": round(sum(cost) / len(cost), 2),
        "write_us_p99": round(percentile(cost, 0.99) or 0.0, 2),
        "sync_delay_ms_p95": round((percentile(synced, 0.95) or 0.0) * 1e3, 1),
        "sync_delay_ms_max": round(max(synced, default=0.0) * 1e3, 1),
    }


def _count(path: Path) -> int:
    with TurnStore(path) as store, store.reading() as connection:
        return int(connection.execute("SELECT count(*) FROM turns").fetchone()[0])


def bench_store(
    *, turns: int = 1_000_000, store: Path | None = None, engine: bool = True, progress: Progress = _quiet
) -> dict[str, Any]:
    """All figures of ``mixquant bench store``.

    Args:
        turns: synthetic turns in the store that is read.
        store: an already filled store to read instead.
        engine: also measure the overhead on a real CPU engine (starts one; half a minute).

    Raises:
        StoreError: ``store`` cannot be read.
    """
    from mixquant_agents.bench.overhead.recording import overhead_on_embedded, overhead_on_scripted

    began = time.perf_counter()
    result: dict[str, Any] = {"started_at": utc_now(), "synthetic": store is None, "cpus": os.cpu_count()}
    with tempfile.TemporaryDirectory(prefix="mixquant-bench-") as name:
        folder = Path(name)
        path = store
        if path is None:
            path = folder / "filled.sqlite"
            recorder = StoreRecorder(path)
            recorder.check()
            fill(recorder, turns, progress=progress)
            recorder.close()
        progress("reading", 0, 1)
        result |= read_figures(path)
        progress("writing", 0, 1)
        result |= write_figures(folder)
        progress("measuring the overhead on the scripted engine", 0, 1)
        result |= overhead_on_scripted(folder)
        if engine:
            progress("measuring the overhead on a real engine", 0, 1)
            result |= asyncio.run(overhead_on_embedded(folder))
        else:
            result["overhead_percent_engine"] = None
    result["seconds"] = round(time.perf_counter() - began, 1)
    return result
