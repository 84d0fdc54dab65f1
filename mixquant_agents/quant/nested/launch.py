"""Compiling and launching the kernel: NVRTC and the driver, through ``cuda.bindings``, which CUDA builds of torch need."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch

from mixquant_agents.quant.nested.layout import NestedWeight

__all__ = ["Tiling", "nested_linear"]


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a product is cut up; see the macros in ``kernel.cu``."""

    nt: int
    rt: int = 1
    wn: int = 4
    wk: int = 2
    ck: int = 4
    depth: int = 2
    stages: int = 4
    kc: int = 128
    minb: int = 2
    wg: int = 0

    @property
    def rows(self) -> int:
        """Weight rows of a block."""
        return 16 * self.rt * self.wn

    def shared(self, k: int) -> int:
        """Bytes of shared memory of a block."""
        weights = 0 if self.depth else 3 * self.rt * self.kc // 64 * 32 * self.wn * self.wk * 16
        staged = self.stages * (self.wk * self.kc * 8 * self.nt * 2 + weights)
        sums = self.wk * 8 * self.nt * (self.rows + 4) * 4
        return max(staged, sums)

    def fits(self, n: int, k: int) -> bool:
        """Whether a weight ``[N, K]`` can be cut up like this."""
        return (
            n % self.rows == 0
            and k % (self.ck * self.wk * 128) == 0
            and self.rows % (4 * self.ck) == 0
            and self.shared(k) <= 227 * 1024
        )


def _check(result: tuple) -> object:
    status, *values = result
    if int(status) != 0:
        raise RuntimeError(f"{status!r}")
    return values[0] if values else None


@functools.cache
def _kernel(tiling: Tiling, device: int) -> object:
    from cuda.bindings import driver, nvrtc

    source = (Path(__file__).parent / "kernel.cu").read_bytes()
    major, minor = torch.cuda.get_device_capability(device)
    options = [b"--gpu-architecture=sm_%d%d%s" % (major, minor, b"a" if major >= 9 else b""), b"--std=c++17"]
    options += [f"-D{name.upper()}={getattr(tiling, name)}".encode() for name in tiling.__dataclass_fields__]
    program = _check(nvrtc.nvrtcCreateProgram(source, b"nested_linear.cu", 0, [], []))
    status, = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if int(status) != 0:
        size = _check(nvrtc.nvrtcGetProgramLogSize(program))
        log = b" " * size
        nvrtc.nvrtcGetProgramLog(program, log)
        raise RuntimeError(log.decode())
    size = _check(nvrtc.nvrtcGetCUBINSize(program))
    cubin = b" " * size
    _check(nvrtc.nvrtcGetCUBIN(program, cubin))
    module = _check(driver.cuModuleLoadData(cubin))
    function = _check(driver.cuModuleGetFunction(module, b"nested_linear"))
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    _check(driver.cuFuncSetAttribute(function, attribute, 227 * 1024))
    if tiling.ck > 8:
        wide = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
        _check(driver.cuFuncSetAttribute(function, wide, 1))
    return function


def nested_linear(
    x: torch.Tensor, weight: NestedWeight, tiling: Tiling, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """``x`` bf16 ``[M, K]`` times the weight, plus ``bias`` bf16 ``[N]``: bf16 ``[M, N]``."""
    import ctypes

    from cuda.bindings import driver

    (m, k), n = x.shape, weight.codes.shape[0]
    y = torch.empty(m, n, dtype=torch.bfloat16, device=x.device)
    function = _kernel(tiling, x.device.index)
    pointers = (x, weight.codes, weight.low, weight.offsets, weight.first, weight.escapes)
    values = [*(p.data_ptr() for p in pointers), 0 if bias is None else bias.data_ptr(), y.data_ptr(), m, n, k]
    kinds = [ctypes.c_void_p] * 8 + [ctypes.c_int] * 3
    stream = torch.cuda.current_stream().cuda_stream
    _check(driver.cuLaunchKernel(function, n // tiling.rows, tiling.ck, 1, 32 * tiling.wn * tiling.wk, 1, 1,
                                 tiling.shared(k), stream, (tuple(values), tuple(kinds)), 0))
    return y
