"""What every tool has from its maker: threads of its own, bounded patterns."""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import pkgutil
import re
import threading
import time

import pytest
from pydantic import BaseModel

import mixquant_tools
from mixquant_tools.base import make_tool
from mixquant_tools.errors import ToolError


class Nothing(BaseModel):
    """Nothing."""


async def test_tools_that_wait_leave_the_loop_s_own_threads_alone() -> None:
    let_go = threading.Event()

    def wait() -> str:
        return "done" if let_go.wait(20) else "late"

    tool = make_tool(wait, name="wait", description="Waits.", arguments=Nothing)
    calls = [asyncio.create_task(tool.ainvoke({})) for _ in range(20)]
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await asyncio.to_thread(let_go.set)
    assert await asyncio.gather(*calls) == ["done"] * 20


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


async def test_tool_sees_the_variables_of_its_caller_and_is_refused_in_words() -> None:
    def fail() -> str:
        raise ToolError(variable.get())

    variable.set("of the caller")
    tool = make_tool(fail, name="fail", description="Fails.", arguments=Nothing)
    message = await tool.ainvoke({"type": "tool_call", "id": "1", "name": "fail", "args": {}})
    assert (message.status, message.content) == ("error", "error: of the caller")


def patterns() -> dict[str, re.Pattern[str]]:
    """Every compiled pattern of the package."""
    skipped = ("mixquant_tools.jail.child", "mixquant_tools.sql.child")  # programs, with no patterns
    names = [module.name for module in pkgutil.walk_packages(mixquant_tools.__path__, "mixquant_tools.")]
    return {
        f"{name}.{key}": value
        for name in names
        if name not in skipped
        for key, value in vars(importlib.import_module(name)).items()
        if isinstance(value, re.Pattern)
    }


PIECES = (
    *("a", " ", "#", "# ", "1", "1,", ",111", ".", "a.", "a_", "_", "A", "Aa", "<", "<|", "[", "|", "\t", "a b", "é"),
    *("per ", "m*", "m^2 ", "m per ", "1e", "(", "<a_", "</", "｜", "a'", "''", "\n", "\u200b", "\ufe00", "µ"),
)


LONGEST = {"mixquant_tools.calculator._TOKEN": 500, "mixquant_tools.clock._UNIT": 80}
"""Characters of a text that reaches a pattern, where that is checked before."""


@pytest.mark.slow
@pytest.mark.parametrize("name", patterns())
def test_pattern_costs_linear(name: str) -> None:
    pattern = patterns()[name]
    for piece in PIECES:
        for end in ("", "!", "\x00"):
            line = piece * (LONGEST.get(name, 20_000) // len(piece)) + end
            began = time.process_time()
            pattern.match(line)
            pattern.fullmatch(line)
            sum(1 for _ in pattern.finditer(line))
            assert time.process_time() - began < 1, piece
