"""How every bundled tool meets the model: short errors it can act on, bounded and harmless output.

A tool function returns text or raises :class:`ToolError`; :func:`make_tool` turns it into a LangChain tool that never
ends the agent's run: refusals, wrong arguments and unforeseen failures all come back as a tool message with status
``error``.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from langchain_core.tools import StructuredTool, ToolException
from pydantic import BaseModel, ValidationError

from mixquant_tools.errors import ToolError

__all__ = ["MAX_OUTPUT_CHARS", "add_markers", "clean", "clip", "failure_text", "is_plain", "make_tool", "presented"]

MAX_OUTPUT_CHARS = 20_000
"""Longest text a tool hands to the model unless its own limit is lower."""

_log = logging.getLogger(__name__)
# Chat markers in data would become special tokens once the prompt is tokenized: a document could then end its own
# message and speak as the system. A blank after the first character keeps them readable and harmless. Each alternative
# looks ahead over a bounded length, so the cost is linear. Tags of HTML, generic types and indices are no markers.
_MARKERS = re.compile(
    r"<(?="
    r"\|[^\n<>]{1,60}>"  # <|im_end|> of ChatML, Llama, Phi, Granite …; <|turn> of Gemma 4
    r"|/?[A-Za-z][\w-]{0,60}\|[\w-]{0,60}>"  # <turn|>, <ifm|think>
    r"|/?｜"  # DeepSeek's wide bars
    r"|</?SYS>>"
    r"|/?(?=[A-Za-z][A-Za-z0-9]{0,60}_)\w{2,60}(?<!_t)>"  # <start_of_turn>, <file_sep>; size_t is a type
    r"|/?(?:seed|minimax):|/?[a-z]{1,20}:(?:[a-z]{1,20}_[a-z_]{1,40}>|think|invoke|tool)"
    r"|/?(?:tool_[a-z]|arg_(?:key|value)|think|invoke)|(?:function|param(?:eter)?)(?: ?name)?="
    r"|/param(?:eter)?>"
    r"|/?(?i:s|bos|eos|pad|unk|mask|cls|sep|sop|eop|eoa|eoh|eod|eot|thought|answer|tools?|toolcall|toolresponse"
    r"|functions?|reponame|filename|image|assistant|system|user|role|response|(?:unused|ctrl|reserved)\d{1,5}|mask:\d{1,3})>"
    r")"
    r"|\[(?="
    r"\|/?[A-Za-z_]{2,40}\|\]"  # [|assistant|] of EXAONE
    r"|[a-z]~\["  # [e~[ of MiniMax
    r"|/?(?:INST|THINK|ARGS|CALL_ID|IMG(?:_BREAK|_END)?|(?:BEGIN_)?AUDIO|PREFIX|MIDDLE|SUFFIX|MODEL_SETTINGS|[gs]?MASK"
    r"|[A-Z_]{0,30}(?:TOOL|PROMPT)[A-Z_]{0,30}|control_\d{1,4})\]"  # Mistral, GLM
    r")"
    r"|\](?=~!?[a-z]?[\[\]]|<\][a-z]{1,20}\[>\[)"  # ]~b], ]~!b[ and ]<]minimax[>[ of MiniMax
    r"|｜(?=[\w▁]{1,40}｜)",  # DeepSeek's ｜DSML｜ is a token of its own, in a tag or not
    re.ASCII,
)
_CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]|[\ud800-\udfff]"
)
_INVISIBLE = re.compile(r"[\U000e0000-\U000e0fff]|[\ufe00-\ufe0f]{2,}")  # tags and variation selectors can spell a text

_added_tokens: set[str] = set()
_added = re.compile(r"(?!)")  # matches nothing


def add_markers(tokens: Iterable[str]) -> None:
    """From now on :func:`clean` breaks these, too, in this process: the added tokens of the tokenizer in use
    (``tokenizer.get_added_vocab()``). Those without a bracket or bar are left out, as any text may hold them."""
    global _added  # one pattern, replaced whole, for every tool of the process
    _added_tokens.update(
        token for token in tokens if re.search(r"[<>\[\]{}|｜]", token[:-1]) and not re.search(r"\s", token)
    )
    unknown = sorted(token for token in _added_tokens if _MARKERS.search(token) is None)
    _added = re.compile("|".join(f"{re.escape(token[0])}(?={re.escape(token[1:])})" for token in unknown) or r"(?!)")


def clean(text: str) -> str:
    """``text`` without control characters, direction overrides, lone surrogates, invisible tags and live chat markers
    (those of the model families in use, by their form, and those given to :func:`add_markers`)."""
    text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", _INVISIBLE.sub("", text))
    return _added.sub(lambda match: match[0] + " ", _MARKERS.sub(lambda match: match[0] + " ", text))


def is_plain(name: str) -> bool:
    """Whether a name of a file can be shown as it is: on one line, with nothing invisible, and as valid text."""
    return not (_CONTROL.search(name) or _INVISIBLE.search(name) or re.search(r"[\t\n\r]", name))


def clip(text: str, limit: int = MAX_OUTPUT_CHARS) -> str:
    """``text``, or its first ``limit`` characters and a line that says how much was left off."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}{_rest(text, limit)}"


def _rest(text: str, limit: int) -> str:
    return f"\n[cut: {len(text) - limit} of {len(text)} characters left off; ask for less]"


def presented(text: str, limit: int = MAX_OUTPUT_CHARS) -> str:
    """``text`` cleaned and cut. What is cut off is not cleaned first: it may be long."""
    if len(text) <= limit:
        return clip(clean(text), limit)
    return f"{clean(text[:limit])[:limit]}{_rest(text, limit)}"


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
    return presented(f"error: {error}", 2_000)


@functools.cache
def _threads(process: int) -> ThreadPoolExecutor:
    """Threads for tools alone, of this process (a fork has none of its parent's): a loop's own few resolve names, too,
    and tools that wait would keep them from it."""
    return ThreadPoolExecutor(max_workers=32, thread_name_prefix=f"mixquant-tools-{process}")


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
    async def beside_the_loop(**kwargs: Any) -> str | tuple[str, Any]:
        run = functools.partial(contextvars.copy_context().run, guarded, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(_threads(os.getpid()), run)

    @functools.wraps(function)
    def guarded(**kwargs: Any) -> str | tuple[str, Any]:
        try:
            answer = function(**kwargs)
            if isinstance(answer, tuple):
                return presented(answer[0], max_output), answer[1]
            return presented(answer, max_output)
        except ToolException:
            raise
        except RecursionError:
            raise ToolError("the input is nested too deeply") from None
        except Exception as error:  # a tool must never end the agent's run; the cause goes to the log
            _log.warning("tool %s failed", name, exc_info=True)
            # an error of the system's names the path on this machine
            words = error.strerror if isinstance(error, OSError) else str(error)[:300]
            raise ToolError(f"{name} failed: {type(error).__name__}: {words}") from error

    return StructuredTool.from_function(
        func=guarded,
        coroutine=beside_the_loop,
        name=name,
        description=description,
        args_schema=arguments,
        infer_schema=False,
        response_format="content_and_artifact" if artifact else "content",
        handle_tool_error=failure_text,
        handle_validation_error=_invalid_arguments,
    )
