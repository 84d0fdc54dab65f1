"""What calibration sees: the largest magnitude of every input channel, and the inputs' second moments."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mixquant_agents.precision.recipe import FIRST_TOKENS
from mixquant_agents.precision.resolve import ResolvedPolicy
from mixquant_agents.quant.calibration.channels import balanced
from mixquant_agents.quant.calibration.gptq import gptq, moved
from mixquant_agents.quant.calibration.network import Batch, Group, groups, routed
from mixquant_agents.quant.numerics import nvfp4
from mixquant_agents.quant.twins.calibrated import LayerCalibration

__all__ = ["Seen", "collect", "layer_calibrations"]

_SCALED = ("qkv_proj", "gate_up_proj", "down_proj")
"""Groups whose channels may be scaled: the kernels that normalize or activate their inputs multiply on the way.
Attention's output would be read and written once more for it, which its small gain is not worth."""

_SAMPLE = 1024
"""Rows of a group's inputs that are kept to try roundings on, at most."""

AT_ONCE = 2 * 10**8
"""Numbers of float32 that layers rounded side by side may take together, about."""


@dataclass(slots=True)
class Seen:
    """Inputs of one group, as far as calibration saw them.

    Attributes:
        peaks: float32 ``[K]``, the largest magnitude of each channel in the exact model.
        second: ``E[x xᵀ]`` ``[K, K]`` of the inputs that the twin will meet.
        cross: ``E[x qᵀ]`` ``[K, K]``, of exact inputs and those that the twin will meet; ``None``: they are the same.
        rows: how many there were.
        sample: some of the exact inputs, ``[R, K]``.
    """

    peaks: torch.Tensor
    second: torch.Tensor | None = None
    cross: torch.Tensor | None = None
    rows: int = 0
    sample: torch.Tensor | None = None


@dataclass(slots=True)
class _Tap:
    """Inputs of all groups in one pass."""

    inputs: dict[str, torch.Tensor] = field(default_factory=dict)

    @contextlib.contextmanager
    def on(self, members: Sequence[Group]) -> Iterator[None]:
        handles = [group.layers[0].register_forward_pre_hook(self._hook(group.name)) for group in members]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Callable[[Any, Any], None]:
        def hook(_: Any, args: Any) -> None:
            self.inputs[name] = args[0].detach().reshape(-1, args[0].shape[-1])

        return hook


def collect(
    network: Any,
    made: Sequence[Batch],
    *,
    moments: bool,
    behind: int = 0,
    quantized: ResolvedPolicy | None = None,
    scales: Mapping[str, LayerCalibration] | None = None,
    sampled: bool = False,
    progress: Callable[[float], None] = lambda share: None,
) -> dict[str, Seen]:
    """Run ``network`` over ``made`` and look at the inputs of each group.

    Args:
        network: see :func:`~mixquant_agents.quant.calibration.network.load`.
        made: calibration text.
        moments: second moments too.
        behind: of so many first tokens of each text they are not taken.
        quantized: where given, each batch runs once more with every row quantized, and the moments are of the rounded
            inputs of that pass.
        scales: for that pass, see :func:`~mixquant_agents.quant.calibration.network.routed`.
        sampled: keep some of the exact inputs, none of a text's first tokens.
        progress: called with the share done.
    """
    members = groups(network)
    seen: dict[str, Seen] = {}
    for number, batch in enumerate(made):
        progress(number / len(made))
        real = batch.mask([[(0, length)] for length in batch.lengths]).flatten().to(batch.ids.device)
        exact = _inputs(network, batch, members, real)
        positions = torch.arange(batch.ids.shape[1]).expand(batch.ids.shape).flatten().to(real.device)[real]
        for name, x in exact.items():
            own = seen.setdefault(name, Seen(torch.zeros(x.shape[1], device=x.device)))
            own.peaks = torch.maximum(own.peaks, x.abs().amax(0).float())
            own.rows += x.shape[0]
            if sampled:
                rows = x[positions >= FIRST_TOKENS]
                kept = rows[:: max(1, rows.shape[0] * len(made) // _SAMPLE)].clone()
                own.sample = kept if own.sample is None else torch.cat([own.sample, kept])
        if not moments:
            continue
        rounded = exact
        if quantized is not None:
            with routed(network, quantized, scales) as plan:
                plan(batch.step(torch.ones(batch.ids.shape, dtype=torch.bool)))
                rounded = _inputs(network, batch, members, real)
            for name, x in rounded.items():
                known = (scales or {}).get(name)
                scale = torch.tensor(1.0 if known is None else known.activation_scale, device=x.device)
                grid, decode = nvfp4.split_scaled(x, scale)
                rounded[name] = grid * decode
        if behind:
            rounded = {name: x[positions >= behind] for name, x in rounded.items()}
            exact = {name: x[positions >= behind] for name, x in exact.items()}
        for name, x in rounded.items():
            own = seen[name]
            second = x.float().T @ x.float()
            own.second = second if own.second is None else own.second + second
            if quantized is not None:
                cross = exact[name].float().T @ x.float()
                own.cross = cross if own.cross is None else own.cross + cross
    return seen


@torch.inference_mode()  # type: ignore[untyped-decorator, unused-ignore] # torch is untyped here
def _inputs(network: Any, batch: Batch, members: Sequence[Group], real: torch.Tensor) -> dict[str, torch.Tensor]:
    tap = _Tap()
    with tap.on(members):
        network(batch.ids, use_cache=False, logits_to_keep=1)
    return {name: x[real] for name, x in tap.inputs.items()}


def layer_calibrations(
    network: Any,
    seen: Mapping[str, Seen],
    *,
    twins: bool,
    four_over_six: bool = False,
    sweep: bool = False,
    ordered: bool = False,
    channel_scales: bool = False,
    progress: Callable[[float], None] = lambda share: None,
) -> dict[str, LayerCalibration]:
    """What each group's twin is built with: the scale of its inputs, its channels by rank, and its rounded weight.

    Args:
        network: see :func:`~mixquant_agents.quant.calibration.network.load`.
        seen: see :func:`collect`; with second moments where ``twins``.
        twins: round the weights by GPTQ.
        four_over_six: block scales of these end at 6 or at 4.
        sweep, ordered: see :func:`~mixquant_agents.quant.calibration.gptq.gptq`.
        channel_scales: find what channels are multiplied by; see
            :func:`~mixquant_agents.quant.calibration.channels.balanced`. Wants samples.
        progress: called with the share done.
    """
    members = groups(network)
    start = 0.5 if channel_scales else 0.0  # finding scales takes about as long as rounding by them
    scales = _channel_scales(members, seen, lambda share: progress(start * share)) if channel_scales else {}
    rounded = {}
    if twins:
        rounded = _rounded(
            members,
            seen,
            scales,
            lambda share: progress(start + (1 - start) * share),
            four_over_six=four_over_six,
            sweep=sweep,
            ordered=ordered,
        )
    made = {}
    for group in members:
        peaks, scale = seen[group.name].peaks, scales.get(group.name)
        top = float((peaks if scale is None else peaks * scale).max())
        ranked = peaks.argsort(descending=True)
        made[group.name] = LayerCalibration(
            nvfp4.static_global_scale(top), ranked, rounded.get(group.name), channel_scale=scale
        )
    return made


def _channel_scales(
    members: Sequence[Group], seen: Mapping[str, Seen], progress: Callable[[float], None]
) -> dict[str, torch.Tensor]:
    """Of the groups for which any scales are better than none."""
    scales = {}
    for number, group in enumerate(members):
        progress(number / len(members))
        own = seen[group.name]
        if own.second is None or own.sample is None:
            raise ValueError(f"second moments and samples of {group.name!r} were not collected")
        if group.name.rpartition(".")[2] in _SCALED and own.peaks.numel() % nvfp4.BLOCK == 0:
            scale = balanced(group.weight(), own.second, own.sample, own.peaks)
            if bool((scale != 1).any()):
                scales[group.name] = scale
    return scales


def _rounded(
    members: Sequence[Group],
    seen: Mapping[str, Seen],
    scales: Mapping[str, torch.Tensor],
    progress: Callable[[float], None],
    **settings: bool,
) -> dict[str, nvfp4.Nvfp4Tensor]:
    """GPTQ's twins of all groups whose inputs are blocks of 16, those of one shape side by side."""
    by_shape: dict[tuple[int, int], list[Group]] = {}
    for group in members:
        shape = sum(group.widths), group.layers[0].weight.shape[1]
        if shape[1] % nvfp4.BLOCK == 0:
            by_shape.setdefault(shape, []).append(group)
    twins: dict[str, nvfp4.Nvfp4Tensor] = {}
    for (n, k), same in by_shape.items():
        together = max(1, AT_ONCE // (n * k + 3 * k * k))
        for first in range(0, len(same), together):
            progress(len(twins) / len(members))
            part = same[first : first + together]
            weights, seconds = [], []
            for group in part:
                own, weight = seen[group.name], group.weight()
                if own.second is None:
                    raise ValueError(f"second moments of {group.name!r} were not collected")
                weight = weight if own.cross is None else moved(weight, own.second, own.cross)
                scale = scales.get(group.name)
                weights.append(weight if scale is None else weight / scale.to(weight))
                seconds.append(own.second if scale is None else own.second * scale.unsqueeze(1) * scale)
            made = gptq(torch.stack(weights), torch.stack(seconds), **settings)
            twins |= {group.name: twin for group, twin in zip(part, made, strict=True)}
    return twins
