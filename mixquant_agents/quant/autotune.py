"""What pays off on this device, measured once at start on the model's own layers.

Three chains over the layers of some blocks, each captured in a CUDA graph and replayed: exact; quantized (quantization
kernels included); quantized with a captured graph's exact rows. Their crossings with the exact chain are the two row
thresholds: a step of prefill rows alone is quantized above the first, a step that also holds exact rows above the
second. So a quantized step is never slower than an exact one.

Blocks are of one kind where their layers have the same shapes and formats. Two of each kind are measured and count as
often as the model has them: a mixture of experts may begin with dense blocks, or have twins in some blocks alone.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from mixquant_agents.precision.layer_filter import block_of
from mixquant_agents.precision.plan import Mode
from mixquant_agents.quant.layer import RoutedLayer, Tunable
from mixquant_agents.quant.step import DRAFT, DRAFT_FEW_ROWS, EXACT, QUANTIZED, StepPlan, forced
from mixquant_agents.quant.thresholds import Thresholds, crossing
from mixquant_agents.quant.timing import replay_microseconds, unwatched_objects
from mixquant_agents.quant.twins.base import Twin

__all__ = ["DraftChoice", "Sample", "choose_drafts", "measure", "run_once", "samples"]

_log = logging.getLogger("vllm.mixquant")
"""Below vLLM's logger, whose handlers the worker has set up."""

GRID = (16, 32, 64, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024, 1536, 2048)
LARGE = (3072, 4096, 6144, 8192)
"""Measured too where quantizing does not pay before: a few exact rows read most experts of a layer once more."""

SOME_EXACT = (8, 32)
"""Beside one exact row and a full slot; for layers that read more the more exact rows there are."""

BLOCKS = 2
"""Of a kind: more weight bytes than any cache holds, for models where it matters."""


class Sample(NamedTuple):
    """Blocks of one kind.

    Attributes:
        layers: of the first blocks of the kind.
        share: by which their time counts; 1 where the model has no other kind.
    """

    layers: tuple[RoutedLayer, ...]
    share: float


def samples(layers: Sequence[RoutedLayer]) -> list[Sample]:
    """Blocks of each kind that a model of ``layers`` has, in the model's order."""
    blocks: dict[str, list[RoutedLayer]] = {}
    for layer in layers:
        blocks.setdefault(block_of(layer.prefix), []).append(layer)
    kinds: dict[tuple[Any, ...], list[list[RoutedLayer]]] = {}
    for name, members in blocks.items():
        kind = tuple((each.prefix.removeprefix(name), each.shape, each.layer_format) for each in members)
        kinds.setdefault(kind, []).append(members)
    sampled = []
    for same in kinds.values():
        first = same[:BLOCKS]
        share = BLOCKS * len(same) / len(blocks) / len(first)
        sampled.append(Sample(tuple(layer for members in first for layer in members), share))
    return sampled


def _works(layers: Sequence[RoutedLayer], m: int) -> list[Callable[[], object]]:
    like = layers[0]

    @functools.cache
    def rows(width: int) -> torch.Tensor:
        return torch.randn(m, width, device=like.device, dtype=like.dtype)

    return [layer.work(rows) for layer in layers]


def _chains(layers: Sequence[RoutedLayer], m: int, indices: Mapping[str, torch.Tensor]) -> dict[str, float]:
    chain = functools.partial(_each, _works(layers, m))
    times = {}
    mixed = {name: StepPlan(Mode.MIXED, m, exact_rows=index) for name, index in indices.items()}
    for name, step in {"exact": EXACT, "quantized": QUANTIZED, **mixed}.items():
        with forced(step):
            times[name] = replay_microseconds(chain)
    return times


def measure(layers: Sequence[RoutedLayer], exact_rows: int, most_rows: int) -> Thresholds:
    """Thresholds of this device for a model made of ``layers``.

    Args:
        layers: all routed layers of the model, on the GPU.
        exact_rows: how many exact rows a captured graph holds.
        most_rows: how many rows a step has at most.
    """
    started = time.perf_counter()
    chosen = samples(layers)
    counts = {"mixed": 1}
    if any(layer.reads_by_row for sample in chosen for layer in sample.layers):
        counts |= {f"mixed {count}": count for count in SOME_EXACT if 1 < count < exact_rows}
        counts |= {f"mixed {exact_rows}": exact_rows} if exact_rows > 1 else {}
    times: dict[str, dict[int, float]] = {"exact": {}, "quantized": {}, **{name: {} for name in counts}}
    with torch.inference_mode():
        _tune(chosen)
        device = layers[0].device
        for m in (*GRID, *LARGE):
            if m > max(most_rows, GRID[0]) or (m > GRID[-1] and _pays(times)):
                break
            indices = {name: _exact_rows(count, exact_rows, m, device) for name, count in counts.items()}
            total = dict.fromkeys(times, 0.0)
            for sample in chosen:
                for name, value in _chains(sample.layers, m, indices).items():
                    total[name] += sample.share * value
            for name, value in total.items():
                times[name][m] = round(value, 1)
    pure = crossing(times["exact"], times["quantized"])
    by_exact = {count: max(pure, crossing(times["exact"], times[name])) for name, count in counts.items()}
    return Thresholds(
        pure, by_exact[1], times, time.perf_counter() - started, by_exact=by_exact if len(by_exact) > 1 else {}
    )


def _exact_rows(count: int, capacity: int, m: int, device: torch.device) -> torch.Tensor:
    """The slot of a step of ``m`` rows whose last ``count`` are exact."""
    index = torch.full((capacity,), -1, dtype=torch.int32, device=device)
    used = min(count, m)
    index[:used] = torch.arange(m - used, m, dtype=torch.int32, device=device)
    return index


def _by_twin(chosen: Sequence[Sample]) -> dict[Tunable, list[Any]]:
    """The twins in use, and what of their layers they are tuned on."""
    by_twin: dict[Tunable, list[Any]] = {}
    for sample in chosen:
        for layer in sample.layers:
            twin, what = layer.tuning()
            by_twin.setdefault(twin, []).append(what)
    return by_twin


def _tune(chosen: Sequence[Sample]) -> None:
    for twin, each in _by_twin(chosen).items():
        twin.tune(each)


def _pays(times: dict[str, dict[int, float]]) -> bool:
    """Whether quantizing was ahead at the two largest sizes so far, in mixed steps too."""
    largest = sorted(times["exact"])[-2:]
    return all(times[name][m] < times["exact"][m] for name in times if name != "exact" for m in largest)


class DraftChoice(NamedTuple):
    """How drafts of one number of rows run.

    Attributes:
        step: quantized rows or not, whichever is faster.
        microseconds: of a block or two, by chain: ``exact``, ``quantized``, and ``few_rows`` where it runs here.
    """

    step: StepPlan
    microseconds: dict[str, float]

    @property
    def share(self) -> float:
        """Time of a draft's products over the exact ones."""
        others = [value for name, value in self.microseconds.items() if name != "exact"]
        return min(others) / self.microseconds["exact"]


def choose_drafts(layers: Sequence[RoutedLayer], sizes: Sequence[int]) -> dict[int, DraftChoice]:
    """How drafts of ``sizes`` rows run fastest, by the products of a few blocks of a model made of ``layers``."""
    chosen = samples(layers)
    chains = {"exact": EXACT, "quantized": DRAFT}
    with torch.inference_mode(), unwatched_objects():
        try:
            _tune_few_rows(chosen)
            return _draft_choices(chosen, sizes, {**chains, "few_rows": DRAFT_FEW_ROWS})
        except Exception as error:  # a kernel that is wrong or does not run on this device: drafts do without
            _log.warning("mixquant: drafts quantize their rows; the kernel for few rows does not run here: %s", error)
            return _draft_choices(chosen, sizes, chains)


def _draft_choices(
    chosen: Sequence[Sample], sizes: Sequence[int], chains: Mapping[str, StepPlan]
) -> dict[int, DraftChoice]:
    """The fastest of ``chains`` for each number of rows."""
    choices = {}
    for m in sizes:
        times = dict.fromkeys(chains, 0.0)
        for sample in chosen:
            chain = functools.partial(_each, _works(sample.layers, m))
            for name, step in chains.items():
                with forced(step):
                    times[name] += sample.share * replay_microseconds(chain)
        faster = DRAFT_FEW_ROWS if times.get("few_rows", math.inf) < times["quantized"] else DRAFT
        choices[m] = DraftChoice(faster, {name: round(value, 1) for name, value in times.items()})
    return choices


def _each(works: Sequence[Callable[[], object]]) -> None:
    for work in works:
        work()


def _tune_few_rows(chosen: Sequence[Sample]) -> None:
    for twin, each in _by_twin(chosen).items():
        if isinstance(twin, Twin):  # experts choose for themselves
            twin.tune_few_rows(each)


def run_once(layers: Sequence[RoutedLayer], rows: int) -> None:
    """Run each layer once exact and once quantized on so many rows: buffers that layers share then never have to grow,
    neither while graphs are captured nor when a step comes."""
    if not layers:
        return
    with torch.inference_mode():
        for step in (EXACT, QUANTIZED):
            with forced(step):
                _each(_works(layers, rows))
