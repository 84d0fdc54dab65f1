"""The OpenTelemetry span of the application around what runs here, as W3C headers."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping

__all__ = ["active_trace_context"]

log = logging.getLogger(__name__)


def active_trace_context() -> Mapping[str, str] | None:
    """Headers (``traceparent`` …) of the span that is active here; ``None`` where the application does not trace."""
    if "opentelemetry.trace" not in sys.modules:  # then no span can be active, and the import would cost 50 ms
        return None
    headers: dict[str, str] = {}
    try:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        TraceContextTextMapPropagator().inject(headers)
    except Exception:  # a span of the application's own kind, half an installation: tracing must not fail the turn
        log.debug("the application's span cannot be named", exc_info=True)
        return None
    return headers or None
