"""NVFP4 twins trained so that decode, exact, answers from the K and V they leave as it would from the exact model's.

Quantization-aware distillation (as in arXiv 2601.20088) of the phase-aware pass: prompt rows run quantized, answer rows
exact, and the loss is the KL divergence to the exact model over answers alone, with the relative error of K and V in
quantized rows beside it. Block scales stay those of the twin it starts from; a value moves to a neighbouring E2M1 code
where the gradient, passed straight through the rounding, keeps asking for it. Free at run time. It takes memory for the
gradients of a whole model, so it is for models that are small beside their GPU.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear

from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.resolve import LayerFormat, PartFormats, ResolvedPolicy
from mixquant_agents.quant.calibration.network import FUSED, Batch, Group, batches, groups
from mixquant_agents.quant.formats.registry import twin_of
from mixquant_agents.quant.numerics import nvfp4
from mixquant_agents.quant.numerics.e2m1 import E2M1_MAX, pack, round_e2m1, unpack
from mixquant_agents.quant.ops.sources import PlainRows
from mixquant_agents.quant.step import EXACT, StepPlan
from mixquant_agents.quant.twins.calibrated import LayerCalibration
from mixquant_agents.quant.twins.parts import rows_of

__all__ = ["Lesson", "Training", "distill"]

_LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_CELL = 0.5
"""How far towards the edge of its code's cell a value may begin."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """A prompt with the exact model's own answer.

    Attributes:
        ids: of both.
        prompt: tokens of the prompt.
    """

    ids: tuple[int, ...]
    prompt: int


@dataclass(frozen=True, slots=True)
class Training:
    """How long and how fast.

    Attributes:
        steps: batches.
        rows: tokens of a batch.
        rate: of Adam at its height, in E2M1 values; it falls to 0 linearly.
        warm_up: steps in which it rises, since Adam's first ones are as large as any.
        cache: weight of the relative squared error of K and V.
        seed: of the batches' order.
    """

    steps: int = 200
    rows: int = 8192
    rate: float = 0.002
    warm_up: int = 20
    cache: float = 1.0
    seed: int = 0


class _Weight:
    """A twin that learns: ``[N, K]`` in units of its blocks' scales.

    Attributes:
        values: float32 ``[N, K]``, the parameter.
        step: float32 ``[N, K/16, 1]``, what an E2M1 value of 1 is worth.
    """

    def __init__(self, weight: torch.Tensor, start: nvfp4.Nvfp4Tensor) -> None:
        codes = unpack(start.packed)[:, : start.columns]
        scale = start.global_scale.reshape(-1, 1, 1) if start.global_scale.ndim else start.global_scale
        self.step = start.scales.float().unsqueeze(-1) / scale
        step = self.step.expand(-1, -1, nvfp4.BLOCK).flatten(1)
        near = torch.where(step > 0, weight.float() / step, torch.zeros_like(step))
        low, high = _cell(codes)
        # It begins as the start's code, and as near to the weight as that code's cell lets it be.
        self.values = torch.nn.Parameter(torch.minimum(torch.maximum(near, low), high))

    def rounded(self) -> torch.Tensor:
        """The weight as the twin holds it; gradients go straight through, but for values that saturate."""
        kept = self.values.clamp(-E2M1_MAX, E2M1_MAX)
        code = kept + (round_e2m1(kept) - kept).detach()
        return (code.unflatten(1, (-1, nvfp4.BLOCK)) * self.step).flatten(1)

    def packed(self) -> torch.Tensor:
        """The codes; see :class:`~mixquant_agents.quant.numerics.nvfp4.Nvfp4Tensor`."""
        return pack(round_e2m1(self.values.detach()))


def _cell(codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The values that round to E2M1 ``codes``, less a little at both edges."""
    levels = torch.tensor([-level for level in _LEVELS[:0:-1]] + list(_LEVELS), device=codes.device)
    edges = (levels[1:] + levels[:-1]) / 2
    index = torch.bucketize(codes, edges)
    low = torch.cat([levels[:1] - 1, edges])[index]
    high = torch.cat([edges, levels[-1:] + 1])[index]
    return codes + _CELL * (low - codes), codes + _CELL * (high - codes)


@dataclass(slots=True)
class _Student:
    """The routed model: the step at hand, what K and V came out as, and all that learns."""

    step: StepPlan
    weights: dict[str, list[_Weight | None]]
    caches: dict[str, torch.Tensor]


def _forward(
    layer: Any, learner: _Weight | None, scale: torch.Tensor, fixed: tuple[Any, Any] | None, student: _Student
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A layer's forward: exact rows by its own weight, quantized ones by what learns or by a twin that does not."""

    def quantized(x: torch.Tensor) -> torch.Tensor:
        if learner is not None:
            grid, decode = nvfp4.split_scaled(x.detach(), scale)
            y = linear(x + (grid * decode - x).detach(), learner.rounded())
            return y if layer.bias is None else y + layer.bias
        y = linear(x, layer.weight, layer.bias)
        if fixed is None:
            return y
        twin, state = fixed
        return y + (twin.product(PlainRows(x.detach()), state, layer.bias) - y).detach()

    def forward(x: torch.Tensor) -> torch.Tensor:
        flat, step = x.reshape(-1, x.shape[-1]), student.step
        if step.exact_rows is None or step.quantized_rows is None:
            return linear(x, layer.weight, layer.bias)
        y = flat.new_zeros(flat.shape[0], layer.weight.shape[0])
        y = y.index_copy(0, step.exact_rows, linear(flat[step.exact_rows], layer.weight, layer.bias))
        y = y.index_copy(0, step.quantized_rows, quantized(flat[step.quantized_rows]))
        return y.reshape(*x.shape[:-1], -1)

    return forward


@contextmanager
def _learning(network: Any, resolved: ResolvedPolicy, start: Mapping[str, LayerCalibration]) -> Iterator[_Student]:
    """The layers' ``forward`` replaced by ones that learn."""
    student = _Student(EXACT, {}, {})
    changed, handles = [], []
    for group in groups(network):
        known = start[group.name]
        for number, layer in enumerate(group.layers):
            part = _format_of(resolved, group, number)
            begin, end = sum(group.widths[:number]), sum(group.widths[: number + 1])
            own = rows_of(known.twin, torch.arange(begin, end))
            learner = fixed = None
            if part is not None and part.number_format is NumberFormat.NVFP4 and own is not None:
                learner = _Weight(layer.weight.detach(), own.to(layer.weight.device))
            elif part is not None:
                twin = twin_of(part)
                fixed = twin, twin.build(layer.weight.detach(), known)
            student.weights.setdefault(group.name, []).append(learner)
            scale = torch.tensor(known.activation_scale, device=layer.weight.device)
            layer.forward = _forward(layer, learner, scale, fixed, student)
            changed.append(layer)
            if group.names[number].endswith(("k_proj", "v_proj")):
                handles.append(layer.register_forward_hook(_keep(student.caches, group.names[number])))
    try:
        yield student
    finally:
        for layer in changed:
            layer.__dict__.pop("forward", None)
        for handle in handles:
            handle.remove()


def _keep(caches: dict[str, torch.Tensor], name: str) -> Callable[[Any, Any, torch.Tensor], None]:
    def hook(_: Any, __: Any, out: torch.Tensor) -> None:
        caches[name] = out.flatten(0, -2)

    return hook


def _format_of(resolved: ResolvedPolicy, group: Group, number: int) -> LayerFormat | None:
    layer_format = resolved.layer_format(group.name, FUSED)
    return layer_format.parts[number] if isinstance(layer_format, PartFormats) else layer_format


def distill(
    network: Any,
    resolved: ResolvedPolicy,
    start: Mapping[str, LayerCalibration],
    lessons: Sequence[Lesson],
    training: Training = Training(),
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[dict[str, LayerCalibration], list[float]]:
    """Train the twins of ``start``.

    Args:
        network: in float32; see :func:`~mixquant_agents.quant.calibration.network.load`.
        resolved: which rows and projections are quantized, emulated. Parts that are not in NVFP4 do not learn.
        start: of every group, with rounded twins.
        lessons: prompts and the exact model's answers.
        training: how long.
        progress: called with the share done.

    Returns:
        the calibrations with trained twins, and the mean KL of each batch.
    """
    rule = resolved.rule()
    order = random.Random(training.seed)  # noqa: S311 - the order of batches is no secret
    made = batches([lesson.ids for lesson in lessons], network.device, training.rows)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # TF32 holds every value on the grid; only exact rows lose digits
    gradients = [parameter.requires_grad for parameter in network.parameters()]
    network.requires_grad_(False)
    losses: list[float] = []
    try:
        with _learning(network, resolved, start) as student:
            learners = [each for own in student.weights.values() for each in own if each is not None]
            adam = torch.optim.Adam([each.values for each in learners], lr=training.rate, betas=(0.9, 0.95))
            queue: list[Batch] = []
            for number in range(training.steps):
                progress(number / training.steps)
                if not queue:
                    queue = list(made)
                    order.shuffle(queue)
                for group in adam.param_groups:
                    group["lr"] = training.rate * min((number + 1) / training.warm_up, 1 - number / training.steps)
                losses.append(_lesson(network, student, queue.pop(), lessons, rule.interval, training.cache))
                adam.step()
                adam.zero_grad(set_to_none=True)
            trained = {
                group.name: _joined(start[group.name], group.widths, student.weights[group.name])
                for group in groups(network)
            }
    finally:
        torch.set_float32_matmul_precision(precision)
        for parameter, before in zip(network.parameters(), gradients, strict=True):
            parameter.requires_grad_(before)
    return trained, losses


def _lesson(
    network: Any,
    student: _Student,
    batch: Batch,
    lessons: Sequence[Lesson],
    interval: Callable[[int], tuple[int, int]],
    cache: float,
) -> float:
    """One pass of the exact model, one of the student, and the gradients; returns the mean KL."""
    own = [lessons[number] for number in batch.members]
    at = torch.cat(
        [
            row * batch.ids.shape[1] + torch.arange(lesson.prompt - 1, len(lesson.ids) - 1)
            for row, lesson in enumerate(own)
        ]
    ).to(batch.ids.device)
    with torch.no_grad():
        student.step = EXACT
        true = _answers(network, batch, at)
        exact = dict(student.caches)
    spans = [(first, min(stop, lesson.prompt)) for lesson in own for first, stop in [interval(lesson.prompt)]]
    student.step = step = batch.step(batch.mask([[span] for span in spans]))
    got = _answers(network, batch, at)
    kl = (true.exp() * (true - got)).sum(-1).mean()
    loss = kl
    if cache and step.quantized_rows is not None:
        rows = step.quantized_rows
        errors = [
            (student.caches[name][rows] - value[rows]).square().sum() / value[rows].square().sum().clamp_min(1e-12)
            for name, value in exact.items()
        ]
        loss = kl + cache * torch.stack(errors).mean() if errors else kl
    if loss.requires_grad:
        loss.backward()
    student.caches.clear()
    return float(kl.detach())


def _answers(network: Any, batch: Batch, at: torch.Tensor) -> torch.Tensor:
    """Log probabilities ``[A, vocabulary]`` after the rows ``at``."""
    hidden = network.base_model(batch.ids, use_cache=False).last_hidden_state.flatten(0, 1)[at]
    log_probs: torch.Tensor = network.get_output_embeddings()(hidden).float().log_softmax(-1)
    return log_probs


def _joined(start: LayerCalibration, widths: Sequence[int], learners: Sequence[_Weight | None]) -> LayerCalibration:
    """The group's twin with the rows that learned in place of those it started from."""
    if start.twin is None:
        return start
    parts = start.twin.packed.split(list(widths))
    packed = [part if own is None else own.packed().to(part.device) for part, own in zip(parts, learners, strict=True)]
    return start._replace(twin=start.twin._replace(packed=torch.cat(packed)))
