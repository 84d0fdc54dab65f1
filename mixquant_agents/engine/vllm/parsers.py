"""Answers → content, reasoning and tool calls: which parser a model needs, and vLLM's parsers behind ``OutputParser``.

JSON calls between markers (``hermes.JSON_CALLS``), blocks of reasoning between tags, and harmony are read by the
incremental parsers of this library: vLLM's Hermes parser looks at the whole answer again with every token (2.4 to 2.8
times the work for twice the tokens) and drops what is no valid call; its harmony parser needs a vocabulary from the
network; for some of these families it has none. Every other syntax is read by vLLM's own parser.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from mixquant_agents.config import EngineConfig
from mixquant_agents.engine.base import Delta, JsonObject, ToolCallDelta, ToolChoice, new_call_id
from mixquant_agents.engine.harmony import HarmonyParser
from mixquant_agents.engine.hermes import JSON_CALLS, THINK_CLOSE, THINK_OPEN, HermesParser, Markers
from mixquant_agents.engine.hermes.thoughts import ThoughtSplitter
from mixquant_agents.engine.parsing import OutputParser, TokenDelta
from mixquant_agents.engine.vllm.chat_format.messages import json_object
from mixquant_agents.engine.vllm.families import (
    THINK_TAGS,
    answer_markers,
    behind_calls,
    call_marks,
    reasoning_of,
    tells_whole_calls,
    tool_parsers_of,
)
from mixquant_agents.engine.vllm.grammar import calls_in_hermes, tools_active
from mixquant_agents.engine.vllm.render import Renderer
from mixquant_agents.errors import ConfigError, EngineError

__all__ = ["VllmOutputParser", "make_parser", "parser_names", "reasoning_counter", "tag_model_of"]

logger = logging.getLogger("mixquant_agents.engine")

_PROBE: JsonObject = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "",
        "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
    },
}
_PROBE_CALL: JsonObject = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "probe0001", "type": "function", "function": {"name": "probe", "arguments": '{"a": "b"}'}}],
}
_HARMONY = ("openai", "openai_gptoss")


def parser_names(config: EngineConfig, renderer: Renderer) -> tuple[str | None, str | None]:
    """Names of the tool parser and the reasoning parser for this model.

    Raises:
        ConfigError: a parser was named that neither the installed vLLM nor this library has, or that does not fit.
    """
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    tools = {*ToolParserManager.lazy_parsers, *ToolParserManager.tool_parsers, *JSON_CALLS}
    reasoners = {*ReasoningParserManager.lazy_parsers, *ReasoningParserManager.reasoning_parsers}
    tool, reasoning = config.tool_parser, config.reasoning_parser
    if tool not in ("auto", None) and tool not in tools:
        raise ConfigError(f"tool_parser {tool!r} is unknown; there are: {', '.join(sorted(tools))}")
    if reasoning not in ("auto", None) and reasoning not in reasoners:
        raise ConfigError(f"reasoning_parser {reasoning!r} is unknown; vLLM has: {', '.join(sorted(reasoners))}")
    source = renderer.template or _renders_itself(renderer)
    if reasoning == "auto":
        reasoning = None if renderer.bundled else reasoning_of(source, config.model, reasoners)
        if _misfit((None, reasoning), renderer.tokenizer) is not None:
            reasoning = None
    if tool == "auto":
        tool = _proven(renderer, source, tools)
    problem = _misfit((tool, reasoning), renderer.tokenizer)
    if problem is not None:
        raise ConfigError(f"tool_parser {tool!r} and reasoning_parser {reasoning!r} do not fit: {problem}") from problem
    return tool, reasoning


def _renders_itself(renderer: Renderer) -> str:
    """What stands for the template's source where the tokenizer has none: the special tokens that mark calls and
    thoughts."""
    vocabulary = renderer.tokenizer.get_vocab()
    return " ".join(mark for mark in ("[TOOL_CALLS]", "[THINK]", THINK_OPEN) if mark in vocabulary)


def _proven(renderer: Renderer, source: str, known: set[str]) -> str:
    """The first tool parser that reads back a call which the template wrote; else the likeliest that fits."""
    if renderer.tool_form == "prompted":
        return "hermes"
    try:
        call = renderer.answer_text(_PROBE_CALL, [_PROBE])
    except Exception:  # the template cannot write an answer that nothing follows
        call = ""
    likely, others = tool_parsers_of(source, call)
    fitting = [
        name for name in (*likely, *others) if name in known and _misfit((name, None), renderer.tokenizer) is None
    ]
    reads = {name: _reads_back(name, renderer.tokenizer, call) for name in fitting} if call else {}
    proven = (name for name in fitting if reads.get(name))
    unproven = (name for name in fitting if name in likely and reads.get(name) is None)
    return next(proven, None) or next(unproven, "hermes")


def _reads_back(tool: str, tokenizer: Any, call: str) -> bool | None:
    """Whether the parser finds the probe's call in its text; ``None`` where it finds no call at all."""
    parser = make_parser((tool, None), tokenizer, [_PROBE], "auto")
    ids = list(tokenizer.encode(call, add_special_tokens=False))
    try:
        outs = [parser.feed(TokenDelta(call, tuple(ids), finish_reason="stop", prompt_token_ids=())), parser.finish()]
        pieces = [piece for out in outs for piece in out.tool_calls]
    except EngineError:
        return False
    if not pieces:
        return None
    try:
        arguments = json.loads("".join(piece.arguments for piece in pieces))
    except ValueError:
        return False
    return [piece.name for piece in pieces if piece.name] == ["probe"] and arguments == {"a": "b"}


def _misfit(names: tuple[str | None, str | None], tokenizer: Any) -> Exception | None:
    """Why these parsers do not go with the tokenizer; ``None`` where they do."""
    try:
        make_parser(names, tokenizer, [_PROBE], "auto")
        reasoning_counter(names[1], tokenizer)
    except Exception as error:  # parsers raise what they like
        return error
    return None


def tag_model_of(tool_parser: str | None) -> str | None:
    """vLLM's name of the grammar for this parser's call syntax; ``None`` where there is none."""
    if tool_parser is None or tool_parser == "hermes":
        return tool_parser
    from vllm.tool_parsers import ToolParserManager

    if tool_parser not in {*ToolParserManager.lazy_parsers, *ToolParserManager.tool_parsers}:
        return None  # one of ours
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
    opening = tokenizer.encode(THINK_OPEN, add_special_tokens=False)

    def count(prompt: Sequence[int], answer: Sequence[int]) -> int:
        begun = opening if _ends_thinking(tokenizer, prompt, THINK_OPEN) else []
        return int(parser.count_reasoning_tokens([*begun, *answer]))

    return count


def make_parser(
    names: tuple[str | None, str | None],
    tokenizer: Any,
    tools: Sequence[JsonObject],
    choice: ToolChoice,
    *,
    with_schema: bool = False,
) -> OutputParser:
    """A parser for one answer.

    Args:
        names: tool parser and reasoning parser, as :func:`parser_names` gives them.
        tokenizer: the model's.
        with_schema: the answer is a call or JSON by a schema.
    """
    tool, reasoning = names
    active = tools_active(tools, choice) and tool is not None
    in_hermes = active and calls_in_hermes(tag_model_of(tool), choice, with_schema=with_schema)
    if (tool in _HARMONY or reasoning in _HARMONY) and not in_hermes:
        return HarmonyParser(tools=active)
    syntax = tool if active and not in_hermes else "hermes"
    markers = answer_markers(syntax, reasoning)
    if markers is not None:
        return ThinkingHermesParser(tokenizer, markers, tools=active, reasoning=reasoning is not None)
    if reasoning in THINK_TAGS and syntax is not None:
        return ThinkingVllmParser(syntax, THINK_TAGS[reasoning], tokenizer, tools, choice)
    return VllmOutputParser(syntax if active else None, reasoning, tokenizer, tools, choice)


class ThinkingHermesParser:
    """:class:`HermesParser`, begun inside a block of reasoning where the prompt left one open."""

    def __init__(self, tokenizer: Any, markers: Markers, *, tools: bool, reasoning: bool) -> None:
        self._tokenizer = tokenizer
        self._opening = markers.think_open
        self._parser = HermesParser(tools=tools, reasoning=reasoning, markers=markers)
        self._fresh = reasoning

    def feed(self, delta: TokenDelta) -> Delta:
        """See :class:`OutputParser`."""
        if self._fresh:
            self._fresh = False
            if delta.prompt_token_ids and _ends_thinking(self._tokenizer, delta.prompt_token_ids, self._opening):
                self._parser.feed(TokenDelta(text=f"{self._opening}\n"))
        return self._parser.feed(delta)

    def finish(self) -> Delta:
        """See :class:`OutputParser`."""
        return self._parser.finish()


def _ends_thinking(tokenizer: Any, prompt: Sequence[int], opening: str) -> bool:
    """Whether the prompt's last tokens open a block of reasoning; templates do it at the very end."""
    tail = tokenizer.decode(list(prompt[-24:]))
    return bool(tail.rstrip().endswith(opening))


class ThinkingVllmParser:
    """Reasoning between tags, split off by this library, and vLLM's tool parser for what follows.

    vLLM's reasoning parsers for such tags take an answer for reasoning from its first word on, whether or not the
    prompt or the answer opens the block, and most of them take a call in an unclosed thought for a part of it.
    """

    def __init__(
        self, tool: str, tags: tuple[str, str], tokenizer: Any, tools: Sequence[JsonObject], choice: ToolChoice
    ) -> None:
        self._tool, self._tags, self._tokenizer = tool, tags, tokenizer
        self._thoughts: ThoughtSplitter | None = None
        self._answer = VllmOutputParser(tool, None, tokenizer, tools, choice)

    def feed(self, delta: TokenDelta) -> Delta:
        """See :class:`OutputParser`."""
        if self._thoughts is None:
            begun = bool(delta.prompt_token_ids) and _ends_thinking(
                self._tokenizer, delta.prompt_token_ids or (), self._tags[0]
            )
            self._thoughts = ThoughtSplitter(*self._tags, call_marks(self._tool), begun=begun)
        elif self._thoughts.done:
            return self._answer.feed(delta)
        reasoning, rest = self._thoughts.feed(delta.text)
        out = self._rest(rest, delta) if rest or delta.finish_reason is not None else Delta()
        return replace(out, reasoning=reasoning + out.reasoning)

    def finish(self) -> Delta:
        """See :class:`OutputParser`."""
        reasoning, rest = self._thoughts.finish() if self._thoughts is not None else ("", "")
        out = self._rest(rest, TokenDelta()) if rest else Delta()
        last = self._answer.finish()
        return Delta(
            out.content + last.content,
            reasoning + out.reasoning + last.reasoning,
            (*out.tool_calls, *last.tool_calls),
            last.invalid_calls,
        )

    def _rest(self, text: str, delta: TokenDelta) -> Delta:
        """What follows the thought, with tokens of its own: it may be a part of its delta."""
        ids = delta.token_ids if text == delta.text else self._tokenizer.encode(text, add_special_tokens=False)
        return self._answer.feed(replace(delta, text=text, token_ids=tuple(ids)))


class VllmOutputParser:
    """vLLM's tool and reasoning parsers for one answer. Their cost is theirs: some re-read the whole answer.

    What they drop is not lost: an answer that names a tool and in which they find no call is an invalid call, any other
    is content, and so is an answer from where they fail.
    """

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
        self._tokenizer = tokenizer
        self._names = frozenset(str(entry["function"]["name"]) for entry in tools)
        self._markers = frozenset(tokenizer.get_added_vocab())
        self._tool = tool
        self._started = self._finished = self._failed = self._cut = False
        self._arguments: dict[int, list[str]] = {}
        """Of each call so far."""
        self._raw: list[str] = []
        self._content: list[str] = []
        self._reasoning: list[str] = []

    def feed(self, delta: TokenDelta) -> Delta:
        """See :class:`OutputParser`."""
        prompt = None
        if not self._started:
            self._started = True
            prompt = list(delta.prompt_token_ids or ())
        self._finished = delta.finish_reason is not None
        self._cut = delta.finish_reason == "length"
        self._raw.append(delta.text)
        outs = []
        steps = _single_tokens(delta, self._tokenizer)
        for index, (text, ids) in enumerate(steps):
            last = self._finished and index == len(steps) - 1
            outs.append(self._parsed(text, ids, prompt_token_ids=prompt if index == 0 else None, finished=last))
        return Delta(
            "".join(out.content for out in outs),
            "".join(out.reasoning for out in outs),
            tuple(call for out in outs for call in out.tool_calls),
        )

    def finish(self) -> Delta:
        """See :class:`OutputParser`. Calls that were cut off have been given out: who reads the pieces judges them."""
        out = Delta() if self._finished or not self._started else self._parsed("", [], finished=True)
        if self._arguments and not self._failed:
            return self._with_rest(out)
        dropped = "" if self._failed else self._dropped()
        if not dropped:
            return out
        if any(name in dropped for name in self._names):
            return replace(out, invalid_calls=((dropped, "the model's call could not be read"),))
        return replace(out, content=out.content + dropped)

    def _with_rest(self, out: Delta) -> Delta:
        """An answer with calls: a last call that was cut off differs from one without arguments, and words behind it
        are content."""
        if not tells_whole_calls(self._tool or ""):
            cut = {max(self._arguments)} if self._cut or not self._finished else set()
            bare = [at for at, given in self._arguments.items() if not any(given) and at not in cut]
            return replace(out, tool_calls=(*out.tool_calls, *(ToolCallDelta(at, arguments="{}") for at in bare)))
        unfinished, behind, values = behind_calls("".join(self._raw), self._tool or "")
        if self._tool in ("llama3_json", "llama4_json"):
            out = replace(out, tool_calls=(*out.tool_calls, *self._overlooked(values)))
        index = max(self._arguments)
        # What follows a call, or an end behind it, says that it is whole; vLLM gives out nothing where it has none.
        bare = [at for at, given in self._arguments.items() if not any(given) and (at != index or not unfinished)]
        written = {at: values[at] for at in bare if at < len(values) and _broken_object(values[at])}
        out = replace(
            out, tool_calls=(*out.tool_calls, *(ToolCallDelta(at, arguments=written.get(at, "{}")) for at in bare))
        )
        arguments = "".join(self._arguments[index])
        if unfinished:
            before, _, rest = unfinished.rpartition(arguments) if arguments.strip("{}") else ("", "", unfinished)
            if json_object(arguments or "-") is None or not before:
                return replace(out, tool_calls=(*out.tool_calls, ToolCallDelta(index, arguments=rest)))
            behind = rest
        for marker in self._markers:
            behind = behind.replace(marker, "")
        words = behind.strip().strip("`").strip()
        known = "".join(self._content)
        return (
            out if not words or words in known or _half_a_marker(words) else replace(out, content=out.content + behind)
        )

    def _overlooked(self, values: list[str]) -> list[ToolCallDelta]:
        """Calls as JSON objects that follow one another: vLLM reads on behind a semicolon alone."""
        calls = []
        for index, text in enumerate(values[len(self._arguments) :], max(self._arguments) + 1):
            value = json_object(text) or {}
            if value.get("name") in self._names:
                arguments = json.dumps(value.get("parameters", value.get("arguments", {})), ensure_ascii=False)
                calls.append(ToolCallDelta(index, new_call_id(), value["name"], arguments))
        return calls

    def _parsed(self, text: str, ids: list[int], **more: Any) -> Delta:
        if self._failed:
            return Delta(text)
        try:
            message = self._parser.parse_delta(text, ids, self._request, **more)
        except Exception as error:  # parsers raise what they like
            logger.warning("vLLM's parser failed on an answer (%s: %s); the rest is text", type(error).__name__, error)
            self._failed = True
            return Delta(self._dropped() or text)
        if message is None:
            return Delta()
        calls = []
        for call in message.tool_calls or ():
            function = call.function
            arguments = (function.arguments if function else None) or ""
            call_id, name = self._named(call.id, function.name if function else None)
            calls.append(ToolCallDelta(call.index, call_id, name, arguments))
            self._arguments.setdefault(call.index, []).append(arguments)
        content, reasoning = message.content or "", getattr(message, "reasoning", None) or ""
        self._content.append(content)
        self._reasoning.append(reasoning)
        return Delta(content, reasoning, tuple(calls))

    def _named(self, call_id: str | None, name: str | None) -> tuple[str | None, str | None]:
        """Id and name of a call. Mistral's v11 writes the id behind the name, which vLLM joins."""
        if name is not None and name not in self._names and name[:-9] in self._names and name[-9:].isalnum():
            return name[-9:], name[:-9]
        return call_id, name

    def _dropped(self) -> str:
        """What the parser has given out neither as content nor as reasoning, without markers."""
        rest = "".join(self._raw)
        for given in ("".join(self._reasoning).strip(), "".join(self._content).strip()):
            if given and given not in rest:
                return ""  # it was given out changed, which is the parser's right
            rest = rest.replace(given, "", 1) if given else rest
        for marker in (*self._markers, THINK_OPEN, THINK_CLOSE):
            rest = rest.replace(marker, "")
        return rest.strip()


def _broken_object(text: str) -> bool:
    """Whether this should be a JSON object and is none: then its arguments were not read, which is not "none"."""
    return text.startswith("{") and json_object(text) is None


def _half_a_marker(words: str) -> bool:
    """Whether an answer that was cut off ended inside a closing marker."""
    return re.fullmatch(r"</?[\w:|｜▁]*|\]|\)\]?", words) is not None


def _single_tokens(delta: TokenDelta, tokenizer: Any) -> list[tuple[str, list[int]]]:
    """The delta token by token (a character of several tokens stays whole): many of vLLM's parsers look for one marker
    in each piece, and miss the second. The whole delta, where its text is not that of its tokens."""
    whole = [(delta.text, list(delta.token_ids))]
    if len(delta.token_ids) < 2:
        return whole
    steps: list[tuple[str, list[int]]] = []
    rest, ids = delta.text, []
    for token in delta.token_ids:
        ids.append(token)
        piece = tokenizer.decode(ids)
        if piece and rest.startswith(piece):
            steps.append((piece, ids))
            rest, ids = rest[len(piece) :], []
    return whole if rest or ids else steps
