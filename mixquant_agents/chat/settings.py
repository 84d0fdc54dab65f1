"""The settings of a chat model: what it is made with, checked before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from inspect import iscoroutinefunction
from typing import Annotated, Any, Self

from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.load.serializable import SerializedConstructor, SerializedNotImplemented
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    StringConstraints,
    ValidationError,
    model_validator,
)

from mixquant_agents.chat.call_options import DEFAULTS, TurnFields
from mixquant_agents.chat.engines import (
    ENGINE_SETTINGS,
    check_vllm_args,
    engine_identity,
    local_window,
    remote_engine,
)
from mixquant_agents.chat.recorders import Recorders
from mixquant_agents.chat.standard_names import by_standard_names, unknown_settings
from mixquant_agents.config import EngineConfig, PrecisionPolicy
from mixquant_agents.engine.base import Engine
from mixquant_agents.errors import ConfigError
from mixquant_agents.telemetry import Recorder
from mixquant_agents.validation import config_error

__all__ = ["ChatSettings"]


_STARTED_WITH = frozenset(
    {"model", "policy", "engine", "engine_config", "engine_settings", "recorders", "base_url", "api_key", "max_retries"}
)
"""Fields whose change makes a copy start something of its own."""

_REPR_APART = frozenset({"model", "policy", "engine", "recorders", "profile", "api_key"})


class Held:
    """What a model has started. Copies of a model have it in common: what one of them closes, the next turn of any
    starts anew. Two models are equal whatever they have started."""

    engine: Engine | None = None
    sink: Recorders | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Held)

    __hash__ = object.__hash__


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
    base_url: str | None = None
    api_key: SecretStr | None = None
    max_retries: Annotated[int, Field(ge=0)] | None = None

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())

    _held: Held = PrivateAttr(default_factory=Held)

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise config_error(type(self).__name__, error) from None

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, data: Any) -> Any:
        """Standard names become ours, and engine settings given directly go into ``engine_settings``."""
        if not isinstance(data, dict):
            return data
        data = by_standard_names(data)
        if (unknown := unknown_settings(cls.__name__, data, {*cls.model_fields, *ENGINE_SETTINGS})) is not None:
            raise ConfigError(unknown)
        direct = {name: value for name, value in data.items() if name in ENGINE_SETTINGS}
        rest = {name: value for name, value in data.items() if name not in direct}
        given = data.get("engine_settings", {})
        if not isinstance(given, dict):
            return rest  # pydantic says that they are none
        if twice := sorted(given.keys() & {*direct, "model", "policy"}):
            raise ConfigError(f"engine_settings holds {', '.join(twice)}; say it once, to the chat model itself")
        return {**rest, "engine_settings": {**given, **direct}} if direct else data

    @model_validator(mode="after")
    def _one_engine(self) -> Self:
        policy = PrecisionPolicy.of(self.policy)
        for recorder in self.recorders:
            plain = callable(recorder) and not isinstance(recorder, type) and not iscoroutinefunction(recorder)
            if isinstance(recorder, type) or not (plain or isinstance(recorder, Recorder)):
                raise ConfigError(
                    f"recorders holds {recorder!r}; give telemetry recorders, or plain functions of a TurnRecord"
                )
        if self.engine is not None:
            self._check_given_engine()
        elif self.base_url is not None:
            self._check_server()
        elif self.engine_config is not None:
            config = self.engine_config
            if self.engine_settings:
                names = ", ".join(sorted(self.engine_settings))
                raise ConfigError(f"engine_config= is given, so {names} must be given inside it")
            if self._says("model", "embedded") and self.model != config.model:
                raise ConfigError(f"model={self.model!r}, but engine_config says {config.model!r}; leave one out")
            if self._says("policy", "mixquant") and policy != config.policy:
                given, other = policy.name, config.policy.name
                raise ConfigError(f"policy={given!r}, but engine_config says {other!r}; leave one out")
            self.model, self.policy = config.model, config.policy
            check_vllm_args(config)
        else:
            check_vllm_args(self._config())  # wrong settings fail here, not with the first turn
        return self

    def _check_given_engine(self) -> None:
        if isinstance(self.engine, type) or not isinstance(self.engine, Engine):
            what = "a class, make one of it" if isinstance(self.engine, type) else "no Engine"
            raise ConfigError(f"engine={self.engine!r} is {what}; see mixquant_agents.engine.base")
        named = self.engine.info.model
        if self.engine_config or self.engine_settings or self._says("policy", "mixquant"):
            raise ConfigError("engine= is given, so policy and engine settings are its own to say; leave them out")
        if self._says("model", "embedded") and self.model != named:
            raise ConfigError(f"model={self.model!r}, but the engine given runs {named!r}; leave model out")
        if self.base_url is not None:
            raise ConfigError(f"engine= is given, so base_url={self.base_url!r} has no one to go to; leave one out")
        if self.api_key is not None and self.engine.info.base_url is not None:
            raise ConfigError("api_key is the engine's own to send; give it to OpenAIEngine(api_key=…)")
        self.model = named

    def _check_server(self) -> None:
        if self.engine_config or self.engine_settings:
            names = ", ".join(sorted(self.engine_settings)) or "engine_config"
            raise ConfigError(f"base_url= names a server, which is started with {names} of its own; leave them out")
        if "model" not in self.model_fields_set:
            raise ConfigError("base_url= needs model=, the name under which the server serves it")
        self._server()

    def _server(self) -> Engine:
        """The engine for ``base_url``; nothing is sent yet."""
        return remote_engine(
            self.model,
            base_url=str(self.base_url),
            api_key=self.api_key.get_secret_value() if self.api_key is not None else None,
            policy=self.policy if self._says("policy", "mixquant") else None,
            max_retries=self.max_retries,
        )

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
    def model_name(self) -> str:
        """:attr:`model`, by the name that others use."""
        return self.model

    @property
    def _llm_type(self) -> str:
        return "mixquant"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in DEFAULTS if name not in ("timeout", "user")}
        settings = {name: value for name, value in fields.items() if value is not None}
        if self.engine is not None:
            engine = engine_identity(self.engine)
        elif self.base_url is not None:
            engine = {"engine": "OpenAIEngine", "base_url": self.base_url}
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
        if (window := self._window()) is not None:
            profile["max_input_tokens"] = window
        return profile

    def _window(self) -> int | None:
        """Tokens of the context window, as far as it is known before the engine starts."""
        if self.engine is not None:
            given: Engine = self.engine
            return given.info.max_model_len
        return local_window(self._config()) if self.base_url is None else None

    @property
    def _knows_window(self) -> bool:
        return self.profile is None or "max_input_tokens" in self.profile

    @property
    def _retries(self) -> int:
        """Times to run a turn again; at a ``base_url`` the client sends its requests again itself."""
        return (self.max_retries or 0) if self.base_url is None else 0

    def _learn_window(self, window: int | None) -> None:
        """The engine has said what it is: a window that was not known goes into the profile."""
        if window is not None and self.profile is not None and "max_input_tokens" not in self.profile:
            self.profile["max_input_tokens"] = window

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Model and policy, and whatever else was set; LangChain leaves out what is as by default."""
        yield "model", self.model
        if self.engine is not None:
            yield "engine", type(self.engine).__name__
        elif self.base_url is None:
            yield "policy", self.policy_name
        for name in type(self).model_fields:
            value = getattr(self, name)
            if name == "metadata" and value is not None:
                value = {key: inner for key, inner in value.items() if key != "lc_versions"} or None
            if name in self.model_fields_set and name not in _REPR_APART and value is not None:
                yield name, value

    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        """LangChain's form, which tracers show: the settings that were given.

        A model with an engine or recorders of its owner's cannot be made again from text. LangChain asks the class
        alone whether it can (``is_lc_serializable``), and relies on it for caches of answers; so the class says no.
        """
        if self.engine is not None or self.recorders:
            return self.to_json_not_implemented()
        given = {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}
        kwargs = {
            name: value.model_dump(mode="json") if isinstance(value, BaseModel) else value
            for name, value in given.items()
            if value is not None and name not in ("api_key", "profile", "callbacks", "cache", "rate_limiter")
        }
        return SerializedConstructor(lc=1, type="constructor", id=self.lc_id(), kwargs=kwargs)

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
            if _but_window(self.profile) == _but_window(self._resolve_model_profile()):  # nobody typed one
                copied.profile = copied._resolve_model_profile()
        return copied

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """The copy talks to the same engine: models hold no state of their own."""
        return self.model_copy()


def _but_window(profile: ModelProfile | None) -> dict[str, Any]:
    return {name: value for name, value in (profile or {}).items() if name != "max_input_tokens"}
