"""Activations between an expert's two products, plain: what emulated twins and layers on a CPU run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.nn.functional import gelu, relu, silu

__all__ = ["ACTIVATIONS"]

Activation = Callable[[torch.Tensor], torch.Tensor]


def _gated(of: Activation) -> Activation:
    def activation(x: torch.Tensor) -> torch.Tensor:
        gate, up = x.float().chunk(2, dim=-1)
        return (of(gate) * up).to(x.dtype)

    return activation


def _plain(of: Activation) -> Activation:
    def activation(x: torch.Tensor) -> torch.Tensor:
        return of(x.float()).to(x.dtype)

    return activation


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return gelu(x, approximate="tanh")


def _relu2(x: torch.Tensor) -> torch.Tensor:
    return relu(x).square()


_FUNCTIONS: Mapping[str, Activation] = {"silu": silu, "gelu": gelu, "gelu_tanh": _gelu_tanh, "relu2": _relu2}

ACTIVATIONS: Mapping[str, Activation] = {
    **{name: _gated(function) for name, function in _FUNCTIONS.items()},
    **{f"{name}_no_mul": _plain(function) for name, function in _FUNCTIONS.items()},
}
"""By vLLM's names. Gated ones take the gate from the first half of their input; arithmetic is float32."""
