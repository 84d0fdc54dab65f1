"""Expensive grammars are tried in a process of its own, within limits; the outcome is remembered."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from mixquant_agents.engine.vllm.grammar import checker
from mixquant_agents.engine.vllm.grammar.checker import GrammarChecker
from mixquant_agents.engine.vllm.grammar.structural_tag import Grammar, rewritten
from mixquant_agents.errors import GrammarError

pytestmark = pytest.mark.slow


def grammar(schema: dict[str, Any]) -> Grammar:
    prepared = rewritten(schema)
    form = {"type": "json_schema", "json_schema": prepared.schema}
    return Grammar(json.dumps({"type": "structural_tag", "format": form}), prepared.weight)


def vocabulary() -> str:
    import xgrammar

    tokens = [*(bytes([byte]) for byte in range(256)), b"</s>"]
    return str(xgrammar.TokenizerInfo(tokens, stop_token_ids=[256]).serialize_json())


@pytest_asyncio.fixture
async def tried() -> AsyncIterator[GrammarChecker]:
    made = GrammarChecker(vocabulary)
    yield made
    await made.close()


LARGE = {"enum": [f"item {index}" for index in range(4_000)]}
DEAR = {"type": "string", "pattern": "^(a{1,200}){1,200}$"}


async def test_small_grammar_needs_no_helper(tried: GrammarChecker) -> None:
    await tried.check(grammar({"type": "boolean"}))
    assert tried._helper is None
    with pytest.raises(GrammarError, match="cannot be turned into a grammar"):
        await tried.check(Grammar('{"type": "structural_tag", "format": {"type": "nonsense"}}'))


async def test_large_grammar_is_tried_once_by_the_helper(
    tried: GrammarChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tried.check(grammar(LARGE))
    assert tried._helper is not None
    await tried._kill()
    monkeypatch.setattr(tried, "_started", None)  # it would fail if it were asked again
    await tried.check(grammar(LARGE))


async def test_dear_grammar_is_refused_and_others_go_on(tried: GrammarChecker) -> None:
    for _ in range(2):
        with pytest.raises(GrammarError, match="repetitions"):
            await tried.check(grammar(DEAR))
    await tried.check(grammar(LARGE))


async def test_grammar_beyond_the_limits_ends_the_helper(
    tried: GrammarChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checker, "EXTRA_BYTES", 2**20)
    with pytest.raises(GrammarError, match=r"CPU time or 1 MiB|memory|alloc"):
        await tried.check(grammar({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(900)}}))
    monkeypatch.setattr(checker, "EXTRA_BYTES", 2**30)
    await tried._kill()
    await tried.check(grammar(LARGE))


async def test_cancelled_check_ends_the_helper(tried: GrammarChecker) -> None:
    await tried.check(grammar(LARGE))
    assert tried._helper is not None
    process_id = tried._helper.pid
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(tried.check(grammar(DEAR)), 0.001)
    assert tried._helper is None
    with pytest.raises(ProcessLookupError):
        os.kill(process_id, 0)


async def test_idle_helper_ends_by_itself(tried: GrammarChecker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker, "IDLE_SECONDS", 0.1)
    await tried.check(grammar(LARGE))
    helper = tried._helper
    assert helper is not None
    began = time.monotonic()
    await asyncio.wait_for(helper.wait(), 20)
    assert time.monotonic() - began < 20
    assert tried._helper is None
