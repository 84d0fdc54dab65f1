"""Options of a turn: fields of the chat model, which each call may override. Checked alike in both places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from mixquant_agents.chat.standard_names import by_standard_names, unknown_settings
from mixquant_agents.errors import InvalidSamplingError, RequestError
from mixquant_agents.unicode import has_lone_surrogate
from mixquant_agents.validation import readable

__all__ = ["MODEL_OPTIONS", "SAMPLING_OPTIONS", "CallOptions", "ModelOptions", "checked_options"]

Number = Annotated[float, Field(allow_inf_nan=False)]
T = TypeVar("T")


def _encodable(value: T) -> T:
    if has_lone_surrogate(value):
        raise ValueError("it holds half of a surrogate pair, which no encoding has; write the whole character")
    return value


Encodable = AfterValidator(_encodable)


class ModelOptions(BaseModel):
    """Fields of :class:`~mixquant_agents.chat.model.MixQuantChatModel` that a call may override; documented there."""

    temperature: Annotated[Number, Field(ge=0)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    repetition_penalty: Annotated[Number, Field(gt=0)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    ignore_eos: bool | None = None
    stop: Annotated[str | list[str] | None, Encodable] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    sampling_extra: Annotated[dict[str, Any] | None, Encodable] = None
    reasoning_effort: Annotated[str, StringConstraints(min_length=1), Encodable] | None = None
    chat_template_kwargs: Annotated[dict[str, Any] | None, Encodable] = None
    schema_in_prompt: bool | None = None
    verbatim_history: bool | None = None
    keep_seconds: Annotated[Number, Field(gt=0)] | None = None
    keep_tokens: Annotated[int, Field(gt=0)] | None = None
    cache_salt: Annotated[str | None, Encodable] = None
    user: Annotated[str, Encodable] | None = None
    timeout: Annotated[Number, Field(gt=0)] | None = None


SAMPLING_OPTIONS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "max_tokens",
    "min_tokens",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "ignore_eos",
)
"""Fields that go to :class:`~mixquant_agents.engine.base.Sampling` under the same name."""

MODEL_OPTIONS = tuple(ModelOptions.model_fields)
"""All fields of the chat model that a call may override."""

_ABOUT_SAMPLING = {*SAMPLING_OPTIONS, "stop", "logprobs", "top_logprobs", "sampling_extra"}


class CallOptions(ModelOptions):
    """All options of a call."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    model: str | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    response_format: Any = None
    trace_context: dict[str, str] | None = None
    stream: Any = None


def checked_options(given: Mapping[str, Any], stop: Sequence[str] | None = None) -> dict[str, Any]:
    """The options of one call that are not ``None``, by our names, checked.

    Raises:
        InvalidSamplingError: a sampling value is of a wrong type or out of range.
        RequestError: another setting is, or is unknown.
    """
    options = {name: value for name, value in given.items() if value is not None}
    if stop is not None:
        options["stop"] = stop
    try:
        options = by_standard_names(options)
    except ValueError as error:
        raise RequestError(str(error)) from None
    if (unknown := unknown_settings("a call", options, CallOptions.model_fields)) is not None:
        raise RequestError(unknown)
    try:
        checked = CallOptions(**options)
    except ValidationError as error:
        about_sampling = any(item["loc"][0] in _ABOUT_SAMPLING for item in error.errors())
        raise (InvalidSamplingError if about_sampling else RequestError)(readable("call", error)) from None
    return {name: getattr(checked, name) for name in options}
