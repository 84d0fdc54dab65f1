"""Which twin belongs to an exact weight: found by the weight's address when an operation runs.

So the routed operations take the exact weight alone. Were the twin's tensors arguments of theirs, every compiled step
would collect three tensors for each Linear instead of one before its first kernel starts: with 36 layers 0.1 ms of a
small step's time, that an exact engine does not spend. A captured graph runs no Python, so it looks nothing up.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch

from mixquant_agents.errors import EngineStartError
from mixquant_agents.quant.twins.base import Twin

__all__ = ["RegisteredTwin", "lookup", "register"]


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class RegisteredTwin:
    """The twin of one weight, and what it keeps of it."""

    twin: Twin[Any]
    state: Any


_BY_ADDRESS: weakref.WeakValueDictionary[int, RegisteredTwin] = weakref.WeakValueDictionary()


def register(weight: torch.Tensor, twin: Twin[Any], state: Any) -> RegisteredTwin:
    """Make the twin of ``weight`` known, for as long as the caller keeps what this returns."""
    registered = RegisteredTwin(twin, state)
    _BY_ADDRESS[weight.data_ptr()] = registered
    return registered


def lookup(weight: torch.Tensor) -> RegisteredTwin:
    """The twin of ``weight``.

    Raises:
        EngineStartError: there is none, so the weight was moved after loading.
    """
    registered = _BY_ADDRESS.get(weight.data_ptr())
    if registered is None:
        raise EngineStartError(
            f"a weight of shape {tuple(weight.shape)} lies elsewhere than where it was loaded, so its quantized twin "
            "is not found; do not offload weights (cpu_offload_gb, offload_group_size), or use policy 'exact'"
        )
    return registered
