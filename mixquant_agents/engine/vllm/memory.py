"""How much memory an engine's processes hold: on their GPUs, or in this machine's memory where there are none."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

__all__ = ["device_bytes", "resident_bytes"]


def device_bytes() -> int | None:
    """Bytes in use on the GPUs that this process may use, by all programs; ``None`` where there is no NVIDIA GPU."""
    from vllm.platforms import current_platform

    if not current_platform.is_cuda():
        return None
    from vllm.third_party import pynvml

    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        try:
            return sum(int(pynvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in _handles(pynvml))
        finally:
            pynvml.nvmlShutdown()
    return None


def _handles(pynvml: Any) -> list[Any]:
    """Handles of the visible devices, by number or by UUID, as CUDA reads its variable."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    names = [name.strip() for name in visible.split(",") if name.strip()]
    return [
        pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(name)
        for name in names
    ]


def resident_bytes(processes: Iterable[Any]) -> int:
    """Bytes of memory that these ``psutil.Process`` hold for themselves alone."""
    import psutil  # type: ignore[import-untyped]  # it has no stubs

    total = 0
    for process in processes:
        with suppress(psutil.Error):
            total += process.memory_full_info().uss
    return total
