"""``OpenAIEngine``: a remote ``vllm serve`` (or another OpenAI-compatible server) behind the same protocol.

The server renders, parses tool calls and reasoning, and counts; what it does not tell stays ``None`` in the record.
Closing a stream closes its connection, which makes vLLM abort the turn.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import os
import re
import ssl
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, ValidationError, field_validator

from mixquant_agents.config import PrecisionPolicy
from mixquant_agents.engine.base import (
    Delta,
    Engine,
    EngineInfo,
    EngineRequest,
    JsonObject,
    Message,
)
from mixquant_agents.engine.meter import TurnMeter
from mixquant_agents.engine.openai.address import without_login
from mixquant_agents.engine.openai.answer import Answer
from mixquant_agents.engine.openai.events import EventReader
from mixquant_agents.engine.openai.patience import Patience, Waiting, retry_wait
from mixquant_agents.engine.openai.request import Dialect, wire_body, wire_messages
from mixquant_agents.errors import (
    ConfigError,
    EngineClosedError,
    MissingDependencyError,
    MixQuantError,
    RemoteEngineError,
    RequestError,
)
from mixquant_agents.validation import config_error

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = ["OpenAIEngine"]

logger = logging.getLogger("mixquant_agents.engine")

_AFTER_FINISH_SECONDS = 5.0
"""How long the counts may take after the answer's end; then they are unknown."""
_CLOSE_SECONDS = 5.0
"""How long the closing of another loop's connections may take."""
_KEPT_SECONDS = 5.0
"""How long an idle connection is kept: as the ``openai`` package does."""
_BEGINNING_CHARACTERS = 200
"""How much of an unreadable answer a message tells."""
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PRINTABLE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
"""What an HTTP header may hold."""


SESSION_HEADERS = ("x-session-id", "X-Dynamo-Session-ID")
"""Headers by which vllm-router and Dynamo know a conversation."""

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]

_parents_connections: list[object] = []
"""Connections in a forked process that belong to its parent. They are never closed, nor collected as garbage: that
would take their sockets out of the parent's selector, which both processes share."""


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
    base_url: str
    api_key: Annotated[str, StringConstraints(strip_whitespace=True)] | None
    request_timeout: Seconds
    connect_timeout: Seconds
    first_token_timeout: Seconds | None
    silence_timeout: Seconds | None
    max_retries: Annotated[int, Field(ge=0)]
    max_connections: Annotated[int, Field(ge=1)]
    headers: dict[str, str] | None
    session_headers: tuple[str, ...]
    max_model_len: Annotated[int, Field(ge=1)] | None

    @field_validator("base_url")
    @classmethod
    def _address(cls, given: str) -> str:
        given = given.strip()
        shown = without_login(given).partition("?")[0]  # a login or a key in it is nobody's to read
        try:
            parts = urlsplit(given)
            readable = bool(parts.hostname) and parts.scheme in ("http", "https") and parts.port != 0
        except ValueError:  # a port that is no number, half an IPv6 address
            readable = False
        if not readable or re.search(r"\s", given):
            raise ConfigError(f"OpenAIEngine.base_url = {shown!r}: give an address such as http://127.0.0.1:8000/v1")
        path = parts.path.rstrip("/")
        if path.endswith("/chat/completions"):
            shorter = shown.rstrip("/").removesuffix("/chat/completions")
            raise ConfigError(f"OpenAIEngine.base_url = {shown!r}: give it without its end, {shorter}")
        return parts._replace(path=path, fragment="").geturl()

    @field_validator("session_headers")
    @classmethod
    def _header_names(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for name in given:
            if _HEADER_NAME.fullmatch(name) is None:
                raise ValueError(f"{name!r} is no HTTP header's name")
        return given

    @property
    def patience(self) -> Patience:
        """How long a turn waits."""
        first, silence = self.first_token_timeout, self.silence_timeout
        return Patience(self.connect_timeout, first or self.request_timeout, silence or self.request_timeout)

    @property
    def address(self) -> str:
        """``base_url`` as messages show it: without a password or a query."""
        return without_login(self.root)

    @property
    def root(self) -> str:
        """``base_url`` without its query."""
        return self.base_url.partition("?")[0]

    @property
    def query(self) -> dict[str, str]:
        """The address's query, which each request gets (Azure's ``api-version``)."""
        return dict(parse_qsl(urlsplit(self.base_url).query, keep_blank_values=True))

    @property
    def secrets(self) -> list[str]:
        """What no message may tell."""
        login = urlsplit(self.base_url)
        return [text for text in (self.api_key, login.password, login.query, *(self.headers or {}).values()) if text]


class OpenAIEngine(Engine):
    """A chat completions server as an :class:`~mixquant_agents.engine.base.Engine`.

    Args:
        model: the name under which the server serves it.
        base_url: up to and including ``/v1``.
        api_key: what the server asks for; a local vLLM asks for nothing.
        policy: the precision policy that the server was started with; only recorded.
        request_timeout: seconds without a sign of the server after which it counts as gone; the two time-outs below
            are as long where they are not given.
        connect_timeout: seconds for a connection.
        first_token_timeout: seconds from the request until the first token, with the queue and the prompt in them.
        silence_timeout: seconds between two signs of the server after it.
        max_retries: how often a turn is sent again that found no server, or a busy one, or whose connection broke
            before the first token. ``Retry-After`` is honoured up to 60 seconds; a longer one is an error. What the
            server has begun to answer is never sent again.
        max_connections: most turns at the server at once, per event loop; further ones wait for a place, without a
            time-out of their own.
        headers: further HTTP headers.
        session_headers: headers that tell a turn's thread to routers, which then send it where its prefix is cached;
            ``()`` for none.
        max_model_len: context window in tokens, for servers that do not report it.

    Redirects are not followed: neither prompt nor headers reach an address that was not given. A query of ``base_url``
    goes with each request (``?api-version=…``). Proxies and certificates are those of the environment.

    Raises:
        ConfigError: a setting is wrong.
        MissingDependencyError: the ``openai`` package is not installed.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str = "http://127.0.0.1:8000/v1",
        api_key: str | SecretStr | None = None,
        policy: PrecisionPolicy | str = "exact",
        request_timeout: float = 600.0,
        connect_timeout: float = 10.0,
        first_token_timeout: float | None = None,
        silence_timeout: float | None = None,
        max_retries: int = 2,
        max_connections: int = 1000,
        headers: Mapping[str, str] | None = None,
        session_headers: Sequence[str] = SESSION_HEADERS,
        max_model_len: int | None = None,
    ) -> None:
        try:
            import openai  # noqa: F401 - whether it is there shows now, not with the first turn
        except ImportError as error:
            raise MissingDependencyError(
                "OpenAIEngine needs the openai package; install mixquant-agents[openai]"
            ) from error
        api_key = api_key.get_secret_value() if isinstance(api_key, SecretStr) else api_key
        headers = dict(headers) if isinstance(headers, Mapping) else headers
        _check_secrets(api_key, headers)
        try:
            checked = _Settings(
                model=model,
                base_url=base_url,
                api_key=api_key,
                request_timeout=request_timeout,
                connect_timeout=connect_timeout,
                first_token_timeout=first_token_timeout,
                silence_timeout=silence_timeout,
                max_retries=max_retries,
                max_connections=max_connections,
                headers=headers,
                session_headers=tuple(session_headers),
                max_model_len=max_model_len,
            )
        except ValidationError as error:
            raise config_error("OpenAIEngine", error) from None
        self.model = checked.model
        self.base_url = checked.base_url
        self.policy = PrecisionPolicy.of(policy)
        self._settings = checked
        self._dialect = Dialect()
        self._clear()
        self._max_model_len = checked.max_model_len
        self._asked = False
        self._closed = False

    def __getstate__(self) -> dict[str, Any]:
        """Without connections, which belong to the loops of this process: a copy makes its own."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_clients", "_turn_slots", "_pid")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._clear()

    def _clear(self) -> None:
        """No connection of any loop, and as many places for turns in each as there may be connections."""
        self._pid = os.getpid()
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncOpenAI] = weakref.WeakKeyDictionary()
        self._turn_slots: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
            weakref.WeakKeyDictionary()
        )

    @property
    def info(self) -> EngineInfo:
        """What is known of the server: its window once it was asked."""
        return EngineInfo(
            engine="openai",
            model=self.model,
            policy=self.policy.name,
            max_model_len=self._max_model_len,
            base_url=self._settings.address,
            fingerprint=self.policy.fingerprint,
            reasoning=True,
        )

    async def start(self) -> None:
        """Ask the server for its window, once.

        Raises:
            RemoteEngineError: the server cannot be reached.
        """
        if not self._asked:
            limit = await self._ask_limit()
            self._max_model_len = self._max_model_len or limit
            self._asked = True

    async def count_tokens(self, messages: Sequence[Message], tools: Sequence[JsonObject] = ()) -> int:
        """Tokens of the rendered prompt, by vLLM's ``/tokenize``.

        Raises:
            RequestError: the server has no such endpoint.
        """
        import openai

        body = {"model": self.model, "messages": wire_messages(messages, self._dialect)}
        root = self._settings.root.removesuffix("/v1")
        try:
            answer = await self._asking().post(
                f"{root}/tokenize", cast_to=object, body=body | ({"tools": list(tools)} if tools else {})
            )
        except openai.NotFoundError:
            answer = None
        except Exception as error:
            raise self._translated(error, EngineRequest(request_id="", messages=messages)) from None
        count = answer.get("count") if isinstance(answer, dict) else None
        if not isinstance(count, int):  # llama.cpp's endpoint of this name takes texts, not messages
            raise RequestError(f"{self._settings.address} cannot count tokens: it has no /tokenize, as vLLM has")
        return count

    async def aclose(self) -> None:
        """Close the connections. Running turns end with an error. Idempotent."""
        self._closed = True
        self._leave_parents_connections()
        here = asyncio.get_running_loop()
        for loop, client in list(self._clients.items()):
            if loop is here:
                await client.close()
            elif loop.is_running():
                closing = asyncio.run_coroutine_threadsafe(client.close(), loop)
                with suppress(TimeoutError):  # its loop is blocked, or has ended in this moment
                    await asyncio.wait_for(asyncio.wrap_future(closing), _CLOSE_SECONDS)
        self._clients.clear()

    async def stream(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        """Run one turn on the server.

        An answer whose end the server has sent is whole, whatever becomes of its counts and of the connection. Where
        nothing of it was given out, and the reason may pass, the turn is sent again.

        Raises:
            RequestError: the server refused the request, or it holds what cannot be sent (token ids).
            ModelNotFoundError: the server does not serve this model.
            RemoteEngineError: the server is gone, or failed.
        """
        meter = TurnMeter()
        most_calls = 0 if request.tool_choice == "none" else None if request.parallel_tool_calls else 1
        for tries in itertools.count(1):
            answer, reader = Answer(most_calls), EventReader()
            failure: MixQuantError | None = None
            async with self._turn_slot():
                waiting = Waiting(self._settings.patience, self._settings.address)
                try:
                    async with self._opened(request, waiting) as response:
                        events = _events(response, reader, waiting)
                        while (event := await _next(events, answer)) is not None:
                            delta = answer.take(event.value)
                            if delta is not None:
                                waiting.begun = True
                                meter.token()
                                yield delta
                            if answer.done or answer.failure is not None:
                                break
                except Exception as error:
                    if not answer.finished:
                        failure = self._translated(error, request, begun=waiting.begun)
            if answer.reasoning_field is not None:
                self._dialect.reasoning_field = answer.reasoning_field
            if failure is None and not answer.complete:
                failure = self._incomplete(answer, reader, request, begun=waiting.begun)
            if failure is None:
                break
            pause = self._pause(failure, tries, request)
            if pause is None:  # outside of the handler: an error's context must not tell what its text does not
                raise failure
            logger.warning(
                "%s; sent again in %.1f seconds (%d of %d)", failure, pause, tries, self._settings.max_retries
            )
            await asyncio.sleep(pause)
        if answer.unreadable is not None:
            logger.warning(
                "%s sent what is no part of a chat completion, and the answer is without it: %.200s",
                self._settings.address, self._struck(request.messages)(answer.unreadable),
            )  # fmt: skip
        yield answer.end(meter)

    def _pause(self, failure: MixQuantError, tries: int, request: EngineRequest) -> float | None:
        """Seconds until a turn that failed ``tries`` times is sent again; ``None`` where it is not."""
        if tries > self._settings.max_retries or self._closed or not isinstance(failure, RemoteEngineError):
            return None
        if (request.kv_transfer or {}).get("do_remote_prefill"):
            return None  # the KV that it names is freed by the first fetch, and may be another turn's by now
        return retry_wait(failure, tries)

    @asynccontextmanager
    async def _opened(self, request: EngineRequest, waiting: Waiting) -> AsyncIterator[Any]:
        """The server's answer to ``request``. What a strict server refuses is left out, where it may be."""
        import openai

        from mixquant_agents.engine.openai.errors import server_words

        while True:
            body = wire_body(request, self.model, self._dialect, self._settings.session_headers)
            opening = self._client().chat.completions.with_streaming_response.create(**body)
            try:
                async with waiting.sign():
                    response = await opening.__aenter__()
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if self._dialect.learn(f"{server_words(error.body)} {error.message}", request):
                    continue
                raise
            try:
                yield response
            finally:
                await opening.__aexit__(None, None, None)
            return

    def _incomplete(self, answer: Answer, reader: EventReader, request: EngineRequest, *, begun: bool) -> MixQuantError:
        """Why the answer is none, though the connection held."""
        from mixquant_agents.engine.openai.errors import server_error

        url, struck = self._settings.address, self._struck(request.messages)
        if answer.failure is not None:
            return server_error(
                answer.failure, url=url, struck=struck, max_tokens=request.sampling.max_tokens, begun=begun
            )
        text = struck(reader.beginning.decode("utf-8", "replace"))[:_BEGINNING_CHARACTERS]
        readable = answer.unreadable in (None, reader.torn) and not answer.lost_content
        if answer.streamed or not text or (readable and (answer.done or reader.has_begun)):
            what = "the answer in the middle" if answer.streamed else "its answer before it began"
            return RemoteEngineError(f"{url} ended {what}, without a finish reason", retryable=not begun)
        if text.startswith("<"):
            return RemoteEngineError(
                f"{url} answers, but not as a chat completions server: with a page that begins {text!r}; correct "
                "base_url"
            )
        return RemoteEngineError(
            f"OpenAIEngine cannot read the answer of {url}: it holds no text, and begins {text!r}; if this is a chat "
            "completion, please report it as a fault of mixquant-agents"
        )

    def _client(self) -> AsyncOpenAI:
        """The client of the running event loop: its connections belong to one loop."""
        import openai

        if self._closed:
            raise EngineClosedError("this engine was closed; make a new one")
        self._leave_parents_connections()
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            settings = self._settings
            client = openai.AsyncOpenAI(
                base_url=settings.root,
                default_query=settings.query,
                api_key=settings.api_key or "none",
                # Time-outs of turns are ours: theirs know no first token.
                timeout=openai.Timeout(None, connect=settings.connect_timeout),
                max_retries=0,  # likewise
                default_headers=settings.headers,
                http_client=_http_client(settings.max_connections),
            )
            client.organization = client.project = None  # of the environment, and nobody's but OpenAI's
            self._clients[loop] = client
        return client

    def _leave_parents_connections(self) -> None:
        """In a forked process: its copy of the parent's loops never runs, and the sockets are the parent's."""
        if self._pid != os.getpid():
            _parents_connections.extend((loop, client) for loop, client in self._clients.items())
            self._clear()

    def _turn_slot(self) -> asyncio.Semaphore:
        """What a turn holds while it is at the server. Who waits for it was not sent yet: no time-out runs."""
        self._leave_parents_connections()
        return self._turn_slots.setdefault(
            asyncio.get_running_loop(), asyncio.Semaphore(self._settings.max_connections)
        )

    def _asking(self) -> AsyncOpenAI:
        """The client for small questions, which the package itself sends again."""
        import openai

        settings = self._settings
        timeout = openai.Timeout(settings.request_timeout, connect=settings.connect_timeout)
        return self._client().with_options(max_retries=settings.max_retries, timeout=timeout)

    async def _ask_limit(self) -> int | None:
        """The context window, which many servers tell in their list of models; ``None`` where this one does not.

        Raises:
            RemoteEngineError: there is no server, or it answers with a page.
        """
        import openai

        try:
            async with asyncio.timeout(self._settings.connect_timeout) as clock:
                listed = await self._asking().get("/models", cast_to=object)
        except TimeoutError:
            if not clock.expired():
                raise
            return None  # busy, or a gateway that knows no such list: the first turn will tell
        except openai.APIStatusError:
            return None  # a server without the list, or a key without the right: likewise
        except openai.APIConnectionError as error:
            raise self._translated(error) from None
        except ValueError:  # no JSON, though it says so
            return None
        except Exception as error:
            raise self._translated(error) from None
        if isinstance(listed, str) and listed.lstrip().startswith("<"):
            text = self._struck()(listed)[:_BEGINNING_CHARACTERS]
            raise RemoteEngineError(
                f"{self._settings.address} answers, but not as a chat completions server: its list of models begins "
                f"{text!r}; correct base_url"
            )
        if not isinstance(listed, dict | list):
            return None
        entries = listed if isinstance(listed, list) else listed.get("data")
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict) and entry.get("id") == self.model:
                limits = (entry.get(name) for name in ("max_model_len", "context_length", "context_window"))
                return next((n for n in limits if isinstance(n, int) and not isinstance(n, bool) and n > 0), None)
        return None

    def _struck(self, messages: Sequence[Message] = ()) -> Any:
        from mixquant_agents.engine.openai.errors import Struck, sent_texts

        return Struck(self._settings.secrets, sent_texts(messages))

    def _translated(
        self, error: Exception, request: EngineRequest | None = None, *, begun: bool = False
    ) -> MixQuantError:
        """Our error for ``error``, which stays its cause unless that shows what no message may."""
        from mixquant_agents.engine.openai.errors import translated

        if self._closed and not isinstance(error, EngineClosedError):
            mixquant_error: MixQuantError = EngineClosedError("the engine was closed during this turn; make a new one")
        else:
            struck = self._struck(request.messages if request is not None else ())
            mixquant_error = translated(
                error,
                model=self.model,
                url=self._settings.address,
                struck=struck,
                max_tokens=request.sampling.max_tokens if request is not None else None,
                begun=begun,
            )
            if mixquant_error is error or struck.holds(f"{error} {getattr(error, 'body', '')}"):
                return mixquant_error
        mixquant_error.__cause__ = error
        return mixquant_error


def _http_client(connections: int) -> Any:
    """A client of the package's own kind, by the environment's proxies and certificates.

    Raises:
        ConfigError: the environment names a proxy or certificates that cannot be used.
    """
    import openai

    try:
        return openai.DefaultAsyncHttpxClient(
            follow_redirects=False,
            verify=_certificates(),
            limits=type(openai.DEFAULT_CONNECTION_LIMITS)(
                max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=_KEPT_SECONDS
            ),
        )
    except (ImportError, OSError, ValueError) as error:
        cause = re.sub(r"//[^/@\s]*@", "//", str(error))
        raise ConfigError(
            f"a proxy or certificate of the environment cannot be used ({cause}); correct HTTP_PROXY, HTTPS_PROXY, "
            "ALL_PROXY, NO_PROXY, SSL_CERT_FILE or SSL_CERT_DIR"
        ) from None


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Of all clients: reading them takes 25 ms, and a context may be shared."""
    import httpx

    return httpx.create_ssl_context()


def _check_secrets(api_key: object, headers: object) -> None:
    """Refuse what no HTTP header can hold, without telling it."""
    if isinstance(api_key, str) and _PRINTABLE.fullmatch(api_key.strip()) is None:
        raise ConfigError("OpenAIEngine.api_key: a key is one line of letters, digits and signs")
    for name, value in headers.items() if isinstance(headers, dict) else ():
        texts = isinstance(name, str) and isinstance(value, str)  # else the settings refuse them
        if texts and (_HEADER_NAME.fullmatch(name) is None or _PRINTABLE.fullmatch(value) is None):
            raise ConfigError(f"OpenAIEngine.headers[{name!r}] is no HTTP header: give one line of plain letters")


class _Event:
    """One event of a response; wrapped, because an event may be ``null``."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


async def _events(response: Any, reader: EventReader, waiting: Waiting) -> AsyncGenerator[_Event, None]:
    """The events of a response."""
    blocks = aiter(response.iter_bytes())
    while (block := await _block(blocks, waiting)) is not None:
        for event in reader.feed(block):
            yield _Event(event)
    for event in reader.finish():
        yield _Event(event)


async def _block(blocks: AsyncIterator[bytes], waiting: Waiting) -> bytes | None:
    """The next bytes; ``None`` at the end."""
    async with waiting.sign():
        return await anext(blocks, None)


async def _next(events: AsyncGenerator[_Event, None], answer: Answer) -> _Event | None:
    """The next event; ``None`` at the end. When the answer is finished, only its counts are waited for, and briefly."""
    try:
        if not answer.finished:
            return await anext(events)
        async with asyncio.timeout(_AFTER_FINISH_SECONDS):
            return await anext(events)
    except StopAsyncIteration:
        return None
