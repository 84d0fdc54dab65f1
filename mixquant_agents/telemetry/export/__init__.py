"""Sinks to other systems (what they share is :mod:`sink`): :mod:`prometheus`, and OpenTelemetry's spans and metrics in
:mod:`otel`; both count by the bounds in :mod:`buckets`. Each needs its own library, so nothing is imported here.
"""
