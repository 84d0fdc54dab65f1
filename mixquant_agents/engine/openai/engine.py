"""``OpenAIEngine``: a remote ``vllm serve`` (or another OpenAI-compatible server) behind the same protocol.

The server renders, parses tool calls and reasoning, and counts; what it does not tell stays ``None`` in the record.
Closing a stream closes its connection, which makes vLLM abort the turn.
"""

from __future__ import annotations

import asyncio
import re
import weakref
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from mixquant_agents.config import PrecisionPolicy
from mixquant_agents.engine.meter import TurnMeter
from mixquant_agents.engine.openai.wire import Answer, ParsedAnswers, wire_body, wire_messages
from mixquant_agents.engine.protocol import (
    Capabilities,
    EngineRequest,
    JsonObject,
    Message,
    OutputParser,
    TokenDelta,
    ToolChoice,
)
from mixquant_agents.errors import EngineClosedError, MissingDependencyError, RequestError
from mixquant_agents.validation import config_error

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = ["OpenAIEngine"]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
    base_url: str
    api_key: str | None
    request_timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    max_retries: Annotated[int, Field(ge=0)]
    headers: dict[str, str] | None

    @field_validator("base_url")
    @classmethod
    def _address(cls, given: str) -> str:
        if re.fullmatch(r"https?://[^\s/]\S*", given) is None:
            raise ValueError("give an address such as http://127.0.0.1:8000/v1")
        return given.rstrip("/")


class OpenAIEngine:
    """A chat completions server as an :class:`~mixquant_agents.engine.protocol.Engine`.

    Args:
        model: the name under which the server serves it.
        base_url: up to and including ``/v1``.
        api_key: what the server asks for; a local vLLM asks for nothing.
        policy: the precision policy that the server was started with; only recorded.
        request_timeout: seconds without a sign of the server after which it counts as gone.
        max_retries: how often a request that found no server, or a busy one, is sent again before the first token.
        headers: further HTTP headers.

    Raises:
        ConfigError: a setting is wrong.
        MissingDependencyError: the ``openai`` package is not installed.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str = "http://127.0.0.1:8000/v1",
        api_key: str | None = None,
        policy: PrecisionPolicy | str = "exact",
        request_timeout: float = 600.0,
        max_retries: int = 2,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise MissingDependencyError(
                "OpenAIEngine needs the openai package; install mixquant-agents[openai]"
            ) from error
        try:
            checked = _Settings(
                model=model,
                base_url=base_url,
                api_key=api_key,
                request_timeout=request_timeout,
                max_retries=max_retries,
                headers=dict(headers) if isinstance(headers, Mapping) else headers,
            )
        except ValidationError as error:
            raise config_error("OpenAIEngine", error) from None
        self.model = checked.model
        self.base_url = checked.base_url
        self.policy = PrecisionPolicy.of(policy)
        self._make: Callable[[], AsyncOpenAI] = lambda: openai.AsyncOpenAI(
            base_url=self.base_url,
            api_key=checked.api_key or "none",
            timeout=checked.request_timeout,
            max_retries=checked.max_retries,
            default_headers=checked.headers,
        )
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncOpenAI] = weakref.WeakKeyDictionary()
        self._max_model_len: int | None = None
        self._asked = False
        self._closed = False

    async def capabilities(self) -> Capabilities:
        """What the server tells of itself; asked once.

        Raises:
            RemoteEngineError: the server cannot be reached.
        """
        if not self._asked:
            self._max_model_len = await self._ask_limit()
            self._asked = True
        return Capabilities(
            engine="openai",
            model=self.model,
            policy=self.policy.name,
            max_model_len=self._max_model_len,
            reasoning=True,
        )

    async def output_parser(
        self, tools: Sequence[JsonObject], choice: ToolChoice, schema: JsonObject | None
    ) -> OutputParser:
        """A parser with little to do: the server has parsed."""
        return ParsedAnswers(calls=choice != "none")

    async def count_tokens(self, messages: Sequence[Message], tools: Sequence[JsonObject] = ()) -> int:
        """Tokens of the rendered prompt, by vLLM's ``/tokenize``.

        Raises:
            RequestError: the server has no such endpoint.
        """
        import openai

        body = {"model": self.model, "messages": wire_messages(messages)} | ({"tools": list(tools)} if tools else {})
        try:
            answer = await self._client().post(
                f"{self.base_url.removesuffix('/v1')}/tokenize", cast_to=dict[str, Any], body=body
            )
            return int(answer["count"])
        except (openai.NotFoundError, KeyError):  # llama.cpp's endpoint of this name takes texts, not messages
            raise RequestError(f"{self.base_url} cannot count tokens: it has no /tokenize, as vLLM has") from None
        except Exception as error:
            self._fail(error)

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

    async def stream(self, request: EngineRequest) -> AsyncGenerator[TokenDelta, None]:
        """Run one turn on the server.

        Raises:
            RequestError: the server refused the request, or it holds what cannot be sent (token ids).
            ModelNotFoundError: the server does not serve this model.
            RemoteEngineError: the server is gone, or failed.
        """
        body = wire_body(request, self.model)
        meter = TurnMeter()
        answer = Answer()
        source = None
        try:
            source = await self._client().chat.completions.create(**body)
            async for chunk in source:
                delta = answer.take(chunk)
                if delta is not None:
                    meter.token()
                    yield delta
            yield answer.end(meter, self.base_url)
        except Exception as error:
            if self._closed:
                raise EngineClosedError("the engine was closed during this turn; make a new one") from error
            self._fail(error, request.sampling.max_tokens)
        finally:
            if source is not None:
                with suppress(Exception):  # the turn is over; a connection that is already gone needs no closing
                    await source.close()

    def _client(self) -> AsyncOpenAI:
        """The client of the running event loop: its connections belong to one loop."""
        if self._closed:
            raise EngineClosedError("this engine was closed; make a new one")
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            client = self._clients[loop] = self._make()
        return client

    async def _ask_limit(self) -> int | None:
        """The context window, which vLLM tells in its list of models."""
        import openai

        try:
            listed = await self._client().models.list()
            mine = next((entry for entry in listed.data or () if entry.id == self.model), None)
        except openai.NotFoundError:
            return None  # a server without the list: the first turn will tell whether it works
        except Exception as error:
            self._fail(error)
        limit = getattr(mine, "max_model_len", None)
        return limit if isinstance(limit, int) else None

    def _fail(self, error: Exception, max_tokens: int | None = None) -> NoReturn:
        from mixquant_agents.engine.openai.errors import translated

        ours = translated(error, model=self.model, url=self.base_url, max_tokens=max_tokens)
        if ours is error:
            raise error  # which must not become its own cause
        raise ours from error
