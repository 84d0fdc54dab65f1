"""``OpenAIEngine``: a remote ``vllm serve`` (or another OpenAI-compatible server) behind the same protocol.

The server renders, parses tool calls and reasoning, and counts; what it does not tell stays ``None`` in the record.
Closing a stream closes its connection, which makes vLLM abort the turn.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

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
from mixquant_agents.engine.openai.answer import Answer
from mixquant_agents.engine.openai.events import EventReader, Unreadable
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
_BEGINNING_CHARACTERS = 200
"""How much of an unreadable answer a message tells."""
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PRINTABLE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
"""What an HTTP header may hold."""


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
    base_url: str
    api_key: Annotated[str, StringConstraints(strip_whitespace=True)] | None
    request_timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    max_retries: Annotated[int, Field(ge=0)]
    headers: dict[str, str] | None
    max_model_len: Annotated[int, Field(ge=1)] | None

    @field_validator("base_url")
    @classmethod
    def _address(cls, given: str) -> str:
        if re.fullmatch(r"https?://[^\s/]\S*", given) is None:
            raise ValueError("give an address such as http://127.0.0.1:8000/v1")
        return given.rstrip("/")

    @property
    def address(self) -> str:
        """``base_url`` as messages tell it: without a password or a query."""
        return re.sub(r"//[^/@]*@", "//", self.base_url).partition("?")[0]

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
        request_timeout: seconds without a sign of the server after which it counts as gone.
        max_retries: how often a request that found no server, or a busy one, is sent again before the first token.
        headers: further HTTP headers.
        max_model_len: context window in tokens, for servers that do not tell it.

    Redirects are not followed: neither prompt nor headers reach an address that was not given.

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
        max_retries: int = 2,
        headers: Mapping[str, str] | None = None,
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
                max_retries=max_retries,
                headers=headers,
                max_model_len=max_model_len,
            )
        except ValidationError as error:
            raise config_error("OpenAIEngine", error) from None
        self.model = checked.model
        self.base_url = checked.base_url
        self.policy = PrecisionPolicy.of(policy)
        self._settings = checked
        self._dialect = Dialect()
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncOpenAI] = weakref.WeakKeyDictionary()
        self._max_model_len = checked.max_model_len
        self._asked = False
        self._closed = False

    def __getstate__(self) -> dict[str, Any]:
        """Without connections, which belong to the loops of this process: a copy makes its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_clients"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _clients=weakref.WeakKeyDictionary())

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
        root = self.base_url.removesuffix("/v1")
        try:
            answer = await self._client().post(
                f"{root}/tokenize", cast_to=object, body=body | ({"tools": list(tools)} if tools else {})
            )
        except openai.NotFoundError:
            answer = None
        except Exception as error:
            raise self._translated(error, messages) from None
        count = answer.get("count") if isinstance(answer, dict) else None
        if not isinstance(count, int):  # llama.cpp's endpoint of this name takes texts, not messages
            raise RequestError(f"{self._settings.address} cannot count tokens: it has no /tokenize, as vLLM has")
        return count

    async def aclose(self) -> None:
        """Close the connections. Running turns end with an error. Idempotent."""
        self._closed = True
        here = asyncio.get_running_loop()
        for loop, client in list(self._clients.items()):
            if loop is here:
                await client.close()
            elif loop.is_running():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(client.close(), loop))
        self._clients.clear()

    async def stream(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        """Run one turn on the server.

        An answer whose end the server has told is whole, whatever becomes of its counts and of the connection.

        Raises:
            RequestError: the server refused the request, or it holds what cannot be sent (token ids).
            ModelNotFoundError: the server does not serve this model.
            RemoteEngineError: the server is gone, or failed.
        """
        meter = TurnMeter()
        most_calls = 0 if request.tool_choice == "none" else None if request.parallel_tool_calls else 1
        answer = Answer(most_calls)
        reader = EventReader()
        failure: MixQuantError | None = None
        try:
            async with self._opened(request) as response:
                events = _events(response, reader)
                while (event := await _next(events, answer)) is not None:
                    delta = answer.take(event.value)
                    if delta is not None:
                        meter.token()
                        yield delta
                    if answer.done or answer.failure is not None:
                        break
        except Exception as error:
            if not answer.finished:
                failure = self._translated(error, request.messages, request.sampling.max_tokens)
        if answer.reasoning_field is not None:
            self._dialect.reasoning_field = answer.reasoning_field
        if failure is None and not answer.complete:
            failure = self._incomplete(answer, reader.beginning, request)
        if failure is not None:  # outside of the handler: the context of an error must not tell what its text does not
            raise failure
        if answer.unreadable is not None:
            logger.warning(
                "%s sent what is no part of a chat completion, and the answer is without it: %.200s",
                self._settings.address, self._struck(request.messages)(answer.unreadable),
            )  # fmt: skip
        yield answer.end(meter)

    @asynccontextmanager
    async def _opened(self, request: EngineRequest) -> AsyncIterator[Any]:
        """The server's answer to ``request``. What a strict server refuses is left out, where it may be."""
        import openai

        from mixquant_agents.engine.openai.errors import server_words

        while True:
            body = wire_body(request, self.model, self._dialect)
            opening = self._client().chat.completions.with_streaming_response.create(**body)
            try:
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

    def _incomplete(self, answer: Answer, beginning: bytes, request: EngineRequest) -> MixQuantError:
        """Why the answer is none, though the connection held."""
        from mixquant_agents.engine.openai.errors import server_error

        url, struck = self._settings.address, self._struck(request.messages)
        if answer.failure is not None:
            return server_error(answer.failure, url=url, struck=struck, max_tokens=request.sampling.max_tokens)
        text = struck(beginning.decode("utf-8", "replace"))[:_BEGINNING_CHARACTERS]
        if answer.streamed or not text:
            what = "the answer in the middle" if answer.streamed else "its answer before it began"
            return RemoteEngineError(f"{url} ended {what}, without a finish reason")
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
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            settings = self._settings
            client = self._clients[loop] = openai.AsyncOpenAI(
                base_url=settings.base_url,
                api_key=settings.api_key or "none",
                timeout=settings.request_timeout,
                max_retries=settings.max_retries,
                default_headers=settings.headers,
                http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
            )
        return client

    async def _ask_limit(self) -> int | None:
        """The context window, which many servers tell in their list of models."""
        import openai

        try:
            listed = await self._client().get("/models", cast_to=object)
        except openai.APIStatusError:
            return None  # a server without the list, or a key without the right: the first turn will tell
        except Exception as error:
            raise self._translated(error) from None
        if not isinstance(listed, dict | list):
            text = self._struck()(str(listed))[:_BEGINNING_CHARACTERS]
            raise RemoteEngineError(
                f"{self._settings.address} answers, but not as a chat completions server: its list of models begins "
                f"{text!r}; correct base_url"
            )
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
        self, error: Exception, messages: Sequence[Message] = (), max_tokens: int | None = None
    ) -> MixQuantError:
        """Our error for ``error``, which stays its cause unless that tells what must not be told."""
        from mixquant_agents.engine.openai.errors import translated

        if self._closed and not isinstance(error, EngineClosedError):
            ours: MixQuantError = EngineClosedError("the engine was closed during this turn; make a new one")
        else:
            struck = self._struck(messages)
            ours = translated(error, model=self.model, url=self._settings.address, struck=struck, max_tokens=max_tokens)
            if ours is error or struck.holds(f"{error} {getattr(error, 'body', '')}"):
                return ours
        ours.__cause__ = error
        return ours


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


async def _events(response: Any, reader: EventReader) -> AsyncGenerator[_Event, None]:
    """The events of a response; the one value of a server that answers in JSON instead of events."""
    if "json" in str(response.headers.get("content-type", "")).lower():
        body = await response.read()
        reader.beginning = body[:2_000]
        try:
            yield _Event(json.loads(body))
        except (ValueError, RecursionError):
            yield _Event(Unreadable(body.decode("utf-8", "replace")))
        return
    async for block in response.iter_bytes():
        for event in reader.feed(block):
            yield _Event(event)
    for event in reader.finish():
        yield _Event(event)


async def _next(events: AsyncGenerator[_Event, None], answer: Answer) -> _Event | None:
    """The next event; ``None`` at the end. When the answer is finished, only its counts are waited for, and briefly."""
    try:
        if not answer.finished:
            return await anext(events)
        async with asyncio.timeout(_AFTER_FINISH_SECONDS):
            return await anext(events)
    except StopAsyncIteration:
        return None
