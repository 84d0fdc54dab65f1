"""Debian's Prometheus scrapes our endpoint and answers every query of the docs and of the Grafana dashboard."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, Counter, Histogram
from telemetry_help import make_turn

from mixquant_agents.records import utc_now
from mixquant_agents.telemetry import QueueRecorder, Span, SpanKind
from mixquant_agents.telemetry.export.otel.spans import SpanSink
from mixquant_agents.telemetry.export.prometheus import PrometheusSink, serve_metrics

pytestmark = pytest.mark.prometheus

DOCS = Path(__file__).resolve().parents[3] / "docs" / "grafana"


def grafana_queries() -> list[str]:
    board = json.loads((DOCS / "mixquant-agents.json").read_text())
    return [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]


def doc_queries() -> list[str]:
    return re.findall(r"```promql\n(.*?)\n```", (DOCS / "README.md").read_text(), re.DOTALL)


def vllm_stand_in(registry: CollectorRegistry) -> Any:
    """vLLM's metrics by its own names and labels, as an in-process engine registers them."""
    labels = ("model_name", "engine")
    histograms = [
        Histogram(f"vllm:{name}", "As vLLM's.", labels, registry=registry).labels("model", "0")
        for name in (
            "time_to_first_token_seconds", "request_queue_time_seconds", "request_prefill_time_seconds",
            "request_decode_time_seconds",
        )
    ]  # fmt: skip
    counters = [
        Counter(f"vllm:prefix_cache_{name}", "As vLLM's.", labels, registry=registry).labels("model", "0")
        for name in ("queries", "hits")
    ]

    def one() -> None:
        for histogram in histograms:
            histogram.observe(0.05)
        for counter in counters:
            counter.inc(10)

    return one


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prometheus that has scraped some seconds of turns; its address."""
    binary = shutil.which("prometheus")
    assert binary, "these tests need Debian's prometheus: apt-get install prometheus"
    folder = tmp_path_factory.mktemp("prometheus")
    registry = CollectorRegistry()
    metrics = PrometheusSink(registry)
    recorder = QueueRecorder([SpanSink(SimpleSpanProcessor(InMemorySpanExporter())), metrics])
    metrics.watch(lambda: recorder.dropped)
    engine = vllm_stand_in(registry)
    server = serve_metrics(0, registry=registry)
    target = server.address.removeprefix("http://").removesuffix("/metrics")
    (folder / "prometheus.yml").write_text(
        "scrape_configs: [{job_name: mixquant, scrape_interval: 1s, static_configs: [{targets: ['%s']}]}]" % target  # noqa: UP031
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(  # noqa: S603 # found on the PATH
        [
            binary, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage", "--log.level=error",
        ]
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        deadline, scrapes = time.monotonic() + 60, 0
        while time.monotonic() < deadline and scrapes < 6:
            assert process.poll() is None
            for n in range(10):
                quantized = 150 if n % 2 else 0
                recorder.record(
                    make_turn(
                        policy="mixquant-fp8" if n % 2 else "exact", quantized_tokens=quantized,
                        exact_tokens=200 - quantized, error="x" if n == 3 else None, aborted=n == 5,
                    )
                )  # fmt: skip
                span = Span(kind=SpanKind.TOOL, name="search", span_id=f"s{n}", started_at=utc_now(), seconds=0.2)
                recorder.record_span(span)
                engine()
            time.sleep(1)
            try:
                scrapes = int(float(ask(url, "count_over_time(up[1m])")[0]["value"][1]))
            except (OSError, IndexError):
                scrapes = 0
        assert scrapes >= 6, "Prometheus did not scrape the endpoint"
        yield url
    finally:
        process.terminate()
        process.wait(20)
        recorder.close()
        server.close()


def ask(url: str, query: str) -> list[dict[str, Any]]:
    address = f"{url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.urlopen(address, timeout=10) as answer:  # noqa: S310 # our own address
        body = json.load(answer)
    assert body["status"] == "success"
    return list(body["data"]["result"])


def test_queries_to_try_exist() -> None:
    assert len(grafana_queries()) > 15
    assert len(doc_queries()) >= 6


@pytest.mark.parametrize("query", grafana_queries() + doc_queries())
def test_query_is_answered_with_a_number(prometheus: str, query: str) -> None:
    filled = query.replace("$__rate_interval", "1m").replace("$model", ".+").replace("$policy", ".+")
    assert "$" not in filled
    found = ask(prometheus, filled)
    values = [float(series["value"][1]) for series in found]
    assert values
    assert all(value == value and value >= 0 for value in values), values  # NaN is no answer


def test_query_answers_are_right(prometheus: str) -> None:
    cached = ask(prometheus, 'sum(mixquant_tokens_total{kind="cached"}) / sum(mixquant_tokens_total{kind!="decode"})')
    assert float(cached[0]["value"][1]) == pytest.approx(0.8)
    (p95,) = ask(prometheus, 'histogram_quantile(0.95, sum by (le) (mixquant_ttft_seconds_bucket{policy="exact"}))')
    assert 0.04 < float(p95["value"][1]) <= 0.06, "0.043 s lies in the bucket from 0.04 to 0.06"
    outcomes = {
        row["metric"]["outcome"]: float(row["value"][1])
        for row in ask(prometheus, "sum by (outcome) (mixquant_turns_total)")
    }
    assert outcomes["failed"] == outcomes["aborted"] == outcomes["ok"] / 8


def test_bucket_leads_to_the_trace_of_a_turn(prometheus: str) -> None:
    values = {"query": "mixquant_ttft_seconds_bucket", "start": time.time() - 300, "end": time.time() + 5}
    address = f"{prometheus}/api/v1/query_exemplars?{urllib.parse.urlencode(values)}"
    with urllib.request.urlopen(address, timeout=10) as answer:  # noqa: S310 # our own address
        found = json.load(answer)["data"]
    traces = [exemplar["labels"]["trace_id"] for series in found for exemplar in series["exemplars"]]
    assert traces
    assert all(re.fullmatch("[0-9a-f]{32}", trace) for trace in traces)
