"""Why a turn missed the prefix cache, found from salted rolling hashes of its prompt, without keeping the prompt.

Each hash covers its block and the hash before it, so hash ``i`` stands for tokens ``0 … 16 (i + 1)``: two prompts
share exactly the blocks up to the first unequal hash. Each is 64 bits of keyed BLAKE2b; the key is 32 random bytes
made with the store, so hashes of different stores cannot be compared. The key lies in the store: who has the file can
test a guess of a whole prefix, but read nothing back.
"""

from __future__ import annotations

import sys
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

__all__ = [
    "BLOCK_TOKENS",
    "HASH_BYTES",
    "BlockHasher",
    "PrefixFinding",
    "PrefixSide",
    "block_hashes",
    "explain_prefix",
    "pack_hashes",
    "shared_blocks",
    "token_array",
    "unpack_hashes",
]

BLOCK_TOKENS = 16
HASH_BYTES = 8
_WIDTH = BLOCK_TOKENS * array("I").itemsize
ROUNDING_TOKENS = 128
"""Largest KV block in common use (vLLM on CPU): a hit this much short of the shared prefix is rounding, not a miss."""


def block_hashes(token_ids: Sequence[int], salt: bytes) -> list[int]:
    """Chained 64-bit hashes, one per full block of 16 tokens.

    Args:
        token_ids: ids from 0 to 2**32 - 1.
        salt: key of the hash, at most 64 bytes.
    """
    return _chain(_token_bytes(token_ids), salt, [])


def token_array(token_ids: Sequence[int]) -> array[int]:
    """Token ids in 4 bytes each."""
    return array("I", token_ids)


def _token_bytes(token_ids: Sequence[int]) -> bytes:
    raw = token_array(token_ids)
    if sys.byteorder == "big":
        raw.byteswap()
    return raw.tobytes()


def _chain(data: bytes, salt: bytes, known: list[int]) -> list[int]:
    """Hashes of all full blocks of ``data``, going on after those already ``known``."""
    hashes = list(known)
    previous = hashes[-1].to_bytes(8, "little") if hashes else b""
    view = memoryview(data)
    for start in range(len(hashes) * _WIDTH, len(data) - _WIDTH + 1, _WIDTH):
        chained = blake2b(previous, digest_size=8, key=salt)
        chained.update(view[start : start + _WIDTH])
        previous = chained.digest()
        hashes.append(int.from_bytes(previous, "little"))
    return hashes


class BlockHasher:
    """Hashes prompts of many threads; what a prompt shares with the one before it in its thread is not hashed again.

    Args:
        threads: most threads remembered; each keeps the 4 bytes per token of its last prompt.
    """

    def __init__(self, salt: bytes, threads: int = 256) -> None:
        self._salt = salt
        self._limit = threads
        self._last: OrderedDict[str | None, tuple[bytes, list[int]]] = OrderedDict()

    def hashes(self, thread: str | None, token_ids: Sequence[int]) -> list[int]:
        """As :func:`block_hashes`."""
        data = _token_bytes(token_ids)
        before, known = self._last.pop(thread, (b"", []))
        low, high = 0, min(len(before), len(data)) // _WIDTH
        while low < high:  # bisection over slices that compare at the speed of memory
            middle = (low + high + 1) // 2
            if before[low * _WIDTH : middle * _WIDTH] == data[low * _WIDTH : middle * _WIDTH]:
                low = middle
            else:
                high = middle - 1
        hashes = _chain(data, self._salt, known[:low])
        if thread is not None:
            self._last[thread] = (data, hashes)
            if len(self._last) > self._limit:
                self._last.popitem(last=False)
        return hashes


def pack_hashes(hashes: Sequence[int]) -> bytes:
    """8 bytes each, little endian. Wider or negative values are cut to 64 bits."""
    try:
        raw = array("Q", hashes)
    except OverflowError:
        raw = array("Q", (value & 0xFFFF_FFFF_FFFF_FFFF for value in hashes))
    if sys.byteorder == "big":
        raw.byteswap()
    return raw.tobytes()


def unpack_hashes(packed: bytes) -> array[int]:
    """What :func:`pack_hashes` packed."""
    raw = array("Q")
    raw.frombytes(packed)
    if sys.byteorder == "big":
        raw.byteswap()
    return raw


def shared_blocks(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading blocks two prompts share. Rolling hashes agree up to a point and never after: bisection."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[middle - 1] == second[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixSide:
    """One of the two turns compared. ``salted_with`` is what keeps cache blocks apart: model, engine, policy."""

    hashes: Sequence[int]
    prompt_tokens: int | None
    cached_tokens: int | None
    salted_with: tuple[str, ...] = ()
    turn_id: str | None = None


Verdict = Literal["reused", "diverged", "lost", "separate", "new", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixFinding:
    """The answer to "why was my prefix missed?".

    Attributes:
        verdict: ``reused``: what could be reused was; ``diverged``: the prompt changed before the earlier one's end,
            so nothing after that point can be reused; ``lost``: the prompt begins like the earlier one, yet the cache
            did not have it; ``separate``: the two ran under another model, engine or policy, which never share
            blocks; ``new``: the first turn of its agent, whose beginning no earlier prompt has; ``unknown``: the
            engine did not report cached tokens.
        shared_tokens: leading tokens both prompts share, in whole blocks.
        earlier_tokens: tokens of the earlier prompt in whole blocks.
        first_block: index of the first block that differs; ``None`` where none does.
        missed_tokens: shared tokens that were not found in the cache.
        reason: one sentence for a reader.
        earlier_turn_id: the turn that this one was compared with.
    """

    verdict: Verdict
    shared_tokens: int
    earlier_tokens: int
    first_block: int | None
    missed_tokens: int | None
    reason: str
    earlier_turn_id: str | None = None


def explain_prefix(turn: PrefixSide, earlier: PrefixSide, *, first_of_its_agent: bool = False) -> PrefixFinding:
    """Compare a turn's prompt with an earlier one, and with what the cache gave.

    Args:
        first_of_its_agent: no turn of the same agent came before: its prompt need not go on from any.
    """
    blocks = shared_blocks(turn.hashes, earlier.hashes)
    shared, whole = blocks * BLOCK_TOKENS, len(earlier.hashes) * BLOCK_TOKENS
    first = blocks if blocks < min(len(turn.hashes), len(earlier.hashes)) else None
    missed = None if turn.cached_tokens is None else max(0, shared - turn.cached_tokens)
    short = missed is not None and missed >= ROUNDING_TOKENS
    goes_on = first is None or whole - shared < BLOCK_TOKENS
    verdict: Verdict
    if turn.salted_with != earlier.salted_with and (missed is None or short):
        verdict = "separate"
        reason = (
            f"the earlier turn ran under {' / '.join(earlier.salted_with)}, "
            f"this one under {' / '.join(turn.salted_with)}: "
            "they never share cache blocks, because their keys and values differ"
        )
    elif first_of_its_agent and not blocks:
        verdict, reason = "new", "the first turn of its agent, and no earlier prompt begins like this one"
    elif not goes_on and not first_of_its_agent:
        verdict = "diverged"
        reason = (
            f"the prompt is equal to the earlier one up to token {shared} and differs in block {first} (tokens "
            f"{shared} to {shared + BLOCK_TOKENS - 1}): from there on {whole - shared} tokens of the earlier prompt "
            "could not be reused"
        )
        if short:
            reason += f"; of the equal part {missed} tokens were missing from the cache too"
    elif missed is None:
        verdict, reason = "unknown", "the engine did not report how many tokens came from its cache"
    elif short:
        verdict = "lost"
        part = f"a whole earlier prompt ({shared} tokens)" if goes_on else f"{shared} tokens of an earlier one"
        reason = (
            f"the prompt begins with {part}, yet {missed} of them were not in the cache: evicted under load, the "
            "engine was restarted, or another cache salt was given"
        )
    else:
        verdict = "reused"
        reason = f"the prompt shares its first {shared} tokens with an earlier one, in whole blocks of {BLOCK_TOKENS}; "
        reason += _reused(shared, turn.cached_tokens or 0)
    return PrefixFinding(
        verdict=verdict,
        shared_tokens=shared,
        earlier_tokens=whole,
        first_block=first,
        missed_tokens=missed,
        reason=reason,
        earlier_turn_id=earlier.turn_id,
    )


def _reused(shared: int, cached: int) -> str:
    """What came from the cache. Its blocks may end elsewhere than those that are compared."""
    if cached > shared:
        return f"the cache gave all of them, {cached} tokens in all"
    if cached == shared:
        return "the cache gave all of them"
    return f"the cache gave {cached} of them, all but a part of its last block"
