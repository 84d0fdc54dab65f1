"""How a model writes calls and thoughts, read off its chat template: names of parsers, vLLM's where it has one.

A template tells the model how to call, and writes earlier calls itself. So the marks below are looked for in its
source and in a call that it wrote; the first parser that reads that call back is taken.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace

from mixquant_agents.engine.hermes import HERMES, JSON_CALLS, THINK_CLOSE, THINK_OPEN, Markers
from mixquant_agents.engine.hermes.json_scan import ValueScanner

__all__ = [
    "THINK_TAGS",
    "answer_markers",
    "behind_calls",
    "call_marks",
    "reasoning_of",
    "tells_whole_calls",
    "tool_parsers_of",
]

_CALL_MARKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("<|channel|>commentary", ("openai",)),
    ("<seed:tool_call>", ("seed_oss",)),
    ("<minimax:tool_call>", ("minimax_m2",)),
    ("<longcat_tool_call>", ("longcat",)),
    ("<arg_key>", ("glm47", "glm45")),
    ("<function=", ("qwen3_coder", "step3p5")),
    ("<|tool_calls_section_begin|>", ("kimi_k2",)),
    ("<｜tool▁calls▁begin｜>", ("deepseek_v3", "deepseek_v31")),
    ("<｜DSML｜ calls>", ("deepseek_v41",)),
    ("<｜DSML｜tool_calls>", ("deepseek_v4",)),
    ("<｜DSML｜", ("deepseek_v32", "deepseek_v4")),
    ("<|START_ACTION|>", ("cohere_command3",)),
    ("Action:", ("command_r",)),
    ("[TOOL_CALLS]", ("mistral",)),
    ("<|tool_call>call:", ("gemma4",)),
    ("<start_function_call>", ("functiongemma",)),
    ("<|tools_prefix|>", ("apertus",)),
    ("<|plugin|>", ("internlm",)),
    ("<|tool_call_start|>", ("lfm2",)),
    ("<TOOLCALL>", ("nemotron_json",)),
    ("<function_calls>", ("olmo3",)),
    ("<function_call>", ("granite-20b-fc",)),
    ("<tool_calls>", ("hunyuan_a13b",)),
    ("<|function_call|>", ("gigachat3",)),
    ("function call<|role_sep|>", ("gigachat3",)),
    ("<atem:function_calls>", ("muse_glimmer",)),
    ("functools", ("phi4_mini_json",)),
    ("<|/tool_call|>", ("granite_list",)),
    ("<|tool_call|>", ("granite",)),
    ("<tool_call>", ("hermes",)),
    ("<|python_start|>", ("llama4_pythonic", "llama4_json")),
    ("<|python_tag|>", ("llama3_json",)),
)
"""What stands in a template of this call syntax → tool parsers, the first to be tried first."""
_UNMARKED = ("llama3_json", "pythonic", "llama4_pythonic", "xlam", "hermes")
"""Syntaxes without a marker of their own, tried on a call that the template wrote."""
_UNMARKED_FORMS = (
    (re.compile(r"\[?\w+\(\w+="), "pythonic"),
    (re.compile(r"\{\s*\"name\"\s*:.*\"parameters\"\s*:", re.DOTALL), "llama3_json"),
    (re.compile(r"\[\s*\{\s*\"name\"\s*:", re.DOTALL), "xlam"),
)
"""For templates that write calls which no parser can read (without quotes, say): what the model is asked to write."""

_THOUGHT_MARKS = (
    ("<|channel|>analysis", "openai_gptoss"),
    ("<|channel>thought", "gemma4"),
    ("<seed:think>", "seed_oss"),
    ("<|START_THINKING|>", "cohere_command3"),
    ("[THINK]", "mistral"),
)
_TAGGED_MARKS = (
    ("<answer>", "hunyuan_a13b"),
    ("[gMASK]", "glm45"),
    ("]~b]", "minimax_m2"),
    ("<|im_middle|>", "kimi_k2"),
    ("<｜Assistant｜>", "deepseek_r1"),
    ("<TOOLCALL>", "nemotron_v3"),
    ("<function_calls>", "olmo3"),
)
"""Beside ``<think>``: what tells one family of thinkers from another."""
_NAMED = (
    ("deepseek", "deepseek_r1"), ("glm", "glm45"), ("minimax", "minimax_m2"), ("kimi", "kimi_k2"),
    ("nemotron", "nemotron_v3"), ("step3", "step3"), ("olmo", "olmo3"), ("hunyuan", "hunyuan_a13b"), ("qwen", "qwen3"),
)  # fmt: skip
"""Part of a model's name → reasoning parser, where the template does not tell."""

_THINK = (THINK_OPEN, THINK_CLOSE)
THINK_TAGS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        (
            "qwen3", "deepseek_r1", "deepseek_v3", "glm45", "glm47", "nemotron_v3", "holo2", "step3", "olmo3", "mimo",
            "hunyuan_a13b", "granite_thinking_parser", "minimax_m2", "kimi_k2",
        ),
        _THINK,
    ),
    "seed_oss": ("<seed:think>", "</seed:think>"),
    "cohere_command3": ("<|START_THINKING|>", "<|END_THINKING|>"),
    "mistral": ("[THINK]", "[/THINK]"),
}  # fmt: skip
"""Reasoning parsers of vLLM that read a block between two tags → the tags."""


_CALL_BEGINS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            "qwen3_coder", "qwen3_xml", "step3p5", "glm45", "glm47", "granite4", "hermes", "ling3", "poolside_v1",
            "hy_v3", "hy_v4", "mimo",
        ),
        ("<tool_call>",),
    ),
    **dict.fromkeys(("deepseek_v3", "deepseek_v31"), ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>")),
    "deepseek_v32": ("<｜DSML｜function_calls>", "<｜DSML｜invoke "),
    "deepseek_v4": ("<｜DSML｜tool_calls>", "<｜DSML｜invoke "),
    "deepseek_v41": ("<｜DSML｜ calls>", "<｜DSML｜ invoke "),
    "dots": ("<dots_function_call>",),
    "functiongemma": ("<start_function_call>",),
    "gemma4": ("<|tool_call>",),
    "longcat": ("<longcat_tool_call>",),
    "minicpm5": ("<function name=",),
    "minimax_m2": ("<minimax:tool_call>",),
    "kimi_k2": ("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
    "step3": ("<｜tool_calls_begin｜>", "<｜tool_call_begin｜>"),
    "seed_oss": ("<seed:tool_call>",),
    "mistral": ("[TOOL_CALLS]",),
    "lfm2": ("<|tool_call_start|>",),
    "olmo3": ("<function_calls>",),
    "granite": ("<|tool_call|>",),
    "granite-20b-fc": ("<function_call>",),
}  # fmt: skip


_CALL_ENDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            "qwen3_coder", "qwen3_xml", "step3p5", "glm45", "glm47", "granite4", "hermes", "ling3", "poolside_v1",
            "hy_v3", "hy_v4", "mimo",
        ),
        ("</tool_call>",),
    ),
    **dict.fromkeys(("deepseek_v3", "deepseek_v31"), ("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>")),
    "deepseek_v32": ("</｜DSML｜invoke>", "</｜DSML｜function_calls>"),
    "deepseek_v4": ("</｜DSML｜invoke>", "</｜DSML｜tool_calls>"),
    "deepseek_v41": ("</｜DSML｜ invoke>", "</｜DSML｜ calls>"),
    "dots": ("</dots_function_call>",),
    "functiongemma": ("<end_function_call>",),
    "longcat": ("</longcat_tool_call>",),
    "minicpm5": ("</function>",),
    "minimax_m2": ("</minimax:tool_call>",),
    "kimi_k2": ("<|tool_call_end|>", "<|tool_calls_section_end|>"),
    "step3": ("<｜tool_call_end｜>", "<｜tool_calls_end｜>"),
    "seed_oss": ("</seed:tool_call>",),
    "lfm2": ("<|tool_call_end|>",),
    "olmo3": ("</function_calls>",),
    "gemma4": ("<tool_call|>",),
}  # fmt: skip
_IN_BRACKETS = frozenset(
    {
        "apertus", "ernie45", "gigachat3", "granite", "granite-20b-fc", "internlm", "llama3_json", "llama4_json",
        "llama4_pythonic", "mistral", "pythonic", "qwen3_json", "xlam",
    }
)  # fmt: skip
"""Parsers whose calls have no closing marker: they are JSON, or Python calls in brackets."""


_VALUE = re.compile(r"\{|\[\s*(?:\{|\w+\()")
"""Where JSON, a list of it, or a list of Python calls begins."""


def tells_whole_calls(tool: str) -> bool:
    """Whether :func:`behind_calls` knows this syntax; of others only vLLM's parser can say where a call ends."""
    return tool in _CALL_ENDS or tool in _IN_BRACKETS


def behind_calls(raw: str, tool: str) -> tuple[str, str, list[str]]:
    """``(an unfinished call, text behind the last call, values)`` of an answer with calls; one of the two is ``""``.
    The values are the texts in brackets where calls have no closing marker.

    Args:
        raw: the answer.
        tool: name of the tool parser. Where its calls have no closing marker they are JSON or Python in brackets.
    """
    begin = max((raw.rfind(mark) for mark in call_marks(tool)), default=-1)
    ends = _CALL_ENDS.get(tool)
    if ends is not None:
        end = max(raw.rfind(mark) + len(mark) if mark in raw else -1 for mark in ends)
        return (raw[max(begin, 0) :], "", []) if end <= begin else ("", raw[end:], [])
    at, values = max(begin, 0), list[str]()
    while (bracket := _VALUE.search(raw, at)) is not None:
        if values and raw[at : bracket.start()].strip(" \n\t;,"):
            break  # words, and behind them something in brackets
        scanner, at = ValueScanner(), bracket.start()
        while not scanner.done and at < len(raw):
            step = scanner.feed(raw, at)
            if step == at:
                break
            at = step
        if not scanner.done:
            return raw[max(begin, 0) :], "", values
        values.append(raw[bracket.start() : at])
    return ("", raw[at:], values) if values else (raw[max(begin, 0) :], "", [])


def tool_parsers_of(source: str, call: str) -> tuple[list[str], list[str]]:
    """Tool parsers that the marks speak for, the likeliest first, and those of syntaxes without a mark; the caller
    tries them on ``call``.

    Args:
        source: the template's.
        call: a call as the template writes it; ``""`` where it writes none.
    """
    marked = [name for mark, names in _CALL_MARKS if mark in call for name in names]
    marked += [name for mark, names in _CALL_MARKS if mark in source for name in names]
    formed = [name for form, name in _UNMARKED_FORMS if form.search(call)]
    likely = list(dict.fromkeys((*marked, *formed)))
    return likely, [name for name in _UNMARKED if name not in likely]


def reasoning_of(source: str, model: str, known: Collection[str] | None = None) -> str | None:
    """Name of the reasoning parser; ``None`` where the template knows no thoughts.

    Args:
        source: the template's.
        model: the model's name, for families whose templates look alike.
        known: names that the installed vLLM has; ``None`` where nobody has asked it.
    """
    name = next((parser for mark, parser in _THOUGHT_MARKS if mark in source), None)
    if name is None and (THINK_OPEN in source or THINK_CLOSE in source):
        by_mark = next((parser for mark, parser in _TAGGED_MARKS if mark in source), None)
        name = by_mark or next((parser for part, parser in _NAMED if part in model.lower()), "qwen3")
    return name if known is None or name in known else None


def call_marks(tool: str) -> tuple[str, ...]:
    """What begins a call in this syntax and nothing else, so that it also ends a thought."""
    return _CALL_BEGINS.get(tool, ())


def answer_markers(tool: str | None, reasoning: str | None) -> Markers | None:
    """Markers by which :class:`HermesParser` reads this family; ``None`` where it does not."""
    calls = HERMES if tool is None else JSON_CALLS.get(tool)
    if calls is None or (reasoning is not None and reasoning not in THINK_TAGS):
        return None
    if reasoning is None:
        return calls
    silent = (*calls.silent, "<answer>", "</answer>") if reasoning == "hunyuan_a13b" else calls.silent
    opens, closes = THINK_TAGS[reasoning]
    return replace(calls, think_open=opens, think_close=closes, silent=silent)
