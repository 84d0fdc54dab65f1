"""OpenTelemetry spans, under the name that programs import."""

from __future__ import annotations

from mixquant_agents.telemetry.export.otel.spans import SpanSink, otlp_span_sink

__all__ = ["SpanSink", "otlp_span_sink"]
