"""Whether a grammar can be compiled, and at what price, before the engine sees it.

A schema of a hundred characters can cost a compiler minutes and gigabytes, in the engine core for all turns. So a
grammar is tried first, away from the owner's loop:

* one with few states is converted in a thread (xgrammar releases the interpreter lock);
* any other is compiled by a helper process with the model's own vocabulary, under a limit of CPU time and of memory.
  The helper is killed where it exceeds one, and ends by itself when nobody needs it.

What passed is remembered.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import sys
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from mixquant_agents.engine.vllm.grammar.structural_tag import Grammar
from mixquant_agents.errors import GrammarError

__all__ = ["GrammarChecker"]

logger = logging.getLogger("mixquant_agents.engine")

SMALL_WEIGHT = 2_000
"""States; a grammar below is converted in milliseconds."""
SMALL_TEXT = 100_000
"""Characters of a tag."""
MAX_TEXT = 4_000_000
"""Characters of a tag; a larger one is refused unread."""
COMPILE_SECONDS = 3
"""CPU seconds of the helper for one grammar. The engine core needs as long again, in a thread of its own."""
CONVERT_SECONDS = 0.25
"""CPU seconds for the part of it that vLLM repeats on the owner's loop with every request."""
EXTRA_BYTES = 2**30
"""Memory the helper may take for one grammar."""
WAIT_SECONDS = 60.0
"""Wall clock: for a machine that is too busy to give the helper its CPU time."""
IDLE_SECONDS = 30.0
_REMEMBERED = 1_024


class GrammarChecker:
    """Tries grammars for one engine. Lives on the owner's loop.

    Args:
        vocabulary: xgrammar's ``TokenizerInfo`` of the model, as JSON; called in a thread, once for each helper.
    """

    def __init__(self, vocabulary: Callable[[], str | None]) -> None:
        self._vocabulary = vocabulary
        self._outcomes: OrderedDict[str, str | None] = OrderedDict()
        self._lock = asyncio.Lock()
        self._helper: asyncio.subprocess.Process | None = None
        self._idle: asyncio.TimerHandle | None = None

    async def check(self, grammar: Grammar) -> None:
        """Return if ``grammar`` can be given to the engine. Other turns go on meanwhile; cancelling ends the work.

        Raises:
            GrammarError: it cannot be compiled, or not within the limits.
        """
        key = hashlib.sha256(grammar.tag.encode(errors="surrogatepass")).hexdigest()
        if key not in self._outcomes:
            self._outcomes[key] = await self._try(grammar)
            while len(self._outcomes) > _REMEMBERED:
                self._outcomes.popitem(last=False)
        self._outcomes.move_to_end(key)
        problem = self._outcomes[key]
        if problem is not None:
            raise GrammarError(f"the schema cannot be turned into a grammar: {problem}")

    async def close(self) -> None:
        """End the helper, if there is one."""
        if self._idle is not None:
            self._idle.cancel()
        await self._kill()

    async def _try(self, grammar: Grammar) -> str | None:
        """What is wrong with the grammar, or ``None``."""
        if len(grammar.tag) > MAX_TEXT:
            return f"it has {len(grammar.tag)} characters as a grammar, more than {MAX_TEXT}; simplify it"
        if grammar.weight <= SMALL_WEIGHT and len(grammar.tag) <= SMALL_TEXT:
            return await asyncio.to_thread(convert, grammar.tag)
        async with self._lock:
            if self._idle is not None:
                self._idle.cancel()
            try:
                async with asyncio.timeout(WAIT_SECONDS):
                    return await self._ask(grammar.tag)
            except TimeoutError:
                await self._kill()
                return f"compiling it took more than {WAIT_SECONDS:.0f} seconds; {_REMEDY}"
            except BaseException:  # cancelled: what it computes is wanted by nobody
                await self._kill()
                raise
            finally:
                self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._retire)

    async def _ask(self, tag: str) -> str | None:
        helper = await self._started()
        if helper.stdin is None or helper.stdout is None:
            raise GrammarError("the grammar helper has no pipes; this is a fault of this library")
        try:
            helper.stdin.write(json.dumps(tag).encode() + b"\n")
            await helper.stdin.drain()
            line = await helper.stdout.readline()
        except (BrokenPipeError, ConnectionResetError):
            line = b""
        if not line:
            await self._kill()
            limits = f"{COMPILE_SECONDS} seconds of CPU time or {EXTRA_BYTES >> 20} MiB"
            return f"compiling it took more than {limits}; {_REMEDY}"
        answer: dict[str, Any] = json.loads(line)
        if answer["error"] is not None:
            return str(answer["error"])
        if answer["convert_seconds"] > CONVERT_SECONDS:
            return f"converting it took {answer['convert_seconds']:.2f} seconds, more than {CONVERT_SECONDS}; {_REMEDY}"
        return None

    async def _started(self) -> asyncio.subprocess.Process:
        if self._helper is not None and self._helper.returncode is None:
            return self._helper
        vocabulary = await asyncio.to_thread(self._vocabulary)
        self._helper = helper = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "mixquant_agents.engine.vllm.grammar.helper_process",
            str(COMPILE_SECONDS), str(EXTRA_BYTES),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            limit=2**20, start_new_session=True,  # Ctrl-C in a terminal is for the owner
        )  # fmt: skip
        if helper.stdin is not None:
            helper.stdin.write(json.dumps(vocabulary).encode() + b"\n")
            with suppress(BrokenPipeError, ConnectionResetError):
                await helper.stdin.drain()
        return helper

    async def _kill(self) -> None:
        helper, self._helper = self._helper, None
        if helper is not None and helper.returncode is None:
            with suppress(ProcessLookupError):
                helper.kill()
            await helper.wait()

    def _retire(self) -> None:
        """Nobody needed the helper for a while: end its input, and with it the process."""
        if not self._lock.locked() and self._helper is not None and self._helper.stdin is not None:
            self._helper.stdin.close()
            self._helper = None


_REMEDY = "give bounds and repetitions that multiply to less, or fewer levels"


def convert(tag: str) -> str | None:
    """What xgrammar says against ``tag``, or ``None``."""
    from xgrammar import Grammar as XGrammar

    try:
        XGrammar.from_structural_tag(tag)
    except Exception as error:  # xgrammar raises RuntimeError, ValueError and classes of its own
        return reason(error)
    return None


def reason(error: Exception) -> str:
    """One line of xgrammar's words, without its source position."""
    text = " ".join(str(error).split())
    position, separator, words = text.partition(": ")
    return words if separator and position.startswith("[") else text
