"""The one boundary at which errors of the ``openai`` package and of its connection become ours.

A server's words may hold what was sent to it: keys and the prompt's texts are struck from them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import openai

from mixquant_agents.engine.openai.address import without_login
from mixquant_agents.engine.openai.patience import passing, retry_after
from mixquant_agents.errors import (
    ContextOverflowError,
    MixQuantError,
    ModelNotFoundError,
    RemoteEngineError,
    RequestError,
)

__all__ = ["Struck", "sent_texts", "server_error", "server_words", "translated"]

_LIMIT = re.compile(
    r"context (?:length|size|window)(?: is| of)?(?: only)?[ (]{1,2}(\d+)|(\d+) maximum context length|must be <= (\d+)"
    r"|must have less than (\d+) tokens|number of tokens allowed \((\d+)|prompt length is (\d+)"
    r"|tokens in the prompt cannot exceed (\d+)"
    r"|tokens > (\d+) maximum|maximum context length: (\d+)|input length should be \[\d+, (\d+)\]"
)
_PROMPT = re.compile(
    r"(\d+) input tokens|(\d+) in the messages|(\d+) tokens from the input|(\d+) of text input|(\d+) `inputs` tokens"
    r"|resulted in (\d+) tokens|contains (?:at least )?(\d+)|(?:input|request) \((\d+) tokens|the first (\d+) tokens"
    r"|than \d+ tokens\. Given: (\d+)|input token count \((\d+)|exceed \d+ - received (\d+)"
    r"|too long: (\d+)|(\d+) in your prompt"
)
_OVERFLOW = re.compile(
    r"context[ _](?:length|window|size)[ _](?:is |was |has been )?exceeded|exceeds? [\w' ]{0,40}context"
    r"|(?:prompt|input) is too long|longer than the context|greater than the context|input length should be \["
    r"|reduce the length of the (?:messages|input|prompt)|exceed_context_size",
    re.IGNORECASE,
)
"""Words, codes and types of servers that tell no numbers."""
_NO_MODEL = re.compile(
    r"\bmodel_not_found\b|\b(?:invalid model (?:name|identifier|id)|not a valid model)\b", re.IGNORECASE
)
"""A missing model, by servers that do not answer 404."""
_MOST_WORDS = 500
"""Characters of a server's words in a message."""
_SHORTEST_KEY = 6
"""Characters from which a key is struck; a shorter one, such as "EMPTY", is none."""
_SHORTEST_ECHO = 12
"""Characters from which a text of the prompt is struck from a server's words."""


class Struck:
    """What no message may show: keys, and texts of the prompt.

    Args:
        keys: secrets of the engine.
        texts: what the request's messages say.
    """

    def __init__(self, keys: Iterable[str] = (), texts: Iterable[str] = ()) -> None:
        secret = {key: "[key]" for key in keys if len(key) >= _SHORTEST_KEY}
        echoed = {text: "[prompt]" for text in texts if len(text) >= _SHORTEST_ECHO}
        escaped = {json.dumps(text)[1:-1]: word for text, word in echoed.items()}
        self._words = secret | echoed | escaped

    def __call__(self, text: str) -> str:
        """``text`` without it, in one line of at most 500 characters."""
        for word in sorted(self._words, key=len, reverse=True):
            text = text.replace(word, self._words[word])
        text = " ".join(text.split())
        return text if len(text) <= _MOST_WORDS else text[:_MOST_WORDS] + " …"

    def holds(self, text: str) -> bool:
        """Whether ``text`` tells something of it."""
        return any(word in text for word in self._words)


def translated(
    error: Exception, *, model: str, url: str, struck: Struck, max_tokens: int | None = None, begun: bool = False
) -> MixQuantError:
    """Our error for what went wrong on the way to ``url``.

    Args:
        begun: some of the answer was given out, so the turn cannot be sent again.
    """
    if isinstance(error, MixQuantError):
        return error
    if isinstance(error, openai.APITimeoutError) or _timed_out(error):
        return RemoteEngineError(
            f"{url} did not answer in time; look at it, or raise the time-outs of OpenAIEngine",
            status=408,
            retryable=type(error.__cause__).__name__ == "ConnectTimeout",
        )
    if isinstance(error, openai.APIConnectionError):
        cause = struck(str(error.__cause__ or error))
        if _certificate(error):
            return RemoteEngineError(
                f"{url} shows a certificate that is not trusted ({cause}); correct it, or name its authority by the "
                "environment's SSL_CERT_FILE"
            )
        proxy = _proxy_of(url)
        by = (
            f"; the environment sends it by the proxy {proxy}: name its host in NO_PROXY if that is wrong"
            if proxy
            else ""
        )
        return RemoteEngineError(
            f"{url} cannot be reached ({cause}); start the server or correct base_url{by}", retryable=not begun
        )
    if isinstance(error, openai.APIStatusError):
        return _status_error(error, struck(server_words(error.body) or error.message), model, url, max_tokens)
    if isinstance(error, openai.APIError):
        return RemoteEngineError(f"{url} reported an error: {struck(server_words(error.body) or error.message)}")
    kind, words = type(error).__name__, struck(str(error))
    if isinstance(error, AttributeError | TypeError | ValueError | LookupError | ArithmeticError | RecursionError):
        return RemoteEngineError(
            f"OpenAIEngine could not work with {url} ({kind}: {words}); this is a fault of mixquant-agents, "
            "not of the server: please report it"
        )
    return RemoteEngineError(f"the connection to {url} broke: {kind}: {words}", retryable=not begun)


def server_error(
    body: Any, *, url: str, struck: Struck, max_tokens: int | None = None, begun: bool = False
) -> MixQuantError:
    """Our error for one that a server reported in place of an answer, or in the middle of it."""
    words = struck(server_words(body) or repr(body))
    code = body.get("code", body.get("status")) if isinstance(body, dict) else None
    number = int(code) if isinstance(code, int) or (isinstance(code, str) and re.fullmatch(r"\d{3}", code)) else 0
    status = number if 400 <= number < 600 else None
    return _overflow(words, body, max_tokens) or RemoteEngineError(
        f"{url} reported an error: {words}", status=status, retryable=not begun and passing(status)
    )


def server_words(body: Any) -> str:
    """What an error's body says, in whatever form; empty where it says nothing."""
    if isinstance(body, str):
        return body
    if isinstance(body, dict):
        for key in ("message", "error", "detail", "msg"):
            if words := server_words(body.get(key)):
                where = body.get("loc")  # FastAPI's: which field was wrong; its "input" is an echo
                words = f"{'.'.join(map(str, where))}: {words}" if isinstance(where, list) else words
                behind = body.get("metadata")  # OpenRouter's: what the provider behind it said
                raw = server_words(behind.get("raw")) if isinstance(behind, dict) else ""
                return f"{words}: {raw}" if raw else words
    if isinstance(body, list):
        return "; ".join(filter(None, map(server_words, body)))
    return ""


def _status_error(
    error: openai.APIStatusError, message: str, model: str, url: str, max_tokens: int | None
) -> MixQuantError:
    if 300 <= error.status_code < 400:
        where = str(error.response.headers.get("location", "")).partition("?")[0]
        where = without_login(where)
        return RemoteEngineError(
            f"{url} redirects to {where!r}, which is not followed: prompts and keys go to the address given and to no "
            "other; correct base_url",
            status=error.status_code,
        )
    if isinstance(error, openai.NotFoundError):
        path = "" if url.endswith("/v1") else "; most servers want a base_url that ends in /v1"
        return ModelNotFoundError(f"{url} does not serve model {model!r}: {message}{path}")
    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        return RemoteEngineError(
            f"{url} refused the key: {message}; give OpenAIEngine(api_key=…)", status=error.status_code
        )
    if isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError) or error.status_code == 413:
        if overflow := _overflow(message, error.body, max_tokens):
            return overflow
        if _NO_MODEL.search(f"{message} {_code(error.body)}"):
            return ModelNotFoundError(f"{url} does not serve model {model!r}: {message}")
        return RequestError(f"{url} refused the request: {message}")
    if overflow := _overflow(message, error.body, max_tokens):  # llama.cpp's 500
        return overflow
    return RemoteEngineError(
        f"{url} answered {error.status_code}: {message}",
        status=error.status_code,
        retryable=passing(error.status_code),
        retry_after=retry_after(error.response.headers),
    )


def _code(body: Any) -> str:
    """A server's own code for the error."""
    inner = body.get("error", body) if isinstance(body, dict) else None
    return str(inner.get("code")) if isinstance(inner, dict) else ""


def _proxy_of(url: str) -> str | None:
    """The environment's proxy for ``url``, without a login."""
    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme, proxies.get("all"))
    if not proxy or proxy_bypass(parts.netloc):
        return None
    return without_login(proxy)


def _timed_out(error: BaseException) -> bool:
    """Whether this is a time-out of the HTTP library, whichever the ``openai`` package uses."""
    return isinstance(error, TimeoutError) or any(base.__name__ == "TimeoutException" for base in type(error).__mro__)


def _certificate(error: BaseException) -> bool:
    """Whether the connection failed for what the server showed of itself: another try would show the same."""
    seen: BaseException | None = error
    while seen is not None:
        if "CERTIFICATE_VERIFY_FAILED" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _overflow(message: str, body: Any, max_tokens: int | None) -> ContextOverflowError | None:
    """The overflow that a server reports, with the tokens that there were and that fit, as far as it names them."""
    details = body if isinstance(body, dict) else {}
    limit, prompt = _number(_LIMIT, message), _number(_PROMPT, message)
    if "characters" in message:  # vLLM's estimate of a prompt too long to be tokenized
        prompt = None
    named = any(_OVERFLOW.search(str(text)) for text in (message, details.get("code"), details.get("type")))
    if not named and (limit is None or prompt is None):
        return None
    own = {
        name: value for name in ("n_prompt_tokens", "n_ctx") if isinstance(value := details.get(name), int)
    }  # llama.cpp
    return ContextOverflowError(own.get("n_prompt_tokens", prompt), own.get("n_ctx", limit), max_tokens)


def _number(pattern: re.Pattern[str], text: str) -> int | None:
    match = pattern.search(text)
    return int(next(filter(None, match.groups()))) if match is not None else None


def sent_texts(messages: Sequence[Any]) -> list[str]:
    """The texts of a request's messages."""
    return [text for message in messages if isinstance(text := message.get("content"), str)]
