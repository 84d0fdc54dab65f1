"""Each fault on the way to a server, put there by a proxy, has the outcome that ``docs/engines.md`` names."""

import asyncio
import datetime
import pickle
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fault_proxy import Fault, FaultProxy, status
from openai_double import Server, piece, usage

from mixquant_agents import MixQuantChatModel, OpenAIEngine
from mixquant_agents.engine.base import Delta, EngineRequest
from mixquant_agents.engine.openai import patience
from mixquant_agents.errors import ConfigError, ModelNotFoundError, RemoteEngineError

METRICS = {"queue_time_ms": 0.0, "time_to_first_token_ms": 0.0, "generation_time_ms": 0.0, "mean_itl_ms": 0.0}


def ask(**fields: Any) -> EngineRequest:
    return EngineRequest(request_id="r", messages=[{"role": "user", "content": "hi"}], **fields)


async def read(engine: OpenAIEngine) -> list[Delta]:
    return [delta async for delta in engine.stream(ask())]


def text(deltas: list[Delta]) -> str:
    return "".join(delta.content for delta in deltas)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.02)


@pytest.fixture
async def proxy(server: Server) -> AsyncIterator[FaultProxy]:
    server.chunks = [
        piece(role="assistant", content=""),
        piece(content="Hel"),
        piece(content="lo"),
        piece(finish="stop"),
        usage(20, 3, prompt_tokens_details={"cached_tokens": 16}) | {"metrics": METRICS},
    ]
    async with FaultProxy(urlsplit(server.url).port or 0) as made:
        yield made


@pytest.fixture
async def engine(proxy: FaultProxy) -> AsyncIterator[OpenAIEngine]:
    made = OpenAIEngine("m", base_url=proxy.url)
    yield made
    await made.aclose()


@pytest.fixture
async def impatient(proxy: FaultProxy) -> AsyncIterator[OpenAIEngine]:
    """It gives up a first token alone, and is connected: the client's first turn takes longer on a busy machine."""
    made = OpenAIEngine("m", base_url=proxy.url, first_token_timeout=5)
    await read(made)
    made._settings = made._settings.model_copy(update={"first_token_timeout": 0.3})
    proxy.exchanges = 0
    yield made
    await made.aclose()


async def failure(engine: OpenAIEngine) -> tuple[RemoteEngineError, list[Delta]]:
    """The error of a turn, and what came before it."""
    got: list[Delta] = []

    async def turn() -> None:
        async for delta in engine.stream(ask()):
            got.append(delta)  # noqa: PERF401 - what came before the error is wanted

    with pytest.raises(RemoteEngineError) as caught:
        await turn()
    return caught.value, got


async def test_turn_without_a_fault_has_the_servers_times(engine: OpenAIEngine, proxy: FaultProxy) -> None:
    *_, last = deltas = await read(engine)
    assert (text(deltas), last.times.timing_source, proxy.exchanges) == ("Hello", "engine", 1)


async def test_restart_is_waited_for_where_nothing_was_answered(engine: OpenAIEngine, proxy: FaultProxy) -> None:
    await read(engine)
    await proxy.stop()

    async def come_back() -> None:
        await asyncio.sleep(0.03)
        await proxy.start()

    back = asyncio.create_task(come_back())
    assert text(await read(engine)) == "Hello"
    await back


async def test_server_that_stays_away_is_told(engine: OpenAIEngine, proxy: FaultProxy) -> None:
    await proxy.stop()
    error, _ = await failure(engine)
    assert "cannot be reached" in str(error)
    assert error.retryable


async def test_slow_head_is_given_up_after_the_first_tokens_time(impatient: OpenAIEngine, proxy: FaultProxy) -> None:
    proxy.faults = [Fault(slow_head=5)]
    error, _ = await failure(impatient)
    assert "no token came within 0.3 seconds" in str(error)
    assert (error.status, error.retryable, proxy.exchanges) == (408, False, 1), "a busy server gets no second request"


async def test_head_without_a_token_is_given_up_likewise(impatient: OpenAIEngine, proxy: FaultProxy) -> None:
    proxy.faults = [Fault(after=b"\r\n\r\n")]
    error, _ = await failure(impatient)
    assert "no token came within 0.3 seconds" in str(error)


async def test_silence_after_the_first_token_is_an_error(proxy: FaultProxy) -> None:
    engine = OpenAIEngine("m", base_url=proxy.url, silence_timeout=0.5)
    proxy.faults = [Fault(after=b'"Hel"}, "finish_reason": null, "logprobs": null}]}\n\n')]
    error, got = await failure(engine)
    assert "fell silent for 0.5 seconds in the middle of the answer" in str(error)
    assert (text(got), error.retryable, proxy.exchanges) == ("Hel", False, 1)
    await engine.aclose()


async def test_stream_dropped_in_the_answer_is_never_sent_again(engine: OpenAIEngine, proxy: FaultProxy) -> None:
    proxy.faults = [Fault(after=b'"Hel"}, "finish_reason": null, "logprobs": null}]}\n\n', cut=True)]
    error, got = await failure(engine)
    assert (text(got), error.retryable, proxy.exchanges) == ("Hel", False, 1)


async def test_answer_that_fails_behind_log_probabilities_is_never_sent_again(
    server: Server, engine: OpenAIEngine, proxy: FaultProxy
) -> None:
    """A special token has no text, but its log probability was given out."""
    logprobs = {"content": [{"token": "<s>", "logprob": -0.5, "top_logprobs": []}]}
    server.chunks = [piece(content="", logprobs=logprobs), {"error": {"code": 503, "message": "busy"}}]
    error, got = await failure(engine)
    assert (len(got), error.retryable, proxy.exchanges) == (1, False, 1)


async def test_stream_dropped_before_the_answer_is_sent_again(engine: OpenAIEngine, proxy: FaultProxy) -> None:
    proxy.faults = [Fault(after=b"\r\n\r\n", cut=True), Fault(after=b"HTTP/1.1 2", cut=True)]
    assert text(await read(engine)) == "Hello"
    assert proxy.exchanges == 3


async def test_malformed_event_is_read_over(engine: OpenAIEngine, proxy: FaultProxy) -> None:
    proxy.faults = [Fault(replace={b'data: {"id": "c"': b'data: {"id": "c" oh\n\ndata: {"id": "c"'})]
    assert text(await read(engine)) == "Hello"
    assert proxy.exchanges == 1


@pytest.mark.parametrize("code", [429, 503, 520, 529])
async def test_busy_server_is_asked_again_when_it_says(engine: OpenAIEngine, proxy: FaultProxy, code: int) -> None:
    proxy.faults = [status(code, Retry_After="0.05")]
    started = asyncio.get_running_loop().time()
    assert text(await read(engine)) == "Hello"
    assert asyncio.get_running_loop().time() - started > 0.05
    assert proxy.exchanges == 2


@pytest.mark.parametrize("code", [409, 501])
async def test_trouble_that_lasts_is_told_at_once(engine: OpenAIEngine, proxy: FaultProxy, code: int) -> None:
    proxy.faults = [status(code)]
    error, _ = await failure(engine)
    assert (error.status, error.retryable, proxy.exchanges) == (code, False, 1)


async def test_server_that_is_busy_for_long_is_told(engine: OpenAIEngine, proxy: FaultProxy) -> None:
    proxy.faults = [status(503, Retry_After="3600")]
    error, _ = await failure(engine)
    assert (error.status, error.retry_after, error.retryable, proxy.exchanges) == (503, 3600, True, 1)
    assert pickle.loads(pickle.dumps(error)).retry_after == 3600  # noqa: S301 - our own


async def test_server_that_stays_busy_is_left_after_the_retries(engine: OpenAIEngine, proxy: FaultProxy) -> None:
    proxy.faults = [status(429)] * 5
    error, _ = await failure(engine)
    assert (error.status, proxy.exchanges) == (429, 3)


async def test_date_of_a_skewed_clock_is_measured_by_that_clock(engine: OpenAIEngine, proxy: FaultProxy) -> None:
    there = "Tue, 01 Jan 2030 00:00:00 GMT"
    proxy.faults = [status(429, Retry_After=there, Date=there)]
    assert text(await read(engine)) == "Hello"
    proxy.faults = [status(429, Retry_After="Tue, 01 Jan 2030 02:00:00 GMT", Date=there)]
    assert (await failure(engine))[0].retry_after == 7200


async def test_key_that_is_refused_is_told_at_once(engine: OpenAIEngine, proxy: FaultProxy) -> None:
    proxy.faults = [status(401)]
    error, _ = await failure(engine)
    assert "api_key" in str(error)
    assert (error.status, error.retryable, proxy.exchanges) == (401, False, 1)


async def test_redirect_is_told_and_not_followed(engine: OpenAIEngine, proxy: FaultProxy) -> None:
    proxy.faults = [status(307, Location="http://127.0.0.1:9/v1/chat/completions")]
    error, _ = await failure(engine)
    assert "redirects to 'http://127.0.0.1:9/v1/chat/completions'" in str(error)
    assert (error.retryable, proxy.exchanges) == (False, 1)


async def test_certificate_nobody_signed_is_told_at_once(server: Server, tmp_path: Path) -> None:
    async with FaultProxy(urlsplit(server.url).port or 0, tls=self_signed(tmp_path)) as proxy:
        engine = OpenAIEngine("m", base_url=proxy.url)
        error, _ = await failure(engine)
        await engine.aclose()
    assert "certificate that is not trusted" in str(error)
    assert not error.retryable


@pytest.mark.parametrize(
    ("said", "instead", "cached"),
    [
        (b'"cached_tokens": 16', b'"cached_tokens": 1600', None),
        (b'"prompt_tokens": 20', b'"prompt_tokens": -20', 16),
        (b'"completion_tokens": 3', b'"completion_tokens": "three"', 16),
    ],
)
async def test_wrong_usage_is_unknown(
    engine: OpenAIEngine, proxy: FaultProxy, said: bytes, instead: bytes, cached: int | None
) -> None:
    proxy.faults = [Fault(replace={said: instead})]
    *_, last = deltas = await read(engine)
    assert text(deltas) == "Hello"
    assert last.counts.cached_tokens == cached
    assert None in (last.counts.prompt_tokens, last.counts.cached_tokens, last.counts.decode_tokens)


@pytest.mark.parametrize(
    "metrics",
    [
        {**METRICS, "queue_time_ms": 3_600_000.0},
        {**METRICS, "time_to_first_token_ms": -5.0},
        {**METRICS, "generation_time_ms": 9e9},
        {**METRICS, "queue_time_ms": "soon"},
        {"queue_time_ms": None},
    ],
    ids=str,
)
async def test_times_of_a_skewed_clock_are_dropped(server: Server, engine: OpenAIEngine, metrics: Any) -> None:
    server.chunks[-1]["metrics"] = metrics
    last = (await read(engine))[-1]
    assert (last.times.timing_source, last.times.queue_seconds) == ("client", None)
    assert last.times.ttft_seconds <= last.times.total_seconds


async def test_time_outs_are_checked() -> None:
    with pytest.raises(ConfigError, match="first_token_timeout"):
        OpenAIEngine("m", first_token_timeout=0)
    with pytest.raises(ConfigError, match="session_headers"):
        OpenAIEngine("m", session_headers=("a b",))


async def test_connections_are_bounded_and_turns_wait_for_one(server: Server, proxy: FaultProxy) -> None:
    engine = OpenAIEngine("m", base_url=proxy.url, max_connections=2)
    server.stall = 0.05
    answers = await asyncio.gather(*(read(engine) for _ in range(8)))
    await engine.aclose()
    assert {text(deltas) for deltas in answers} == {"Hello"}
    assert (proxy.exchanges, proxy.most_open) == (8, 2)


async def test_waiting_for_a_connection_is_no_waiting_for_a_token(server: Server, proxy: FaultProxy) -> None:
    engine = OpenAIEngine("m", base_url=proxy.url, max_connections=1, first_token_timeout=5)
    await read(engine)
    engine._settings = engine._settings.model_copy(update={"first_token_timeout": 0.5})
    first = engine.stream(EngineRequest(request_id="first", messages=[{"role": "user", "content": "hi"}]))
    await anext(first)
    second = asyncio.create_task(read(engine))
    await asyncio.sleep(0.6)
    assert not second.done()
    await first.aclose()
    assert text(await second) == "Hello"
    await engine.aclose()


async def test_thread_and_priority_reach_server_and_router(server: Server, engine: OpenAIEngine) -> None:
    model = MixQuantChatModel(engine=engine).bind(priority=3)
    for thread in ("thread-1", "ünsäglich"):
        await model.ainvoke("hi", config={"configurable": {"thread_id": thread}})
    await model.ainvoke("hi")
    first, second, third = server.headers
    assert first["x-session-id"] == first["X-Dynamo-Session-ID"] == "thread-1"
    assert len(second["x-session-id"]) == 64, "what no header holds goes by its digest"
    assert "x-session-id" not in third
    assert server.bodies[0]["priority"] == 3


async def test_rows_of_the_servers_plugin_are_counted(server: Server, engine: OpenAIEngine) -> None:
    rows = {"mixquant_quantized_rows": 3, "mixquant_exact_rows": 1, "mixquant_recomputed_rows": 0}
    server.chunks[-1]["metrics"] = METRICS | rows
    counts = (await read(engine))[-1].counts
    assert (counts.quantized_tokens, counts.exact_tokens, counts.cached_tokens) == (3, 1, 16)
    server.chunks[-1]["metrics"] = METRICS | rows | {"mixquant_exact_rows": 7}
    counts = (await read(engine))[-1].counts
    assert (counts.quantized_tokens, counts.cached_tokens) == (None, 16), "rows that contradict the usage are unknown"


def self_signed(folder: Path) -> ssl.SSLContext:
    """TLS by a certificate that nobody trusts."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    signed = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + TWO_DAYS)
    with suppress(FileExistsError):
        folder.mkdir()
    pem = signed.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(private + pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return context


TWO_DAYS = datetime.timedelta(days=2)


async def test_server_restarted_with_another_model_is_told(
    server: Server, engine: OpenAIEngine, proxy: FaultProxy
) -> None:
    """The turn is sent again after the first one broke off, and finds that its model is gone."""
    no_model = status(404, "The model m does not exist.")
    proxy.faults = [Fault(after=b'"role": "assistant"', cut=True), no_model]
    with pytest.raises(ModelNotFoundError, match="does not serve model 'm'"):
        await read(engine)
    assert proxy.exchanges == 2


async def test_answer_in_one_piece_from_a_buffering_proxy(
    server: Server, engine: OpenAIEngine, proxy: FaultProxy
) -> None:
    """All of it comes at once: text and counts are the server's, and what the proxy held back is delivery."""
    server.stall = 0.2
    server.chunks[-1]["metrics"] = METRICS | {"generation_time_ms": 150.0, "mean_itl_ms": 75.0}
    deltas = await read(engine)
    assert text(deltas) == "Hello"
    last = deltas[-1]
    assert last.counts is not None
    assert (last.counts.prompt_tokens, last.counts.cached_tokens, last.counts.decode_tokens) == (20, 16, 3)
    assert last.times is not None
    assert last.times.delivery_seconds is not None
    assert last.times.delivery_seconds >= 0.15
    assert last.times.decode_seconds == pytest.approx(0.15)


@pytest.mark.parametrize(
    "after",
    [b'"role": "assistant", "content": ""}', b"data: ", b": waiting in the queue\n\n"],
    ids=["event", "line", "note"],
)
async def test_stream_that_a_gateway_ends_before_the_answer_is_sent_again(
    server: Server, engine: OpenAIEngine, proxy: FaultProxy, after: bytes
) -> None:
    """A server dies behind its first event, which holds a role alone; its router ends the stream as if whole."""
    server.chunks = [b": waiting in the queue\n\n", *server.chunks]
    proxy.faults = [Fault(after=after, closed=True)]
    assert text(await read(engine)) == "Hello"
    assert proxy.exchanges == 2
