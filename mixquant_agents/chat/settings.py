"""The settings of a chat model: what it is made with, checked before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import iscoroutinefunction
from typing import Annotated, Any, Self

from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.model_profile import ModelProfile
from pydantic import ConfigDict, Field, PrivateAttr, StringConstraints, ValidationError, model_validator

from mixquant_agents.chat.engines import ENGINE_SETTINGS, engine_identity, engine_name
from mixquant_agents.chat.fields import DEFAULTS, TurnFields
from mixquant_agents.chat.recording import Recorders
from mixquant_agents.config import EngineConfig, PrecisionPolicy
from mixquant_agents.engine.protocol import Engine
from mixquant_agents.errors import ConfigError
from mixquant_agents.telemetry import Recorder
from mixquant_agents.validation import config_error

__all__ = ["ChatSettings"]


_STARTED_WITH = frozenset({"model", "policy", "engine", "engine_config", "engine_settings", "recorders"})


class Held:
    """What a model has started. Copies of a model have it in common: what one of them closes, the next turn of any
    starts anew."""

    engine: Engine | None = None
    sink: Recorders | None = None


class ChatSettings(TurnFields, BaseChatModel):
    """Fields of :class:`~mixquant_agents.chat.model.MixQuantChatModel`, documented there.

    Raises:
        ConfigError: a setting is unknown, wrong, or given twice.
    """

    model: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)] = "embedded"
    policy: PrecisionPolicy | str = "mixquant"
    engine: Any = Field(default=None, exclude=True, repr=False)
    engine_config: EngineConfig | None = None
    engine_settings: dict[str, Any] = Field(default_factory=dict)
    recorders: tuple[Any, ...] = Field(default=(), exclude=True, repr=False)
    streaming: bool = False

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())

    _held: Held = PrivateAttr(default_factory=Held)

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise config_error(type(self).__name__, error) from None

    @model_validator(mode="before")
    @classmethod
    def _gather_engine_settings(cls, data: Any) -> Any:
        given = data.get("engine_settings", {})
        direct = {name: value for name, value in data.items() if name in ENGINE_SETTINGS}
        rest = {name: value for name, value in data.items() if name not in direct}
        if not isinstance(given, dict):
            return rest  # where it is told that they are none
        if twice := sorted(given.keys() & {*direct, "model", "policy"}):
            raise ConfigError(f"engine_settings holds {', '.join(twice)}; say it once, to the chat model itself")
        return {**rest, "engine_settings": {**given, **direct}} if direct else data

    @model_validator(mode="after")
    def _one_engine(self) -> Self:
        policy = PrecisionPolicy.of(self.policy)
        for one in self.recorders:
            if isinstance(one, type) or iscoroutinefunction(one) or not (isinstance(one, Recorder) or callable(one)):
                raise ConfigError(
                    f"recorders holds {one!r}; give telemetry recorders, or plain functions of a TurnRecord"
                )
        if self.engine is not None:
            if isinstance(self.engine, type) or not isinstance(self.engine, Engine):
                what = "a class, make one of it" if isinstance(self.engine, type) else "no Engine"
                raise ConfigError(f"engine={self.engine!r} is {what}; see mixquant_agents.engine.protocol")
            named = engine_name(self.engine)
            if self.engine_config or self.engine_settings or self._says("policy", "mixquant"):
                raise ConfigError("engine= is given, so policy and engine settings are its own to say; leave them out")
            if self._says("model", "embedded") and self.model != named:
                raise ConfigError(f"model={self.model!r}, but the engine given runs {named!r}; leave model out")
            self.model = named
        elif self.engine_config is not None:
            mine = self.engine_config
            if self.engine_settings:
                names = ", ".join(sorted(self.engine_settings))
                raise ConfigError(f"engine_config= is given, so {names} must be given inside it")
            if self._says("model", "embedded") and self.model != mine.model:
                raise ConfigError(f"model={self.model!r}, but engine_config says {mine.model!r}; leave one out")
            if self._says("policy", "mixquant") and policy != mine.policy:
                raise ConfigError(f"policy={policy.name!r}, but engine_config says {mine.policy.name!r}; leave one out")
            self.model, self.policy = mine.model, mine.policy
        else:
            self._config()  # wrong settings fail here, not with the first turn
        return self

    def _config(self) -> EngineConfig:
        """The settings of the vLLM engine, where none was given."""
        if self.engine_config is not None:
            return self.engine_config
        return EngineConfig(model=self.model, policy=PrecisionPolicy.of(self.policy), **self.engine_settings)

    def _says(self, name: str, default: object) -> bool:
        return name in self.model_fields_set and getattr(self, name) != default

    @property
    def policy_name(self) -> str:
        """The policy's name, as in records."""
        return PrecisionPolicy.of(self.policy).name

    @property
    def _llm_type(self) -> str:
        return "mixquant"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in DEFAULTS if name != "timeout"}  # which changes no answer
        settings = {name: value for name, value in fields.items() if value is not None}
        if self.engine is not None:
            engine = engine_identity(self.engine)
        else:
            engine = {"policy": self.policy_name, "engine_config": self._config().fingerprint}
        return {"model": self.model, **engine, **settings}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "mixquant"
        if stop is None and (stop := [self.stop] if isinstance(self.stop, str) else self.stop):
            params["ls_stop"] = stop
        return params

    def _resolve_model_profile(self) -> ModelProfile:
        profile = ModelProfile(
            text_inputs=True,
            text_outputs=True,
            image_inputs=False,
            audio_inputs=False,
            tool_calling=True,
            tool_choice=True,
            tool_call_streaming=True,
            # With "yes" LangChain's agents hold the answer to a schema that the model never sees. With "no" they bind
            # the schema as a tool, which it sees.
            structured_output=False,
        )
        limit = self._config().max_model_len if self.engine is None else getattr(self.engine, "max_model_len", None)
        if isinstance(limit, int):
            profile["max_input_tokens"] = limit
        return profile

    def __getstate__(self) -> dict[Any, Any]:
        """Without the running engine and the recorders' threads: a copy in another process makes its own."""
        state = super().__getstate__()
        state["__pydantic_private__"] = {**(state.get("__pydantic_private__") or {}), "_held": Held()}
        return state

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy shares what the model has started, unless it is given another engine or other recorders."""
        copied = super().model_copy(update=update, deep=deep)
        if not _STARTED_WITH.isdisjoint(update or ()):
            copied._held = Held()
        return copied

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """The copy talks to the same engine: models hold no state of their own."""
        return self.model_copy()
