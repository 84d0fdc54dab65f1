"""Sinks to other systems (what they share is :mod:`sink`): :mod:`prometheus`, and OpenTelemetry's spans
(:mod:`otel_spans`, named by :mod:`otel_attributes`) and metrics (:mod:`otel_metrics`). Each needs its own library, so
nothing is imported here.
"""
