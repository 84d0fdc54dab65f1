"""Every error this library raises on purpose.

::

    MixQuantError
    ├── ConfigError                 a setting is wrong, before anything was started (also a ValueError)
    │   ├── UnknownPolicyError      no such policy preset
    │   └── FormatRefusedError      this device or checkpoint cannot run the asked-for number format
    ├── RequestError                one call was wrong; the engine is fine (also a ValueError)
    │   ├── ContextOverflowError    prompt + requested output do not fit the context window
    │   ├── InvalidSamplingError    a sampling value is out of range
    │   ├── InvalidMessagesError    the messages cannot be rendered by the chat template
    │   ├── GrammarError            a tool or output schema cannot be turned into a grammar
    │   └── TurnTimeoutError        the turn took longer than its timeout (also a TimeoutError)
    ├── EngineError                 the engine could not start or went away
    │   ├── EngineStartError        start-up failed
    │   │   ├── ModelNotFoundError      model or revision does not exist or cannot be reached
    │   │   ├── DamagedWeightsError     weights are truncated, corrupt or do not fit the model
    │   │   ├── OutOfMemoryError        weights or KV cache do not fit
    │   │   └── MainGuardError          the script lacks ``if __name__ == "__main__":``
    │   ├── EngineDeadError         the engine died while turns were waiting; the next call starts a new one
    │   ├── EngineClosedError       the engine was closed by its owner
    │   ├── RemoteEngineError       a remote engine answered with an error
    │   └── PairError               one side of a pair of engines failed, or the KV between them
    │       └── KvLostError             the KV was gone, or did not arrive, when decode was to begin
    ├── MissingDependencyError      an optional part is not installed (also an ImportError)
    └── StoreError                  the turn store cannot be opened or written

Each message says what was wrong, with which value, and what to do about it. Errors of vLLM never reach a user
untranslated: ``mixquant_agents.engine.vllm.errors`` is the one boundary.
"""

from __future__ import annotations

import functools
from typing import Any

__all__ = [
    "ConfigError",
    "ContextOverflowError",
    "DamagedWeightsError",
    "EngineClosedError",
    "EngineDeadError",
    "EngineError",
    "EngineStartError",
    "FormatRefusedError",
    "GrammarError",
    "InvalidMessagesError",
    "InvalidSamplingError",
    "KvLostError",
    "MainGuardError",
    "MissingDependencyError",
    "MixQuantError",
    "ModelNotFoundError",
    "OutOfMemoryError",
    "PairError",
    "RemoteEngineError",
    "RequestError",
    "StoreError",
    "TurnTimeoutError",
    "UnknownPolicyError",
]


class MixQuantError(Exception):
    """Root of the tree: ``except MixQuantError`` catches everything this library raises on purpose."""


class ConfigError(MixQuantError, ValueError):
    """A setting is wrong; nothing was started."""


class UnknownPolicyError(ConfigError):
    """No policy preset has this name."""


class FormatRefusedError(ConfigError):
    """The device, layer or checkpoint cannot run the asked-for number format."""


class RequestError(MixQuantError, ValueError):
    """One call was wrong; the engine and all other turns are unharmed."""


class ContextOverflowError(RequestError):
    """The prompt does not fit the context window.

    Attributes:
        prompt_tokens: tokens in the rendered prompt; ``None`` where a server does not say.
        max_model_len: tokens the context window holds, prompt and answer together; ``None`` likewise.
        max_tokens: tokens asked for, if the caller named a number.
        at_least: ``prompt_tokens`` is a lower bound: the prompt was too long to be tokenized at all.
    """

    def __init__(
        self,
        prompt_tokens: int | None,
        max_model_len: int | None,
        max_tokens: int | None = None,
        *,
        at_least: bool = False,
    ) -> None:
        self.at_least = at_least
        self.prompt_tokens = prompt_tokens
        self.max_model_len = max_model_len
        self.max_tokens = max_tokens
        answer_tokens = f" and max_tokens={max_tokens}" if max_tokens is not None else ""
        number = "more" if prompt_tokens is None else f"at least {prompt_tokens}" if at_least else str(prompt_tokens)
        window = "fewer" if max_model_len is None else str(max_model_len)
        super().__init__(
            f"the prompt has {number} tokens{answer_tokens}, but the context window holds {window} for prompt "
            "and answer together; shorten the messages, lower max_tokens, or raise max_model_len if the model allows it"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        made = functools.partial(type(self), at_least=self.at_least)
        return made, (self.prompt_tokens, self.max_model_len, self.max_tokens)


class InvalidSamplingError(RequestError):
    """A sampling value is out of range."""


class InvalidMessagesError(RequestError):
    """The messages cannot be rendered by the model's chat template."""


class GrammarError(RequestError):
    """A tool or output schema cannot be turned into a decoding grammar."""


class TurnTimeoutError(RequestError, TimeoutError):
    """The turn took longer than its ``timeout`` and was aborted."""


class EngineError(MixQuantError):
    """The engine could not start or went away."""


class EngineStartError(EngineError):
    """Start-up failed."""


class ModelNotFoundError(EngineStartError):
    """Model or revision does not exist, or cannot be reached."""


class DamagedWeightsError(EngineStartError):
    """Weights are truncated, corrupt, or do not fit the model."""


class OutOfMemoryError(EngineStartError):
    """Weights or KV cache do not fit into memory."""


class MainGuardError(EngineStartError):
    """vLLM spawns processes that import the caller's script; without a guard they would start it again."""


class EngineDeadError(EngineError):
    """The engine died while turns were waiting; the next call starts a new one."""


class EngineClosedError(EngineError):
    """The engine was closed by its owner."""


class RemoteEngineError(EngineError):
    """A remote engine answered with an error.

    Attributes:
        status: HTTP status of the answer; ``None`` where there was none, as when the server cannot be reached.
        retryable: nothing of the answer was given out, and the reason may pass: the same turn may be sent again.
        retry_after: seconds after which the server asked to be asked again; ``None`` where it did not say.
    """

    def __init__(
        self, *args: object, status: int | None = None, retryable: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(*args)
        self.status = status
        self.retryable = retryable
        self.retry_after = retry_after


class PairError(EngineError):
    """One side of a pair of engines failed, or the KV between them. The turn has no answer.

    Attributes:
        side: ``"prefill"``, ``"decode"`` or ``"transfer"``.
        retryable: nothing of the answer was given out, and the reason may pass.
    """

    def __init__(self, *args: object, side: str = "transfer", retryable: bool = False) -> None:
        super().__init__(*args)
        self.side = side
        self.retryable = retryable


class KvLostError(PairError):
    """The prompt's KV was gone, or did not arrive, when decode was to begin: the prefill engine keeps it for a while
    only. Nothing was answered from it."""


class MissingDependencyError(MixQuantError, ImportError):
    """An optional part is not installed."""


class StoreError(MixQuantError):
    """The turn store cannot be opened or written."""
