"""Which twin belongs to an exact weight: found by the weight's address when an operation runs.

So the routed operations take the exact weight alone. Were codes and scales arguments of theirs, every compiled step
would collect three tensors for each Linear instead of one before its first kernel starts: with 36 layers 0.1 ms of a
small step's time, that an exact engine does not spend. A captured graph runs no Python, so it looks nothing up.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch

from mixquant_agents.errors import EngineStartError

__all__ = ["Held", "hold", "twin_of"]


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Held:
    """A twin's tensors: codes ``[N, K]`` and scales ``[N, 1]`` (NVFP4: as vLLM's kernel lays them out)."""

    codes: torch.Tensor
    scales: torch.Tensor


_HELD: weakref.WeakValueDictionary[int, Held] = weakref.WeakValueDictionary()


def hold(weight: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> Held:
    """Make the twin of ``weight`` known, for as long as the caller keeps what this returns."""
    held = Held(codes, scales)
    _HELD[weight.data_ptr()] = held
    return held


def twin_of(weight: torch.Tensor) -> Held:
    """The twin of ``weight``.

    Raises:
        EngineStartError: there is none, so the weight was moved after loading.
    """
    held = _HELD.get(weight.data_ptr())
    if held is None:
        raise EngineStartError(
            f"a weight of shape {tuple(weight.shape)} lies elsewhere than where it was loaded, so its quantized twin "
            "is not found; do not offload weights (cpu_offload_gb, offload_group_size), or use policy 'exact'"
        )
    return held
