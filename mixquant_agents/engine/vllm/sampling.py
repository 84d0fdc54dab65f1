"""``Sampling`` → vLLM's ``SamplingParams``. What cannot be honoured is refused, never dropped."""

from __future__ import annotations

from typing import Any

from mixquant_agents.engine.base import JsonObject, Sampling
from mixquant_agents.errors import InvalidSamplingError
from mixquant_agents.precision.static_prefix import EXTRA_ARG, StaticPrefix
from mixquant_agents.unicode import has_lone_surrogate

__all__ = ["sampling_parameters"]

_NAMED = (
    "temperature", "top_p", "top_k", "min_p", "max_tokens", "min_tokens", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "seed", "logprobs",
)  # fmt: skip
_RESERVED = {
    "n": "ask for several turns instead",
    "output_kind": "turns are always streamed",
    "detokenize": "turns always carry text",
    "structured_outputs": "give a schema or a tool choice",
    "stop": "use Sampling.stop",
    "ignore_eos": "use Sampling.ignore_eos",
    **{name: f"use Sampling.{name}" for name in _NAMED},
}


_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


def sampling_parameters(
    sampling: Sampling, defaults: dict[str, Any], room: int, static: StaticPrefix | None = None, **engine_params: Any
) -> Any:
    """``SamplingParams`` for one turn.

    Args:
        sampling: what the caller asked for; ``None`` values take ``defaults``.
        defaults: the model's generation config.
        room: tokens that the context window leaves for the answer.
        static: the prompt's static beginning, for the plugin.
        engine_params: further values set by the engine (grammar, special tokens).

    Raises:
        InvalidSamplingError: a name is unknown or reserved, or a value is out of range.
    """
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    known = {name for name in SamplingParams.__struct_fields__ if not name.startswith("_")}
    for name in sampling.extra:
        if name in _RESERVED:
            raise InvalidSamplingError(f"sampling extra {name!r} cannot be set here: {_RESERVED[name]}")
        if name == "extra_args" and EXTRA_ARG in _keys(sampling.extra[name]):
            raise InvalidSamplingError(f"sampling extra 'extra_args' names {EXTRA_ARG!r}, which the engine sets")
        if name not in known or name == "skip_clone":
            raise InvalidSamplingError(f"the engine knows no sampling value {name!r}")
        if name in engine_params and sampling.extra[name] != engine_params[name]:
            raise InvalidSamplingError(f"sampling extra {name!r} is {engine_params[name]!r} for tools; leave it out")
    values: dict[str, Any] = {name: value for name, value in defaults.items() if name in known}
    named = {name: value for name in _NAMED if (value := getattr(sampling, name)) is not None}
    for name, value in named.items():
        if isinstance(value, int) and not _INT64_MIN <= value <= _INT64_MAX:
            raise InvalidSamplingError(f"{name}={value} is no number of 64 bits, which is what the engine can be sent")
    values.update(named)
    values.setdefault("max_tokens", room)
    values["max_tokens"] = min(values["max_tokens"], room) if sampling.max_tokens is None else values["max_tokens"]
    if sampling.stop:
        values["stop"] = list(sampling.stop)
    if sampling.ignore_eos:
        values["ignore_eos"] = True
    values.update(_converted(sampling.extra, SamplingParams))
    for name in ("stop", "bad_words"):
        if has_lone_surrogate(values.get(name)):
            raise InvalidSamplingError(f"{name}={values[name]!r} holds half of a surrogate pair; no text has it")
    if static is not None:
        values["extra_args"] = static.extra_args(values.get("extra_args"))
    values.update(engine_params)
    try:
        return SamplingParams(**values, output_kind=RequestOutputKind.DELTA)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidSamplingError(f"invalid sampling value: {error}") from error
    except Exception as error:
        if type(error).__name__ == "VLLMValidationError":  # no ValueError any more since vLLM 0.3x
            raise InvalidSamplingError(f"invalid sampling value: {error}") from error
        raise


def _converted(extra: JsonObject, params: type) -> dict[str, Any]:
    """The values of ``extra`` by the types that vLLM declares; keys of a dict may be text, as JSON has them.

    Raises:
        InvalidSamplingError: a value is of another type, or cannot be sent to the engine's process.
    """
    import msgspec

    types = {field.name: field.type for field in msgspec.structs.fields(params)}
    result = {}
    for name, value in extra.items():
        try:
            msgspec.msgpack.encode(value)
            result[name] = msgspec.convert(value, types[name], str_keys=True)
        except (msgspec.ValidationError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidSamplingError(f"sampling extra {name!r} is {_short(value)}: {error}") from error
    return result


def _keys(value: object) -> tuple[object, ...]:
    return tuple(value) if isinstance(value, dict) else ()


def _short(value: object, limit: int = 100) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
