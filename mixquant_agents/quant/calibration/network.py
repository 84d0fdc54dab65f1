"""A plain transformers model as vLLM would run it: its Linear layers by group, its rows in batches, routed by mask.

Layers that vLLM fuses (q, k, v; gate, up) are quantized together here too, so that what is found holds for the engine.
Nothing is patched for good: a layer's ``forward`` is replaced while :func:`routed` is open.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from mixquant_agents.errors import DamagedWeightsError, ModelNotFoundError
from mixquant_agents.precision.layer_filter import in_block
from mixquant_agents.precision.plan import Mode
from mixquant_agents.precision.resolve import ResolvedPolicy
from mixquant_agents.quant.formats.registry import twin_of
from mixquant_agents.quant.ops.eager import eager_linear
from mixquant_agents.quant.step import EXACT, StepPlan
from mixquant_agents.quant.twins.base import Twin
from mixquant_agents.quant.twins.calibrated import UNCALIBRATED, LayerCalibration
from mixquant_agents.quant.twins.emulated import EmulatedTwin
from mixquant_agents.quant.twins.parts import ExactTwin, PartsTwin

__all__ = ["FUSED", "Batch", "Group", "batches", "groups", "load", "prompt_ids", "routed"]

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Layers that vLLM runs as one, in most of its models."""

Weights = Callable[[Twin[Any], torch.Tensor, LayerCalibration], Any]
"""Makes a twin's state of a weight; :func:`_build` unless a study wants another."""


def load(model: str | pathlib.Path, dtype: str = "auto") -> tuple[Any, Any]:
    """Model and tokenizer from a folder, a hub id or ``"embedded"``, on the GPU where there is one.

    Args:
        model: what to load.
        dtype: ``"auto"``: float32 for models below a billion weights and on a CPU, else bfloat16.

    Raises:
        ModelNotFoundError, DamagedWeightsError: the model cannot be loaded.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: str | pathlib.Path = model
    if model == "embedded":
        from mixquant_agents.embedded import prepare

        where = prepare()
    elif str(model).startswith(("/", "./", "../", "~")) and not pathlib.Path(model).expanduser().is_dir():
        raise ModelNotFoundError(f"model folder {str(model)!r} does not exist; give a folder, a hub id or 'embedded'")
    cuda = torch.cuda.is_available()
    torch_dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(dtype, "auto" if cuda else torch.float32)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where)
        network = AutoModelForCausalLM.from_pretrained(where, dtype=torch_dtype)
    except OSError as error:
        raise ModelNotFoundError(
            f"no model {str(model)!r}: {str(error).splitlines()[0]}; give a checkpoint's folder, a hub id, or "
            "'embedded'"
        ) from error
    except (RuntimeError, ValueError) as error:
        raise DamagedWeightsError(f"the checkpoint {str(model)!r} cannot be loaded: {error}") from error
    if torch_dtype == "auto":
        small = sum(weight.numel() for weight in network.parameters()) < 10**9
        network = network.to(torch.float32 if small else torch.bfloat16)
    return network.to("cuda" if cuda else "cpu").eval(), tokenizer


def prompt_ids(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
) -> list[int]:
    """A conversation as the model's chat template renders it, the answer to be written next."""
    ids = tokenizer.apply_chat_template(
        list(messages), tools=list(tools) or None, add_generation_prompt=True, return_dict=True
    )["input_ids"]
    return [int(token) for token in ids]


# --- layers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Group:
    """Linear layers that vLLM runs as one.

    Attributes:
        name: of the whole, as vLLM names it.
        names: of the layers, in vLLM's order.
        layers: they themselves.
    """

    name: str
    names: tuple[str, ...]
    layers: tuple[Any, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """Outputs of each."""
        return tuple(layer.weight.shape[0] for layer in self.layers)

    def weight(self) -> torch.Tensor:
        """``[N, K]`` of all of them, one below the other."""
        parts = [layer.weight.detach() for layer in self.layers]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def groups(network: Any) -> list[Group]:
    """The Linear layers inside the blocks, in the model's order."""
    fused = {part: whole for whole, parts in FUSED.items() for part in parts}
    by_name: dict[str, list[tuple[str, Any]]] = {}
    for name, layer in network.named_modules():
        parent, _, leaf = name.rpartition(".")
        if isinstance(layer, torch.nn.Linear) and in_block(name):
            by_name.setdefault(f"{parent}.{fused.get(leaf, leaf)}", []).append((name, layer))
    return [Group(name, tuple(n for n, _ in pairs), tuple(m for _, m in pairs)) for name, pairs in by_name.items()]


# --- rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences of tokens below each other, padded on the right, where causal attention never looks.

    Attributes:
        members: their numbers among all.
        ids: int64 ``[B, T]`` on the device.
        lengths: tokens of each.
    """

    members: tuple[int, ...]
    ids: torch.Tensor
    lengths: tuple[int, ...]

    def mask(self, spans: Sequence[Sequence[tuple[int, int]]]) -> torch.Tensor:
        """bool ``[B, T]`` on the CPU, true in each sequence's ``[start, stop)`` of ``spans``."""
        mask = torch.zeros(self.ids.shape, dtype=torch.bool)
        for row, own in enumerate(spans):
            for start, stop in own:
                mask[row, max(0, start) : max(0, stop)] = True
        return mask

    def step(self, quantized: torch.Tensor) -> StepPlan:
        """The plan that quantizes the rows of ``quantized`` (bool ``[B, T]``) and leaves padding out."""
        real = torch.arange(self.ids.shape[1]).unsqueeze(0) < torch.tensor(self.lengths).unsqueeze(1)
        device = self.ids.device
        exact, rows = (torch.nonzero((real & each).flatten()).flatten().to(device) for each in (~quantized, quantized))
        if not rows.numel():
            return EXACT
        return StepPlan(Mode.MIXED, exact_rows=exact, quantized_rows=rows)


def batches(sequences: Sequence[Sequence[int]], device: torch.device, rows: int = 32_768) -> list[Batch]:
    """All sequences, those of like length together, at most ``rows`` tokens to a batch (one sequence at least)."""
    order = sorted(range(len(sequences)), key=lambda number: len(sequences[number]))
    members: list[list[int]] = []
    for number in order:
        if not members or (len(members[-1]) + 1) * len(sequences[number]) > rows:
            members.append([])
        members[-1].append(number)
    made = []
    for own in members:
        lengths = tuple(len(sequences[number]) for number in own)
        ids = torch.zeros(len(own), max(lengths), dtype=torch.int64)
        for row, number in enumerate(own):
            ids[row, : lengths[row]] = torch.tensor(sequences[number])
        made.append(Batch(tuple(own), ids.to(device), lengths))
    return made


# --- routing ----------------------------------------------------------------------------------------------------------


def _build(twin: Twin[Any], weight: torch.Tensor, calibration: LayerCalibration) -> Any:
    return twin.build(weight, calibration)


@contextmanager
def routed(
    network: Any,
    resolved: ResolvedPolicy,
    calibration: Mapping[str, LayerCalibration] | None = None,
    build: Weights = _build,
) -> Iterator[Callable[[StepPlan], None]]:
    """Run the Linear layers of the blocks as an emulating engine would; yields what sets the plan of the next pass.

    Args:
        network: see :func:`load`.
        resolved: the policy, emulated.
        calibration: by the names of groups.
        build: makes the states of the twins.
    """
    step: StepPlan = EXACT

    def plan(next_step: StepPlan) -> None:
        nonlocal step
        step = next_step

    def forward_of(layer: Any, twin: Twin[Any], state: Any) -> Callable[[Any], Any]:
        def forward(x: Any) -> Any:
            y = eager_linear(x.reshape(-1, x.shape[-1]), layer.weight, layer.bias, twin, state, step)
            return y.reshape(*x.shape[:-1], -1)

        return forward

    changed = []
    try:
        for group in groups(network):
            layer_format = resolved.layer_format(group.name, FUSED)
            if layer_format is None:
                continue
            known = (calibration or {}).get(group.name, UNCALIBRATED)
            twin = twin_of(layer_format, group.widths)
            for layer, own_twin, state in _parts(group, twin, build(twin, group.weight(), known)):
                if not isinstance(own_twin, ExactTwin):
                    layer.forward = forward_of(layer, own_twin, state)
                    changed.append(layer)
        yield plan
    finally:
        for layer in changed:
            layer.__dict__.pop("forward", None)


def _parts(group: Group, twin: Twin[Any], state: Any) -> Iterator[tuple[Any, Twin[Any], Any]]:
    """Each layer of the group with its twin and its share of the state."""
    if isinstance(twin, PartsTwin):
        for segment, own in zip(twin.segments, state, strict=True):
            numbers = slice(segment.parts.start, segment.parts.stop)
            part = Group(group.name, group.names[numbers], group.layers[numbers])
            yield from _parts(part, segment.twin, own)
    elif isinstance(twin, EmulatedTwin):
        for layer, own in zip(group.layers, state.split(group.widths), strict=True):
            yield layer, twin, own
    else:
        for layer in group.layers:
            yield layer, twin, state
