"""What history as it was written saves: one scripted thread on a real engine, with and without.

::

    python -m mixquant_agents.bench.history --output history.json

The thread is a tool loop with thoughts and then the user's next question, under a chat template that takes back the
thoughts of finished loops (as Qwen 3's does). Both ways write the same answers, token for token, on one engine; each
begins with an empty prefix cache.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixquant_agents.config import EngineConfig, PrecisionPolicy
from mixquant_agents.engine.base import EngineRequest, Sampling
from mixquant_agents.engine.vllm import VllmEngine
from mixquant_agents.files import write_whole

__all__ = ["TEMPLATE", "main", "run_thread"]

TEMPLATE = (
    "{%- set ns = namespace(last=0) -%}"
    "{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}"
    "{{- '<|im_start|>system\n' + (messages[0].content if messages[0].role == 'system' else '') -}}"
    "{%- if tools -%}{{- '\n# Tools' -}}{%- for t in tools -%}{{- '\n' + (t | tojson) -}}{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\n' -}}"
    "{%- for m in messages -%}"
    "{%- if m.role == 'user' or (m.role == 'system' and not loop.first) -%}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}"
    "{%- elif m.role == 'tool' -%}"
    "{{- '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' -}}"
    "{%- elif m.role == 'assistant' -%}{{- '<|im_start|>assistant\n' -}}"
    "{%- if m.reasoning_content and loop.index0 > ns.last -%}"
    "{{- '<think>\n' + m.reasoning_content | trim + '\n</think>\n\n' -}}{%- endif -%}"
    "{{- m.content | trim -}}"
    '{%- for c in m.tool_calls or [] -%}{{- \'\n<tool_call>\n{"name": "\' + c.function.name + \'", "arguments": \' '
    "+ (c.function.arguments | tojson) + '}\n</tool_call>' -}}{%- endfor -%}"
    "{{- '<|im_end|>\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
"""Thoughts only behind the newest question, texts trimmed, arguments written anew: what Qwen 3's template does."""

_TOOL = {
    "type": "function",
    "function": {
        "name": "depth",
        "description": "Depth of a lake in metres.",
        "parameters": {"type": "object", "properties": {"lake": {"type": "string"}}, "required": ["lake"]},
    },
}
_LAKES = ("Inari", "Saimaa", "Oulu", "Garda", "Como", "Ohrid", "Baikal", "Geneva", "Ladoga", "Onega")


def _script(turns: int) -> list[str]:
    """The answers: calls, and words to end each question."""
    answers = []
    for number in range(turns):
        lake = _LAKES[number % len(_LAKES)]
        thought = f"I still have to look at lake {lake}, for the user wants them all, one after the other."
        if number < turns - 2:
            body = f'<tool_call>\n{{"name":"depth",  "arguments":{{"lake":"{lake}"}}}}\n</tool_call>'
        else:
            body = " They are between 90 and 1,642 metres deep. "
        answers.append(f"<think>\n{thought}\n</think>\n\n{body}")
    return answers


async def run_thread(engine: VllmEngine, tokenizer: Any, turns: int, *, verbatim: bool) -> list[dict[str, Any]]:
    """Run the thread; counts and times of each turn."""
    from mixquant_agents.bench.scripted_logits import scripted

    await engine.reset_prefix_cache()
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "You know lakes. Look each of them up before you answer."},
        {"role": "user", "content": "How deep are they all?"},
    ]
    rows: list[dict[str, Any]] = []
    for number, raw in enumerate(_script(turns)):
        if number == turns - 1:
            messages.append({"role": "user", "content": "And in feet?"})
        ids = [*tokenizer.encode(raw, add_special_tokens=False), tokenizer.convert_tokens_to_ids("<|im_end|>")]
        request = EngineRequest(
            request_id=f"history-{verbatim}-{number}-{time.monotonic_ns()}",
            messages=messages,
            tools=[_TOOL],
            verbatim_history=verbatim,
            sampling=Sampling(temperature=0, max_tokens=len(ids), extra=scripted(ids)),
        )
        answer: dict[str, Any] = {"role": "assistant", "content": "", "reasoning_content": ""}
        calls: dict[int, dict[str, Any]] = {}
        written: list[int] = []
        async for delta in engine.stream(request):
            answer["content"] += delta.content
            answer["reasoning_content"] += delta.reasoning
            written += delta.token_ids
            for piece in delta.tool_calls:
                call = calls.setdefault(piece.index, {"id": piece.id, "name": piece.name, "arguments": ""})
                call["arguments"] += piece.arguments
            if delta.finish_reason is not None:
                counts, times = delta.counts, delta.times
        if counts is None or times is None:
            raise RuntimeError("the engine did not count the turn")
        rows.append({**counts.model_dump(), **times.model_dump(), "as_scripted": written == ids})
        if calls:
            answer["tool_calls"] = [
                {"id": c["id"], "type": "function", "function": {"name": c["name"], "arguments": c["arguments"]}}
                for c in calls.values()
            ]
        messages.append(answer)
        messages += [
            {"role": "tool", "tool_call_id": call["id"], "content": f"{90 + number} m"} for call in calls.values()
        ]
    return rows


def _figures(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    last, later = rows[-1], rows[1:]
    return {
        "turns": len(rows),
        "as_scripted": all(row["as_scripted"] for row in rows),
        "last_prompt_tokens": last["prompt_tokens"],
        "last_cached_share": round(last["cached_tokens"] / last["prompt_tokens"], 4),
        "last_ttft_seconds": round(last["ttft_seconds"], 4),
        "later_cached_share": round(
            sum(row["cached_tokens"] for row in later) / sum(row["prompt_tokens"] for row in later), 4
        ),
        "prefill_tokens": sum(row["prefill_tokens"] for row in rows),
        "prefill_seconds": round(sum(row["prefill_seconds"] for row in rows), 3),
    }


async def measure(model: str, turns: int, policy: str) -> dict[str, Any]:
    """Both ways on one engine."""
    from mixquant_agents.bench.scripted_logits import SCRIPTED_LOGITS

    with tempfile.NamedTemporaryFile("w", suffix=".jinja") as template:
        template.write(TEMPLATE)
        template.flush()
        config = EngineConfig(
            model=model,
            policy=PrecisionPolicy.of(policy),
            chat_template=template.name,
            tool_parser="hermes",
            reasoning_parser="qwen3",
            max_model_len=8192,
            max_num_seqs=4,
            vllm_args={"logits_processors": [SCRIPTED_LOGITS], "block_size": 32},
        )
        async with VllmEngine(config) as engine:
            await engine.start()
            from transformers import AutoTokenizer

            from mixquant_agents.engine.vllm.checkpoint import model_path

            tokenizer = AutoTokenizer.from_pretrained(model_path(config)[0])
            await run_thread(engine, tokenizer, 2, verbatim=True)  # warm
            plain = _figures(await run_thread(engine, tokenizer, turns, verbatim=False))
            kept = _figures(await run_thread(engine, tokenizer, turns, verbatim=True))
            return {"model": model, "device": engine.info.device, "by_template": plain, "as_written": kept}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m mixquant_agents.bench.history", description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--policy", default="exact")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(arguments)
    result = asyncio.run(measure(given.model, given.turns, given.policy))
    text = json.dumps({"command": f"python -m mixquant_agents.bench.history --turns {given.turns}", **result}, indent=2)
    if given.output is not None:
        write_whole(given.output, text + "\n")
    print(text)  # noqa: T201 - the result is what this program is for


if __name__ == "__main__":
    main()
