"""Host memory for sleep mode; without a GPU the blocks are counted, not pinned."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mixquant_agents.quant.vllm import host_memory

GIB = 2**30


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> dict[int, Any]:
    """vLLM's allocator with two blocks of weights and one of KV cache, by pointer."""
    held = {
        number: SimpleNamespace(handle=(0, size, number, 0), tag=tag)
        for number, (size, tag) in enumerate([(3 * GIB, "weights"), (20 * GIB, "kv_cache"), (GIB, "weights")])
    }
    cumem = pytest.importorskip("vllm.device_allocator.cumem")
    monkeypatch.setattr(cumem.CuMemAllocator, "get_instance", lambda: SimpleNamespace(pointer_to_data=held))
    return held


def available(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(host_memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=size))


def test_weights_alone_are_pinned(allocator: dict[int, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    available(monkeypatch, 8 * GIB)
    asked = []

    def allocate(size: int) -> torch.Tensor:
        asked.append(size)
        return torch.empty(0)

    assert host_memory.reserve(allocate) == 4 * GIB
    assert asked == [3 * GIB, GIB]


def test_nothing_is_pinned_where_the_host_has_too_little(
    allocator: dict[int, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    available(monkeypatch, 8 * GIB - 1)
    assert host_memory.reserve(lambda size: pytest.fail("pinned")) == 0
    assert "4.0 GiB into the host's memory, which has 8.0 GiB available" in caplog.text


def test_pinning_that_fails_is_no_failed_start(
    allocator: dict[int, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    available(monkeypatch, 64 * GIB)

    def allocate(size: int) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory")

    assert host_memory.reserve(allocate) == 0
    assert "4.0 GiB of the host's memory cannot be pinned yet: CUDA error: out of memory" in caplog.text
