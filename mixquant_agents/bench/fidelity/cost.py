"""What a recipe costs: the share of rows and of Linear arithmetic that is quantized, and the time it adds.

Time is the roofline's (:mod:`mixquant_agents.bench.prefill.roofline`) for a GPU that was not measured: a *prediction*.
Added to plain NVFP4's: the part of the Linear time that runs in FP8 or exact instead, one more reading of the rows
where a fused layer is split, and the channels of residuals. The exact last token is in both. Exact first tokens and an
exact static part come from the prefix cache in the steady state and cost nothing there; the first request pays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mixquant_agents.bench.prefill.roofline import FITS, GPUS, H100, Mode, ModelShape, product_seconds, seconds
from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.policy import PrecisionPolicy
from mixquant_agents.precision.resolve import PartFormats, ResolvedPolicy, resolve
from mixquant_agents.precision.support import DeviceInfo
from mixquant_agents.quant.calibration.network import FUSED, Group

__all__ = ["LENGTHS", "added_time", "flops_by_format", "within_budget"]

_MODES: dict[str, Mode] = {"fp8": "fp8", "int8": "fp8", "exact": "exact"}
LENGTHS = (2048, 4096, 8192, 16384, 32000)


def _by_layer(members: Sequence[Group], resolved: ResolvedPolicy) -> list[tuple[str, int, str]]:
    """``(projection, weights, format)`` of every Linear; ``"exact"`` where none of its rows is quantized."""
    found = []
    for group in members:
        layer_format = resolved.layer_format(group.name, FUSED)
        one = () if isinstance(layer_format, PartFormats) else (layer_format,) * len(group.names)
        parts = layer_format.parts if isinstance(layer_format, PartFormats) else one
        for name, layer, part in zip(group.names, group.layers, parts, strict=True):
            found.append((name.rpartition(".")[2], layer.weight.numel(), part.number_format.value if part else "exact"))
    return found


def flops_by_format(members: Sequence[Group], resolved: ResolvedPolicy, rows: float) -> dict[str, float]:
    """Share of the prompt's Linear arithmetic by format, ``rows`` being the share of its rows that is quantized."""
    layers = _by_layer(members, resolved)
    total = sum(weights for _, weights, _ in layers)
    shares: dict[str, float] = {}
    for _, weights, name in layers:
        shares[name] = shares.get(name, 0.0) + weights / total
    made = {name: share * rows for name, share in shares.items() if name != "exact"}
    return {**made, "exact": 1 - sum(made.values())}


def added_time(
    members: Sequence[Group], resolved: ResolvedPolicy, gpu: str = "b200", shape: str = "qwen3-8b"
) -> dict[str, float]:
    """Time of a cold prefill with the policy, over plain NVFP4's, less one; by prompt length.

    Each projection of ``shape`` has the formats that the measured model's has, in the same share of layers.
    """
    model, target, fitted = ModelShape.of(shape), GPUS[gpu], FITS.get(gpu, H100)
    shares = _format_shares(members, resolved)
    (qkv, hidden), (_, query), (gate_up, _), (_, inner) = model.products
    cached = (qkv - query) // 2
    products = {
        "q_proj": (query, hidden),
        "k_proj": (cached, hidden),
        "v_proj": (cached, hidden),
        "o_proj": (hidden, query),
        "gate_proj": (gate_up // 2, hidden),
        "up_proj": (gate_up // 2, hidden),
        "down_proj": (hidden, inner),
    }
    split = len({tuple(sorted(shares.get(name, {}).items())) for name in ("q_proj", "k_proj", "v_proj")}) > 1
    channels = resolved.policy.residual_channels
    added = {}
    for tokens in LENGTHS:
        plain = seconds(model, tokens, 0, "nvfp4", fitted, target)
        more = 0.0
        for name, (n, k) in products.items():
            base = product_seconds(n, k, tokens, "nvfp4", fitted, target)
            for number_format, share in shares.get(name, {}).items():
                mode = _MODES.get(number_format, "nvfp4")
                more += model.layers * share * (product_seconds(n, k, tokens, mode, fitted, target) - base)
            if channels:
                more += model.layers * product_seconds(n, channels, tokens, "nvfp4", fitted, target)
        if split:  # the rows are read once more, and their codes in the other format are written and read
            more += model.layers * tokens * hidden * (2.0 + 2 * 1.0) / target.bandwidth
            more += model.layers * tokens * qkv * (2.0 + 2.0) / target.bandwidth  # the parts' columns are put together
        added[str(tokens)] = more / plain
    return added


def within_budget(
    members: Sequence[Group], loss: Mapping[str, float], budget: float, gpu: str = "b200", shape: str = "qwen3-8b"
) -> list[str]:
    """The layers to run in FP8 for the most loss won back in a given time, in the model's order.

    Those with the largest loss per predicted time are taken first; one that no longer fits is passed over.

    Args:
        members: the layers.
        loss: of each alone in NVFP4, by name.
        budget: time added at any of :data:`LENGTHS`, over plain NVFP4's.
        gpu, shape: as for :func:`added_time`.
    """
    price: dict[str, float] = {}
    for group in members:
        leaf = group.name.rpartition(".")[2]
        if leaf not in price:
            whole = PrecisionPolicy(prefill_format=NumberFormat.NVFP4, formats=((leaf, NumberFormat.FP8),))
            times = added_time(members, resolve(whole, DeviceInfo("cpu", "emulation")), gpu, shape)
            price[leaf] = max(times.values()) / sum(other.name.endswith(f".{leaf}") for other in members)
    chosen, left = set(), budget
    for name in sorted(loss, key=lambda name: loss[name] / price[name.rpartition(".")[2]], reverse=True):
        cost = price[name.rpartition(".")[2]]
        if cost <= left and loss[name] > 0:
            chosen.add(name)
            left -= cost
    return [group.name for group in members if group.name in chosen]


def _format_shares(members: Sequence[Group], resolved: ResolvedPolicy) -> Mapping[str, Mapping[str, float]]:
    counts: dict[str, dict[str, int]] = {}
    for name, _, number_format in _by_layer(members, resolved):
        own = counts.setdefault(name, {})
        own[number_format] = own.get(number_format, 0) + 1
    return {
        name: {number_format: count / sum(own.values()) for number_format, count in own.items()}
        for name, own in counts.items()
        if set(own) != {NumberFormat.NVFP4.value}
    }
