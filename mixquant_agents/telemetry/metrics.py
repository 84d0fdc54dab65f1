"""Prometheus metrics, under the name that programs import."""

from __future__ import annotations

from mixquant_agents.telemetry.export.prometheus import MetricsServer, PrometheusSink, serve_metrics

__all__ = ["MetricsServer", "PrometheusSink", "serve_metrics"]
