"""``EngineConfig`` → engine arguments: defaults by device, and refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mixquant_agents.config import CAPTURE_SIZES, EngineConfig
from mixquant_agents.engine.vllm.args import engine_arguments, start_environment
from mixquant_agents.engine.vllm.child_process import ENV_LOG
from mixquant_agents.errors import ConfigError, OutOfMemoryError

SHAPE = {"model_type": "llama", "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
SHAPE |= {"hidden_size": 576, "head_dim": 64, "vocab_size": 64, "architectures": ["LlamaForCausalLM"]}


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(SHAPE | {"max_position_embeddings": 32768}))
    return str(tmp_path)


def arguments(folder: str, **settings: Any) -> Any:
    return engine_arguments(EngineConfig(model=folder, **settings), folder)


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.platforms import current_platform

    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: True)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.platforms import current_platform

    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)


@pytest.mark.usefixtures("cpu")
def test_cpu_defaults(folder: str) -> None:
    made = arguments(folder, policy="exact")
    assert (made.dtype, made.enforce_eager, made.max_model_len) == ("float32", True, 8192)
    assert made.kv_cache_memory_bytes == 2**30
    assert (made.quantization, made.hf_overrides, made.additional_config) == (None, {}, {})
    assert made.enable_prefix_caching is True


@pytest.mark.usefixtures("cpu")
def test_a_long_context_gets_a_cache_that_holds_it(folder: str) -> None:
    made = arguments(folder, max_model_len=32768)
    per_token = 2 * 30 * 3 * 64 * 4
    assert made.max_model_len == 32768
    assert made.kv_cache_memory_bytes >= per_token * 32768
    assert arguments(folder, kv_cache_bytes=2**21).kv_cache_memory_bytes == 2**21


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize("settings", [{"kv_cache_bytes": 2**45}, {"max_model_len": 2**28}])
def test_a_cache_that_no_memory_holds_is_refused_at_once(folder: str, settings: dict[str, int]) -> None:
    with pytest.raises(OutOfMemoryError, match=r"would take \d+\.\d GiB and this machine has \d+\.\d; lower"):
        arguments(folder, **settings)


@pytest.mark.usefixtures("cpu")
def test_a_short_context_stays_short(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SHAPE | {"max_position_embeddings": 512}))
    assert arguments(str(tmp_path)).max_model_len == 512


@pytest.mark.usefixtures("cpu")
def test_sleep_mode_is_refused_on_a_cpu(folder: str) -> None:
    with pytest.raises(ConfigError, match=r"sleep\(\) ends the engine's processes here"):
        arguments(folder, sleep_mode=True)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("asked", [True, False])
def test_sleep_mode_is_vllms_own(folder: str, asked: bool) -> None:
    assert arguments(folder, policy="exact", sleep_mode=asked).enable_sleep_mode is asked


@pytest.mark.usefixtures("gpu")
def test_gpu_defaults(folder: str) -> None:
    made = arguments(folder, policy="exact")
    assert (made.dtype, made.enforce_eager, made.max_model_len) == ("auto", False, None)
    assert made.cudagraph_capture_sizes == [size for size in CAPTURE_SIZES if size <= 2048]
    assert made.cudagraph_capture_sizes[-1] == 2048
    assert max(arguments(folder, policy="exact", max_num_batched_tokens=512).cudagraph_capture_sizes) == 512
    assert arguments(folder, policy="mixquant-fp8").cudagraph_capture_sizes is None  # the plugin chooses
    assert arguments(folder, capture_sizes=(8, 16)).cudagraph_capture_sizes == [8, 16]
    assert arguments(folder, enforce_eager=True).cudagraph_capture_sizes is None
    with pytest.raises(ConfigError, match="exclude each other"):
        arguments(folder, enforce_eager=True, capture_sizes=(8,))


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({}, 0.9),
        ({"kv_cache_bytes": 2**30}, 0.01),
        ({"kv_cache_bytes": 2**30, "gpu_memory_utilization": 0.5}, 0.5),
        ({"gpu_memory_utilization": 0.5}, 0.5),
    ],
)
def test_share_of_memory(folder: str, settings: dict[str, Any], share: float) -> None:
    """vLLM wants the share to be free at the start, also where a cache of a given size needs much less of it."""
    assert arguments(folder, **settings).gpu_memory_utilization == share


@pytest.mark.usefixtures("cpu")
def test_the_policy_reaches_the_worker_and_the_compile_cache(folder: str) -> None:
    config = EngineConfig(model=folder, policy="mixquant-nvfp4", vllm_args={"additional_config": {"mine": 1}})
    made = engine_arguments(config, folder)
    assert made.quantization == "mixquant"
    assert made.hf_overrides["quantization_config"]["quant_method"] == "mixquant"
    assert made.hf_overrides["quantization_config"]["policy"]["prefill_format"] == "nvfp4"
    assert made.additional_config == {"mine": 1, "mixquant": config.policy.fingerprint}
    json.dumps(made.hf_overrides)  # plain data only


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"vllm_args": {"no_such_argument": 1}}, "no such engine argument"),
        ({"vllm_args": {"dtype": "float16"}}, "EngineConfig.dtype"),
        ({"vllm_args": {"kv_cache_memory_bytes": 1}}, "EngineConfig.kv_cache_bytes"),
        ({"vllm_args": {"quantization": "fp8"}}, "the policy"),
        ({"capture_sizes": (8,)}, "runs on its CPU"),
    ],
)
def test_what_cannot_be_honoured_is_refused(folder: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        arguments(folder, **settings)


@pytest.mark.usefixtures("cpu")
def test_further_arguments_are_passed_on(folder: str) -> None:
    assert arguments(folder, vllm_args={"block_size": 32}).block_size == 32


@pytest.mark.slow
def test_shared_memory_that_a_failed_start_left_is_removed_silently() -> None:
    code = """if True:
        from multiprocessing.shared_memory import SharedMemory
        from mixquant_agents.engine.vllm.args import start_environment
        with start_environment("/dev/null", local=False):
            print(SharedMemory(create=True, size=8).name, flush=True)
    """
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert ran.stderr == ""
    assert not Path("/dev/shm", ran.stdout.strip()).exists()


def test_engines_with_a_connector_have_ports_of_their_own(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_NIXL_SIDE_CHANNEL_PORT", raising=False)
    ports = []
    for connector in (True, True, False):
        with start_environment("/tmp/some.log", local=True, connector=connector):
            ports.append(os.environ.get("VLLM_NIXL_SIDE_CHANNEL_PORT"))
    assert ports[2] is None
    assert ports[0] != ports[1]
    settings = {"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_buffer_device": "cpu"}
    made = arguments(folder, vllm_args={"kv_transfer_config": settings}).kv_transfer_config
    assert (made.kv_connector, made.kv_load_failure_policy) == ("NixlConnector", "fail")
    with pytest.raises(ConfigError, match="kv_transfer_config"):
        arguments(folder, vllm_args={"kv_transfer_config": {"kv_connector": "NixlConnector", "colour": "red"}})


def test_the_environment_is_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0")
    monkeypatch.delenv("VLLM_LOGGING_STREAM", raising=False)
    before = dict(os.environ)
    with start_environment("/tmp/some.log", local=True):
        assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "0"  # the user's stays
        assert os.environ["VLLM_LOGGING_STREAM"] == "ext://sys.stderr"
        assert os.environ["VLLM_NO_USAGE_STATS"] == "1"
        assert os.environ[ENV_LOG] == f"{os.getpid()}:/tmp/some.log"
    assert dict(os.environ) == before
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    with start_environment("/tmp/some.log", local=True):
        assert (hub.HF_HUB_OFFLINE, os.environ["HF_HUB_OFFLINE"]) == (True, "1")
    assert hub.HF_HUB_OFFLINE is False
    with start_environment("/tmp/some.log", local=False):
        assert "HF_HUB_OFFLINE" not in os.environ


def test_engines_that_will_sleep_find_pinned_memory_by_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    with start_environment("/tmp/some.log", local=True):
        assert "PYTORCH_CUDA_ALLOC_CONF" not in os.environ
    with start_environment("/tmp/some.log", local=True, sleep_mode=True):
        assert os.environ["PYTORCH_CUDA_ALLOC_CONF"].startswith("pinned_use_cuda_host_register:True,")
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:64")  # the user's stays, under either name
    with start_environment("/tmp/some.log", local=True, sleep_mode=True):
        assert "PYTORCH_CUDA_ALLOC_CONF" not in os.environ


@pytest.mark.usefixtures("cpu")
def test_grammar_backend_is_fixed_for_the_engines_life(folder: str) -> None:
    for given in ({}, {"backend": "auto"}, {"backend": "xgrammar", "disable_any_whitespace": True}):
        made = arguments(folder, vllm_args={"structured_outputs_config": given} if given else {})
        assert made.structured_outputs_config.backend == "xgrammar"
    for backend in ("guidance", "outlines", "lm-format-enforcer"):
        with pytest.raises(ConfigError, match=f"{backend}.*xgrammar"):
            arguments(folder, vllm_args={"structured_outputs_config": {"backend": backend}})
    with pytest.raises(ConfigError, match="give a dict"):
        arguments(folder, vllm_args={"structured_outputs_config": "guidance"})
    with pytest.raises(ConfigError, match="nonsense"):
        arguments(folder, vllm_args={"structured_outputs_config": {"nonsense": 1}})
