"""How far a policy's answers move from the exact model's: teacher-forced KL divergence over the full vocabulary.

The exact model writes a greedy answer to each prompt. Each policy then reads prompt and answer in one pass, rows routed
by the engine's own rule and through its own (emulated) twins, and its next-token distributions over the answer are
compared with the exact model's: ``KL(exact ‖ policy)`` in nats, and how often both prefer the same token. Forcing the
answer keeps one early difference from deciding everything after it, as free-running comparison does.

A plain ``transformers`` model is read, not an engine, so any checkpoint that it loads can be judged. Layers that vLLM
fuses (q, k, v; gate, up) are quantized together here too, so that the numbers are the engine's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from mixquant_agents.bench.fidelity.prompts import PROMPTS
from mixquant_agents.errors import ConfigError
from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.policy import POLICY_PRESETS, PrecisionPolicy
from mixquant_agents.precision.resolve import resolve
from mixquant_agents.precision.support import DeviceInfo

if TYPE_CHECKING:
    from mixquant_agents.bench.fidelity.answers import Prompt, Reference

__all__ = ["FIDELITY_POLICIES", "FidelityReport", "PolicyFidelity", "measure", "named_policies"]

_NVFP4 = NumberFormat.NVFP4
FIDELITY_POLICIES: dict[str, PrecisionPolicy] = {
    **{name: policy for name, policy in POLICY_PRESETS.items() if name not in ("exact", "mixquant")},
    "mixquant-nvfp4-quantized-last": PrecisionPolicy(prefill_format=_NVFP4, exact_last_token=False),
    "uniform-nvfp4-weight-only": PrecisionPolicy(prefill_format=_NVFP4, decode_format=_NVFP4, weight_only=True),
    "mixquant-nvfp4-weight-only": PrecisionPolicy(prefill_format=_NVFP4, weight_only=True),
}
"""What is compared by default: the quantizing presets, and variants that say where the difference comes from."""


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
        progress: called with what is being done and the share done, 0 to 1.

    Raises:
        ConfigError: no prompts, or fewer than one token.
        ModelNotFoundError, DamagedWeightsError: the model cannot be loaded.
    """
    if not prompts or tokens < 1:
        raise ConfigError(f"{len(prompts)} prompts and {tokens} tokens: give at least one of each")
    compared = FIDELITY_POLICIES if policies is None else policies
    from mixquant_agents.bench.fidelity.answers import greedy, reference
    from mixquant_agents.quant.calibration.network import load

    network, tokenizer = load(model)
    total = len(compared) + 1
    progress("exact", 0.0)
    asked = [_render(tokenizer, prompt) for prompt in prompts]
    exact = reference(network, greedy(network, asked, tokens, least=tokens))
    results = []
    for number, (name, policy) in enumerate(compared.items(), start=1):
        progress(name, number / total)
        results.append(_compare(network, str(network.config._name_or_path), name, policy, exact))
    return FidelityReport(
        model=model,
        dtype=str(network.dtype).removeprefix("torch."),
        device=str(network.device),
        prompts=len(prompts),
        prompt_tokens=sum(len(prompt.ids) for prompt in exact.prompts),
        answer_tokens=tokens * len(prompts),
        policies=tuple(results),
    )


def _compare(network: Any, model: str, name: str, policy: PrecisionPolicy, exact: Reference) -> PolicyFidelity:
    """How far ``policy`` moves the distributions over the forced answers."""
    import torch

    from mixquant_agents.bench.fidelity.answers import compare
    from mixquant_agents.quant.calibration.at_load import calibration_for
    from mixquant_agents.quant.calibration.network import groups, routed

    device = DeviceInfo("cpu", "emulation")  # emulated on any device: fidelity is about rounding
    calibration, missing = calibration_for(policy, model, device, make=False)
    resolved = resolve(policy, device, calibrated=missing is None)
    if not resolved.quantizes:
        raise ConfigError(f"policy {policy.name!r} quantizes nothing, so there is nothing to compare")
    rule = resolved.rule()

    def spans(prompt: Prompt) -> list[tuple[int, int]]:
        first, stop = rule.interval(len(prompt.ids))
        return [(first, min(stop, len(prompt.whole)))]

    known = (
        {}
        if calibration is None
        else {
            group.name: calibration.layer(group.name, sum(group.widths), group.layers[0].weight.shape[1])
            for group in groups(network)
        }
    )
    with routed(network, resolved, known) as plan:
        divergence_of = compare(network, exact, plan, spans)
    by_prompt = torch.stack([divergence.mean() for divergence in divergence_of.kl.values()])
    return PolicyFidelity(
        policy=name,
        kl_mean=float(torch.cat(list(divergence_of.kl.values())).mean()),
        kl_first=float(torch.stack([divergence[0] for divergence in divergence_of.kl.values()]).mean()),
        kl_prompt_low=float(by_prompt.min()),
        kl_prompt_high=float(by_prompt.max()),
        top1_agreement=float(torch.cat(list(divergence_of.same.values())).mean()),
    )


def _render(tokenizer: Any, prompt: str) -> Prompt:
    from mixquant_agents.bench.fidelity.answers import Prompt
    from mixquant_agents.quant.calibration.network import prompt_ids

    if tokenizer.chat_template is None:
        return Prompt("plain", tuple(tokenizer(prompt).input_ids), 0)
    return Prompt("question", tuple(prompt_ids(tokenizer, [{"role": "user", "content": prompt}])), 0)
