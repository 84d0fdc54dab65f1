"""LangSmith and Langfuse see the time to the first token, on ``ainvoke`` too, through the chat model alone."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from langchain_core.tracers.base import AsyncBaseTracer, BaseTracer
from langchain_core.tracers.schemas import Run
from langfuse import Langfuse
from langfuse.langchain import CallbackHandler
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from mixquant_agents import MixQuantChatModel, ScriptedEngine
from mixquant_agents.engine.scripted import ScriptedTurn


class Kept(BaseTracer):
    """LangSmith's tracer without its client: what would be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[Run] = []

    def _persist_run(self, run: Run) -> None:
        self.runs.append(run)


class KeptAsync(AsyncBaseTracer):
    """The same for async tracers."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[Run] = []

    async def _persist_run(self, run: Run) -> None:
        self.runs.append(run)


def first_token_seconds(run: Run) -> float:
    """As LangSmith computes it: the first ``new_token`` event after the start."""
    told: list[dict[str, Any]] = [event for event in run.events if event["name"] == "new_token"]
    moment = told[0]["time"]
    assert isinstance(moment, datetime)
    return (moment - run.start_time).total_seconds()


def model() -> MixQuantChatModel:
    turn = ScriptedTurn(text="one two three four five", prefill_seconds=0.1, token_seconds=0.02)
    return MixQuantChatModel(engine=ScriptedEngine([turn]))


@pytest.mark.parametrize("tracer", [Kept, KeptAsync])
@pytest.mark.parametrize("streamed", [False, True])
async def test_first_token_is_told(tracer: type[Kept] | type[KeptAsync], streamed: bool) -> None:
    kept = tracer()
    if streamed:
        async for _ in model().astream("hello", {"callbacks": [kept]}):
            pass
    else:
        await model().ainvoke("hello", {"callbacks": [kept]})
    (run,) = kept.runs
    tokens = [event for event in run.events if event["name"] == "new_token"]
    seconds = first_token_seconds(run)
    assert run.end_time is not None
    assert 0.1 <= seconds < (run.end_time - run.start_time).total_seconds() - 0.05, "after the prefill, before the end"
    assert len(tokens) >= 5
    assert (run.outputs or {})["generations"][0][0]["message"]["kwargs"]["usage_metadata"]["output_tokens"] >= 5


def test_first_token_is_told_by_sync_invoke_too() -> None:
    kept = Kept()
    model().invoke("hello", {"callbacks": [kept]})
    (run,) = kept.runs
    assert run.end_time is not None
    assert 0.1 <= first_token_seconds(run) < (run.end_time - run.start_time).total_seconds()


@pytest.mark.parametrize("streamed", [False, True])
async def test_langfuse_gets_the_completion_start_time(streamed: bool) -> None:
    exporter, key = InMemorySpanExporter(), f"pk-test-{streamed}"
    client = Langfuse(
        public_key=key, secret_key="sk-test", base_url="http://127.0.0.1:9", span_exporter=exporter,  # noqa: S106
        tracer_provider=TracerProvider(),
    )  # fmt: skip
    handler = CallbackHandler(public_key=key)
    began = datetime.now(UTC)
    if streamed:
        async for _ in model().astream("hello", {"callbacks": [handler]}):
            pass
    else:
        await model().ainvoke("hello", {"callbacks": [handler]})
    ended = datetime.now(UTC)
    client.flush()
    spans = [span for span in exporter.get_finished_spans() if span.attributes]
    told = [(span.attributes or {}).get("langfuse.observation.completion_start_time") for span in spans]
    moments = [datetime.fromisoformat(str(value).strip('"')) for value in told if value is not None]
    assert len(moments) == 1
    assert (moments[0] - began).total_seconds() >= 0.1
    assert moments[0] < ended
    client.shutdown()
