"""Where a chat model's engine comes from: its owner, a server's address, or the settings of a shared vLLM engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any

from mixquant_agents.config import EngineConfig, PrecisionPolicy
from mixquant_agents.engine.base import Engine
from mixquant_agents.errors import ConfigError

__all__ = ["DEFAULT_MODEL", "DEFAULT_POLICY", "ENGINE_SETTINGS", "EngineSource", "engine_source"]

ENGINE_SETTINGS = frozenset(EngineConfig.model_fields) - {"model", "policy", "seed"}
"""Settings of :class:`EngineConfig` that a chat model takes directly. Its ``seed`` is the sampling seed."""

DEFAULT_MODEL, DEFAULT_POLICY = "embedded", "mixquant"


class EngineSource(ABC):
    """One way to come by an engine. Nothing starts before :meth:`engine`'s first turn.

    Attributes:
        model: the model's name, as in records.
        policy: precision policy, or its preset's name; ``None`` where the engine's owner chose it.
    """

    model: str
    policy: PrecisionPolicy | str | None = None

    @abstractmethod
    def engine(self) -> Engine:
        """The engine, or a handle on one that others share."""

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What tells this engine's answers from another's, for caches of answers."""

    @property
    def window(self) -> int | None:
        """Tokens of the context window, as far as they are known before the start."""
        return None

    @property
    def reasons(self) -> bool | None:
        """Whether its answers may hold reasoning, as far as that is known before the start."""
        return None

    @property
    def holds_schemas(self) -> bool:
        """Whether an answer can be held to a schema and yet be a tool call instead."""
        return True


class _Given(EngineSource):
    """An engine of its owner's."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.model = engine.info.model

    def engine(self) -> Engine:
        return self._engine

    @property
    def identity(self) -> dict[str, Any]:
        info = self._engine.info
        parts = {"engine": info.engine, "fingerprint": info.fingerprint, "base_url": info.base_url}
        return {name: value for name, value in parts.items() if value is not None}

    @property
    def window(self) -> int | None:
        return self._engine.info.max_model_len

    @property
    def reasons(self) -> bool | None:
        return self._engine.info.reasoning

    @property
    def holds_schemas(self) -> bool:
        return self._engine.info.grammar and self._engine.info.base_url is None


class _Local(EngineSource):
    """The vLLM engine that all chat models with these settings share."""

    def __init__(self, config: EngineConfig) -> None:
        if config.vllm_args:
            from mixquant_agents.engine.vllm.argument_names import check_names, installed_names

            check_names(config.vllm_args, installed_names())
        self._config = config
        self.model, self.policy = config.model, config.policy

    def engine(self) -> Engine:
        from mixquant_agents.engine.vllm import VllmEngine

        return VllmEngine.shared(self._config)

    @property
    def identity(self) -> dict[str, Any]:
        return {"policy": self._config.policy.name, "engine_config": self._config.fingerprint}

    @property
    def window(self) -> int | None:
        if self._config.max_model_len is not None:
            return self._config.max_model_len
        from mixquant_agents.engine.vllm.context_window import context_window

        return context_window(self._config)

    @property
    def reasons(self) -> bool | None:
        if self._config.reasoning_parser != "auto":
            return self._config.reasoning_parser is not None
        from mixquant_agents.engine.vllm.context_window import writes_thoughts

        return writes_thoughts(self._config)


class _Server(EngineSource):
    """A chat completions server."""

    def __init__(self, model: str, base_url: str, settings: Mapping[str, Any]) -> None:
        from mixquant_agents.engine.openai import OpenAIEngine

        self._engine = OpenAIEngine(model, base_url=base_url, **settings)  # refuses wrong settings; sends nothing
        self.model = model

    def engine(self) -> Engine:
        return self._engine

    @property
    def identity(self) -> dict[str, Any]:
        return _Given(self._engine).identity

    @property
    def holds_schemas(self) -> bool:
        return False  # most servers take tools or a schema, not both


def engine_source(
    explicit: Collection[str],
    *,
    model: str,
    policy: PrecisionPolicy | str,
    engine: Engine | None,
    engine_config: EngineConfig | None,
    engine_settings: Mapping[str, Any],
    base_url: str | None,
    api_key: str | None,
    max_retries: int | None,
) -> EngineSource:
    """The source that a chat model's settings ask for.

    Args:
        explicit: names among ``model`` and ``policy`` that were given and are not as by default.

    Raises:
        ConfigError: a setting is wrong, or two contradict each other.
    """
    if engine is not None:
        return _given(engine, explicit, model, engine_config, engine_settings, base_url, api_key)
    if base_url is not None:
        if engine_config is not None or engine_settings:
            names = ", ".join(sorted(engine_settings)) or "engine_config"
            raise ConfigError(
                f"base_url= names a server that runs already, so {names} cannot be set here; leave out, or set it there"
            )
        if "model" not in explicit:
            raise ConfigError("base_url= needs model=, the name under which the server serves it")
        given = {"api_key": api_key, "policy": policy if "policy" in explicit else None, "max_retries": max_retries}
        return _Server(model, base_url, {name: value for name, value in given.items() if value is not None})
    if engine_config is None:
        return _Local(EngineConfig(model=model, policy=PrecisionPolicy.of(policy), **engine_settings))
    if engine_settings:
        names = ", ".join(sorted(engine_settings))
        raise ConfigError(f"engine_config= is given, so {names} must be given inside it")
    if "model" in explicit and model != engine_config.model:
        raise ConfigError(f"model={model!r}, but engine_config says {engine_config.model!r}; leave one out")
    if "policy" in explicit and PrecisionPolicy.of(policy) != engine_config.policy:
        name, other_name = PrecisionPolicy.of(policy).name, engine_config.policy.name
        raise ConfigError(f"policy={name!r}, but engine_config says {other_name!r}; leave one out")
    return _Local(engine_config)


def _given(
    engine: Any,
    explicit: Collection[str],
    model: str,
    engine_config: EngineConfig | None,
    engine_settings: Mapping[str, Any],
    base_url: str | None,
    api_key: str | None,
) -> EngineSource:
    if isinstance(engine, type) or not isinstance(engine, Engine):
        what = "a class, make one of it" if isinstance(engine, type) else "no Engine"
        raise ConfigError(f"engine={engine!r} is {what}; see mixquant_agents.engine.base")
    source = _Given(engine)
    own = [
        *(["policy"] if "policy" in explicit else []),
        *(["engine_config"] if engine_config else []),
        *engine_settings,
    ]
    if own:
        raise ConfigError(
            f"engine= brings settings of its own; leave out {', '.join(own)}, or give them to that engine"
        )
    if "model" in explicit and model != source.model:
        raise ConfigError(f"model={model!r}, but the engine given runs {source.model!r}; leave model out")
    if base_url is not None:
        raise ConfigError(f"engine= is given, so base_url={base_url!r} is not used; leave one of them out")
    if api_key is not None and engine.info.base_url is not None:
        raise ConfigError("engine= sends its own api_key; give it to OpenAIEngine(api_key=…)")
    return source
