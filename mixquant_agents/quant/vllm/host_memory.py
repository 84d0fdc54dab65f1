"""The host's memory that sleep mode moves weights into, pinned once while the engine starts."""

from __future__ import annotations

import logging
from collections.abc import Callable

import psutil  # type: ignore[import-untyped]  # it has no stubs
import torch

__all__ = ["reserve"]

WEIGHTS = "weights"
"""vLLM's tag of memory that its sleep of level 1 moves to the host; all other is given up."""

ROOM = 2
"""Times the weights that must be available: PyTorch rounds each pinned block up to a power of two."""

logger = logging.getLogger(__name__)


def pinned(size: int) -> torch.Tensor:
    """``size`` bytes of pinned memory, uint8."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


def reserve(allocate: Callable[[int], torch.Tensor] = pinned) -> int:
    """Pin what sleep will ask for, and give it back to PyTorch, which keeps pinned blocks for the next who asks.

    Pinning is what makes a first sleep slow (4 to 9 s for 26 GiB, where a later one takes 0.5 s), and captured graphs
    forbid it while they are made, so it is done when all else is ready.

    Returns:
        Bytes that are pinned now; 0 where the host has too little memory, in which case sleep itself looks for it.
    """
    from vllm.device_allocator.cumem import CuMemAllocator

    held = CuMemAllocator.get_instance().pointer_to_data.values()
    sizes: list[int] = [data.handle[1] for data in held if data.tag == WEIGHTS]
    needed, available = sum(sizes), psutil.virtual_memory().available
    if available < ROOM * needed:
        logger.warning(
            "sleep mode moves %.1f GiB into the host's memory, which has %.1f GiB available: sleep can fail",
            needed / 2**30,
            available / 2**30,
        )
        return 0
    try:
        blocks = [allocate(size) for size in sizes]
    except RuntimeError as error:
        logger.warning("%.1f GiB of the host's memory cannot be pinned yet: %s", needed / 2**30, error)
        return 0
    del blocks
    return needed
