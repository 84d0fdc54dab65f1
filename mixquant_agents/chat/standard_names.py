"""LangChain's standard names for settings: taken where they mean something here, else refused with what to do."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

__all__ = ["by_standard_names", "unknown_settings"]

_ALIASES = {
    "max_completion_tokens": "max_tokens",
    "model_name": "model",
    "openai_api_base": "base_url",
    "openai_api_key": "api_key",
    "request_timeout": "timeout",
    "stop_sequences": "stop",
}
"""Another name → renamed."""

_HINTS = {
    "best_of": "an answer is drawn once; use batch",
    "default_headers": "give the headers to OpenAIEngine(headers=…), and that as engine=",
    "extra_body": "further sampling values go into sampling_extra, variables of the chat template into "
    "chat_template_kwargs",
    "http_async_client": "OpenAIEngine makes its own client",
    "http_client": "OpenAIEngine makes its own client",
    "logit_bias": "give it as sampling_extra={'logit_bias': …}",
    "model_kwargs": "give each setting by its own name, further sampling values as sampling_extra",
    "n": "a call has one answer; use batch for several",
    "organization": "give it to OpenAIEngine(headers=…), and that as engine=",
    "service_tier": "give it as sampling_extra={'service_tier': …}, if the server knows it",
    "stream_usage": "the last chunk of every answer carries its usage",
    "use_responses_api": "only chat completions are spoken",
    "verbosity": "give it as sampling_extra={'verbosity': …}, if the server knows it",
}


def by_standard_names(given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` by our names. ``n=1`` and ``stream_usage=True``, which ask for what happens anyway, are left out.

    Raises:
        ValueError: a setting is given by two names, or asks for what there is not.
    """
    renamed = dict(given)
    for alias, name in _ALIASES.items():
        if alias not in renamed:
            continue
        value = renamed.pop(alias)
        if value is None:
            continue
        if renamed.get(name) not in (None, value):
            raise ValueError(f"{alias}={value!r} and {name}={renamed[name]!r} are the same setting; give one of them")
        renamed[name] = value
    for name, only in (("n", 1), ("stream_usage", True)):
        value = renamed.pop(name, None)
        if value is not None and value != only:
            raise ValueError(f"{name}={value!r} is refused: {_HINTS[name]}")
    return renamed


def unknown_settings(what: str, given: Collection[str], known: Collection[str]) -> str | None:
    """What is wrong with the names among ``given`` that are not ``known``: what each may have meant, and all there are.
    ``None`` where every name is known."""
    unknown = sorted(set(given) - set(known))
    if not unknown:
        return None
    names = []
    for name in unknown:
        near = difflib.get_close_matches(name, [*known, *_ALIASES], 1)
        meant = f" ({_HINTS[name]})" if name in _HINTS else f" (did you mean {near[0]!r}?)" if near else ""
        names.append(f"{name!r}{meant}")
    return f"{what} has no setting {', '.join(names)}; it has {', '.join(sorted(known))}"
