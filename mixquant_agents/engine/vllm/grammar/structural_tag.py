"""What an answer may look like: tool choice and JSON schema → one decoding grammar (an xgrammar structural tag).

==================  ====================================================================================
tools, choice        grammar
==================  ====================================================================================
no tools             the schema's, if there is one
``none``             the schema's, or any text in which no call begins: the tools stay in the prompt, whose
                     beginning is in the prefix cache, and a model that sees tools would call them
``auto``             none; calls are constrained once they begin where a tool has ``"strict": true``, or
                     where only one call is allowed; with a schema: either calls or the schema's JSON
``required``         one or more calls, arguments by the tools' schemas
a named tool         exactly one call of it
==================  ====================================================================================

A schema is first rewritten into what xgrammar holds (``engine/json_schema.py``). What it cannot hold is refused by
name, or checked: by ``with_structured_output`` on the finished answer, by :class:`CheckedCalls` on a finished call.

Models whose call syntax vLLM knows a tag for get that one; the others (and Hermes, whose tag in vLLM joins calls
without the line break that chat templates put there) get the Hermes form.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mixquant_agents.engine.base import EngineRequest, JsonObject, NamedTool, ToolChoice
from mixquant_agents.engine.hermes import CALL_OPEN
from mixquant_agents.engine.json_schema import MAX_DEPTH, GrammarSchema, grammar_schema
from mixquant_agents.errors import GrammarError, RequestError

__all__ = ["Grammar", "calls_in_hermes", "checked_tools", "grammar_of", "hermes_tag", "rewritten", "tools_active"]

_LISTS = ("triggered_tags", "tags_with_separator", "token_triggered_tags")


def tools_active(tools: Sequence[JsonObject], choice: ToolChoice) -> bool:
    """Whether calls may occur in the answer."""
    return bool(tools) and choice != "none"


def calls_in_hermes(tag_model: str | None, choice: ToolChoice, *, with_schema: bool = False) -> bool:
    """Whether calls of this answer are written in Hermes form, so that the Hermes parser must read them.

    Args:
        with_schema: the answer is a call or JSON by a schema.
    """
    constrained = with_schema or choice == "required" or isinstance(choice, NamedTool)
    return tag_model == "hermes" or (tag_model is None and constrained)


@dataclass(frozen=True, slots=True)
class Grammar:
    """What holds one answer.

    Attributes:
        tag: xgrammar's structural tag, JSON: everything that constrains goes to vLLM in this one form, so that one
            backend, the same for every request, can hold it.
        weight: estimate of its states; see :class:`~mixquant_agents.engine.json_schema.GrammarSchema`.
    """

    tag: str
    weight: int = 0


def grammar_of(
    request: EngineRequest, tag_model: str | None, one_token: Callable[[str], bool] = lambda marker: True
) -> Grammar | None:
    """The grammar of the answer to this request, or ``None``. What it costs is not known yet: see
    :class:`~mixquant_agents.engine.vllm.grammar.checker.GrammarChecker`.

    Args:
        request: tools, choice, schema, parallel calls.
        tag_model: vLLM's name of the model's call syntax; ``None`` where it has no grammar for it.
        one_token: whether the model's tokenizer has one token for a marker.

    Raises:
        RequestError: the choice names no given tool, or forces a call without tools.
        GrammarError: a schema is no JSON schema object; it has a keyword that no grammar holds, and nobody will check
            the answer; or a forced call and a schema exclude each other.
    """
    tools, choice, schema = request.tools, request.tool_choice, request.schema
    _check(tools, choice, schema)
    answer = _answer_schema(request)
    if not tools_active(tools, choice):
        if answer is not None:
            return Grammar(_tag(_json_schema(answer.schema)), answer.weight)
        words = _words(tools, tag_model, one_token)
        return Grammar(_tag(words)) if words is not None else None
    forced = _forced(choice)
    if forced and schema is not None:
        raise GrammarError("a forced tool call cannot also satisfy a JSON schema; drop tool_choice or the schema")
    single = isinstance(choice, NamedTool) or not request.parallel_tool_calls
    strict = any(_function(tool).get("strict") is True for tool in tools)
    if not (forced or strict or single or schema is not None):
        return None
    callable_tools = [
        tool for tool in tools if not isinstance(choice, NamedTool) or _function(tool)["name"] == choice.name
    ]
    constrained, weight = _with_grammar_schemas(callable_tools)
    loose = choice == "auto" and schema is None
    if tag_model is None or tag_model == "hermes":
        if tag_model is None and not forced and schema is None:
            what = "parallel_tool_calls=False" if single else "strict tools"
            raise GrammarError(f"this model's call syntax has no grammar, so {what} cannot be honoured; force the call")
        form = hermes_tag(constrained, loose=loose, all_strict=forced or single or not strict)
    else:  # beside a schema there is no free text: vLLM's tag for "auto" would let any answer pass
        form = _vllm_tag(tag_model, constrained, "auto" if loose else "required" if choice == "auto" else choice)
    if single:
        _stop_after_first(form)
    if answer is not None:
        form = {"type": "or", "elements": [_json_schema(answer.schema), form]}
        weight += answer.weight
    return Grammar(_tag(form), weight)


def checked_tools(tools: Sequence[JsonObject], choice: ToolChoice) -> dict[str, JsonObject]:
    """Parameters, by name, of the tools whose calls must follow a schema that the grammar does not hold altogether:
    tools of a forced call and strict tools. Their calls are checked when they are complete."""
    result: dict[str, JsonObject] = {}
    for tool in tools if tools_active(tools, choice) else ():
        function = _function(tool)
        parameters = function.get("parameters")
        promised = function.get("strict") is True if choice == "auto" else _forced(choice)
        if promised and isinstance(parameters, dict) and rewritten(parameters).unenforced:
            result[str(function["name"])] = parameters
    return result


def rewritten(schema: JsonObject) -> GrammarSchema:
    """:func:`~mixquant_agents.engine.json_schema.grammar_schema` for the xgrammar that is installed; remembered."""
    try:
        text = json.dumps(schema)
    except (TypeError, ValueError) as error:
        raise GrammarError(f"the schema is no JSON ({error}); give a dict of plain values") from error
    except RecursionError:
        raise GrammarError(f"the schema is nested deeper than {MAX_DEPTH} levels; flatten it") from None
    return _rewritten(text)


@functools.lru_cache(maxsize=512)
def _rewritten(text: str) -> GrammarSchema:
    return grammar_schema(json.loads(text), integer_multiples=_holds_integer_multiples())


@functools.cache
def _holds_integer_multiples() -> bool:
    """Whether the installed xgrammar holds ``multipleOf`` of integers; versions before 0.2 ignore it."""
    import xgrammar

    vocabulary = [*(bytes([byte]) for byte in range(256)), b"</s>"]
    compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo(vocabulary, stop_token_ids=[256]), max_threads=1)
    matcher = xgrammar.GrammarMatcher(compiler.compile_json_schema('{"type": "integer", "multipleOf": 10}'))
    return not (matcher.accept_token(ord("7")) and matcher.accept_token(256))


def _answer_schema(request: EngineRequest) -> GrammarSchema | None:
    if request.schema is None:
        return None
    answer = rewritten(request.schema)
    if answer.unenforced and not request.schema_checked:
        raise GrammarError(
            f"no grammar holds these parts of the schema: {'; '.join(answer.unenforced)}; leave them out, or use "
            "with_structured_output, which checks the answer"
        )
    return answer


def _forced(choice: ToolChoice) -> bool:
    return choice == "required" or isinstance(choice, NamedTool)


def _with_grammar_schemas(tools: Sequence[JsonObject]) -> tuple[list[JsonObject], int]:
    """The tools with parameters as the grammar holds them, and their weight."""
    result: list[JsonObject] = []
    weight = 0
    for tool in tools:
        function = _function(tool)
        if function.get("parameters"):
            try:
                schema = rewritten(function["parameters"])
            except GrammarError as error:
                raise GrammarError(f"tool {function['name']!r}: {error}") from error
            function = {**function, "parameters": schema.schema}
            weight += schema.weight
        result.append({**tool, "function": function})
    return result, weight


def _words(tools: Sequence[JsonObject], tag_model: str | None, one_token: Callable[[str], bool]) -> Any | None:
    """Any text in which no call begins; ``None`` where there is no marker to bar (a call that is plain JSON is also
    what a prompt may ask for)."""
    from xgrammar.structural_tag import AnyTextFormat

    if not tools or tag_model is None or "excludes" not in AnyTextFormat.model_fields:
        return None
    triggers: list[str] = [CALL_OPEN]
    if tag_model != "hermes":
        try:
            triggers = _vllm_tag(tag_model, tools, "auto").get("triggers", [])
        except GrammarError:  # gpt-oss: a parser, but no grammar for its calls
            return None
    markers = [marker for trigger in triggers if (marker := trigger.partition("\n")[0]).startswith("<")]
    if not markers:
        return None
    text: dict[str, Any] = {"type": "any_text", "excludes": markers}
    if all(map(one_token, markers)):
        return text
    # Kept from the last piece of "<tool_call>" a model goes on with "<tool_calling>": keep it from the first piece.
    return {"type": "sequence", "elements": [{"type": "regex", "pattern": r"[^<\s]"}, text]}


def _json_schema(schema: Any) -> dict[str, Any]:
    """JSON by this schema, with at most one white-space character in a row: small models love to write line breaks."""
    from xgrammar.structural_tag import JSONSchemaFormat

    limit = {"max_whitespace_cnt": 1} if "max_whitespace_cnt" in JSONSchemaFormat.model_fields else {}
    return {"type": "json_schema", "json_schema": schema, **limit}


def _tag(form: dict[str, Any]) -> str:
    return json.dumps({"type": "structural_tag", "format": form})


def _function(tool: JsonObject) -> JsonObject:
    function: JsonObject = tool["function"]
    return function


def _check(tools: Sequence[JsonObject], choice: ToolChoice, schema: JsonObject | None) -> None:
    names = []
    for index, tool in enumerate(tools):
        function = tool.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise RequestError(f"tool {index} has no function name: {tool!r}; give the OpenAI shape")
        parameters = function.get("parameters")
        if parameters is not None and not isinstance(parameters, dict):
            raise GrammarError(f"tool {function['name']!r}: parameters are no JSON schema object: {parameters!r}")
        names.append(function["name"])
    if schema is not None and not isinstance(schema, dict):
        raise GrammarError(f"the schema is no JSON schema object: {schema!r}")
    if isinstance(choice, NamedTool) and choice.name not in names:
        raise RequestError(f"tool_choice names {choice.name!r}, but the tools are: {', '.join(names) or 'none'}")
    if choice == "required" and not names:
        raise RequestError("tool_choice 'required' needs at least one tool")


def hermes_tag(tools: Sequence[JsonObject], *, loose: bool, all_strict: bool) -> dict[str, Any]:
    """Hermes calls as an xgrammar format.

    Args:
        loose: text may come before, between and after the calls, and there may be none.
        all_strict: arguments follow the schema of every tool, not only of those with ``"strict": true``.
    """
    tags = []
    for tool in tools:
        function = _function(tool)
        strict = all_strict or function.get("strict") is True
        schema = function.get("parameters") if strict else None
        tags.append(
            {
                "type": "tag",
                "begin": f'<tool_call>\n{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "arguments": ',
                "content": _json_schema(schema or {"type": "object"}),
                "end": "}\n</tool_call>",
            }
        )
    if loose:
        return {"type": "triggered_tags", "triggers": ["<tool_call>"], "tags": tags}
    return {"type": "tags_with_separator", "tags": tags, "separator": "\n", "at_least_one": True}


def _vllm_tag(model: str, tools: Sequence[JsonObject], choice: ToolChoice) -> dict[str, Any]:
    """vLLM's own tag for the model's call syntax, with every tool strict (which both 0.26 and 0.32 understand)."""
    from vllm.entrypoints.openai.chat_completion.protocol import (
        ChatCompletionNamedFunction,
        ChatCompletionNamedToolChoiceParam,
        ChatCompletionToolsParam,
    )
    from vllm.tool_parsers.structural_tag_registry import get_model_structural_tag

    made = [ChatCompletionToolsParam(type="function", function={**_function(tool), "strict": True}) for tool in tools]
    named = choice.name if isinstance(choice, NamedTool) else None
    tool_choice: Any = (
        ChatCompletionNamedToolChoiceParam(function=ChatCompletionNamedFunction(name=named)) if named else choice
    )
    try:
        tag = get_model_structural_tag(model=model, tools=made, tool_choice=tool_choice, reasoning=False)
    except ValueError as error:
        raise GrammarError(f"no grammar for the call syntax {model!r}: {error}") from error
    form: dict[str, Any] = tag.model_dump(mode="json")["format"]
    return form


def _stop_after_first(node: Any) -> None:
    """End every list of calls in the format after its first call, in place."""
    if isinstance(node, dict):
        if node.get("type") in _LISTS:
            node["stop_after_first"] = True
        for value in node.values():
            _stop_after_first(value)
    elif isinstance(node, list):
        for value in node:
            _stop_after_first(value)
