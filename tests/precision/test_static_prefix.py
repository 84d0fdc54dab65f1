"""Who finds whose KV blocks: a static beginning is lent to everybody, what follows is each policy's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.precision.static_prefix import EXTRA_ARG, StaticPrefix, exact_salt, salted

BLOCK, BLOCKS = 16, 8
EXACT = exact_salt(None)


def keys(policy_salt: str, static: StaticPrefix | None) -> list[tuple[object, ...]]:
    """Keys of a prompt's blocks; each has the one before it in it."""
    chain: tuple[object, ...] = ()
    made = []
    for start in range(0, BLOCK * BLOCKS, BLOCK):
        if static is not None:
            salt = static.salt_of(start, start + BLOCK, policy_salt)
        else:
            salt = policy_salt if start == 0 else None
        chain = (*chain, (start, salt))
        made.append(chain)
    return made


statics = st.integers(1, BLOCKS - 1).map(lambda blocks: StaticPrefix(blocks * BLOCK, EXACT))


@given(statics, statics, st.booleans())
def test_two_requests_share_static_blocks_and_policies_share_no_others(
    first: StaticPrefix, second: StaticPrefix, alike: bool
) -> None:
    shared = set(keys("a", first)) & set(keys("a" if alike else "b", second))
    blocks = BLOCKS if alike and first == second else min(first.tokens, second.tokens) // BLOCK
    assert len(shared) == blocks


@given(statics)
def test_exact_requests_find_static_blocks_alone(static: StaticPrefix) -> None:
    exact = keys(EXACT, None)
    assert len(set(keys("quantized", static)) & set(exact)) == static.tokens // BLOCK
    assert not set(keys("quantized", None)) & set(exact)


def test_beginning_shorter_than_a_block_is_lent_to_nobody() -> None:
    assert keys("a", StaticPrefix(BLOCK - 1, EXACT)) == keys("a", None)


@pytest.mark.parametrize("others", [None, {}, {"kept": 1}])
def test_extra_arguments_carry_it_beside_others(others: dict[str, int] | None) -> None:
    static = StaticPrefix(32, EXACT)
    carried = static.extra_args(others)
    assert StaticPrefix.of(carried) == static
    assert {name: value for name, value in carried.items() if name != EXTRA_ARG} == (others or {})
    assert StaticPrefix.of(others) is None


def test_requests_with_a_salt_of_their_own_are_lent_nothing_of_others() -> None:
    assert len({exact_salt(None), exact_salt("mine"), exact_salt("yours")}) == 3
    assert salted("fingerprint", None) == "fingerprint"


@pytest.mark.parametrize(
    "value", [5, "48", [], [48], ["48", "x"], [48, 5], [0, "x"], [-16, "x"], [48, "x", 1], {"tokens": 48}]
)
def test_arguments_that_make_no_sense_lend_nothing(value: object) -> None:
    assert StaticPrefix.of({EXTRA_ARG: value}) is None


def test_blocks_of_other_salts_cannot_be_asked_for() -> None:
    assert StaticPrefix(48, exact_salt("a:b")).belongs_to(salted("quantized", "a:b"))
    assert StaticPrefix(48, exact_salt(None)).belongs_to(salted("quantized", None))
    assert not StaticPrefix(48, exact_salt("other")).belongs_to(salted("quantized", "own"))
    assert not StaticPrefix(48, salted("quantized", "own")).belongs_to(salted("other", "own"))
    assert not StaticPrefix(48, exact_salt(None)).belongs_to(None)
