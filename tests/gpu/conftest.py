"""Where these tests get the kernels from. ``python -m pytest -m gpu tests/gpu``, on a machine with a GPU.

Nothing is imported before a test asks for it: the kernels need Triton, which a machine without a GPU need not have.
Where Triton is and a GPU is not, its interpreter runs them, INT8 only: its conversion to FP8 loses the carry where
rounding reaches the next power of two.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session")
def kernels() -> Iterator[types.ModuleType]:
    """The Triton kernels."""
    with pytest.MonkeyPatch.context() as patch:
        if not torch.cuda.is_available():
            patch.setenv("TRITON_INTERPRET", "1")
        yield importlib.import_module("mixquant_agents.quant.ops.rowwise_triton")


@pytest.fixture(scope="session")
def operations(kernels: types.ModuleType) -> types.ModuleType:
    """The module that registers ``torch.ops.mixquant.gpu_*``."""
    if importlib.util.find_spec("vllm") is None:  # asked for its forward context only where no step is forced
        sys.modules.setdefault("vllm", types.ModuleType("vllm"))
    return importlib.import_module("mixquant_agents.quant.ops.linear")
