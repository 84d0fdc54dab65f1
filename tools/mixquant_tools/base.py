"""How every bundled tool meets the model: short errors it can act on, bounded and harmless output.

A tool function returns text or raises :class:`ToolError`; :func:`make_tool` turns it into a LangChain tool that never
ends the agent's run: refusals, wrong arguments and unforeseen failures all come back as a tool message with status
``error``.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable
from typing import Any

from langchain_core.tools import StructuredTool, ToolException
from pydantic import BaseModel, ValidationError

from mixquant_tools.errors import ToolError

__all__ = ["MAX_OUTPUT_CHARS", "clean", "clip", "failure_text", "make_tool"]

MAX_OUTPUT_CHARS = 20_000
"""Longest text a tool hands to the model unless its own limit is lower."""

_log = logging.getLogger(__name__)
# Chat markers in data would become special tokens once the prompt is tokenized: a document could then end its own
# message and speak as the system. A blank inside keeps them readable and harmless.
_MARKERS = re.compile(
    r"[<\[](?=\|[A-Za-z0-9_ ]{1,40}\|>|[｜|][^\n<>]{1,40}[｜|]>"  # ChatML, Llama, Phi; DeepSeek's wide bars
    r"|/?tool_(?:calls?|responses?)\b|/?think\b|/?tools>|/?(?:s|bos|eos|pad|unk)>|(?:start|end)_of_turn>"
    r"|/?(?:INST|SYSTEM_PROMPT|TOOL_CALLS|TOOL_RESULTS|AVAILABLE_TOOLS)\])"
)
_CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x85\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]|[\ud800-\udfff]"
)


def clean(text: str) -> str:
    """``text`` without control characters, direction overrides, lone surrogates and live chat markers."""
    return _MARKERS.sub(lambda found: found[0] + " ", _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text))


def clip(text: str, limit: int = MAX_OUTPUT_CHARS) -> str:
    """``text``, or its first ``limit`` characters and a line that says how much was left off."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}\n[cut: {len(text) - limit} of {len(text)} characters left off; ask for less]"


def _invalid_arguments(error: ValidationError | Any) -> str:
    """One short line per wrong argument; values are quoted only as far as they help."""
    if not isinstance(error, ValidationError):
        return "error: the arguments do not fit the tool's schema"
    lines = []
    for item in error.errors(include_url=False)[:5]:
        name = ".".join(str(part) for part in item["loc"][:4])[:80] or "arguments"
        given = "" if item["type"] == "missing" else f" (given {clip(repr(item['input'])[:200], 60)})"
        lines.append(f"{name}: {item['msg'][:200]}{given}")
    return clean("error: wrong arguments: " + "; ".join(lines))


def failure_text(error: ToolException) -> str:
    """What the model reads of a refusal."""
    return clip(clean(f"error: {error}"), 2_000)


def make_tool(
    function: Callable[..., str | tuple[str, Any]],
    *,
    name: str,
    description: str,
    arguments: type[BaseModel],
    max_output: int = MAX_OUTPUT_CHARS,
    artifact: bool = False,
) -> StructuredTool:
    """A LangChain tool around ``function``.

    Args:
        function: takes the fields of ``arguments`` by name, returns text (with ``artifact``: text and artifact), raises
            :class:`ToolError` to refuse.
        name: what the model calls.
        description: what the model reads.
        arguments: pydantic model of the arguments, with bounds.
        max_output: characters; longer answers are cut, with a note.
        artifact: the answer has a second part for the program, kept beside the tool message and never shown to the
            model.
    """

    @functools.wraps(function)
    def guarded(**kwargs: Any) -> str | tuple[str, Any]:
        try:
            answer = function(**kwargs)
            if isinstance(answer, tuple):
                return clip(clean(answer[0]), max_output), answer[1]
            return clip(clean(answer), max_output)
        except ToolException:
            raise
        except RecursionError:
            raise ToolError("the input is nested too deeply") from None
        except Exception as error:  # a tool must never end the agent's run; the cause goes to the log
            _log.warning("tool %s failed", name, exc_info=True)
            raise ToolError(f"{name} failed: {type(error).__name__}: {str(error)[:300]}") from error

    return StructuredTool.from_function(
        func=guarded,
        name=name,
        description=description,
        args_schema=arguments,
        infer_schema=False,
        response_format="content_and_artifact" if artifact else "content",
        handle_tool_error=failure_text,
        handle_validation_error=_invalid_arguments,
    )
