"""The product of 1 to 64 rows with a nested weight, on a GPU of compute capability 9.0.

The kernel is compiled when it is first needed, by NVRTC through ``cuda.bindings``, which CUDA builds of torch bring:
neither needs a compiler on the machine.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from typing import Any

import torch

from mixquant_agents.quant.nested.layout import NestedWeight
from mixquant_agents.quant.nested.tiling import CUTS, Tiling, token_tiles
from mixquant_agents.quant.timing import replay_microseconds

__all__ = ["NestedProduct", "compile_tilings", "nested_linear"]


def nested_linear(
    x: torch.Tensor, weight: NestedWeight, tiling: Tiling, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """``x · weight^T + bias``, in float32 and rounded once; deterministic.

    Args:
        x: bfloat16 ``[M, K]``, contiguous, on a GPU; ``M`` at most ``8 · tiling.nt``. Magnitudes below ``2**63``.
        weight: ``[N, K]``, on the same GPU; ``tiling.fits(N, K)``.
        tiling: how the product is cut up.
        bias: bfloat16 ``[N]``.

    Returns:
        bfloat16 ``[M, N]``.
    """
    from cuda.bindings import driver

    (m, k), n = x.shape, weight.codes.shape[0]
    y = torch.empty(m, n, dtype=torch.bfloat16, device=x.device)
    function = _kernel(tiling, x.device.index)
    tensors = (x, weight.codes, weight.low, weight.offsets, weight.first, weight.escapes)
    values = (*(tensor.data_ptr() for tensor in tensors), 0 if bias is None else bias.data_ptr(), y.data_ptr(), m, n, k)
    kinds = (ctypes.c_void_p,) * 8 + (ctypes.c_int,) * 3
    grid, stream = (n // tiling.rows, tiling.ck, 1), torch.cuda.current_stream().cuda_stream
    _checked(
        driver.cuLaunchKernel(function, *grid, tiling.threads, 1, 1, tiling.shared_bytes, stream, (values, kinds), 0)
    )
    return y


def compile_tilings(tilings: Iterable[Tiling], device: int = 0) -> None:
    """Compile the kernels of ``tilings`` now, side by side; about half a second each on a core."""
    capability = torch.cuda.get_device_capability(device)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda tiling: _compile(tiling, capability), tilings))


class NestedProduct:
    """Products with the fastest tiling for each shape, which is measured when a shape first comes."""

    def __init__(self) -> None:
        self._chosen: dict[tuple[int, int, int], Tiling] = {}

    def __call__(self, x: torch.Tensor, weight: NestedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
        """See :func:`nested_linear`. Shapes must have been prepared before a graph is captured."""
        return nested_linear(x, weight, self.tiling(x.shape[0], weight), bias)

    def tiling(self, rows: int, weight: NestedWeight) -> Tiling:
        """The tiling in use for ``rows`` rows, measured now if need be.

        Raises:
            ValueError: no tiling fits the weight, or ``rows`` is not 1 to 64.
        """
        n, k = weight.codes.shape
        key = (token_tiles(rows), n, k)
        if key not in self._chosen:
            self._chosen[key] = self._measure(key[0], weight)
        return self._chosen[key]

    def _measure(self, tiles: int, weight: NestedWeight) -> Tiling:
        n, k = weight.codes.shape
        fitting = [tiling for tiling in CUTS[tiles] if tiling.fits(n, k)]
        if not fitting:
            raise ValueError(f"no tiling of the nested product fits a weight of {n} x {k}")
        compile_tilings(fitting, weight.codes.device.index)
        x = torch.randn(8 * tiles, k, device=weight.codes.device).bfloat16()

        def microseconds(tiling: Tiling) -> float:
            return replay_microseconds(lambda: nested_linear(x, weight, tiling), 9)

        return min(fitting, key=microseconds)


@functools.cache
def _kernel(tiling: Tiling, device: int) -> Any:
    """The kernel, compiled for ``tiling`` and loaded on ``device``."""
    from cuda.bindings import driver

    with torch.cuda.device(device):
        torch.empty(1, device="cuda")  # this thread has the device's context
        module = _checked(driver.cuModuleLoadData(_compile(tiling, torch.cuda.get_device_capability(device))))
        function = _checked(driver.cuModuleGetFunction(module, b"nested_linear"))
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _checked(driver.cuFuncSetAttribute(function, attribute, tiling.shared_bytes))
    return function


@functools.cache
def _compile(tiling: Tiling, capability: tuple[int, int]) -> bytes:
    from cuda.bindings import nvrtc

    source = (files(__package__) / "kernel.cu").read_bytes()
    options = [f"--gpu-architecture=sm_{capability[0]}{capability[1]}a".encode(), b"--std=c++17"]
    options += [f"-D{name}={value}".encode() for name, value in tiling.macros().items()]
    program = _checked(nvrtc.nvrtcCreateProgram(source, b"nested_linear.cu", 0, [], []))
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if int(status):
        log = b" " * _checked(nvrtc.nvrtcGetProgramLogSize(program))
        nvrtc.nvrtcGetProgramLog(program, log)
        raise RuntimeError(f"the nested product does not compile for {tiling}: {log.decode()}")
    cubin: bytes = b" " * _checked(nvrtc.nvrtcGetCUBINSize(program))
    _checked(nvrtc.nvrtcGetCUBIN(program, cubin))
    return cubin


def _checked(result: tuple[Any, ...]) -> Any:
    """What a call returned beside its status.

    Raises:
        RuntimeError: the status says that it failed.
    """
    status, *values = result
    if int(status):
        raise RuntimeError(f"CUDA: {status.name}")
    return values[0] if values else None
