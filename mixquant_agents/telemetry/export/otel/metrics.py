"""OpenTelemetry metrics by the GenAI conventions, for those who collect over OTLP rather than scrape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mixquant_agents.errors import MissingDependencyError
from mixquant_agents.telemetry.events import Event, Span, SpanKind, TurnEvent, error_class
from mixquant_agents.telemetry.export.buckets import FIRST_TOKEN, PER_TOKEN, TOKENS, WHOLE
from mixquant_agents.telemetry.export.sink import ExportSink, clean_text

try:
    from opentelemetry.metrics import Histogram, MeterProvider
except ImportError as missing:
    raise MissingDependencyError(
        "OpenTelemetry metrics need opentelemetry-sdk: pip install 'mixquant-agents[dashboard]'"
    ) from missing

__all__ = ["OtelMetricsSink"]

_SECONDS = (
    ("gen_ai.client.operation.duration", "total_seconds", WHOLE, "GenAI operation duration."),
    ("gen_ai.client.operation.time_to_first_chunk", "ttft_seconds", FIRST_TOKEN, "Time to the first chunk."),
    ("gen_ai.server.request.duration", "total_seconds", WHOLE, "GenAI server request duration."),
    ("gen_ai.server.time_to_first_token", "ttft_seconds", FIRST_TOKEN, "Time to the first token."),
    ("gen_ai.server.time_per_output_token", "itl_mean_seconds", PER_TOKEN, "Time per token after the first."),
)


class OtelMetricsSink(ExportSink):
    """Records ``gen_ai.*`` metrics into a meter provider, which exports them as it was set up to.

    Args:
        provider: for example ``opentelemetry.sdk.metrics.MeterProvider([PeriodicExportingMetricReader(…)])``.
    """

    def __init__(self, provider: MeterProvider) -> None:
        meter = provider.get_meter("mixquant_agents")

        def histogram(name: str, unit: str, text: str, bounds: Sequence[float]) -> Histogram:
            return meter.create_histogram(name, unit, text, explicit_bucket_boundaries_advisory=list(bounds))

        self._tokens = histogram("gen_ai.client.token.usage", "{token}", "Tokens used, by type.", TOKENS)
        self._times = [(histogram(name, "s", text, bounds), field) for name, field, bounds, text in _SECONDS]

    def take(self, event: Event) -> None:
        """Record an event."""
        if isinstance(event, TurnEvent):
            self._turn(event)
        elif isinstance(event, Span) and event.kind is SpanKind.TOOL:
            labels = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": clean_text(event.name)}
            self._times[0][0].record(event.seconds, labels)

    def close(self) -> None:
        """The provider is its owner's to shut down."""

    def _turn(self, event: TurnEvent) -> None:
        turn = event.turn
        labels: dict[str, Any] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": clean_text(turn.engine),
            "gen_ai.request.model": clean_text(turn.model),
            "gen_ai.response.model": clean_text(turn.model),
            "mixquant.policy": clean_text(turn.policy),
        }
        for kind, tokens in (("input", turn.prompt_tokens), ("output", turn.decode_tokens)):
            if tokens is not None:
                self._tokens.record(tokens, {**labels, "gen_ai.token.type": kind})
        if turn.error is not None:
            labels["error.type"] = clean_text(error_class(turn.error))
        for histogram, field in self._times:
            seconds = getattr(turn, field)
            if seconds is not None and math.isfinite(seconds):  # one endless time would spoil the sum for good
                histogram.record(seconds, labels)
