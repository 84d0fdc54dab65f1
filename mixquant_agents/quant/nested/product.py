"""The product of up to 256 rows with a nested weight, on a GPU of compute capability 9.0.

Kernels are compiled when they are first needed, by NVRTC through ``cuda.bindings``, which CUDA builds of torch bring:
neither needs a compiler on the machine. They are launched by the driver's own interface, on torch's current stream, so
CUDA graphs hold them as any other kernel.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from typing import Any

import torch

from mixquant_agents.quant.nested.driver import Launcher, checked, tensor_map
from mixquant_agents.quant.nested.layout import NestedWeight
from mixquant_agents.quant.nested.tiling import CUTS, AnyTiling, WideTiling, token_tiles
from mixquant_agents.quant.timing import replay_microseconds

__all__ = ["NestedKernel", "NestedProduct", "compile_tilings", "nested_linear"]


class NestedKernel:
    """One weight's product as one tiling cuts it: everything that a launch needs but the tokens."""

    def __init__(self, weight: NestedWeight, tiling: AnyTiling) -> None:
        """Compiles the kernel if need be. ``weight`` on a GPU; ``tiling.fits(N, K)``."""
        self.weight = weight  # its tensors must outlive this
        self.tiling = tiling
        self.n, self.k = weight.codes.shape
        function = _kernel(tiling, weight.codes.device.index)
        grid = tiling.grid(self.n)
        self._launcher = Launcher(function, grid, tiling.threads, tiling.shared_bytes, early=bool(tiling.pdl))
        self._x, self._bias, self._y = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        self._m = ctypes.c_int()
        sizes = (self._m, ctypes.c_int(self.n), ctypes.c_int(self.k))
        table = [ctypes.c_void_p(t.data_ptr()) for t in (weight.low, weight.offsets, weight.first, weight.escapes)]
        codes = weight.codes.data_ptr()
        if isinstance(tiling, WideTiling):
            self._tokens = (ctypes.c_char * 192)()
            groups = (64, self.n, self.k // 64), (self.k, 64), (64, tiling.rows, tiling.kc // 64)
            code_map = tensor_map(codes, 1, *groups)
            self._launcher.arguments(self._tokens, code_map, self._x, *table, self._bias, self._y, *sizes)
        else:
            self._launcher.arguments(self._x, ctypes.c_void_p(codes), *table, self._bias, self._y, *sizes)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """See :func:`nested_linear`."""
        m = x.shape[0]
        y = torch.empty(m, self.n, dtype=torch.bfloat16, device=x.device)
        self._x.value, self._y.value, self._m.value = x.data_ptr(), y.data_ptr(), m
        self._bias.value = None if bias is None else bias.data_ptr()
        tiling = self.tiling
        if isinstance(tiling, WideTiling):
            box = (64, 8 * tiling.nt // tiling.cn)
            self._launcher.replace(0, tensor_map(x.data_ptr(), 2, (self.k, m), (2 * self.k,), box, swizzled=True))
        self._launcher(torch.cuda.current_stream().cuda_stream)
        return y


def nested_linear(
    x: torch.Tensor, weight: NestedWeight, tiling: AnyTiling, bias: torch.Tensor | None = None
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
    return NestedKernel(weight, tiling)(x, bias)


def compile_tilings(tilings: Iterable[AnyTiling], device: int = 0) -> None:
    """Compile the kernels of ``tilings`` now, side by side; about half a second each on a core."""
    capability = torch.cuda.get_device_capability(device)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda tiling: _compile(tiling, capability), tilings))


class NestedProduct:
    """Products with the fastest tiling for each shape, which is measured when a shape first comes."""

    def __init__(self) -> None:
        self._chosen: dict[tuple[int, int, int], AnyTiling] = {}

    def __call__(self, x: torch.Tensor, weight: NestedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
        """See :func:`nested_linear`. Shapes must have been prepared before a graph is captured."""
        return nested_linear(x, weight, self.tiling(x.shape[0], weight), bias)

    def tiling(self, rows: int, weight: NestedWeight) -> AnyTiling:
        """The tiling in use for ``rows`` rows, measured now if need be.

        Raises:
            ValueError: no tiling fits the weight, or ``rows`` is not 1 to 256.
        """
        n, k = weight.codes.shape
        key = (token_tiles(rows), n, k)
        if key not in self._chosen:
            self._chosen[key] = self._measure(key[0], weight)
        return self._chosen[key]

    def _measure(self, tiles: int, weight: NestedWeight) -> AnyTiling:
        n, k = weight.codes.shape
        fitting = [tiling for tiling in CUTS[tiles] if tiling.fits(n, k)]
        if not fitting:
            raise ValueError(f"no tiling of the nested product fits a weight of {n} x {k}")
        compile_tilings(fitting, weight.codes.device.index)
        x = torch.randn(8 * tiles, k, device=weight.codes.device).bfloat16()

        def microseconds(tiling: AnyTiling) -> float:
            return replay_microseconds(lambda: nested_linear(x, weight, tiling), 9)

        return min(fitting, key=microseconds)


@functools.cache
def _kernel(tiling: AnyTiling, device: int) -> Any:
    """The kernel, compiled for ``tiling`` and loaded on ``device``."""
    from cuda.bindings import driver

    with torch.cuda.device(device):
        torch.empty(1, device="cuda")  # this thread has the device's context
        module = checked(driver.cuModuleLoadData(_compile(tiling, torch.cuda.get_device_capability(device))))
        function = checked(driver.cuModuleGetFunction(module, b"nested_linear"))
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        checked(driver.cuFuncSetAttribute(function, attribute, tiling.shared_bytes))
    return function


@functools.cache
def _compile(tiling: AnyTiling, capability: tuple[int, int]) -> bytes:
    from cuda.bindings import nvrtc

    folder = files(__package__)
    source = (folder / "common.cuh").read_bytes() + (folder / tiling.source).read_bytes()
    options = [f"--gpu-architecture=sm_{capability[0]}{capability[1]}a".encode(), b"--std=c++17"]
    options += [f"-D{name}={value}".encode() for name, value in tiling.macros().items()]
    program = checked(nvrtc.nvrtcCreateProgram(source, b"nested_linear.cu", 0, [], []))
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if int(status):
        log = b" " * checked(nvrtc.nvrtcGetProgramLogSize(program))
        nvrtc.nvrtcGetProgramLog(program, log)
        raise RuntimeError(f"the nested product does not compile for {tiling}: {log.decode()}")
    cubin: bytes = b" " * checked(nvrtc.nvrtcGetCUBINSize(program))
    checked(nvrtc.nvrtcGetCUBIN(program, cubin))
    return cubin
