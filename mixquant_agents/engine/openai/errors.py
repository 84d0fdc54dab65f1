"""The one boundary at which errors of the ``openai`` package and of its connection become ours."""

from __future__ import annotations

import re

import openai

from mixquant_agents.errors import (
    ContextOverflowError,
    MixQuantError,
    ModelNotFoundError,
    RemoteEngineError,
    RequestError,
)

__all__ = ["translated"]

_LIMIT = re.compile(r"maximum context length is (\d+)")
_PROMPT = re.compile(r"(\d+) (?:input tokens|in the messages)|resulted in (\d+) tokens|contains (?:at least )?(\d+)")


def translated(error: Exception, *, model: str, url: str, max_tokens: int | None = None) -> MixQuantError:
    """Our error for what went wrong on the way to ``url``; unknown ones become :class:`RemoteEngineError`."""
    if isinstance(error, MixQuantError):
        return error
    if isinstance(error, openai.APITimeoutError):
        return RemoteEngineError(
            f"{url} did not answer in time; raise OpenAIEngine(request_timeout=…) or look at it", status=408
        )
    if isinstance(error, openai.APIConnectionError):
        cause = error.__cause__ or error
        return RemoteEngineError(f"{url} cannot be reached ({cause}); start the server or correct base_url")
    said = _said(error)
    if isinstance(error, openai.NotFoundError):
        path = "" if url.endswith("/v1") else "; most servers want a base_url that ends in /v1"
        return ModelNotFoundError(f"{url} does not serve model {model!r}: {said}{path}")
    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        return RemoteEngineError(
            f"{url} refused the key: {said}; give OpenAIEngine(api_key=…)", status=error.status_code
        )
    if isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError):
        return _overflow(said, max_tokens) or RequestError(f"{url} refused the request: {said}")
    if isinstance(error, openai.APIStatusError):
        return RemoteEngineError(f"{url} answered {error.status_code}: {said}", status=error.status_code)
    if isinstance(error, openai.APIError):
        return RemoteEngineError(f"{url} reported an error: {said}")
    if isinstance(error, AttributeError | TypeError | ValueError):  # by the openai package, at an answer that is none
        return RemoteEngineError(
            f"{url} answers, but not as a chat completions server ({type(error).__name__}: {error}); correct base_url"
        )
    return RemoteEngineError(f"the connection to {url} broke: {type(error).__name__}: {error}")


def _said(error: Exception) -> str:
    """The server's own words, in one line."""
    body = getattr(error, "body", None)
    message = body.get("message") if isinstance(body, dict) else None
    return " ".join(str(message or getattr(error, "message", None) or error).split())


def _overflow(said: str, max_tokens: int | None) -> ContextOverflowError | None:
    """vLLM and OpenAI say in words how many tokens there were and how many fit."""
    limit, prompt = _LIMIT.search(said), _PROMPT.search(said)
    if limit is None or prompt is None or "characters" in said:
        return None
    tokens = next(group for group in prompt.groups() if group is not None)
    return ContextOverflowError(int(tokens), int(limit.group(1)), max_tokens)
