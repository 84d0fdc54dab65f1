"""How far a policy's answers move from the exact model's: teacher-forced KL divergence over the full vocabulary.

The exact model writes a greedy answer to each prompt. Each policy then reads prompt and answer in one pass, rows routed
by the engine's own rule and through its own (emulated) twins, and its next-token distributions over the answer are
compared with the exact model's: ``KL(exact ‖ policy)`` in nats, and how often both prefer the same token. Forcing the
answer keeps one early difference from deciding everything after it, as free-running comparison does.

A plain ``transformers`` model is read, not an engine, so any checkpoint that it loads can be judged. Layers that vLLM
fuses (q, k, v; gate, up) are quantized together here too, so that the numbers are the engine's.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from mixquant_agents.bench.fidelity.prompts import PROMPTS
from mixquant_agents.errors import ConfigError, DamagedWeightsError, ModelNotFoundError
from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.layer_filter import in_block
from mixquant_agents.precision.plan import RequestRows
from mixquant_agents.precision.policy import POLICY_PRESETS, PrecisionPolicy
from mixquant_agents.precision.resolve import LayerFormat, ResolvedPolicy, resolve
from mixquant_agents.precision.support import DeviceInfo

__all__ = ["FIDELITY_POLICIES", "FidelityReport", "PolicyFidelity", "measure", "named_policies"]

_NVFP4 = NumberFormat.NVFP4
FIDELITY_POLICIES: dict[str, PrecisionPolicy] = {
    **{name: policy for name, policy in POLICY_PRESETS.items() if name not in ("exact", "mixquant")},
    "mixquant-nvfp4-quantized-last": PrecisionPolicy(prefill_format=_NVFP4, exact_last_token=False),
    "uniform-nvfp4-weight-only": PrecisionPolicy(prefill_format=_NVFP4, decode_format=_NVFP4, weight_only=True),
    "mixquant-nvfp4-weight-only": PrecisionPolicy(prefill_format=_NVFP4, weight_only=True),
}
"""What is compared by default: the quantizing presets, and variants that say where the difference comes from."""


_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Layers that vLLM runs as one, in most of its models."""


class PolicyFidelity(BaseModel):
    """One policy against the exact model.

    Attributes:
        kl_mean: mean KL divergence in nats over all answer tokens.
        kl_first: the same over first answer tokens alone, which the last prompt token produces.
        kl_prompt_low, kl_prompt_high: the smallest and largest mean of one prompt.
        top1_agreement: share of answer tokens where both prefer the same token.
        emulated: computed by emulation; says nothing about speed.
    """

    model_config = ConfigDict(frozen=True)

    policy: str
    kl_mean: float
    kl_first: float
    kl_prompt_low: float
    kl_prompt_high: float
    top1_agreement: float
    emulated: bool = True


class FidelityReport(BaseModel):
    """The whole comparison."""

    model_config = ConfigDict(frozen=True)

    model: str
    dtype: str
    device: str
    prompts: int
    prompt_tokens: int
    answer_tokens: int
    policies: tuple[PolicyFidelity, ...]


def named_policies(names: Sequence[str]) -> dict[str, PrecisionPolicy]:
    """Policies by name; all of :data:`FIDELITY_POLICIES` when ``names`` is empty.

    Raises:
        ConfigError: an unknown name, or one that quantizes nothing.
    """
    unknown = [name for name in names if name not in FIDELITY_POLICIES]
    if unknown:
        raise ConfigError(f"no policy {unknown[0]!r} to compare; choose from {', '.join(FIDELITY_POLICIES)}")
    return {name: FIDELITY_POLICIES[name] for name in names} or FIDELITY_POLICIES


def measure(
    model: str,
    policies: Mapping[str, PrecisionPolicy] | None = None,
    prompts: Sequence[str] = PROMPTS,
    tokens: int = 64,
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> FidelityReport:
    """Compare ``policies`` with the exact model on ``prompts``.

    Args:
        model: ``"embedded"``, a local folder, or a hub id.
        policies: by the name they get in the report; all of :data:`FIDELITY_POLICIES` when ``None``.
        prompts: user messages, rendered by the model's chat template where it has one.
        tokens: length of each forced answer.
        progress: told what is being done and the share done, 0 to 1.

    Raises:
        ConfigError: no prompts, or fewer than one token.
        ModelNotFoundError, DamagedWeightsError: the model cannot be loaded.
    """
    if not prompts or tokens < 1:
        raise ConfigError(f"{len(prompts)} prompts and {tokens} tokens: give at least one of each")
    compared = FIDELITY_POLICIES if policies is None else policies
    network, tokenizer = _load(model)
    total = len(prompts) * (len(compared) + 1)
    answers = []
    for number, prompt in enumerate(prompts):
        progress("exact", number / total)
        answers.append(_ForcedAnswer.of(network, _render(tokenizer, prompt), tokens))
    results = []
    for number, (name, policy) in enumerate(compared.items(), start=1):

        def report(done: int, name: str = name, before: int = number * len(prompts)) -> None:
            progress(name, (before + done) / total)

        results.append(_compare(network, name, policy, answers, report))
    return FidelityReport(
        model=model,
        dtype=str(network.dtype).removeprefix("torch."),
        device=str(network.device),
        prompts=len(prompts),
        prompt_tokens=sum(answer.prompt_len for answer in answers),
        answer_tokens=tokens * len(prompts),
        policies=tuple(results),
    )


@dataclass(frozen=True, slots=True)
class _ForcedAnswer:
    """The exact model's greedy answer to one prompt.

    Attributes:
        ids: prompt and answer, ``[1, prompt_len + tokens]``.
        log_probs: the exact model's, float32 ``[tokens, vocabulary]``, on the CPU.
    """

    ids: Any
    prompt_len: int
    log_probs: Any

    @classmethod
    def of(cls, network: Any, prompt_ids: Any, tokens: int) -> _ForcedAnswer:
        prompt_ids = prompt_ids.to(network.device)
        ids = network.generate(prompt_ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        prompt_len = prompt_ids.shape[1]
        return cls(ids, prompt_len, _log_probs(network, ids, prompt_len))


def _compare(
    network: Any, name: str, policy: PrecisionPolicy, answers: Sequence[_ForcedAnswer], progress: Callable[[int], None]
) -> PolicyFidelity:
    """How far ``policy`` moves the distributions over the forced answers."""
    import torch

    divergences, agreements = [], []
    with _routed(network, policy) as plan_for:
        for number, answer in enumerate(answers):
            progress(number)
            plan_for(answer.ids.shape[1], answer.prompt_len)
            exact, moved = answer.log_probs, _log_probs(network, answer.ids, answer.prompt_len)
            divergences.append((exact.exp() * (exact - moved)).sum(-1).clamp_min(0))
            agreements.append((exact.argmax(-1) == moved.argmax(-1)).float())
    by_prompt = torch.stack([divergence.mean() for divergence in divergences])
    return PolicyFidelity(
        policy=name,
        kl_mean=float(torch.cat(divergences).mean()),
        kl_first=float(torch.stack([divergence[0] for divergence in divergences]).mean()),
        kl_prompt_low=float(by_prompt.min()),
        kl_prompt_high=float(by_prompt.max()),
        top1_agreement=float(torch.cat(agreements).mean()),
    )


def _load(model: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: str | pathlib.Path = model
    if model == "embedded":
        from mixquant_agents.embedded import prepare

        where = prepare()
    elif model.startswith(("/", "./", "../", "~")) and not pathlib.Path(model).expanduser().is_dir():
        raise ModelNotFoundError(f"model folder {model!r} does not exist; give a folder, a hub id or 'embedded'")
    cuda = torch.cuda.is_available()
    try:
        tokenizer = AutoTokenizer.from_pretrained(where)
        network = AutoModelForCausalLM.from_pretrained(where, dtype=torch.bfloat16 if cuda else torch.float32)
    except OSError as error:
        raise ModelNotFoundError(
            f"no model {model!r}: {str(error).splitlines()[0]}; give a checkpoint's folder, a hub id, or 'embedded'"
        ) from error
    except (RuntimeError, ValueError) as error:
        raise DamagedWeightsError(f"the checkpoint {model!r} cannot be loaded: {error}") from error
    return network.to("cuda" if cuda else "cpu").eval(), tokenizer


def _render(tokenizer: Any, prompt: str) -> Any:
    if tokenizer.chat_template is None:
        return tokenizer(prompt, return_tensors="pt").input_ids
    messages = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    ).input_ids


def _log_probs(network: Any, answer: Any, prompt_len: int) -> Any:
    """Next-token log probabilities over the answer, float32 ``[tokens, vocabulary]``, on the CPU."""
    import torch

    with torch.inference_mode():
        positions = answer.shape[1] - prompt_len + 1
        logits = network(answer, logits_to_keep=positions, use_cache=False).logits[0, :-1]
        return logits.float().log_softmax(-1).cpu()


@contextmanager
def _routed(network: Any, policy: PrecisionPolicy) -> Iterator[Callable[[int, int], None]]:
    """Run the Linear layers of the blocks through emulated twins; yields what sets number of rows and prompt length."""
    import torch

    from mixquant_agents.quant.formats.registry import emulated_twin
    from mixquant_agents.quant.ops.eager import eager_linear
    from mixquant_agents.quant.router import Router
    from mixquant_agents.quant.step import EXACT, StepPlan
    from mixquant_agents.quant.twins.emulated import EmulatedTwin, Grid

    resolved = resolve(policy, DeviceInfo("cpu", "emulation"))  # emulated on any device: fidelity is about rounding
    if not resolved.quantizes:
        raise ConfigError(f"policy {policy.name!r} quantizes nothing, so there is nothing to compare")
    router = Router(resolved)
    step: StepPlan = EXACT

    def plan_for(rows: int, num_prompt_tokens: int) -> None:
        nonlocal step
        _, step = router.route([RequestRows("prompt", num_prompt_tokens, 0, rows)])

    def forward_of(layer: Any, twin: EmulatedTwin, state: Grid) -> Callable[[Any], Any]:
        def forward(x: Any) -> Any:
            y = eager_linear(x.reshape(-1, x.shape[-1]), layer.weight, layer.bias, twin, state, step)
            return y.reshape(*x.shape[:-1], -1)

        return forward

    groups = _groups(network, resolved)
    try:
        for layer_format, layers in groups:
            twin = emulated_twin(layer_format)
            state = twin.build(torch.cat([layer.weight.detach() for layer in layers]))
            parts = state.split([layer.weight.shape[0] for layer in layers])
            for layer, part in zip(layers, parts, strict=True):
                layer.forward = forward_of(layer, twin, part)
        yield plan_for
    finally:
        for _, layers in groups:
            for layer in layers:
                layer.__dict__.pop("forward", None)


def _groups(network: Any, resolved: ResolvedPolicy) -> list[tuple[LayerFormat, list[Any]]]:
    """Routed layers and their formats, those that vLLM runs as one together."""
    import torch

    fused = {part: whole for whole, parts in _FUSED.items() for part in parts}
    groups: dict[str, list[Any]] = {}
    for name, layer in network.named_modules():
        parent, _, leaf = name.rpartition(".")
        if isinstance(layer, torch.nn.Linear) and in_block(name):
            groups.setdefault(f"{parent}.{fused.get(leaf, leaf)}", []).append(layer)
    formats = {whole: resolved.layer_format(whole, _FUSED) for whole in groups}
    return [(layer_format, groups[whole]) for whole, layer_format in formats.items() if layer_format is not None]
