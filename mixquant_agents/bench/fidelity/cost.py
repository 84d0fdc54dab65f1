"""What a recipe costs: the share of rows and of Linear arithmetic that is quantized, and the time it adds.

Time is the roofline's (:mod:`mixquant_agents.bench.prefill.roofline`) for a GPU that was not measured, or of products
in measured tables (:mod:`mixquant_agents.bench.prefill.tables`): a *prediction* either way.
Added to plain NVFP4's: the part of the Linear time that runs in FP8 or exact instead, one more reading of the rows
where a fused layer is split, and the channels of residuals. 4/6 block scales of activations add no pass over memory,
and nothing here: their arithmetic is not counted. The exact last token is in both, a pass over the exact
weights; what a few dozen exact rows take beyond one is counted by the tables (the roofline knows no difference). An
exact static part comes from the prefix cache in the steady state and costs nothing there; the first request pays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from mixquant_agents.bench.prefill.roofline import FITS, GPUS, H100, Mode, ModelShape, product_seconds, seconds
from mixquant_agents.bench.prefill.tables import Tables, table_parts
from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.plan import Reach
from mixquant_agents.precision.policy import PrecisionPolicy
from mixquant_agents.precision.resolve import PartFormats, ResolvedPolicy, resolve
from mixquant_agents.precision.support import DeviceInfo
from mixquant_agents.quant.calibration.network import FUSED, Group

__all__ = ["LENGTHS", "added_time", "flops_by_format", "within_budget"]

_MODES: dict[str, Mode] = {"fp8": "fp8", "int8": "fp8", "exact": "exact"}
LENGTHS = (2048, 4096, 8192, 16384, 32000)


def _by_layer(members: Sequence[Group], resolved: ResolvedPolicy) -> list[tuple[str, int, str]]:
    """``(projection, weights, format)`` of every Linear; ``"exact"`` where none of its rows is quantized."""
    layers = []
    for group in members:
        layer_format = resolved.layer_format(group.name, FUSED)
        same_formats = () if isinstance(layer_format, PartFormats) else (layer_format,) * len(group.names)
        parts = layer_format.parts if isinstance(layer_format, PartFormats) else same_formats
        for name, layer, part in zip(group.names, group.layers, parts, strict=True):
            layers.append(
                (name.rpartition(".")[2], layer.weight.numel(), part.number_format.value if part else "exact")
            )
    return layers


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
    members: Sequence[Group],
    resolved: ResolvedPolicy,
    gpu: str = "b200",
    shape: str = "qwen3-8b",
    tables: Tables | None = None,
) -> dict[str, float]:
    """Time of a cold prefill with the policy, over plain NVFP4's, less one; by prompt length.

    The layers of ``shape`` have the formats that the measured model's have, in the same shares.

    Args:
        members: the measured model's layers.
        resolved: the policy.
        gpu: a key of the roofline's GPUS.
        shape: what is predicted.
        tables: measured times of products to take instead of the roofline's.
    """
    model, target, fitted = ModelShape.of(shape), GPUS[gpu], FITS.get(gpu, H100)
    widths = _widths(model)
    inputs = dict(zip(widths, (k for _, k in model.products), strict=True))

    def price(n: int, k: int, tokens: int, number_format: str) -> float:
        mode = _MODES.get(number_format, "nvfp4")
        if tables is not None:
            return tables.product_seconds(n, k, tokens, mode)
        return product_seconds(n, k, tokens, mode, fitted, target)

    added = {}
    for tokens in LENGTHS:
        more = 0.0
        for leaf, shares in _format_shares(members, resolved).items():
            n, k = sum(widths[leaf]), inputs[leaf]
            for formats, share in shares.items():
                parts = _segments(formats, widths[leaf])
                own = sum(price(width, k, tokens, name) for name, width in parts) - price(n, k, tokens, "nvfp4")
                if len(parts) > 1:
                    # The rows are read once more and their other codes written and read; columns are put together.
                    own += tokens * (k * (2.0 + 2 * 1.0) + n * (2.0 + 2.0)) / target.bandwidth
                if channels := resolved.policy.residual_channels:
                    own += product_seconds(n, channels, tokens, "nvfp4", fitted, target)
                more += model.layers * share * own
        if tables is not None:
            rows = _exact_rows(resolved)
            more += model.layers * sum(
                tables.product_seconds(n, k, rows, "exact") - tables.product_seconds(n, k, 1, "exact")
                for n, k in model.products
            )
            plain = sum(table_parts(model, tokens, "nvfp4", gpu, tables).values())
        else:
            plain = seconds(model, tokens, 0, "nvfp4", fitted, target)
        added[str(tokens)] = more / plain
    return added


def _exact_rows(resolved: ResolvedPolicy) -> int:
    """Rows of a prompt's beginning and end that run exact, the last token's, which is in the plain form, among them."""
    rule = resolved.rule()
    return max(1, rule.first + (rule.last if rule.reach is Reach.BEFORE_LAST else 0))


def _widths(model: ModelShape) -> dict[str, tuple[int, ...]]:
    """Outputs of the parts of each fused layer, in the order of the shape's products."""
    (qkv, hidden), (_, query), (gate_up, _), _ = model.products
    cached = (qkv - query) // 2
    return {
        "qkv_proj": (query, cached, cached),
        "o_proj": (hidden,),
        "gate_up_proj": (gate_up // 2, gate_up // 2),
        "down_proj": (hidden,),
    }


def _segments(formats: Sequence[str], widths: Sequence[int]) -> list[tuple[str, int]]:
    """Neighbouring parts of one format together, as they run."""
    pairs = groupby(zip(formats, widths, strict=True), key=lambda pair: pair[0])
    return [(name, sum(width for _, width in own)) for name, own in pairs]


def within_budget(
    members: Sequence[Group],
    loss: Mapping[str, float],
    budget: float,
    gpu: str = "b200",
    shape: str = "qwen3-8b",
    tables: Tables | None = None,
) -> list[str]:
    """The layers to run in FP8 for the most loss won back in a given time, in the model's order.

    Those with the largest loss per predicted time are taken first; one that no longer fits is passed over.

    Args:
        members: the layers.
        loss: of each alone in NVFP4, by name.
        budget: time added at any of :data:`LENGTHS`, over plain NVFP4's.
        gpu, shape, tables: as for :func:`added_time`.
    """
    price: dict[str, float] = {}
    for group in members:
        leaf = group.name.rpartition(".")[2]
        if leaf not in price:
            whole = PrecisionPolicy(prefill_format=NumberFormat.NVFP4, formats=((leaf, NumberFormat.FP8),))
            times = added_time(members, resolve(whole, DeviceInfo("cpu", "emulation")), gpu, shape, tables)
            price[leaf] = max(times.values()) / sum(other.name.endswith(f".{leaf}") for other in members)
    chosen, left = set(), budget
    for name in sorted(loss, key=lambda name: loss[name] / price[name.rpartition(".")[2]], reverse=True):
        cost = price[name.rpartition(".")[2]]
        if cost <= left and loss[name] > 0:
            chosen.add(name)
            left -= cost
    return [group.name for group in members if group.name in chosen]


def _format_shares(members: Sequence[Group], resolved: ResolvedPolicy) -> dict[str, dict[tuple[str, ...], float]]:
    """By fused layer: the formats of its parts, and in what share of the blocks it has them."""
    counts: dict[str, dict[tuple[str, ...], int]] = {}
    for group in members:
        layer_format = resolved.layer_format(group.name, FUSED)
        same_formats = () if isinstance(layer_format, PartFormats) else (layer_format,) * len(group.names)
        parts = layer_format.parts if isinstance(layer_format, PartFormats) else same_formats
        names = tuple(part.number_format.value if part else "exact" for part in parts)
        own = counts.setdefault(group.name.rpartition(".")[2], {})
        own[names] = own.get(names, 0) + 1
    return {leaf: {names: count / sum(own.values()) for names, count in own.items()} for leaf, own in counts.items()}
