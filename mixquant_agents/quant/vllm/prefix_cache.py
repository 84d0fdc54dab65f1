"""Keys of vLLM's prefix cache: blocks of a static beginning are the exact policy's, those behind it the policy's own.

Installed with the plugin, in the process whose scheduler hashes blocks. Requests that say nothing of a static beginning
keep the keys that vLLM gives them. Should the hook be missing, all blocks stay the policy's own: nothing is lent, and
nothing wrong is taken.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from mixquant_agents.precision.static_prefix import StaticPrefix
from mixquant_agents.quant.vllm.patching import wrap

__all__ = ["hook_prefix_cache"]


def hook_prefix_cache() -> None:
    """Hook the hashing of blocks. Idempotent.

    Raises:
        EngineStartError: vLLM's function is not where it is expected.
    """
    from vllm.v1.core import kv_cache_utils

    original = kv_cache_utils.generate_block_hash_extra_keys
    wrap(kv_cache_utils, "generate_block_hash_extra_keys", _keys)
    pool = sys.modules.get("vllm.v1.core.block_pool")
    if pool is not None and vars(pool).get("generate_block_hash_extra_keys") is original:
        vars(pool)["generate_block_hash_extra_keys"] = kv_cache_utils.generate_block_hash_extra_keys  # for its events


def _keys(original: Callable[..., Any]) -> Callable[..., Any]:
    def generate_block_hash_extra_keys(
        request: Any, start_token_idx: int, end_token_idx: int, start_mm_idx: int
    ) -> tuple[tuple[Any, ...] | None, int]:
        keys, next_mm_idx = original(request, start_token_idx, end_token_idx, start_mm_idx)
        params = request.sampling_params
        static = None if params is None else StaticPrefix.of(params.extra_args)
        policy_salt = request.cache_salt
        if static is None or not static.belongs_to(policy_salt):
            return keys, next_mm_idx
        salt = static.salt_of(start_token_idx, end_token_idx, policy_salt)
        if start_token_idx == 0:
            # A pair with its name in newer releases, the text alone in older ones.
            named = {policy_salt: salt, ("cache_salt", policy_salt): ("cache_salt", salt)}
            return tuple(named.get(key, key) for key in keys or ()), next_mm_idx
        own = () if salt is None else (("cache_salt", salt),)
        return (*(keys or ()), *own) or None, next_mm_idx

    return generate_block_hash_extra_keys
