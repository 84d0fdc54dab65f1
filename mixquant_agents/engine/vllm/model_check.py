"""The case list of chats and tool use, rendered and parsed for one model: what holds, and what is adapted or refused.

Needs the tokenizer alone; no engine starts. ``mixquant doctor --model`` prints it.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from mixquant_agents.config import EngineConfig
from mixquant_agents.engine.base import JsonObject, Message, ToolChoice
from mixquant_agents.engine.hermes import JSON_CALLS
from mixquant_agents.engine.parsing import OutputParser, TokenDelta
from mixquant_agents.engine.vllm.chat_format.shape import Shape
from mixquant_agents.engine.vllm.checkpoint import check_folder, check_hub, looks_local
from mixquant_agents.engine.vllm.families import THINK_TAGS
from mixquant_agents.engine.vllm.grammar import calls_in_hermes
from mixquant_agents.engine.vllm.parsers import make_parser, parser_names, tag_model_of
from mixquant_agents.engine.vllm.render import Renderer, read_template
from mixquant_agents.errors import ConfigError, InvalidMessagesError, MixQuantError

__all__ = ["CASES", "Case", "check_model", "check_template"]

TOOL: JsonObject = {
    "type": "function",
    "function": {
        "name": "depth",
        "description": "Depth of a lake.",
        "parameters": {
            "type": "object",
            "properties": {
                "lake": {"type": "string", "description": "The lake's name."},
                "unit": {"type": "string", "description": "m or ft.", "enum": ["m", "ft"]},
            },
            "required": ["lake"],
        },
    },
}
_OWN, _NINE = "call_0a1b2c3d4e5f60718293a4b5", "abcDEF123"
_THOUGHT, _WORDS = "I must look it up.", "It is 92 m deep."


@dataclass(frozen=True, slots=True)
class Case:
    """One conversation, and the answer that is parsed.

    Attributes:
        name: of the case.
        messages: to be rendered.
        tools: whether tools are bound.
        answer: the model's answer that the parsers must read back; ``None`` where the case is about the prompt alone.
        choice: of tools.
    """

    name: str
    messages: tuple[Message, ...]
    tools: bool = True
    answer: Message | None = None
    choice: ToolChoice = "auto"


def _said(role: str, content: str, **more: Any) -> Message:
    return {"role": role, "content": content, **more}


def _calls(*ids: str, content: str = "", **more: Any) -> Message:
    lakes = ["Inari", "Saimaa"]
    calls = [
        {
            "id": call_id,
            "type": "function",
            "function": {"name": "depth", "arguments": json.dumps({"lake": lake, "unit": "m"})},
        }
        for call_id, lake in zip(ids, lakes, strict=False)
    ]
    return _said("assistant", content, tool_calls=calls, **more)


def _results(*ids: str) -> tuple[Message, ...]:
    return tuple(_said("tool", '{"metres": 92}', tool_call_id=call_id, name="depth") for call_id in ids)


_ASKED = _said("user", "How deep is it?")
_FIVE = (
    _said("user", "One?"),
    _said("assistant", "Yes, one."),
    _said("user", "Two?"),
    _said("assistant", "Yes, two."),
    _said("user", "Three?"),
)
CASES: tuple[Case, ...] = (
    Case("plain chat", (_said("user", "Hello."),), tools=False, answer=_said("assistant", _WORDS)),
    Case("with tools", (_ASKED,), answer=_said("assistant", _WORDS)),
    Case("call and result", (_ASKED, _calls(_NINE), *_results(_NINE)), answer=_calls(_NINE)),
    Case(
        "two parallel calls",
        (_ASKED, _calls(_NINE, "abcDEF124"), *_results(_NINE, "abcDEF124")),
        answer=_calls("a", "b"),
    ),
    Case(
        "call with thought",
        (_ASKED, _calls(_NINE, reasoning_content=_THOUGHT), *_results(_NINE)),
        answer=_calls(_NINE, reasoning_content=_THOUGHT),
    ),
    Case("result without name", (_ASKED, _calls(_NINE), _said("tool", '{"metres": 92}', tool_call_id=_NINE))),
    Case("foreign call ids", (_ASKED, _calls(_OWN, "1"), *_results(_OWN, "1"))),
    Case(
        "several system messages",
        (_said("system", "First rule."), _said("system", "Second rule."), _said("user", "Hello.")),
        tools=False,
    ),
    Case("five turns", _FIVE, tools=False),
    Case("forced call", (_ASKED,), answer=_calls(_NINE), choice="required"),
    Case(
        "final answer after tools",
        (_said("system", "Be brief."), _ASKED, _calls(_NINE, content="I look."), *_results(_NINE)),
        answer=_said("assistant", _WORDS),
    ),
)
"""What agents need of a model."""

_ADAPTATIONS = {
    ("tools", "listed"): "schemas in the system text",
    ("tools", "spoken"): "calls as the answer's text",
    ("tools", "prompted"): "tools in words",
    ("ids", "nine"): "ids of nine characters",
    ("ids", "indexed"): "ids that name the function",
    ("arguments", "text"): "arguments as text",
    ("no_text", "none"): "no content beside calls",
    ("no_text", "absent"): "no content key beside calls",
    ("systems", "joined"): "system messages joined",
    ("systems", "user"): "system text in the first user turn",
    ("merged", True): "turns of one role joined",
    ("parts", True): "content in parts",
    ("named", True): "results named",
    ("thoughts", False): "earlier thoughts left out",
    ("text_apart", True): "text and calls apart",
    ("one_call", True): "one call after the other",
    ("filled", True): "turns that nobody took as '...'",
}


def check_model(config: EngineConfig) -> dict[str, Any]:
    """The report for a model: parsers, who writes its tools, and for each case what becomes of prompt and answer.

    Raises:
        ModelNotFoundError: the folder does not exist, or neither the hub nor the local cache has the model.
        ConfigError: the tokenizer cannot be loaded, or a setting does not fit it.
    """
    path = config.model
    if path == "embedded":
        from mixquant_agents.embedded import prepare

        path = str(prepare())
    elif looks_local(path):
        check_folder(config)
        path = str(Path(path).expanduser())
    else:
        check_hub(config)
    try:
        renderer = Renderer(path, config)
    except MixQuantError:
        raise
    except Exception as error:  # the hub's, transformers' and mistral_common's own
        cause = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"the tokenizer of {config.model!r} cannot be loaded ({cause}); name a folder or a hub id"
        ) from error
    return _report(config, renderer)


def check_template(path: Path, model: str = "") -> dict[str, Any]:
    """The same for a template file alone: a tokenizer of bytes stands in, with the template's markers as its tokens.

    Raises:
        ConfigError: there is no such file, or it cannot be read as UTF-8.
    """
    source = read_template(path)
    config = EngineConfig(model=model or path.stem)
    renderer = Renderer.of(_stand_in(source), config)
    return _report(config, renderer)


def _report(config: EngineConfig, renderer: Renderer) -> dict[str, Any]:
    tool, reasoning = parser_names(config, renderer)
    cases = [_check(case, renderer, (tool, reasoning)) for case in CASES]
    problems = [f"{case['case']}: {case['detail']}" for case in cases if case["wrong"]]
    if all(case["prompt"] == "refused" for case in cases):
        problems.append(f"no conversation can be rendered; the first: {cases[0]['detail']}")
    return {
        "model": config.model,
        "tools": renderer.tool_form,
        "tool_parser": tool,
        "reasoning_parser": reasoning,
        "cases": cases,
        "problems": problems,
    }


def _check(case: Case, renderer: Renderer, names: tuple[str | None, str | None]) -> dict[str, Any]:
    row: dict[str, Any] = {"case": case.name, "prompt": "own", "answer": None, "detail": None, "wrong": False}
    tools = [TOOL] if case.tools else []
    own = list(_own_prompts(renderer, case.messages, tools))
    try:
        prompt = renderer.render(case.messages, tools)
    except InvalidMessagesError as error:
        return row | {"prompt": "refused", "detail": str(error), "wrong": bool(own)}
    if prompt not in own:
        changes = _changes(renderer.shape_of(case.messages, tools))
        row |= {
            "prompt": "adapted",
            "detail": ", ".join(changes) or "only in what the template gets beside the messages",
        }
    if case.answer is not None:
        row |= _answer(case, renderer, names, prompt)
    return row


def _own_prompts(renderer: Renderer, messages: Sequence[Message], tools: Sequence[JsonObject]) -> Iterator[list[int]]:
    """What the maker's own code gives: calls' arguments as objects, as transformers documents them, or as text."""
    sources = renderer.templates
    forms: tuple[Callable[[str], Any], ...] = (json.loads, str)
    for form, key, no_tools in product(forms, ("reasoning_content", "thinking", "reasoning"), (None, [])):
        given = [
            {
                **{key if name == "reasoning_content" else name: value for name, value in message.items()},
                "tool_calls": [
                    {**call, "function": {**call["function"], "arguments": form(call["function"]["arguments"])}}
                    for call in message["tool_calls"]
                ],
            }
            if message.get("tool_calls")
            else dict(message)
            for message in messages
        ]
        try:
            ids = renderer.tokenizer.apply_chat_template(
                given,
                tools=[dict(tool) for tool in tools] or no_tools,
                add_generation_prompt=True,
                tokenize=True,
                **({"return_dict": False} if sources else {}),
            )
        except Exception:  # noqa: S112 - the template refuses them: then there is no prompt of its own
            continue
        yield [int(token) for token in ids]


def _changes(shape: Shape) -> list[str]:
    return [words for (name, value), words in _ADAPTATIONS.items() if getattr(shape, name) == value]


def _answer(
    case: Case, renderer: Renderer, names: tuple[str | None, str | None], prompt: Sequence[int]
) -> dict[str, Any]:
    """Whether the parsers read the case's answer, written as this model would write it."""
    assert case.answer is not None  # noqa: S101 - the caller looked
    if case.answer.get("tool_calls") and renderer.shape_of(case.messages, [TOOL]).one_call:
        case = replace(case, answer={**case.answer, "tool_calls": case.answer["tool_calls"][:1]})
    answer: Message = case.answer or {}
    tools = [TOOL] if case.tools else []
    thought = str(answer.get("reasoning_content") or "") if names[1] is not None else ""
    text = _written(case, renderer, names, prompt, thought)
    if text is None:
        return {"answer": "not written", "detail": "the template cannot write this answer", "wrong": True}
    parser = make_parser(names, renderer.tokenizer, tools, case.choice)
    content, reasoning, calls = _read(parser, renderer.tokenizer, text, prompt)
    expected = [
        (call["function"]["name"], json.loads(call["function"]["arguments"])) for call in answer.get("tool_calls", ())
    ]
    right = calls == expected and reasoning.strip() == thought and content.strip() == answer["content"]
    if right:
        return {"answer": "read"}
    return {
        "answer": "not read",
        "detail": f"{text!r} is read as content {content!r}, reasoning {reasoning!r}, calls {calls!r}",
        "wrong": True,
    }


def _written(
    case: Case, renderer: Renderer, names: tuple[str | None, str | None], prompt: Sequence[int], thought: str
) -> str | None:
    """The answer's text; a thought in the form of the reasoning parser where the template leaves it out."""
    answer = {key: value for key, value in (case.answer or {}).items() if key != "reasoning_content"}
    begun = ""
    if names[1] in THINK_TAGS:
        opening, closing = THINK_TAGS[names[1]]
        tail = renderer.tokenizer.decode(list(prompt[-64:])).rstrip()
        begun = f"{thought}{closing}" if tail.endswith(opening) else f"{opening}{thought}{closing}" if thought else ""
    elif thought and names[1] == "openai_gptoss":
        begun = f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant"
    elif thought and names[1] == "gemma4":
        begun = f"<|channel>thought\n{thought}<channel|>"
    if not answer.get("tool_calls"):
        return f"{begun}{answer['content']}"
    if case.choice == "required" and calls_in_hermes(tag_model_of(names[0]), case.choice):
        calls = [call["function"] for call in answer["tool_calls"]]
        return begun + "\n".join(
            f'<tool_call>\n{{"name": "{call["name"]}", "arguments": {call["arguments"]}}}\n</tool_call>'
            for call in calls
        )
    try:
        text = renderer.answer_text(answer, [TOOL])
    except Exception:  # what templates raise has no one class
        return None
    if not text.startswith(" to="):  # harmony's recipient stands behind the role
        text = text.strip().removeprefix("</think>").strip()
    if names[1] in THINK_TAGS:
        text = text.removeprefix("".join(THINK_TAGS[names[1]]))
    text = _as_asked(_ENDS.split(text)[0], names[0], answer)
    return begun + text


_ENDS = re.compile(
    r"<\|(?:END_OF_TURN_TOKEN|START_OF_TURN_TOKEN|eom_id|eot_id|endoftext|im_end)\|>|<SPECIAL_12>|</s>"
    r"|<｜end▁of▁sentence｜>"
)


def _as_asked(text: str, tool: str | None, answer: Message) -> str:
    """The call as the template asks the model to write it, where it writes earlier calls otherwise: without the marker
    (Phi-4's in vLLM), or as Python without quotes or commas (the pythonic examples of vLLM)."""
    markers = JSON_CALLS.get(tool or "")
    if markers is not None and markers.in_list and markers.call_open not in text:
        return f"{markers.call_open}{text}]"
    if tool != "pythonic":
        return text
    try:
        # What is no list of calls has no such attributes and is caught below.
        values = [word.value for call in ast.parse(text, mode="eval").body.elts for word in call.keywords]  # type: ignore[attr-defined]  # of ast.parse: any tree
        if all(isinstance(value, ast.Constant) for value in values):
            return text
    except (SyntaxError, AttributeError):
        pass
    calls = []
    for call in answer["tool_calls"]:
        arguments = json.loads(call["function"]["arguments"])
        calls.append(f"{call['function']['name']}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})")
    return f"[{', '.join(calls)}]"


def _read(
    parser: OutputParser, tokenizer: Any, text: str, prompt: Sequence[int]
) -> tuple[str, str, list[tuple[str, Any]]]:
    """Feed the text token by token."""
    ids = list(tokenizer.encode(text, add_special_tokens=False))
    outs = []
    for index, token in enumerate(ids):
        last = index == len(ids) - 1
        outs.append(
            parser.feed(
                TokenDelta(
                    tokenizer.decode([token]),
                    (token,),
                    finish_reason="stop" if last else None,
                    prompt_token_ids=tuple(prompt) if index == 0 else None,
                )
            )
        )
    outs.append(parser.finish())
    calls: dict[int, list[str]] = {}
    for out in outs:
        for piece in out.tool_calls:
            call = calls.setdefault(piece.index, ["", ""])
            call[0] += piece.name or ""
            call[1] += piece.arguments
    read = []
    for name, arguments in calls.values():
        try:
            read.append((name, json.loads(arguments)))
        except ValueError:
            read.append((name, arguments))
    return "".join(out.content for out in outs), "".join(out.reasoning for out in outs), read


_MARKER = re.compile(
    r"<\|[^<>|\s'\"]{1,40}\|>|<\|[a-z_]+>|<[a-z_]+\|>|<\|\"\|>|</?[a-zA-Z_:]+>|\[/?[A-Z_]+\]|<｜[^｜]{1,40}｜>"
)


def _stand_in(source: str) -> Any:
    """A tokenizer of 256 bytes whose special tokens are what looks like a marker in the template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", eos_token="</s>")  # noqa: S106 - text
    markers = dict.fromkeys(_MARKER.findall(source))
    family = ["<think>", "</think>", "<|tool_call_start|>", "<|tool_call_end|>"]
    if "header_start" in source or "start_header_id" in source:
        family.append("<|python_tag|>")  # in every Llama's vocabulary
    special = [marker for marker in (*markers, *family) if marker not in ("<s>", "</s>")]
    tokenizer.add_special_tokens({"additional_special_tokens": list(dict.fromkeys(special))})
    tokenizer.chat_template = source
    return tokenizer
