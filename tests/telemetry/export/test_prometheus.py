"""Metrics without Prometheus: what is counted, what the endpoint answers and to whom."""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry
from telemetry_help import at, make_turn

from mixquant_agents.errors import ConfigError
from mixquant_agents.telemetry import QueueRecorder, Span, SpanKind
from mixquant_agents.telemetry.export.prometheus import PrometheusSink, serve_metrics


def test_unknown_values_are_not_counted_as_zero() -> None:
    registry = CollectorRegistry()
    sink = PrometheusSink(registry)
    recorder = QueueRecorder([sink])
    recorder.record(make_turn())
    recorder.record(
        make_turn(
            queue_seconds=None, prefill_seconds=None, delivery_seconds=None, quantized_tokens=None, exact_tokens=None
        )
    )
    recorder.close()
    labels = {"model": "model", "engine": "scripted", "policy": "exact"}
    assert registry.get_sample_value("mixquant_ttft_seconds_count", labels) == 2
    assert registry.get_sample_value("mixquant_prefill_seconds_count", labels) == 1
    assert registry.get_sample_value("mixquant_turns_total", {**labels, "outcome": "ok"}) == 2
    assert registry.get_sample_value("mixquant_tokens_total", {**labels, "kind": "exact"}) == 200
    assert registry.get_sample_value("mixquant_tokens_total", {**labels, "kind": "quantized"}) is None


def test_sinks_share_one_registry() -> None:
    registry = CollectorRegistry()
    for _ in range(2):
        recorder = QueueRecorder([PrometheusSink(registry)])
        recorder.record(make_turn())
        recorder.close()
    labels = {"model": "model", "engine": "scripted", "policy": "exact", "outcome": "ok"}
    assert registry.get_sample_value("mixquant_turns_total", labels) == 2


def test_tool_names_cannot_make_endless_series() -> None:
    registry = CollectorRegistry()
    recorder = QueueRecorder([PrometheusSink(registry)])
    for n in range(500):
        recorder.record_span(Span(kind=SpanKind.TOOL, name=f"t{n}", span_id="x", started_at=at(0), seconds=0.1))
    recorder.close()
    assert registry.get_sample_value("mixquant_tool_seconds_count", {"tool": "other", "outcome": "ok"}) == 300


def fetch(url: str, token: str | None = None) -> tuple[int, str]:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310 # our own address
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_endpoint_and_its_token() -> None:
    registry = CollectorRegistry()
    PrometheusSink(registry).watch(lambda: 7)
    server = serve_metrics(0, registry=registry, token="a long enough secret")  # noqa: S106 # a test's
    try:
        assert fetch(server.address)[0] == 401
        assert fetch(server.address, "wrong")[0] == 401
        status, text = fetch(server.address, "a long enough secret")
        assert status == 200
        assert "mixquant_recorder_lost_events 7.0" in text
        assert fetch(server.address + "/other", "a long enough secret")[0] == 404
        port = int(server.address.split(":")[2].split("/")[0])
        with pytest.raises(ConfigError, match="give another port"):
            serve_metrics(port, registry=registry)
    finally:
        server.close()
    with pytest.raises(ConfigError, match="give a token"):
        serve_metrics(0, "0.0.0.0", registry=registry)  # noqa: S104 # that is what is refused


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]"])
def test_connection_that_says_nothing_holds_up_nobody(host: str) -> None:
    try:
        socket.create_server((host.strip("[]"), 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError:
        pytest.skip("no such address here")
    server = serve_metrics(0, host, registry=CollectorRegistry())
    with socket.create_connection((host.strip("[]"), int(server.address.rpartition(":")[2].split("/")[0]))):
        assert fetch(server.address)[0] == 200
        ending = threading.Thread(target=server.close, daemon=True)
        ending.start()
        ending.join(5)
    assert not ending.is_alive()


@pytest.mark.parametrize("token", ["", " ", "secret\n", "ключ"])
def test_token_that_is_none_is_refused(token: str) -> None:
    """An empty one, as of a variable that is not set, would open the metrics to the whole network."""
    with pytest.raises(ConfigError, match="the token must be ASCII text"):
        serve_metrics(0, "0.0.0.0", token=token, registry=CollectorRegistry())  # noqa: S104 # refused


@pytest.mark.parametrize("port", [-1, 99_999])
def test_port_that_is_none_is_refused(port: int) -> None:
    with pytest.raises(ConfigError, match="ports are 0 to 65535"):
        serve_metrics(port, registry=CollectorRegistry())


def test_lost_events_of_several_recorders_are_added_up() -> None:
    registry = CollectorRegistry()
    PrometheusSink(registry).watch(lambda: 3)
    sink = PrometheusSink(registry)
    sink.watch(lambda: 1 // 0)
    sink.watch(lambda: 4)
    assert registry.get_sample_value("mixquant_recorder_lost_events") == 7
