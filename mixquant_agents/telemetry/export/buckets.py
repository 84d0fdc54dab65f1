"""Histogram bounds, shared by Prometheus and OpenTelemetry so that both answer alike. Seconds, or tokens."""

from __future__ import annotations

__all__ = ["FIRST_TOKEN", "PER_TOKEN", "TOKENS", "WHOLE"]

FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""OpenTelemetry GenAI's bounds for the time to the first token; vLLM's begin the same way."""
PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
"""OpenTelemetry GenAI's bounds for the time per output token."""
WHOLE = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
"""OpenTelemetry GenAI's bounds for an operation's duration."""
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
"""OpenTelemetry GenAI's bounds for token usage."""
