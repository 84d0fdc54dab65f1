"""The OpenTelemetry span of the application around what runs here, as W3C headers."""

from __future__ import annotations

import sys
from collections.abc import Mapping

__all__ = ["active_trace_context"]


def active_trace_context() -> Mapping[str, str] | None:
    """Headers (``traceparent`` …) of the span that is active here; ``None`` where the application does not trace."""
    if "opentelemetry.trace" not in sys.modules:  # then no span can be active, and the import would cost 50 ms
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers)
    return headers or None
