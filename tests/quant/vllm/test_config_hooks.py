"""What the plugin makes of vLLM's configuration on a GPU, on a machine that only pretends to have one."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.config import VllmConfig
from vllm.platforms import current_platform

from mixquant_agents.config import PrecisionPolicy
from mixquant_agents.errors import ConfigError
from mixquant_agents.precision.resolve import resolve
from mixquant_agents.precision.support import DeviceInfo
from mixquant_agents.quant.twins.memory import GIB
from mixquant_agents.quant.vllm import config_hooks as engine_config
from mixquant_agents.quant.vllm import method as quant_config
from mixquant_agents.quant.vllm.config_hooks import _adjust, _method, _ranges, _refuse_graphs, hook_config
from mixquant_agents.quant.vllm.method import MixQuantConfig

HOPPER = DeviceInfo("cuda", "NVIDIA H200", (9, 0))


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(current_platform), "is_cuda", lambda self: True)
    monkeypatch.setattr(type(current_platform), "get_device_total_memory", lambda self, device_id=0: 141 * GIB)
    monkeypatch.setattr(quant_config, "device_info", lambda: HOPPER)


def made(policy: PrecisionPolicy | str, eager: bool = False, sizes: tuple[int, ...] = ()) -> Any:
    """Stands for a VllmConfig: what the hooks read of one."""
    from vllm.config import CUDAGraphMode

    return SimpleNamespace(
        quant_config=MixQuantConfig(PrecisionPolicy.of(policy)),
        model_config=SimpleNamespace(enforce_eager=eager),
        scheduler_config=SimpleNamespace(max_num_batched_tokens=8192),
        compilation_config=SimpleNamespace(
            cudagraph_capture_sizes=list(sizes),
            max_cudagraph_capture_size=None,
            cudagraph_mode=CUDAGraphMode.FULL_AND_PIECEWISE,
            compile_ranges_endpoints=None,
        ),
        additional_config={},
    )


@pytest.mark.parametrize(
    ("policy", "eager"),
    [
        ("mixquant", False),
        ("mixquant-fp8", False),
        ("mixquant-int8", False),
        ("mixquant-nvfp4", True),
        ("uniform-nvfp4", True),
        (PrecisionPolicy(prefill_format="fp8", weight_only=True), True),
        ("exact", False),
    ],
)
def test_emulated_format_makes_the_engine_eager(
    policy: PrecisionPolicy | str, eager: bool, caplog: pytest.LogCaptureFixture
) -> None:
    config = made(policy)
    hook = _method(lambda model_config, load_config: config.quant_config)
    logging.getLogger("vllm").propagate = True
    with caplog.at_level(logging.WARNING, "vllm.mixquant"):
        assert hook(config.model_config, None) is config.quant_config
    assert config.model_config.enforce_eager is eager
    assert ("emulated" in caplog.text) is eager


def test_another_method_is_left_alone() -> None:
    model = SimpleNamespace(enforce_eager=False)
    assert _method(lambda model_config: None)(model) is None
    assert model.enforce_eager is False


def test_graph_sizes_of_an_emulated_format_are_refused() -> None:
    done: list[Any] = []
    hook = _refuse_graphs(done.append)
    for config in (made("mixquant-nvfp4"), made("mixquant-fp8", sizes=(8, 16)), made("exact", sizes=(8,))):
        hook(config)
    with pytest.raises(ConfigError, match=r"capture_sizes with nvfp4.*no FP4 tensor cores.*natively"):
        hook(made("mixquant-nvfp4", sizes=(8, 16)))
    assert len(done) == 4


def test_graph_sizes_and_ranges_where_the_user_left_them_open() -> None:
    config = made("mixquant-fp8")
    _adjust(config, resolve(config.quant_config.policy, HOPPER))
    assert max(config.compilation_config.cudagraph_capture_sizes) == 4352
    assert config.additional_config["mixquant_gpu"] == engine_config._code()
    _ranges(lambda self: None)(config)
    assert config.compilation_config.compile_ranges_endpoints == [128]
    given = made("mixquant-fp8", sizes=(8, 16))
    _adjust(given, resolve(given.quant_config.policy, HOPPER))
    assert given.compilation_config.cudagraph_capture_sizes == [8, 16]


def test_reproducible_gives_full_graphs_up() -> None:
    config = made(PrecisionPolicy(prefill_format="fp8", reproducible=True))
    _adjust(config, resolve(config.quant_config.policy, HOPPER))
    assert config.compilation_config.cudagraph_mode.name == "PIECEWISE"


def test_hooks_go_in_once_and_stay_callable() -> None:
    kept = {name: VllmConfig.__dict__[name] for name in (
        "__post_init__", "_get_quantization_config", "_set_cudagraph_sizes", "_set_compile_ranges")}  # fmt: skip
    try:
        hook_config()
        first = VllmConfig._get_quantization_config
        hook_config()
        assert VllmConfig._get_quantization_config is first
        assert isinstance(VllmConfig.__dict__["_get_quantization_config"], staticmethod)
        assert VllmConfig._get_quantization_config(SimpleNamespace(quantization=None), None) is None
    finally:
        for name, value in kept.items():
            setattr(VllmConfig, name, value)
