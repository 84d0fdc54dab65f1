"""Whether twins fit is asked while the model is built."""

from __future__ import annotations

import pytest
import torch

from mixquant_agents.errors import OutOfMemoryError
from mixquant_agents.quant.twins.memory import GIB, TwinMemory
from mixquant_agents.quant.twins.nvfp4 import Nvfp4Twin
from mixquant_agents.quant.twins.rowwise import RowwiseTwin


def test_twins_that_do_not_fit_are_refused_while_the_model_is_built() -> None:
    free = [10 * GIB]
    memory = TwinMemory("fp8-native on NVIDIA H200", lambda: free[0])
    for _ in range(9):
        memory.add(GIB)
    free[0] = 9 * GIB  # an exact weight was allocated meanwhile
    with pytest.raises(OutOfMemoryError, match=r"10\.0 GiB beside.*9\.0 GiB are free.*policy 'exact'.*tensor_parallel"):
        memory.add(GIB)


def test_sizes_are_what_twins_weigh() -> None:
    twin = RowwiseTwin("int8-native", torch.int8, "cutlass")
    state = twin.build(torch.randn(64, 48))
    assert twin.nbytes(64, 48, torch.bfloat16) == sum(t.numel() * t.element_size() for t in state)
    assert Nvfp4Twin().nbytes(4096, 4096, torch.bfloat16) / (2 * 4096 * 4096) == pytest.approx(0.28, abs=0.01)
