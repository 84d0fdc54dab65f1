"""The CUDA kernels of nested weights: compiled, and bound to one weight.

Kernels are compiled when they are first needed, by NVRTC through ``cuda.bindings``, which CUDA builds of torch bring:
neither needs a compiler on the machine. They are launched by the driver's own interface, on torch's current stream, so
CUDA graphs hold them as any other kernel. A kernel fetches its first weights while the one before it in the stream ends
(programmatic dependent launch); so weights must not be written by that one.
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
from mixquant_agents.quant.nested.layout import TILE_K, TILE_N, NestedWeight
from mixquant_agents.quant.nested.tiling import AnyTiling, StagedTiling, Tiling

__all__ = ["NestedKernel", "Unpacker", "compile_tilings", "nested_linear"]

_UNPACK_WARPS = 8

_COUNTERS = 4096
"""Most blocks along N whose sums meet in memory."""


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
        table = [_address(tensor) for tensor in (weight.low, weight.offsets, weight.first, weight.escapes)]
        if not isinstance(tiling, Tiling):
            groups = (TILE_K, self.n, self.k // TILE_K)
            box = (TILE_K, tiling.rows, tiling.kc // TILE_K)
            codes = tensor_map(weight.codes.data_ptr(), 1, groups, (self.k, TILE_K), box)
            # The map of the tokens is made at each launch: here is its place.
            arguments = [codes, codes, self._x, *table, self._bias, self._y, *sizes]
            if isinstance(tiling, StagedTiling):
                floats = tiling.scratch_floats(self.n)
                partial = _scratch(floats, weight.codes.device.index) if floats else None
                arguments += map(_address, partial) if partial else (ctypes.c_void_p(), ctypes.c_void_p())
            self._launcher.arguments(*arguments)
        else:
            self._launcher.arguments(self._x, _address(weight.codes), *table, self._bias, self._y, *sizes)

    @property
    def max_rows(self) -> int:
        """Most rows of one product."""
        return 8 * self.tiling.nt

    def into(self, y: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """Write ``x · weight^T + bias`` to ``y`` ``[M, N]``, contiguous; see :func:`nested_linear`."""
        m = x.shape[0]
        self._x.value, self._y.value, self._m.value = x.data_ptr(), y.data_ptr(), m
        self._bias.value = None if bias is None else bias.data_ptr()
        if not isinstance(self.tiling, Tiling):
            box = (TILE_K, self.max_rows // self.tiling.cn)
            self._launcher.replace(0, tensor_map(x.data_ptr(), 2, (self.k, m), (2 * self.k,), box, swizzled=True))
        self._launcher(torch.cuda.current_stream().cuda_stream)


class Unpacker:
    """Makes one weight's BF16 form."""

    def __init__(self, weight: NestedWeight) -> None:
        """Compiles the kernel if need be. ``weight`` on a GPU."""
        self.weight = weight  # its tensors must outlive this
        self.n, self.k = weight.codes.shape
        tiles = self.n // TILE_N * (self.k // TILE_K)
        self._launcher = Launcher(
            _unpack_kernel(weight.codes.device.index),
            (-(-tiles // _UNPACK_WARPS), 1),
            32 * _UNPACK_WARPS,
            0,
            early=False,
        )
        self._out = ctypes.c_void_p()
        parts = (weight.codes, weight.low, weight.offsets, weight.first, weight.escapes)
        sizes = (ctypes.c_int(self.n), ctypes.c_int(self.k))
        self._launcher.arguments(*(_address(part) for part in parts), self._out, *sizes)

    def into(self, out: torch.Tensor) -> None:
        """Write the exact weight to ``out``, bfloat16 ``[N, K]``, contiguous."""
        self._out.value = out.data_ptr()
        self._launcher(torch.cuda.current_stream().cuda_stream)


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
    y = torch.empty(x.shape[0], weight.codes.shape[0], dtype=torch.bfloat16, device=x.device)
    NestedKernel(weight, tiling).into(y, x, bias)
    return y


def compile_tilings(tilings: Iterable[AnyTiling], device: int = 0) -> None:
    """Compile the kernels of ``tilings`` now, side by side; about half a second each on a core."""
    architecture = _architecture(device)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda tiling: _compile(tiling.source, _macros(tiling), architecture), tilings))


def _address(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


@functools.cache
def _scratch(floats: int, device: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory for partial sums, and counters of those that have arrived, which kernels leave at zero. Products on one
    stream share it: each writes when the one before it has ended."""
    at = torch.device("cuda", device)
    made = torch.empty(floats, device=at), torch.zeros(_COUNTERS, dtype=torch.int32, device=at)
    torch.cuda.current_stream(device).synchronize()  # whatever stream the first product runs on
    return made


def _macros(tiling: AnyTiling) -> tuple[tuple[str, int], ...]:
    return tuple(tiling.macros().items())


def _architecture(device: int) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}" + ("a" if major >= 9 else "")


@functools.cache
def _kernel(tiling: AnyTiling, device: int) -> Any:
    """The product's kernel, compiled for ``tiling`` and loaded on ``device``."""
    from cuda.bindings import driver

    function = _loaded(_compile(tiling.source, _macros(tiling), _architecture(device)), b"nested_linear", device)
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    checked(driver.cuFuncSetAttribute(function, attribute, tiling.shared_bytes))
    return function


@functools.cache
def _unpack_kernel(device: int) -> Any:
    macros = (("NT", 1), ("KC", TILE_K), ("BN", TILE_N), ("WG", 0), ("WARPS", _UNPACK_WARPS))
    return _loaded(_compile("unpack.cu", macros, _architecture(device)), b"nested_unpack", device)


def _loaded(cubin: bytes, name: bytes, device: int) -> Any:
    from cuda.bindings import driver

    with torch.cuda.device(device):
        torch.empty(1, device="cuda")  # this thread has the device's context
        module = checked(driver.cuModuleLoadData(cubin))
        return checked(driver.cuModuleGetFunction(module, name))


@functools.cache
def _compile(source: str, macros: tuple[tuple[str, int], ...], architecture: str) -> bytes:
    from cuda.bindings import nvrtc

    folder = files(__package__)
    text = (folder / "common.cuh").read_bytes() + (folder / source).read_bytes()
    options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17"]
    options += [f"-D{name}={value}".encode() for name, value in macros]
    program = checked(nvrtc.nvrtcCreateProgram(text, source.encode(), 0, [], []))
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if int(status):
        log = b" " * checked(nvrtc.nvrtcGetProgramLogSize(program))
        nvrtc.nvrtcGetProgramLog(program, log)
        raise RuntimeError(f"{source} does not compile with {dict(macros)}: {log.decode()}")
    cubin: bytes = b" " * checked(nvrtc.nvrtcGetCUBINSize(program))
    checked(nvrtc.nvrtcGetCUBIN(program, cubin))
    return cubin
