"""The static beginning of a prompt: system prompt and tools, which many requests share. Pure.

A policy with ``exact_static_prefix`` reads it exact, once. Its KV blocks are then *lent*: the prefix cache keeps them
as those of the exact policy, so every policy may take them, and the blocks behind them stay each policy's own. Nothing
that was read quantized is ever found under the exact policy's key.

The engine's front end knows how long it is and tells the plugin, in the worker and in the scheduler, by the request's
sampling parameters (``extra_args``), which vLLM carries to both.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

from mixquant_agents.precision.policy import POLICY_PRESETS

__all__ = ["EXTRA_ARG", "BlockKeys", "StaticPrefix", "exact_salt", "salted"]

EXTRA_ARG = "mixquant_static_prefix"
"""Name of the value in ``extra_args``."""


class StaticPrefix(NamedTuple):
    """Of one request.

    Attributes:
        tokens: so many at the prompt's beginning are read exact; whole KV blocks, at least one.
        salt: what the exact policy's blocks of these tokens are salted with.
    """

    tokens: int
    salt: str

    @classmethod
    def of(cls, extra_args: Mapping[str, Any] | None) -> StaticPrefix | None:
        """What a request's ``extra_args`` say; ``None`` where they say nothing of it, or nothing that makes sense."""
        match (extra_args or {}).get(EXTRA_ARG):
            case [int(tokens), str(salt)] if tokens > 0:
                return cls(tokens, salt)
        return None

    def extra_args(self, others: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The ``extra_args`` that say it, beside ``others``."""
        return {**(others or {}), EXTRA_ARG: list(self)}

    def belongs_to(self, policy_salt: str | None) -> bool:
        """Whether the static blocks of a request with this salt are the exact policy's with the same salt of its own:
        no others can be asked for."""
        return policy_salt is not None and self.salt == exact_salt(policy_salt.partition(":")[2])

    def salt_of(self, start: int, stop: int, policy_salt: str) -> str | None:
        """What the key of the KV block ``[start, stop)`` is salted with; each key includes the one before it.

        Static blocks begin with the exact policy's salt. The first block that is not static has the policy's own, so it
        and all after it are found under this policy alone.
        """
        if start <= self.tokens < stop:
            return policy_salt
        return self.salt if start == 0 else None


class BlockKeys(NamedTuple):
    """What tells a request's KV blocks from those of others with the same tokens.

    Attributes:
        salt: the policy's, and the request's own.
        static: the blocks that are lent; ``None``: none of them.
    """

    salt: str
    static: StaticPrefix | None = None


@functools.lru_cache(maxsize=256)  # asked for at each block
def exact_salt(cache_salt: str | None) -> str:
    """What the exact policy's blocks are salted with, for requests with this salt of their own."""
    return salted(POLICY_PRESETS["exact"].fingerprint, cache_salt)


def salted(fingerprint: str, cache_salt: str | None) -> str:
    """A policy's fingerprint and a request's own salt as one."""
    return f"{fingerprint}:{cache_salt}" if cache_salt else fingerprint
