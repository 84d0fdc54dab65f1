"""Keys of blocks as vLLM's own scheduler makes them, with the hook in place."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.sampling_params import SamplingParams
from vllm.v1.core import block_pool, kv_cache_utils
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.request import Request

from mixquant_agents.precision.static_prefix import StaticPrefix, exact_salt
from mixquant_agents.quant.vllm.prefix_cache import _keys, hook_prefix_cache

BLOCK = 16


def hashed(value: object) -> bytes:
    import hashlib

    return hashlib.sha256(repr(value).encode()).digest()


@pytest.fixture(autouse=True)
def hooked() -> None:
    init_none_hash(hashed)
    hook_prefix_cache()


def blocks(salt: str | None, static: StaticPrefix | None = None, tokens: int = 100) -> list[Any]:
    """The keys of a request for the tokens 0, 1, 2, …"""
    params = SamplingParams(max_tokens=1, extra_args=None if static is None else static.extra_args())
    request = Request(
        request_id="r",
        prompt_token_ids=list(range(tokens)),
        sampling_params=params,
        pooling_params=None,
        cache_salt=salt,
        block_hasher=get_request_block_hasher(BLOCK, hashed),
    )
    return list(request.block_hashes)


def test_blocks_of_a_static_beginning_are_the_exact_policys() -> None:
    static = StaticPrefix(48, exact_salt(None))
    exact, quantized, other = blocks(exact_salt(None)), blocks("quantized", static), blocks("other", static)
    assert len(exact) == 6
    assert quantized[:3] == other[:3] == exact[:3]
    assert not set(quantized[3:]) & {*other, *exact}
    assert not set(other[3:]) & set(exact)


def test_requests_that_say_nothing_keep_their_keys() -> None:
    assert blocks("quantized") == blocks("quantized")
    lent = blocks("quantized", StaticPrefix(48, exact_salt(None)))
    assert not set(blocks("quantized")) & {*lent, *blocks(exact_salt(None))}
    assert blocks(None)


def test_hook_is_there_once_and_events_name_the_same_keys() -> None:
    before = kv_cache_utils.generate_block_hash_extra_keys
    hook_prefix_cache()
    assert kv_cache_utils.generate_block_hash_extra_keys is before
    assert block_pool.generate_block_hash_extra_keys is before


@pytest.mark.parametrize("form", [lambda salt: salt, lambda salt: ("cache_salt", salt)], ids=["text", "pair"])
def test_salt_is_replaced_in_the_form_that_vllm_gives_it(form: Any) -> None:
    def original(request: Any, start: int, stop: int, mm: int) -> tuple[tuple[Any, ...] | None, int]:
        return (("lora", form(request.cache_salt)) if start == 0 else ("lora",)), mm + 1

    exact = exact_salt(None)
    static = StaticPrefix(32, exact)
    request = SimpleNamespace(
        cache_salt="own", sampling_params=SimpleNamespace(extra_args=static.extra_args({"other": 1}))
    )
    keys = _keys(original)
    assert keys(request, 0, 16, 0) == (("lora", form(exact)), 1)
    assert keys(request, 16, 32, 0) == (("lora",), 1)
    assert keys(request, 32, 48, 0) == (("lora", ("cache_salt", "own")), 1)
    assert keys(request, 48, 64, 0) == (("lora",), 1)
    assert keys(SimpleNamespace(cache_salt="own", sampling_params=None), 0, 16, 0) == (("lora", form("own")), 1)


def test_nobody_finds_blocks_of_another_salt() -> None:
    """A client of a server may write into ``extra_args`` what it likes."""
    theirs = StaticPrefix(48, exact_salt("theirs"))
    assert blocks("quantized:mine", theirs) == blocks("quantized:mine")
    assert blocks(None, theirs) == blocks(None)
    assert blocks("quantized:theirs", theirs)[:3] == blocks(exact_salt("theirs"))[:3]
