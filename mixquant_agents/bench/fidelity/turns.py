"""One thread, many turns: does what is lost in reading grow with the history?

With prefix caching, decode's own KV is kept: the answers of earlier turns stay as they were written, exact, and only
what came from outside is quantized (``kept``). An engine pair, or a history whose rendering changes, reads its own
answers again, in NVFP4 (``reread``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mixquant_agents.bench.fidelity.answers import Prompt, compare, reference
from mixquant_agents.bench.fidelity.recipes import EMULATION, StudyRecipe
from mixquant_agents.precision.plan import RowRule
from mixquant_agents.precision.resolve import resolve
from mixquant_agents.quant.calibration.contexts import Conversation, conversations
from mixquant_agents.quant.calibration.network import prompt_ids, routed
from mixquant_agents.quant.twins.calibrated import LayerCalibration

__all__ = ["TURNS", "by_turn"]

TURNS = (1, 2, 5, 20)
RECIPES = ("plain", "qkv-fp8+gptq", "gptq+ends-exact", "gptq+wide-ends-exact", "balanced+w46+late-ends-exact")


def by_turn(
    network: Any,
    tokenizer: Any,
    named: Mapping[str, StudyRecipe],
    calibration_of: Callable[[StudyRecipe], Mapping[str, LayerCalibration] | None],
    *,
    count: int,
    seed: int,
    rows: int,
    progress: Callable[[str, float], None],
) -> dict[str, dict[str, float]]:
    """Mean KL over the answer of each of :data:`TURNS`, by recipe and by what becomes of earlier answers.

    Answers are the conversations' own, forced like all others.

    Args:
        network, tokenizer: see :func:`~mixquant_agents.quant.calibration.network.load`.
        named: recipes; those of :data:`RECIPES` are followed.
        calibration_of: what a recipe's twins are built with.
        count: threads.
        seed: of the threads.
        rows: tokens of a batch.
        progress: called with what is being done and the share done.
    """
    threads = conversations(3 * count, "measured", seed + 1, turns=(21, 21))[2::3]
    rows_by_case: dict[str, dict[str, float]] = {}
    for turn in TURNS:
        made = [_until(tokenizer, thread, turn) for thread in threads]
        exact = reference(network, [prompt for prompt, _ in made], rows)
        kept = {prompt.ids: own for prompt, own in made}
        for name in RECIPES:
            recipe = named[name]
            resolved = resolve(recipe.policy, EMULATION)
            rule, known = resolved.rule(), calibration_of(recipe)
            for way in ("kept", "reread"):
                progress(f"turn {turn}: {name}, answers {way}", TURNS.index(turn) / len(TURNS))

                def spans(
                    prompt: Prompt,
                    lies: dict[tuple[int, ...], list[tuple[int, int]]] = kept,
                    way: str = way,
                    rule: RowRule = rule,
                ) -> list[tuple[int, int]]:
                    own = lies[prompt.ids] if way == "kept" else []
                    edges = [0, *(edge for span in own for edge in span), len(prompt.ids) - 1]
                    # Each turn's last prompt tokens run exact, and so does the answer behind them.
                    pairs = zip(edges[::2], edges[1::2], strict=True)
                    return [(max(start, rule.first), stop + 1 - rule.last) for start, stop in pairs]

                with routed(network, resolved, known) as plan:
                    loss = compare(network, exact, plan, spans)
                total = sum(float(kl.sum()) for kl in loss.kl.values())
                count = sum(kl.numel() for kl in loss.kl.values())
                rows_by_case.setdefault(f"{name}, answers {way}", {})[str(turn)] = total / max(1, count)
    return rows_by_case


def _until(tokenizer: Any, thread: Conversation, turn: int) -> tuple[Prompt, list[tuple[int, int]]]:
    """The thread up to the model's final answer of turn ``turn``, and where its own earlier answers lie, each with the
    last prompt token before it."""
    messages, ends = list(thread.messages), []
    for number, message in enumerate(messages):
        if message["role"] == "assistant" and message["content"]:
            ends.append(number)
    last = ends[turn - 1]
    ids = prompt_ids(tokenizer, messages[:last], thread.tools)
    whole = _without_prompt(tokenizer, messages[: last + 1], thread.tools)
    own = []
    for number, message in enumerate(messages[:last]):
        if message["role"] == "assistant":
            start = len(prompt_ids(tokenizer, messages[:number], thread.tools))
            stop = len(_without_prompt(tokenizer, messages[: number + 1], thread.tools))
            own.append((start - 1, stop))
    return Prompt("turns", tuple(ids), 0, tuple(whole[len(ids) :])), own


def _without_prompt(tokenizer: Any, messages: Any, tools: Any) -> list[int]:
    return list(tokenizer.apply_chat_template(messages, tools=list(tools), return_dict=True)["input_ids"])
