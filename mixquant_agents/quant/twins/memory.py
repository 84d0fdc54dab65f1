"""Whether the twins will fit, asked while the model is built: before any weight is read."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mixquant_agents.errors import OutOfMemoryError

__all__ = ["TwinMemory"]

GIB = 2**30


def _free() -> int:
    """Bytes of device memory that nobody holds."""
    return int(torch.cuda.mem_get_info()[0])


class TwinMemory:
    """Adds up the twins of a model under construction.

    When a layer is added, its exact weight and those before it are allocated; the twins come after loading. So the sum
    of the twins must fit into what is free.
    """

    def __init__(self, what: str, free: Callable[[], int] = _free) -> None:
        """``what`` names format and device for messages; ``free`` tells bytes of free device memory."""
        self._what = what
        self._free = free
        self.needed = 0

    def add(self, size: int, beside: bool = True) -> None:
        """One more twin, of ``size`` bytes; ``beside`` its exact weight, or in the place of it.

        Raises:
            OutOfMemoryError: the twins so far do not fit.
        """
        self.needed += size
        free = self._free()
        if self.needed > free:
            what = "the quantized twins" if beside else "the nested weights"
            rest = " beside the exact weights" if beside else ""
            raise OutOfMemoryError(
                f"{what} need more than {self.needed / GIB:.1f} GiB{rest}, and "
                f"{free / GIB:.1f} GiB are free ({self._what}); use policy 'exact', which has no twins, a smaller "
                "model, tensor_parallel_size to share it among GPUs, or ignored_layers"
            )
