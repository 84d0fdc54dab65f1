"""Where a thread's time went: for any tree of turns and tools the parts add up to the whole, and each agent's tools are
its own. Turns that were cut off are drawn as far as they are known."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from dashboard_help import make_turn
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.runnables import RunnableConfig

from mixquant_agents.dashboard.timeline import PARTS, Row, waterfall
from mixquant_agents.records import PHASES
from mixquant_agents.telemetry import Span, SpanKind, StoreRecorder
from mixquant_agents.telemetry.callbacks import TelemetryCallback
from mixquant_agents.telemetry.store import StoredSpan, StoredTurn, TurnStore
from mixquant_agents.telemetry.store.rows import from_microseconds, to_microseconds

START = to_microseconds("2026-03-01T12:00:00Z")
_ids = itertools.count()


def turn(start: float, parent: str | None = None, **values: Any) -> StoredTurn:
    """A turn ``start`` seconds into the thread; nothing is known of it but what ``values`` say."""
    unknown = {time.field: None for time in PHASES} | dict.fromkeys(("ttft_seconds", "total_seconds"))
    unknown |= {"itl_mean_seconds": None, "itl_p50_seconds": None, "itl_p95_seconds": None}
    record = make_turn(started_at=from_microseconds(START + round(start * 1e6)), **{**unknown, **values})
    return StoredTurn.model_construct(
        **dict(record), number=next(_ids), root_run_id="root", node=None, trace_id=None, parent_id=parent, agent_id=None
    )


def span(
    start: float, seconds: float, name: str, parent: str | None = None, kind: SpanKind | str = SpanKind.TOOL
) -> StoredSpan:
    return StoredSpan(
        span_id=name, parent_id=parent, run_id="root", thread_id="thread", kind=kind, name=name,
        started_us=START + round(start * 1e6), seconds=seconds, cancelled=False, error=None, arguments=None,
        result=None,
    )  # fmt: skip


def measured(start: float, parent: str | None = None, **values: Any) -> StoredTurn:
    """A turn of one second: 0.1 queue, 0.3 prefill, 0.6 decode."""
    times = {
        "queue_seconds": 0.1, "prefill_seconds": 0.3, "delivery_seconds": 0.0, "ttft_seconds": 0.4,
        "decode_seconds": 0.6, "total_seconds": 1.0,
    }  # fmt: skip
    return turn(start, parent, **{**times, **values})


seconds = st.integers(0, 3_000_000).map(lambda us: us / 1e6)
unknown_or = st.one_of(st.none(), seconds)


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[StoredTurn], list[StoredSpan]]:
    """Turns and spans of any kind inside each other, side by side, or standing out of what they ran in."""
    spans: list[StoredSpan] = []
    kinds = st.sampled_from([*SpanKind, "of another version"])
    for n in range(draw(st.integers(0, 8))):
        parent = draw(st.sampled_from([None, "gone", *(one.span_id for one in spans), f"s{n + 1}"]))
        spans.append(span(draw(seconds), draw(seconds), f"s{n}", parent, draw(kinds)))
    turns = []
    for _ in range(draw(st.integers(0, 6))):
        parent = draw(st.sampled_from([None, "gone", *(one.span_id for one in spans)]))
        values: dict[str, Any] = {phase.field: draw(unknown_or) for phase in PHASES}
        known = [values[phase.field] for phase in PHASES if phase.phase == "first_token"]
        values["ttft_seconds"] = draw(unknown_or) if None in known else sum(known)
        rest = draw(unknown_or)
        values["total_seconds"] = None if rest is None else (values["ttft_seconds"] or 0.0) + rest
        turns.append(turn(draw(seconds), parent, aborted=draw(st.booleans()), **values))
    return turns, spans


@given(trees())
def test_parts_add_up_to_the_whole_for_any_tree(tree: tuple[list[StoredTurn], list[StoredSpan]]) -> None:
    turns, spans = tree
    fall = waterfall(turns, spans)
    assert sum(fall.totals.values()) == pytest.approx(fall.seconds, abs=1e-6)
    assert set(fall.totals) <= {name for name, _ in PARTS}
    assert min(fall.totals.values(), default=0) >= 0
    tools = [one for one in spans if one.kind in (SpanKind.TOOL, SpanKind.RETRIEVAL)]
    assert len([row for row in fall.rows if row.kind in ("turn", "tool")]) == len(turns) + len(tools)
    shown = [row for row in fall.rows if row.kind != "idle"]
    assert_tree(shown, spans)
    assert all(row.bars for row in fall.rows)
    for row in shown:  # the bars of a row follow each other and end where the row does
        assert sum(bar.seconds for bar in row.bars) == pytest.approx(row.seconds, abs=1e-6)
        for bar, following in itertools.pairwise(row.bars):
            assert bar.left + bar.width == pytest.approx(following.left, abs=1e-6)


def assert_tree(rows: list[Row], spans: list[StoredSpan]) -> None:
    """Every row stands below the nearest row that it ran in, one step further in; the own times are what the rows
    inside leave."""
    parents = {span.span_id: span.parent_id for span in spans}
    shown = {row.span.span_id for row in rows if row.span is not None}
    above: list[str] = []
    for row in rows:
        assert row.depth <= len(above), "no row is deeper than one below the row above it"
        del above[row.depth :]
        outer = row.turn.parent_id if row.turn is not None else parents[row.span.span_id] if row.span else None
        steps = 0
        while outer is not None and outer not in shown and steps < 50:
            outer, steps = parents.get(outer), steps + 1
        circle = row.span is not None and row.depth == 0
        assert circle or (above[-1] if above else None) == (outer if outer in shown else None)
        if row.span is not None:
            above.append(row.span.span_id)
            assert row.own is not None
            assert -1e-6 <= row.own <= row.seconds + 1e-6


def test_tool_counts_without_the_turns_inside_it() -> None:
    spans = [
        span(0, 5, "agent", kind=SpanKind.AGENT),
        span(1, 3, "task", "agent"),
        span(1.1, 2.8, "node", "task", SpanKind.NODE),
        span(2.5, 0.5, "search", "node"),
    ]
    fall = waterfall([measured(0, "agent"), measured(1.25, "node"), measured(4, "agent")], spans)
    assert fall.seconds == pytest.approx(5)
    assert fall.totals["prefill"] == pytest.approx(0.9)
    assert fall.totals["decode"] == pytest.approx(1.8)
    # search, and what task did while neither a turn nor a tool ran in it: 0.25 + 0.25 + 1.0
    assert fall.totals["tool"] == pytest.approx(0.5 + 1.5)
    assert [(row.label, row.depth) for row in fall.rows] == [
        ("agent", 0), ("turn 0", 1), ("task", 1), ("node", 2), ("turn 0", 3), ("search", 3), ("turn 0", 1),
    ]  # fmt: skip
    own = {row.label: row.own for row in fall.rows if row.span is not None}
    assert own == {
        "agent": pytest.approx(0),  # two turns and the task fill it
        "task": pytest.approx(0.2),
        "node": pytest.approx(2.8 - 1.0 - 0.5),
        "search": pytest.approx(0.5),
    }


def test_parallel_agents_share_their_time() -> None:
    spans = [span(0, 2, f"task-{n}", "agent") for n in range(4)]
    turns = [measured(0.5, f"task-{n}") for n in range(4)]
    fall = waterfall(turns, spans)
    assert fall.seconds == pytest.approx(2)
    assert fall.totals["tool"] == pytest.approx(1.0)
    assert fall.totals["queue"] == pytest.approx(0.1)
    assert fall.totals["prefill"] == pytest.approx(0.3)
    assert fall.totals["decode"] == pytest.approx(0.6)


def test_agent_code_is_told_from_idle_time() -> None:
    spans = [span(0, 4, "agent", kind=SpanKind.AGENT)]
    first, second, later = measured(0, "agent"), measured(3, "agent"), measured(10)
    later = later.model_copy(update={"root_run_id": "another"})
    fall = waterfall([first, second, later], spans)
    assert (fall.totals["gap"], fall.totals["idle"]) == (pytest.approx(2), pytest.approx(6))


@pytest.mark.parametrize(
    ("known", "bars"),
    [
        # cut off while it wrote, as its client saw it: nobody says how the time until the first token was spent
        (
            {"ttft_seconds": 0.4, "decode_seconds": 0.5, "total_seconds": 1.0},
            [("unknown", 0.4), ("decode", 0.5), ("unknown", 0.1)],
        ),
        ({"ttft_seconds": 0.4, "total_seconds": 1.0}, [("unknown", 0.4), ("unknown", 0.6)]),
        ({"total_seconds": 1.0}, [("unknown", 1.0)]),
        ({"queue_seconds": 0.2, "total_seconds": 1.0}, [("queue", 0.2), ("unknown", 0.8)]),
        (
            {"queue_seconds": 0.2, "ttft_seconds": 0.5, "total_seconds": 1.0},
            [("queue", 0.2), ("unknown", 0.3), ("unknown", 0.5)],
        ),
        ({"ttft_seconds": 0.4}, [("unknown", 0.4)]),
        ({"queue_seconds": 0.2}, [("queue", 0.2)]),
        ({}, [("unknown", 0.0)]),
    ],
)  # fmt: skip
def test_aborted_turn_is_drawn_from_what_is_known(known: dict[str, float], bars: list[tuple[str, float]]) -> None:
    (row,) = waterfall([turn(0, aborted=True, **known)], []).rows
    assert [(bar.phase, pytest.approx(bar.seconds)) for bar in row.bars] == bars
    assert row.seconds == pytest.approx(sum(length for _, length in bars))


@dataclass
class ToolClock:
    """One tool's time, from inside and from around the callback that records it.

    Attributes:
        around: monotonic seconds from just before the callback begins the tool's span until just after it has ended it.
        inside: monotonic seconds from the tool's first line to its last.
        lead: seconds of this thread on the processor from ``around``'s beginning to ``inside``'s, so without what
            another program took of it.
    """

    around: float = 0.0
    inside: float = 0.0
    lead: float = 0.0

    def begin(self) -> None:
        self.around, self.lead = -time.monotonic(), -time.thread_time()


class ClockedCallback(TelemetryCallback):
    """The telemetry's callback, and ``work``'s clock around it."""

    def __init__(self, recorder: StoreRecorder) -> None:
        super().__init__(recorder)
        self.clocks: dict[str, ToolClock] = {}
        self._running: dict[UUID, ToolClock] = {}

    def on_tool_start(self, serialized: Any, input_str: str, *, run_id: UUID, **kwargs: Any) -> None:
        if serialized["name"] == "work":
            self._running[run_id] = clock = self.clocks[kwargs["inputs"]["name"]] = ToolClock()
            asyncio.get_running_loop().call_soon(clock.begin)  # just before what the callback schedules
        super().on_tool_start(serialized, input_str, run_id=run_id, **kwargs)

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        super().on_tool_end(output, run_id=run_id, **kwargs)
        if run_id in self._running:
            self._running[run_id].around += time.monotonic()


@dataclass
class DeepRun:
    """What a deep agent with five sub-agents at once left: what was recorded, and what its tools' own clocks said."""

    turns: list[StoredTurn]
    spans: list[StoredSpan]
    clocks: dict[str, ToolClock]
    wall: float

    def tool_seconds(self) -> dict[str, float | None]:
        """What each sub-agent's second turn says of the tools before it."""
        names = {span.span_id: span.name for span in self.spans}
        second = [turn for turn in self.turns if turn.agent_id is not None and turn.turn_index == 1]
        return {names[turn.agent_id or ""]: turn.tool_seconds_before for turn in second}


async def deep_run(path: Path) -> DeepRun:
    """Run it."""
    from langchain.agents import create_agent
    from langchain_core.tools import tool

    from mixquant_agents import MixQuantChatModel, ScriptedEngine
    from mixquant_agents.engine.scripted import ScriptedTurn

    recorder = StoreRecorder(path)
    callback = ClockedCallback(recorder)

    def model(*script: Any) -> MixQuantChatModel:
        return MixQuantChatModel(engine=ScriptedEngine(list(script)), recorders=[recorder])

    @tool
    async def work(name: str, seconds: float) -> str:
        """Work."""
        clock = callback.clocks[name]
        clock.lead += time.thread_time()
        clock.inside = -time.monotonic()
        await asyncio.sleep(seconds)
        clock.inside += time.monotonic()
        return "done"

    @tool
    async def task(name: str, seconds: float, config: RunnableConfig) -> str:
        """Ask a sub-agent."""
        calls = [{"name": "work", "args": {"name": name, "seconds": seconds}}]
        agent = create_agent(model(ScriptedTurn(tool_calls=calls), "found"), [work], name=name)
        state = await agent.ainvoke({"messages": [("user", name)]}, config)
        return str(state["messages"][-1].content)

    calls = [{"name": "task", "args": {"name": f"agent-{n}", "seconds": 0.05 + 0.1 * n}} for n in range(5)]
    lead = create_agent(model(ScriptedTurn(tool_calls=calls), "all found"), [task], name="lead")
    began = time.monotonic()
    await lead.ainvoke({"messages": [("user", "go")]}, {"configurable": {"thread_id": "t"}, "callbacks": [callback]})
    wall = time.monotonic() - began
    recorder.close()
    with TurnStore(path) as store:
        return DeepRun(store.thread("t"), store.spans(thread="t"), callback.clocks, wall)


async def test_parallel_subagents_have_their_own_tools(tmp_path: Path) -> None:
    """Five sub-agents at once, each with a tool of its own length: what a turn says of the tools before it is what
    that agent's tool took, and the tree's parts are the wall's.

    No bound is one of wall time: another program may take the processor at any instant."""
    run = await deep_run(tmp_path / "turns.sqlite")
    recorded = run.tool_seconds()
    assert recorded.keys() == run.clocks.keys()
    for name, clock in run.clocks.items():
        assert clock.inside - 1e-5 <= (recorded[name] or 0.0) <= clock.around + 1e-5, (name, recorded, clock)
    # A tool begins when the event loop gets to it, not when its call is announced. A garbage collection may hit one.
    assert statistics.median(clock.lead for clock in run.clocks.values()) < 1e-3, run.clocks
    turns, spans = run.turns, run.spans
    assert len(turns) == 12
    assert len({one.agent_id for one in turns}) == 6
    works = sorted(span.seconds for span in spans if span.name == "work")
    assert sorted(seconds or 0.0 for seconds in run.tool_seconds().values()) == pytest.approx(works, abs=1e-5)
    (last,) = [one for one in turns if one.agent_id is None and one.tool_seconds_before is not None]
    tasks = [span for span in spans if span.name == "task"]
    first, end = min(one.started_us for one in tasks), max(one.started_us + one.seconds * 1e6 for one in tasks)
    assert last.tool_seconds_before == pytest.approx((end - first) / 1e6, abs=1e-3)
    fall = waterfall(turns, spans)
    assert sum(fall.totals.values()) == pytest.approx(fall.seconds, abs=1e-6)
    assert fall.seconds <= run.wall
    assert_tree([row for row in fall.rows if row.kind != "idle"], spans)
    for name in run.clocks:  # lead, its node, the task, the sub-agent, its nodes, their turns and tool
        (at,) = [n for n, row in enumerate(fall.rows) if (row.kind, row.label) == ("agent", name)]
        below = [(row.kind, row.label, row.depth) for row in fall.rows[at - 1 : at + 7]]
        assert below == [
            ("tool", "task", 2), ("agent", name, 3), ("node", "model", 4), ("turn", "turn 0", 5), ("node", "tools", 4),
            ("tool", "work", 5), ("node", "model", 4), ("turn", "turn 1", 5),
        ]  # fmt: skip
    assert sorted(fall.agents.values()) == sorted(2 * [f"agent-{n}" for n in range(5)])
    for one in turns:
        if one.agent_id is not None:
            assert {span.span_id: span.name for span in spans}[one.agent_id] == fall.agents[one.number]


def test_waterfall_folds_idle_times_and_adds_up(tmp_path: Path) -> None:
    def at(seconds: float) -> str:
        return f"2026-03-01T{12 + int(seconds // 3600):02d}:{int(seconds % 3600 // 60):02d}:{seconds % 60:09.6f}+00:00"

    recorder = StoreRecorder(tmp_path / "turns.sqlite")
    recorder.record_span(
        Span(kind=SpanKind.TOOL, name="tool", span_id="s", run_id="one", thread_id="t", started_at=at(0.6), seconds=0.2)
    )
    for start, run in ((0.0, "one"), (0.9, "one"), (3000.0, "two")):
        recorder.record(make_turn(thread_id="t", started_at=at(start), run_id=run))
    recorder.close()
    store = TurnStore(tmp_path / "turns.sqlite")
    fall = waterfall(store.thread("t"), store.spans(thread="t"))
    assert [row.kind for row in fall.rows] == ["turn", "tool", "turn", "idle", "turn"]
    assert fall.folded
    assert fall.totals["tool"] == pytest.approx(0.2)
    assert fall.totals["gap"] == pytest.approx(0.15)
    assert fall.totals["idle"] == pytest.approx(3000 - 1.45)
    assert fall.totals["prefill"] == pytest.approx(0.12)
    assert fall.seconds == pytest.approx(3000.55)
    bars = [bar for row in fall.rows for bar in row.bars]
    assert all(-1e-9 <= bar.left <= bar.left + bar.width <= 100.001 for bar in bars)
    assert bars[-1].left + bars[-1].width == pytest.approx(99.4, abs=1)
    lefts = [row.bars[0].left for row in fall.rows]
    assert lefts == sorted(lefts)
    assert waterfall([], []).rows == []
