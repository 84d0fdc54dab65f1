"""Threads without an engine: prompts by the real renderer, answers by script, as the real engine keeps them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from mixquant_agents.config import EngineConfig
from mixquant_agents.engine.hermes import HermesParser
from mixquant_agents.engine.parsing import TokenDelta, parsed
from mixquant_agents.engine.vllm.history import TurnHistory
from mixquant_agents.engine.vllm.history.turn import RenderedPrompt
from mixquant_agents.engine.vllm.prompts import Prompts
from mixquant_agents.engine.vllm.render import Renderer

TOOL = {
    "type": "function",
    "function": {
        "name": "depth",
        "description": "Depth of a lake in metres.",
        "parameters": {"type": "object", "properties": {"lake": {"type": "string"}, "unit": {"type": "string"}}},
    },
}

DROPS_THOUGHTS = (
    "{%- set ns = namespace(last=0) -%}"
    "{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}"
    "{%- if messages[0].role == 'system' or tools -%}<|im_start|>system\n"
    "{{- messages[0].content + '\n' if messages[0].role == 'system' else '' }}"
    "{%- if tools %}{{ '# Tools\n' }}{% for t in tools %}{{ (t | tojson) + '\n' }}{% endfor %}{%- endif -%}"
    "<|im_end|>\n{% endif -%}"
    "{%- for m in messages -%}"
    "{%- if m.role == 'user' or (m.role == 'system' and not loop.first) -%}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif -%}"
    "{%- if m.role == 'tool' -%}"
    "<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n{% endif -%}"
    "{%- if m.role == 'assistant' -%}<|im_start|>assistant\n"
    "{%- if m.reasoning_content and loop.index0 > ns.last -%}"
    "{{ '\n<think>\n' + m.reasoning_content | trim + '\n</think>\n\n' }}{% else %}{{ '\n' }}{%- endif -%}"
    "{{- m.content | trim -}}"
    "{%- for c in m.tool_calls or [] -%}"
    '{{ \'\n<tool_call>\n{"name": "\' + c.function.name + \'", "arguments": \' + (c.function.arguments | tojson) '
    "+ '}\n</tool_call>' }}{%- endfor -%}<|im_end|>\n{% endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
)
"""Like Qwen 3's: thoughts are written only behind the newest question, texts are trimmed, arguments written anew."""

MARKERS = ("<|im_start|>", "<|im_end|>", "[end]", "[user]", "[assistant]", "[model]", "<|end|>", "<think>", "</think>")


def prompts_of(tokenizer: Any, **settings: Any) -> Prompts:
    def made() -> Renderer:
        renderer = Renderer.of(tokenizer, EngineConfig(model="m", **settings))
        renderer.max_model_len = 1_000_000
        return renderer

    return Prompts(made(), made)


class Thread:
    """One conversation on a tokenizer and its template."""

    def __init__(self, tokenizer: Any, tools: Sequence[dict[str, Any]] = (), *, end: str = "<|im_end|>") -> None:
        self.prompts = prompts_of(tokenizer)
        self.tokenizer, self.tools, self.end = tokenizer, list(tools), end
        self.messages: list[dict[str, Any]] = []
        self.written: list[int] = []
        """Prompt and answer of the newest turn."""

    def add(self, role: str, content: str, **fields: Any) -> None:
        self.messages.append({"role": role, "content": content, **fields})

    def render(self, *, verbatim: bool = True) -> RenderedPrompt:
        return asyncio.run(self.prompts.render(self.messages, self.tools, {}, verbatim=verbatim))

    def answer(self, raw: str, *, finish: str = "stop", verbatim: bool = True) -> RenderedPrompt:
        """The model writes ``raw``; the conversation goes on with what the parser makes of it."""
        prompt = self.render(verbatim=verbatim)
        history = TurnHistory(self.prompts.answers)
        history.prompt = prompt
        tokens = self.tokenizer.encode(raw, add_special_tokens=False)
        end = self.tokenizer.encode(self.end, add_special_tokens=False) if finish == "stop" else []
        parser = HermesParser(tools=bool(self.tools))
        delta = TokenDelta(text=raw, token_ids=(*tokens, *end), finish_reason=finish)  # type: ignore[arg-type]
        out = parsed(delta, parser)
        history.feed(out, "token" if finish == "stop" else None)
        calls: dict[int, dict[str, Any]] = {}
        for piece in out.tool_calls:
            call = calls.setdefault(piece.index, {"id": piece.id, "name": piece.name, "arguments": ""})
            call["arguments"] += piece.arguments
        message: dict[str, Any] = {"role": "assistant", "content": out.content}
        if out.reasoning:
            message["reasoning_content"] = out.reasoning
        if calls:
            message["tool_calls"] = [
                {
                    "id": call["id"],
                    "type": "function",
                    "function": {"name": call["name"], "arguments": call["arguments"]},
                }
                for call in calls.values()
            ]
        self.messages.append(message)
        self.written = [*prompt.token_ids, *tokens, *end]
        return prompt

    def result(self, text: str) -> None:
        """The result of the newest call."""
        (call, *_) = self.messages[-1]["tool_calls"]
        self.add("tool", text, tool_call_id=call["id"])
