"""How often a model's twin drafts right: by format and place in the cycle, on agent text.

The exact model writes greedy answers. From each of their tokens on, the twin then drafts as an engine would: one row at
a time through quantized layers, reading the exact KV cache of all earlier tokens and its own of the cycle. A draft is
right when it is the token that the exact model wrote, and a cycle ends at the first wrong one.

A plain transformers model is read, not an engine, so any checkpoint that it loads can be judged, on a CPU too: formats
are emulated, which says nothing about speed. What is predicted of it comes from the time of the products, measured here
where there is a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from mixquant_agents.bench.fidelity.answers import Prompt, greedy
from mixquant_agents.errors import ConfigError
from mixquant_agents.precision.drafting import gain, tokens_per_cycle
from mixquant_agents.precision.formats import FORMATS, NumberFormat
from mixquant_agents.precision.plan import Mode
from mixquant_agents.precision.policy import PrecisionPolicy
from mixquant_agents.precision.resolve import resolve
from mixquant_agents.precision.support import DeviceInfo
from mixquant_agents.quant.calibration.contexts import conversations
from mixquant_agents.quant.calibration.network import groups, load, prompt_ids, routed
from mixquant_agents.quant.formats.registry import twin_of
from mixquant_agents.quant.ops.sources import PlainRows
from mixquant_agents.quant.step import EXACT, StepPlan
from mixquant_agents.quant.timing import replay_microseconds

__all__ = ["AcceptanceReport", "FormatAcceptance", "known_formats", "measure"]

EMULATION = DeviceInfo("cpu", "emulation")


class FormatAcceptance(BaseModel):
    """Drafts in one format.

    Attributes:
        by_step: how often the first, second, … draft of a cycle is right, where those before it were.
        acceptance: by the number of drafts in a cycle, how often one of them is right.
        tokens_per_cycle: by the same.
        share: time of a draft's products over the exact ones on this machine; ``None`` where they are emulated.
        gain: by the number of drafts, how much faster writing would be here; ``None`` likewise.
    """

    model_config = ConfigDict(frozen=True)

    by_step: tuple[float | None, ...]
    acceptance: dict[int, float]
    tokens_per_cycle: dict[int, float]
    share: float | None = None
    gain: dict[int, float] | None = None


class AcceptanceReport(BaseModel):
    """What was found of a model."""

    model_config = ConfigDict(frozen=True)

    model: str
    device: str
    dtype: str
    prompts: int
    prompt_tokens: int
    positions: int
    formats: dict[str, FormatAcceptance]


def measure(
    model: str,
    formats: Sequence[NumberFormat],
    *,
    drafts: int = 4,
    prompts: int = 12,
    tokens: int = 48,
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> AcceptanceReport:
    """Draft along the exact model's answers.

    Args:
        model: ``"embedded"``, a folder, or a hub id.
        formats: of the twins.
        drafts: most drafts of a cycle.
        prompts: conversations with tools, of three kinds in turn.
        tokens: most tokens of an answer.
        progress: called with what is being done and the share done, 0 to 1.

    Raises:
        ConfigError: no formats, or a number below one.
        ModelNotFoundError, DamagedWeightsError: the model cannot be loaded.
    """
    if not formats or min(drafts, prompts, tokens) < 1:
        raise ConfigError(
            f"{len(formats)} formats, {drafts} drafts, {prompts} prompts, {tokens} tokens: give at least one of each"
        )
    network, tokenizer = load(model)
    progress("exact answers", 0.0)
    asked = [
        Prompt(each.kind, tuple(prompt_ids(tokenizer, each.messages, each.tools)), 0)
        for each in conversations(prompts, "measured")
    ]
    answered = greedy(network, asked, tokens)
    by_format = {}
    for number, name in enumerate(formats):
        progress(name.value, (number + 1) / (len(formats) + 1))
        hits, trials = _cycles(network, name, answered, drafts)
        by_format[name.value] = _judged(hits, trials, _share(network, name))
    return AcceptanceReport(
        model=model,
        device=torch.cuda.get_device_name() if network.device.type == "cuda" else "cpu",
        dtype=str(network.dtype).removeprefix("torch."),
        prompts=len(answered),
        prompt_tokens=sum(len(prompt.ids) for prompt in answered),
        positions=sum(len(prompt.answer) for prompt in answered),
        formats=by_format,
    )


def _judged(hits: Sequence[int], trials: Sequence[int], share: float | None) -> FormatAcceptance:
    steps = range(1, len(hits) + 1)
    rates = {k: sum(hits[:k]) / max(1, sum(trials[:k])) for k in steps}
    return FormatAcceptance(
        by_step=tuple(right / tried if tried else None for right, tried in zip(hits, trials, strict=True)),
        acceptance=rates,
        tokens_per_cycle={k: tokens_per_cycle(rates[k], k) for k in steps},
        share=share,
        gain=None if share is None else {k: gain(rates[k], k, share) for k in steps},
    )


def _cycles(network: Any, name: NumberFormat, prompts: Sequence[Prompt], drafts: int) -> tuple[list[int], list[int]]:
    """How often the first, second, … draft was right, and how often there was one."""
    resolved = resolve(PrecisionPolicy(prefill_format=name), EMULATION)
    hits, trials = [0] * drafts, [0] * drafts
    with routed(network, resolved) as plan, torch.inference_mode():
        for prompt in prompts:
            for right in _along(network, plan, prompt, drafts):
                for step in range(min(right + 1, drafts)):
                    trials[step] += 1
                    hits[step] += step < right
    return hits, trials


def _along(network: Any, plan: Callable[[StepPlan], None], prompt: Prompt, drafts: int) -> list[int]:
    """From each token of the answer on, how many drafts were right; ``drafts`` at most, and not beyond the answer.

    The first drafts of all cycles are one pass, their second ones another, and so on: a mask lets each row read the
    exact KV of the tokens before its cycle, and the rows of its own cycle. So weights are read ``drafts`` times, not
    ``drafts`` times for each token.
    """
    from transformers import DynamicCache

    device, dtype = network.device, network.dtype
    cycles = len(prompt.answer) - drafts
    if cycles < 1:
        return []
    begins = len(prompt.ids) + torch.arange(cycles, device=device)
    whole = torch.tensor([prompt.whole], device=device)
    plan(EXACT)
    cache = DynamicCache()  # of whole layers, a sliding window's too: which tokens are read the mask says
    network(whole, past_key_values=cache, use_cache=True, logits_to_keep=1)
    plan(StepPlan(Mode.QUANTIZED))
    before = torch.arange(whole.shape[1], device=device) < begins.view(-1, 1)
    own = torch.eye(cycles, dtype=torch.bool, device=device)
    hidden = torch.finfo(dtype).min
    tokens, right = whole[:, begins], torch.ones(cycles, dtype=torch.bool, device=device)
    counts = torch.zeros(cycles, dtype=torch.int64, device=device)
    for step in range(drafts):
        read = torch.cat([before, *[own] * (step + 1)], dim=1)
        logits = network(
            tokens,
            past_key_values=cache,
            use_cache=True,
            position_ids=(begins + step).view(1, -1),
            attention_mask=torch.zeros_like(read, dtype=dtype).masked_fill_(~read, hidden).view(1, 1, cycles, -1),
        ).logits
        tokens = logits.argmax(-1)
        right &= tokens[0] == whole[0, begins + step + 1]
        counts += right
    return [int(count) for count in counts]


def _share(network: Any, name: NumberFormat) -> float | None:
    """Time of a draft's products over the exact ones, of one row and the first two blocks; ``None`` where the format
    has no kernels here."""
    if network.device.type != "cuda":
        return None
    capability = torch.cuda.get_device_capability()
    device = DeviceInfo("cuda", torch.cuda.get_device_name(), (capability[0], capability[1]))
    resolved = resolve(PrecisionPolicy(prefill_format=name), device)
    layer_format = resolved.default_format
    if resolved.emulated or layer_format is None or network.dtype not in (torch.bfloat16, torch.float16):
        return None
    twin = twin_of(layer_format)
    layers = [(weight, twin.build(weight)) for weight in (group.weight() for group in groups(network)[:8])]
    twin.tune(layers, 16)
    twin.tune_few_rows(layers)
    rows = {weight.shape[1]: torch.randn(1, weight.shape[1], device=weight.device, dtype=weight.dtype)
            for weight, _ in layers}  # fmt: skip

    def chain(run: Callable[[torch.Tensor, torch.Tensor, Any], object]) -> None:
        for weight, state in layers:
            run(rows[weight.shape[1]], weight, state)

    runs: Mapping[str, Callable[[torch.Tensor, torch.Tensor, Any], object]] = {
        "exact": lambda x, weight, state: torch.nn.functional.linear(x, weight),
        "quantized": lambda x, weight, state: twin.product(PlainRows(x), state),
        "few_rows": lambda x, weight, state: twin.few_rows(PlainRows(x), state),
    }
    with torch.inference_mode():
        times = {key: replay_microseconds(functools.partial(chain, run)) for key, run in runs.items()}
    return min(times["quantized"], times["few_rows"]) / times["exact"]


def known_formats(names: Sequence[str]) -> list[NumberFormat]:
    """Formats by name; all of them when ``names`` is empty.

    Raises:
        ConfigError: no such format.
    """
    known = [name.value for name in FORMATS]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"no format {unknown[0]!r} to draft in; choose from {', '.join(known)}")
    return [NumberFormat(name) for name in names or known]
