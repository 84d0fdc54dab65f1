"""Prompts beside the owner's loop: ordinary ones on one thread, large ones on another, impossible ones not at all."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from mixquant_agents.engine.base import JsonObject, Message
from mixquant_agents.engine.vllm.chat_format.messages import mended
from mixquant_agents.engine.vllm.history import TemplateChangeError, WrittenAnswers, conversation_keys
from mixquant_agents.engine.vllm.history.turn import RenderedPrompt
from mixquant_agents.engine.vllm.render import Renderer
from mixquant_agents.errors import ContextOverflowError, MixQuantError

__all__ = ["LARGE_PROMPT", "Prompts"]

logger = logging.getLogger("mixquant_agents.engine")
T = TypeVar("T")

_STATIC_ROLES = ("system", "developer")
_MEMORY = 256
"""Static beginnings that are remembered."""

LARGE_PROMPT = 200_000
"""Characters; tokenizing as many takes a fifth of a second."""


class Prompts:
    """Renders for one engine. A tokenizer is not to be used from two threads at once, so large prompts have one of
    their own, made with the first of them.

    Args:
        renderer: of ordinary prompts.
        another: makes the renderer of large ones.

    Attributes:
        answers: turns whose tokens later prompts begin with.
    """

    def __init__(self, renderer: Renderer, another: Callable[[], Renderer]) -> None:
        self.renderer = renderer
        self.answers = WrittenAnswers()
        self._another = another
        self._large_renderer: Renderer | None = None
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mixquant-render")
        self._large_pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mixquant-render-large")
        self._static: dict[str, list[int]] = {}
        self._longest_token = _longest_token(renderer.tokenizer)

    async def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[JsonObject],
        variables: JsonObject,
        *,
        verbatim: bool = True,
    ) -> RenderedPrompt:
        """The prompt, with the tokens of earlier turns as they were written where the conversation goes on from them.
        Nobody waits for a large prompt of somebody else.

        Args:
            verbatim: ``False`` renders everything by the template and keeps nothing.

        Raises:
            InvalidMessagesError, RequestError, ConfigError: see :meth:`Renderer.render`.
        """
        return await self._with_renderer(
            _characters(messages, tools),
            lambda renderer: self._render(renderer, messages, tools, variables, verbatim),
        )

    async def certain(
        self,
        messages: Sequence[Message],
        tools: Sequence[JsonObject],
        variables: JsonObject,
        *,
        growing: bool,
        verbatim: bool = True,
    ) -> RenderedPrompt:
        """The tokens with which every prompt begins that goes on from these messages; see :meth:`Engine.prefetch`."""
        first, second = _endings(messages, growing=growing)
        first_prompt = await self.render(first, tools, variables, verbatim=verbatim)
        if first == second:
            return first_prompt
        second_prompt = await self.render(second, tools, variables, verbatim=verbatim)
        shared = common_length(first_prompt.token_ids, second_prompt.token_ids)
        length = max(0, shared - _MERGED) if growing else shared
        return replace(
            first_prompt,
            token_ids=first_prompt.token_ids[:length],
            verbatim_tokens=min(first_prompt.verbatim_tokens, length),
        )

    async def static_tokens(
        self, ids: Sequence[int], messages: Sequence[Message], tools: Sequence[JsonObject], variables: JsonObject
    ) -> int:
        """How many tokens of the prompt ``ids`` every prompt with these system messages and tools begins with, as far
        as the template puts them there. Looked for once; 0 where the template refuses to tell."""
        leading = list(itertools.takewhile(lambda message: message.get("role") in _STATIC_ROLES, messages))
        key = repr((leading, list(tools), variables))
        if key not in self._static:
            try:
                certain = await self.certain(leading, tools, variables, growing=False, verbatim=False)
            except MixQuantError as error:
                logger.debug("the static beginning of a prompt is not known: %s", error)
                return 0
            while len(self._static) >= _MEMORY:
                del self._static[next(iter(self._static))]
            self._static[key] = certain.token_ids
        return common_length(ids, self._static[key])

    async def token_ids(self, text: str) -> list[int]:
        """Ids of the tokens of a text, without special tokens."""
        return await self._with_renderer(len(text), lambda renderer: _token_ids(renderer, text))

    def check_characters(self, messages: Sequence[Message], max_tokens: int | None) -> None:
        """Refuse what cannot fit whatever its tokens are, before it is tokenized.

        Raises:
            ContextOverflowError: it has more characters than the context window's tokens can hold.
        """
        if self._longest_token is None:
            return
        window = self.renderer.max_model_len
        tokens = _characters(messages, ()) // self._longest_token
        if tokens >= window:
            raise ContextOverflowError(tokens, window, max_tokens, at_least=True)

    def close(self) -> None:
        """Give up what is waiting."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._large_pool.shutdown(wait=False, cancel_futures=True)

    async def _with_renderer(self, characters: int, work: Callable[[Renderer], T]) -> T:
        """Do ``work`` with the renderer for so many characters, on its thread."""
        large = characters > LARGE_PROMPT
        pool = self._large_pool if large else self._pool
        return await asyncio.get_running_loop().run_in_executor(pool, lambda: work(self._renderer_of(large)))

    def _render(
        self,
        renderer: Renderer,
        messages: Sequence[Message],
        tools: Sequence[JsonObject],
        variables: JsonObject,
        verbatim: bool,
    ) -> RenderedPrompt:
        if not verbatim:
            return RenderedPrompt(token_ids=renderer.render(messages, tools, variables))
        keys, whole = conversation_keys(messages, tools, variables)
        change = None
        if (kept := self.answers.newest(keys)) is not None:
            at, turn = kept
            try:
                tail = renderer.tail(messages, tools, variables, at, turn.end)
            except TemplateChangeError as error:
                change = str(error)
            else:
                tokens = turn.tokens
                return RenderedPrompt(token_ids=tokens + tail, before=turn, verbatim_tokens=len(tokens), key=whole)
        return RenderedPrompt(token_ids=renderer.render(messages, tools, variables), change=change, key=whole)

    def _renderer_of(self, large: bool) -> Renderer:
        if not large:
            return self.renderer
        if self._large_renderer is None:
            self._large_renderer = self._another()
        return self._large_renderer


def _token_ids(renderer: Renderer, text: str) -> list[int]:
    return [int(token) for token in renderer.tokenizer.encode(mended(text), add_special_tokens=False)]


def _endings(messages: Sequence[Message], *, growing: bool) -> tuple[list[Message], list[Message]]:
    """Two ways in which the conversation may go on; equal where it is a whole prompt."""
    known = list(messages)
    last: Message = known[-1] if known else {"role": "system"}
    if growing:
        first, second = ([*known[:-1], {**last, "content": f"{last.get('content') or ''}{end}"}] for end in _ENDS)
        return first, second
    if last.get("role") == "assistant" and last.get("tool_calls"):
        call = last["tool_calls"][0]
        first, second = ([*known, {"role": "tool", "tool_call_id": call.get("id"), "content": end}] for end in _ENDS)
        return first, second
    if last.get("role") in ("system", "assistant"):
        first, second = ([*known, {"role": "user", "content": end}] for end in _ENDS)
        return first, second
    return known, known


_ENDS = ("zqone", "qwtwo")
_MERGED = 4
"""Tokens at the end of a growing text that may yet become others when more letters follow."""


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    low, high = 0, min(len(first), len(second))
    while low < high:  # bisection over slices, which compare at the speed of memory
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _characters(messages: Sequence[Message], tools: Sequence[JsonObject]) -> int:
    """Characters of the texts that a template writes out; white space around a text may be cut off by it."""
    total = sum(len(repr(tool)) for tool in tools)
    for message in messages:
        content = message.get("content")
        parts = content if isinstance(content, list | tuple) else [content]
        for part in parts:
            text = part.get("text") if isinstance(part, dict) else part
            total += len(text.strip()) if isinstance(text, str) else 0
    return total


def _longest_token(tokenizer: Any) -> int | None:
    """Most characters of text that one token can stand for; ``None`` where the tokenizer does not tell."""
    try:
        longest = max(map(len, tokenizer.get_vocab()))
    except Exception:  # tokenizers of many makers
        return None
    return 4 * longest  # Unicode normalization may join up to four characters into one
