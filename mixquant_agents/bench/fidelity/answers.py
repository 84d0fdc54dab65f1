"""The exact model's greedy answers, and what it and others think of them: the reference of every comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mixquant_agents.quant.calibration.network import Batch, batches
from mixquant_agents.quant.step import StepPlan

__all__ = ["Divergence", "Prompt", "Reference", "compare", "greedy", "reference"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt and the answer that is forced on every policy.

    Attributes:
        kind: for the report, for example ``"result"`` or ``"plain"``.
        ids: of the prompt.
        static: so many of them are the system prompt and the tools, which other conversations share.
        answer: its tokens; the end-of-turn token is the last where the model came to an end.
    """

    kind: str
    ids: tuple[int, ...]
    static: int
    answer: tuple[int, ...] = ()

    @property
    def whole(self) -> tuple[int, ...]:
        """Prompt and answer."""
        return self.ids + self.answer


@dataclass(frozen=True, slots=True)
class Reference:
    """The exact model's distributions over all answers.

    Attributes:
        prompts: with their answers.
        made: all of them in batches.
        log_probs: by the prompt's number, float32 ``[answer, vocabulary]``, on the model's device.
    """

    prompts: tuple[Prompt, ...]
    made: tuple[Batch, ...]
    log_probs: dict[int, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Divergence:
    """One policy against the reference, by the prompt's number: KL(exact ‖ policy) in nats and whether both prefer the
    same token, each float32 ``[answer]`` on the CPU."""

    kl: dict[int, torch.Tensor]
    same: dict[int, torch.Tensor]


def greedy(network: Any, prompts: Sequence[Prompt], tokens: int, *, least: int = 1) -> list[Prompt]:
    """The prompts with the exact model's own answers, of ``least`` to ``tokens`` tokens."""
    config = network.generation_config
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    pad = next((end for end in ends if end is not None), 0)
    answered = list(prompts)
    for batch in batches([prompt.ids for prompt in prompts], network.device):
        width = batch.ids.shape[1]
        ids, mask = torch.full_like(batch.ids, pad), torch.zeros_like(batch.ids)
        for row, length in enumerate(batch.lengths):
            ids[row, width - length :], mask[row, width - length :] = batch.ids[row, :length], 1
        with torch.inference_mode():
            out = network.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=tokens,
                min_new_tokens=least,
                do_sample=False,
                temperature=None,
                top_p=None,
                pad_token_id=pad,
            )
        for row, number in enumerate(batch.members):
            answer = out[row, width:].tolist()
            stop = next((at + 1 for at, token in enumerate(answer) if token in ends), len(answer))
            prompt = prompts[number]
            answered[number] = Prompt(prompt.kind, prompt.ids, prompt.static, tuple(answer[:stop]))
    return answered


def _log_probs(network: Any, batch: Batch, prompts: Sequence[Prompt]) -> Iterator[tuple[int, torch.Tensor]]:
    """Next-token log probabilities over each answer of the batch."""
    starts = [len(prompts[number].ids) - 1 for number in batch.members]
    first, stop = min(starts), max(batch.lengths) - 1
    with torch.inference_mode():
        kept = torch.arange(first, stop, device=batch.ids.device)
        logits = network(batch.ids, use_cache=False, logits_to_keep=kept).logits
        for row, number in enumerate(batch.members):
            at = starts[row] - first
            own = logits[row, at : at + len(prompts[number].answer)]
            yield number, own.float().log_softmax(-1)


def reference(network: Any, prompts: Sequence[Prompt], rows: int = 32_768) -> Reference:
    """The exact model's distributions over the answers of ``prompts``."""
    made = batches([prompt.whole for prompt in prompts], network.device, rows)
    log_probs = {number: own.clone() for batch in made for number, own in _log_probs(network, batch, prompts)}
    return Reference(tuple(prompts), tuple(made), log_probs)


def compare(
    network: Any,
    exact: Reference,
    plan: Callable[[StepPlan], None],
    spans: Callable[[Prompt], Sequence[tuple[int, int]]],
) -> Divergence:
    """How far the routed ``network`` is from the reference.

    Args:
        network: while :func:`~mixquant_agents.quant.calibration.network.routed` is open.
        exact: the reference.
        plan: what ``routed`` yielded.
        spans: positions of a prompt and its answer that run quantized, ``[start, stop)``.
    """
    kl, same = {}, {}
    for batch in exact.made:
        prompts = [exact.prompts[number] for number in batch.members]
        plan(batch.step(batch.mask([spans(prompt) for prompt in prompts])))
        for number, own in _log_probs(network, batch, exact.prompts):
            true = exact.log_probs[number]
            kl[number] = (true.exp() * (true - own)).sum(-1).clamp_min(0).cpu()
            same[number] = (true.argmax(-1) == own.argmax(-1)).float().cpu()
    return Divergence(kl, same)
