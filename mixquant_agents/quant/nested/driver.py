"""Launches by CUDA's driver: what ``cuda.bindings`` has no short way for, by ``ctypes``.

Arguments lie at fixed addresses on the host. A launch copies them, so the same ones serve the next launch.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

__all__ = ["Launcher", "checked", "tensor_map"]

_PROGRAMMATIC_STREAM_SERIALIZATION = 6


class _Attribute(ctypes.Structure):
    """``CUlaunchAttribute``: the identifier, and a union of 64 bytes."""

    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_int), ("rest", ctypes.c_int * 15))


class _Config(ctypes.Structure):
    """``CUlaunchConfig``."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("num_attributes", ctypes.c_uint),
    )


@functools.cache
def _library() -> Any:
    return ctypes.CDLL("libcuda.so.1")


class Launcher:
    """One kernel with its grid and its arguments."""

    def __init__(self, function: Any, grid: tuple[int, int], threads: int, shared_bytes: int, early: bool) -> None:
        """
        Args:
            function: ``CUfunction``.
            grid: blocks.
            threads: of a block.
            shared_bytes: of a block.
            early: launched while the kernel before it in the stream ends, for which it then waits itself.
        """
        self._function = ctypes.c_void_p(int(function))
        self._attribute = _Attribute(_PROGRAMMATIC_STREAM_SERIALIZATION, 0, 1)
        self._config = _Config(
            (*grid, 1), (threads, 1, 1), shared_bytes, None, ctypes.pointer(self._attribute), 1 if early else 0
        )
        self._held: list[Any] = []
        self._addresses = (ctypes.c_void_p * 0)()

    def arguments(self, *values: Any) -> None:
        """The kernel's arguments, as ``ctypes`` objects: what they hold when the kernel is launched counts."""
        self._held = list(values)
        self._addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))

    def replace(self, index: int, value: Any) -> None:
        """Argument ``index`` is another object from now on."""
        self._held[index] = value
        self._addresses[index] = ctypes.addressof(value)

    def __call__(self, stream: int) -> None:
        """Launch on ``stream``.

        Raises:
            RuntimeError: the driver refused it.
        """
        self._config.stream = stream
        status = _library().cuLaunchKernelEx(ctypes.byref(self._config), self._function, self._addresses, None)
        if status:
            raise RuntimeError(f"CUDA: a launch of the nested product failed with error {status}")


def tensor_map(
    address: int,
    element_bytes: int,
    sizes: Sequence[int],
    strides: Sequence[int],
    box: Sequence[int],
    swizzled: bool = False,
) -> Any:
    """A ``CUtensorMap``: how the copy engine finds boxes of a tensor.

    Args:
        address: of the tensor, a multiple of 16.
        element_bytes: 1 or 2.
        sizes: of the tensor in elements, innermost first.
        strides: in bytes, of all dimensions but the innermost; multiples of 16.
        box: in elements.
        swizzled: boxes are 128 bytes wide, and their 16-byte units lie at ``unit ^ (row % 8)``.

    Raises:
        RuntimeError: the driver refused it.
    """
    memory = (ctypes.c_char * 192)()
    aligned = (ctypes.c_char * 128).from_buffer(memory, -ctypes.addressof(memory) % 64)
    rank = len(sizes)
    status = _library().cuTensorMapEncodeTiled(
        ctypes.byref(aligned),
        {1: 0, 2: 1}[element_bytes],  # UINT8, UINT16
        rank,
        ctypes.c_void_p(address),
        (ctypes.c_uint64 * rank)(*sizes),
        (ctypes.c_uint64 * (rank - 1))(*strides),
        (ctypes.c_uint32 * rank)(*box),
        (ctypes.c_uint32 * rank)(*(1,) * rank),
        0,  # not interleaved
        3 if swizzled else 0,  # 128 bytes
        3,  # 256 bytes are fetched into L2
        0,  # zeros beyond the tensor's edge
    )
    if status:
        raise RuntimeError(f"CUDA: no map of a tensor of sizes {tuple(sizes)} in boxes of {tuple(box)}: error {status}")
    return aligned


def checked(result: tuple[Any, ...]) -> Any:
    """What a call of ``cuda.bindings`` returned beside its status.

    Raises:
        RuntimeError: the status says that it failed.
    """
    status, *values = result
    if int(status):
        raise RuntimeError(f"CUDA: {status.name}")
    return values[0] if values else None
