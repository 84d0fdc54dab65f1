"""Prometheus metrics of turns and tools, per phase.

They live beside vLLM's own: an in-process engine with ``vllm_args={"disable_log_stats": False}`` registers its
``vllm:…`` metrics in the same default registry, so one endpoint serves both. vLLM counts requests of its engine; these
count turns of agents, by model, engine and policy.

======================================  =========  ===================================================================
``mixquant_turns_total``                counter    turns, by ``outcome``: ``ok``, ``failed``, ``aborted``
``mixquant_tokens_total``               counter    tokens, by ``kind``: ``cached``, ``quantized``, ``exact``, ``decode``
``mixquant_ttft_seconds``               histogram  queue + prefill + delivery
``mixquant_queue_seconds``              histogram  submit to scheduled
``mixquant_prefill_seconds``            histogram  scheduled to first token
``mixquant_decode_seconds``             histogram  first token to last
``mixquant_inter_token_seconds``        histogram  mean time between tokens of a turn
``mixquant_turn_seconds``               histogram  the whole turn
``mixquant_tool_seconds``               histogram  tool calls and retrievals, by ``tool`` and ``outcome``
``mixquant_reasoning_tokens_total``     counter    answer tokens inside the model's reasoning
``mixquant_recomputed_rows_total``      counter    rows computed again after a preemption
``mixquant_preemptions_total``          counter    how often turns were put aside
``mixquant_recorder_lost_events``       gauge      events that the recorder lost
======================================  =========  ===================================================================

Histograms and token counts derive from the fields of :mod:`~mixquant_agents.records`: a new phase or count gets its
metric by itself. Buckets carry the trace id of an example (OpenMetrics exemplars) where spans are recorded too.
"""

from __future__ import annotations

import contextlib
import hmac
import math
import re
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from mixquant_agents.errors import ConfigError, MissingDependencyError
from mixquant_agents.records import COUNTS, TIMES
from mixquant_agents.telemetry.events import Event, Span, SpanKind, TurnEvent
from mixquant_agents.telemetry.export.buckets import FIRST_TOKEN, PER_TOKEN, WHOLE
from mixquant_agents.telemetry.export.sink import ExportSink, clean_text
from mixquant_agents.telemetry.loopback import is_loopback

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
    from prometheus_client.openmetrics import exposition as openmetrics
except ImportError as missing:
    raise MissingDependencyError(
        "Prometheus metrics need prometheus-client: pip install 'mixquant-agents[dashboard]'"
    ) from missing

__all__ = ["MetricsServer", "PrometheusSink", "serve_metrics"]

TOOL_LIMIT = 200
"""Most tool names with a series of their own; the rest are counted as ``other``."""

_LABELS = ("model", "engine", "policy")
_BOUNDS = {"first_token": FIRST_TOKEN, "per_token": PER_TOKEN, "whole": WHOLE}
_HISTOGRAMS = [(time.metric or time.name, time) for time in TIMES if time.summarized]
_PARTS = [count for count in COUNTS if count.role == "part"]
_DETAILS = [count for count in COUNTS if count.role == "detail"]


class PrometheusSink(ExportSink):
    """Counts turns and tools. Give one instance to a recorder's ``sinks``.

    Args:
        registry: where the metrics are registered; the default registry by default. Several sinks on one registry share
            the same metrics.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._metrics, self._watched = _metrics_of(registry)
        self._children: dict[tuple[str, ...], Any] = {}
        self._tools: set[str] = set()

    def watch(self, dropped: Callable[[], int]) -> None:
        """Serve a recorder's count of lost events: ``sink.watch(lambda: recorder.dropped)``. Those of several recorders
        are added up; one that cannot be asked is left out, and fails no scrape."""
        self._watched.append(dropped)
        self._metrics["lost"].set_function(lambda: _lost_events(self._watched))

    def take(self, event: Event) -> None:
        """Count an event."""
        if isinstance(event, TurnEvent):
            self._turn(event)
        elif isinstance(event, Span) and event.kind in (SpanKind.TOOL, SpanKind.RETRIEVAL):
            self._tool(event)

    def close(self) -> None:
        """The metrics stay registered: what was counted is still asked for."""

    def _child(self, metric: str, *labels: str) -> Any:
        # Looking a labelled child up costs several microseconds in the library; a dict costs a tenth of one.
        key = (metric, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._metrics[metric].labels(*map(clean_text, labels))
        return child

    def _turn(self, event: TurnEvent) -> None:
        turn = event.turn
        labels = (turn.model, turn.engine, turn.policy)
        outcome = "failed" if turn.error is not None else "aborted" if turn.aborted else "ok"
        self._child("turns", *labels, outcome).inc()
        for count in _PARTS:
            if tokens := getattr(turn, count.field):
                self._child("tokens", *labels, count.name).inc(tokens)
        for count in _DETAILS:
            if number := getattr(turn, count.field):
                self._child(count.field, *labels).inc(number)
        exemplar = {"trace_id": event.trace_id} if event.trace_id is not None else None
        for name, time in _HISTOGRAMS:
            seconds = getattr(turn, time.field)
            if seconds is not None and math.isfinite(seconds):  # one endless time would spoil the sum for good
                self._child(name, *labels).observe(seconds, exemplar)

    def _tool(self, span: Span) -> None:
        name = span.name
        if not math.isfinite(span.seconds):
            raise ValueError(f"the span {name!r} took {span.seconds} seconds")
        if name not in self._tools:
            if len(self._tools) >= TOOL_LIMIT:
                name = "other"
            else:
                self._tools.add(name)
        outcome = "failed" if span.error is not None else "aborted" if span.cancelled else "ok"
        self._child("tool", name, outcome).observe(span.seconds)


Watched = list[Callable[[], int]]
"""What counts the lost events of each recorder on a registry."""

_registered: dict[int, tuple[CollectorRegistry, dict[str, Any], Watched]] = {}
_lock = threading.Lock()


def _lost_events(watched: Watched) -> int:
    lost = 0
    for dropped in watched:
        with contextlib.suppress(Exception):  # a function of somebody's
            lost += dropped()
    return lost


def _metrics_of(registry: CollectorRegistry) -> tuple[dict[str, Any], Watched]:
    """The metrics of a registry, registered once."""
    with _lock:
        if id(registry) not in _registered:
            made: dict[str, Any] = {
                name: Histogram(
                    f"mixquant_{name}_seconds", time.help, _LABELS, registry=registry, buckets=_BOUNDS[time.bounds]
                )
                for name, time in _HISTOGRAMS
            }
            for count in _DETAILS:
                made[count.field] = Counter(f"mixquant_{count.field}", count.help, _LABELS, registry=registry)
            made["turns"] = Counter("mixquant_turns", "Turns.", (*_LABELS, "outcome"), registry=registry)
            made["tokens"] = Counter(
                "mixquant_tokens", "Tokens by what the engine did with them.", (*_LABELS, "kind"), registry=registry
            )
            made["tool"] = Histogram(
                "mixquant_tool_seconds",
                "Tool calls and retrievals.",
                ("tool", "outcome"),
                registry=registry,
                buckets=WHOLE,
            )
            made["lost"] = Gauge("mixquant_recorder_lost_events", "Events that the recorder lost.", registry=registry)
            _registered[id(registry)] = (registry, made, [])
        return _registered[id(registry)][1:]


class MetricsServer:
    """A running endpoint. ``address`` is its URL; :meth:`close` stops it."""

    def __init__(self, server: WSGIServer, host: str) -> None:
        self._server = server
        name = f"[{host.strip('[]')}]" if ":" in host else host
        self.address = f"http://{name}:{server.server_port}/metrics"
        self._thread = threading.Thread(
            target=server.serve_forever,
            args=(0.1,),  # closing waits that long
            name="mixquant-metrics",
            daemon=True,
        )
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


def serve_metrics(
    port: int = 9464, host: str = "127.0.0.1", *, token: str | None = None, registry: CollectorRegistry = REGISTRY
) -> MetricsServer:
    """Serve ``/metrics`` from a daemon thread.

    Args:
        port: TCP port; 0 picks a free one.
        host: address to listen on; other than loopback needs ``token``.
        token: asked for as ``Authorization: Bearer …`` (Prometheus: ``authorization: {credentials: …}``).

    Raises:
        ConfigError: another address than loopback without a token, a token that is none, or the port is taken.
    """
    if token is None and not is_loopback(host):
        raise ConfigError(f"host {host!r} would show the metrics to the network; keep 127.0.0.1, or give a token")
    if token is not None and not re.fullmatch(r"[!-~]([ -~]*[!-~])?", token):  # empty, it would let everybody in
        raise ConfigError("the token must be ASCII text without blanks around it, and not empty; give one, or None")

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        given = str(environ.get("HTTP_AUTHORIZATION", "")).removeprefix("Bearer ")
        if token is not None and not hmac.compare_digest(given.encode(), token.encode()):
            start("401 Unauthorized", [("Content-Type", "text/plain"), ("WWW-Authenticate", "Bearer")])
            return [b"a token is needed: Authorization: Bearer ...\n"]
        if environ.get("PATH_INFO") not in ("/metrics", "/"):
            start("404 Not Found", [("Content-Type", "text/plain")])
            return [b"metrics are at /metrics\n"]
        kind, body = _exposition(registry, str(environ.get("HTTP_ACCEPT", "")))
        start("200 OK", [("Content-Type", kind)])
        return [body]

    try:
        kind = _Server6 if ":" in host else _Server
        server = make_server(host.strip("[]"), port, answer, server_class=kind, handler_class=_Silent)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "ports are 0 to 65535"
        raise ConfigError(f"metrics cannot be served at {host}:{port} ({reason}); give another port") from error
    return MetricsServer(server, host)


def _exposition(registry: CollectorRegistry, accept: str) -> tuple[str, bytes]:
    """``(content type, text)``. OpenMetrics where it is asked for, because only that carries exemplars.

    prometheus-client's own application (0.26) would write ``vllm:…`` as ``vllm_…`` in OpenMetrics, unless the scraper
    asks for UTF-8 names; a colon is allowed in the names of metrics, so they are written as they are.
    """
    if "application/openmetrics-text" in accept:
        kind = "application/openmetrics-text; version=1.0.0; charset=utf-8"
        made = openmetrics.generate_latest(  # type: ignore[no-untyped-call] # the library's own gap
            registry, escaping=openmetrics.ALLOWUTF8, version="1.0.0"
        )
        return kind, bytes(made)
    return "text/plain; version=0.0.4; charset=utf-8", generate_latest(registry)


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each connection: one that says nothing holds up neither scrapes nor the end."""

    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 # the base class's name
        """No line per scrape."""
