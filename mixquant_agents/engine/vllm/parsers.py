"""Answers → content, reasoning and tool calls: which parser a model needs, and vLLM's parsers behind ``OutputParser``.

Hermes calls and ``<think>`` blocks are read by the incremental parser of this library: vLLM's Hermes parser looks at
the whole answer again with every token (2.4 to 2.8 times the work for twice the tokens) and drops what is no valid
call. Every other syntax is read by vLLM's own parser.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from mixquant_agents.config import EngineConfig
from mixquant_agents.engine.base import (
    Delta,
    JsonObject,
    ToolCallDelta,
    ToolChoice,
)
from mixquant_agents.engine.hermes import HermesParser
from mixquant_agents.engine.parsing import OutputParser, TokenDelta
from mixquant_agents.engine.vllm.grammar import calls_in_hermes, tools_active
from mixquant_agents.engine.vllm.render import Renderer
from mixquant_agents.errors import ConfigError, EngineError

__all__ = ["VllmOutputParser", "make_parser", "parser_names", "reasoning_counter", "tag_model_of"]

logger = logging.getLogger("mixquant_agents.engine")

_TOOL_MARKS = (
    ("<|channel|>commentary", "openai"),
    ("<function=", "qwen3_coder"),
    ("<arg_key>", "glm45"),
    ("<minimax:tool_call>", "minimax_m2"),
    ("<|tool_calls_section_begin|>", "kimi_k2"),
    ("<｜tool▁calls▁begin｜>", "deepseek_v3"),
    ("<|START_ACTION|>", "cohere_command3"),
    ("<seed:tool_call>", "seed_oss"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|tool_call>call:", "gemma4"),
    ("<start_function_call>", "functiongemma"),
    ("<|python_tag|>", "llama3_json"),
    ("<tool_call>", "hermes"),
)
"""What a chat template that knows this call syntax contains → vLLM's tool parser; the first match wins."""

_REASONING_MARKS = (
    ("<|channel|>analysis", "openai_gptoss"),
    ("<|channel>thought", "gemma4"),
    ("<seed:think>", "seed_oss"),
    ("[THINK]", "mistral"),
    ("<think>", None),  # by family, below
)
_THINK_FAMILIES = (
    ("deepseek", "deepseek_r1"), ("glm", "glm45"), ("minimax", "minimax_m2"), ("kimi", "kimi_k2"),
    ("nemotron", "nemotron_v3"), ("step3", "step3"), ("qwen", "qwen3"),
)  # fmt: skip
_THINK_TAGGED = frozenset({"qwen3", "deepseek_r1", "deepseek_v3", "glm45", "glm47", "nemotron_v3", "holo2", "step3"})
"""Reasoning parsers of vLLM that read ``<think>…</think>``."""


def parser_names(config: EngineConfig, renderer: Renderer) -> tuple[str | None, str | None]:
    """Names of the tool parser and the reasoning parser for this model.

    Raises:
        ConfigError: a parser was named that the installed vLLM does not have.
    """
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    tools = {*ToolParserManager.lazy_parsers, *ToolParserManager.tool_parsers}
    reasoners = {*ReasoningParserManager.lazy_parsers, *ReasoningParserManager.reasoning_parsers}
    template = renderer.template or ""
    tool, reasoning = config.tool_parser, config.reasoning_parser
    if tool == "auto":
        marked = next((name for mark, name in _TOOL_MARKS if mark in template), None)
        tool = marked if marked in tools and renderer.tool_form != "prompted" else "hermes"
    elif tool is not None and tool not in tools:
        raise ConfigError(f"tool_parser {tool!r} is unknown; vLLM has: {', '.join(sorted(tools))}")
    wanted = config.tool_parser, config.reasoning_parser
    if reasoning == "auto":
        reasoning = _auto_reasoning(template, config.model, reasoners) if not renderer.bundled else None
    elif reasoning is not None and reasoning not in reasoners:
        raise ConfigError(f"reasoning_parser {reasoning!r} is unknown; vLLM has: {', '.join(sorted(reasoners))}")
    return _fitting((tool, reasoning), wanted, renderer.tokenizer)


def _fitting(
    names: tuple[str | None, str | None], wanted: tuple[str | None, str | None], tokenizer: Any
) -> tuple[str | None, str | None]:
    """The same names, when vLLM's parsers find the tokens they need; those chosen by ``auto`` are given up otherwise.

    Raises:
        ConfigError: a parser that was asked for by name does not fit the tokenizer.
    """
    tool, reasoning = names
    try:
        make_parser(names, tokenizer, [_PROBE], "auto")
        reasoning_counter(reasoning, tokenizer)
    except Exception as error:  # parsers raise what they like
        if reasoning is not None and wanted[1] == "auto":
            return _fitting((tool, None), wanted, tokenizer)
        if tool != "hermes" and wanted[0] == "auto":
            return _fitting(("hermes", reasoning), wanted, tokenizer)
        raise ConfigError(f"tool_parser {tool!r} and reasoning_parser {reasoning!r} do not fit: {error}") from error
    return names


_PROBE: JsonObject = {"type": "function", "function": {"name": "probe", "parameters": {"type": "object"}}}


def _auto_reasoning(template: str, model: str, known: set[str]) -> str | None:
    for mark, name in _REASONING_MARKS:
        if mark in template:
            family = next((parser for part, parser in _THINK_FAMILIES if part in model.lower()), "qwen3")
            chosen = name or family
            return chosen if chosen in known else None
    return None


def tag_model_of(tool_parser: str | None) -> str | None:
    """vLLM's name of the grammar for this parser's call syntax; ``None`` where there is none."""
    if tool_parser is None or tool_parser == "hermes":
        return tool_parser
    from vllm.tool_parsers import ToolParserManager

    name: str | None = ToolParserManager.get_tool_parser(tool_parser).structural_tag_model
    return name


def reasoning_counter(name: str | None, tokenizer: Any) -> Callable[[Sequence[int], Sequence[int]], int] | None:
    """Counts an answer's reasoning tokens from the ids of prompt and answer; ``None`` where the parser cannot."""
    if name is None:
        return None
    from vllm.reasoning import ReasoningParser, ReasoningParserManager

    parser = ReasoningParserManager.get_reasoning_parser(name)(tokenizer)
    if type(parser).count_reasoning_tokens is ReasoningParser.count_reasoning_tokens:
        return None  # vLLM's default answers 0 for "cannot tell"
    opening = tokenizer.encode("<think>", add_special_tokens=False)

    def count(prompt: Sequence[int], answer: Sequence[int]) -> int:
        begun = opening if _ends_thinking(tokenizer, prompt) else []
        return int(parser.count_reasoning_tokens([*begun, *answer]))

    return count


def make_parser(
    names: tuple[str | None, str | None],
    tokenizer: Any,
    tools: Sequence[JsonObject],
    choice: ToolChoice,
) -> OutputParser:
    """A parser for one answer.

    Args:
        names: tool parser and reasoning parser, as :func:`parser_names` gives them.
        tokenizer: the model's.
    """
    tool, reasoning = names
    active = tools_active(tools, choice) and tool is not None
    hermes = not active or calls_in_hermes(tag_model_of(tool), choice)
    if hermes and (reasoning is None or reasoning in _THINK_TAGGED):
        return ThinkingHermesParser(tokenizer, tools=active, reasoning=reasoning is not None)
    return VllmOutputParser(None if not active else "hermes" if hermes else tool, reasoning, tokenizer, tools, choice)


class ThinkingHermesParser:
    """:class:`HermesParser`, begun inside a ``<think>`` block where the prompt left one open."""

    def __init__(self, tokenizer: Any, *, tools: bool, reasoning: bool) -> None:
        self._tokenizer = tokenizer
        self._parser = HermesParser(tools=tools, reasoning=reasoning)
        self._fresh = reasoning

    def feed(self, delta: TokenDelta) -> Delta:
        """See :class:`OutputParser`."""
        if self._fresh:
            self._fresh = False
            if delta.prompt_token_ids and _ends_thinking(self._tokenizer, delta.prompt_token_ids):
                self._parser.feed(TokenDelta(text="<think>\n"))
        return self._parser.feed(delta)

    def finish(self) -> Delta:
        """See :class:`OutputParser`."""
        return self._parser.finish()


def _ends_thinking(tokenizer: Any, prompt: Sequence[int]) -> bool:
    """Whether the prompt's last tokens open a ``<think>`` block; templates do it at the very end."""
    tail = tokenizer.decode(list(prompt[-8:]))
    return bool(tail.rstrip().endswith("<think>"))


class VllmOutputParser:
    """vLLM's tool and reasoning parsers for one answer. Their cost is theirs: some re-read the whole answer."""

    def __init__(
        self, tool: str | None, reasoning: str | None, tokenizer: Any, tools: Sequence[JsonObject], choice: ToolChoice
    ) -> None:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.parser import ParserManager

        parser_class = ParserManager.get_parser(
            tool_parser_name=tool, reasoning_parser_name=reasoning, enable_auto_tools=True
        )
        self._request = ChatCompletionRequest(
            messages=[{"role": "user", "content": ""}],
            tools=[dict(entry) for entry in tools] or None,
            # forced calls come in the model's own syntax here (see grammar), which vLLM reads as it reads "auto"
            tool_choice="auto" if tool is not None else "none" if tools else None,
        )
        self._parser = parser_class(tokenizer, self._request.tools)
        self._started = False
        self._finished = False

    def feed(self, delta: TokenDelta) -> Delta:
        """See :class:`OutputParser`."""
        prompt = None
        if not self._started:
            self._started = True
            prompt = list(delta.prompt_token_ids or ())
        self._finished = delta.finish_reason is not None
        return self._parsed(delta.text, list(delta.token_ids), prompt_token_ids=prompt, finished=self._finished)

    def finish(self) -> Delta:
        """See :class:`OutputParser`. Calls that were cut off have been given out: who reads the pieces judges them."""
        if self._finished or not self._started:
            return Delta()
        return self._parsed("", [], finished=True)

    def _parsed(self, text: str, ids: list[int], **more: Any) -> Delta:
        try:
            message = self._parser.parse_delta(text, ids, self._request, **more)
        except Exception as error:  # parsers raise what they like
            raise EngineError(f"vLLM's parser failed on this answer: {type(error).__name__}: {error}") from error
        if message is None:
            return Delta()
        calls = []
        for call in message.tool_calls or ():
            function = call.function
            arguments = (function.arguments if function else None) or ""
            calls.append(ToolCallDelta(call.index, call.id, function.name if function else None, arguments))
        return Delta(message.content or "", getattr(message, "reasoning", None) or "", tuple(calls))
