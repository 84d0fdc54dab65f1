"""``EngineConfig`` → ``AsyncEngineArgs``: defaults that are right for the device, and the environment vLLM reads."""

from __future__ import annotations

import dataclasses
import importlib
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from typing import Any

from mixquant_agents.config import CAPTURE_SIZES, EngineConfig, PrecisionPolicy
from mixquant_agents.engine.vllm.argument_names import check_names
from mixquant_agents.engine.vllm.checkpoint import context_length, kv_bytes_per_token, model_config
from mixquant_agents.engine.vllm.context_window import CPU_CONTEXT_CAP
from mixquant_agents.errors import ConfigError, OutOfMemoryError

__all__ = ["cpu_defaults", "engine_arguments", "free_port", "physical_memory", "policy_arguments", "start_environment"]

CPU_KV_BYTES = 2**30
"""Least KV cache on a CPU; more where the context window needs it."""

MEMORY_SHARE = 0.9
"""Of a GPU's memory, for an engine that sizes its KV cache itself."""
NO_MEMORY_SHARE = 0.01
"""The same where the cache's size is given: vLLM wants more than 0."""

EXACT_CAPTURE_LIMIT = 2048
"""Rows of an exact engine's largest captured graph. vLLM's own limit is 512; an agent's warm turn adds hundreds."""

PINNING_THREADS = 8
"""Threads that touch the pages of pinned memory; more of them were not faster on a machine with 32 cores."""

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@contextmanager
def start_environment(
    log_path: str, local: bool, connector: bool = False, *, sleep_mode: bool = False
) -> Iterator[None]:
    """Environment of the start: what the user set stays; what is ours is taken back afterwards.

    Args:
        log_path: file that vLLM's processes write to.
        local: the model is a folder, so nothing needs to be fetched from a hub.
        connector: the engine has a KV connector, whose port must be its own: two engines of a pair are in one process.
        sleep_mode: the engine will put its weights into pinned memory of the host.
    """
    from mixquant_agents.engine.vllm.child_process import ENV_LOG
    from mixquant_agents.engine.vllm.leftovers import socket_folder

    cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ""
    environment = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": "1",  # CPU workers never end by themselves; they hold nothing to save
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_CPU_OMP_THREADS_BIND": cores or "auto",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_LOGS": "-torch._library.triton",  # a CPU has no Triton, and needs none
    }
    if connector:
        environment["VLLM_NIXL_SIDE_CHANNEL_PORT"] = str(free_port())
    if sleep_mode and "PYTORCH_ALLOC_CONF" not in os.environ:
        environment["PYTORCH_CUDA_ALLOC_CONF"] = _pinned_by_threads()
    if local:
        environment["HF_HUB_OFFLINE"] = "1"
        _import_hub()
    _quiet_tracker()
    if (folder := socket_folder()) is not None:
        environment["VLLM_RPC_BASE_PATH"] = folder
    added = {name: value for name, value in environment.items() if name not in os.environ}
    added[ENV_LOG] = f"{os.getpid()}:{log_path}"
    os.environ.update(added)
    hub = sys.modules.get("huggingface_hub.constants") if local else None
    before = getattr(hub, "HF_HUB_OFFLINE", None)
    if hub is not None:
        hub.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]  # read at call time, here; the variable is for the children
    try:
        yield
    finally:
        if hub is not None:
            hub.HF_HUB_OFFLINE = before  # type: ignore[attr-defined]  # the caller's other work may go online
        for name, value in added.items():
            if os.environ.get(name) == value:
                del os.environ[name]


def _pinned_by_threads() -> str:
    """PyTorch's setting for pinned memory whose pages several threads touch before it is registered. By default one
    thread asks the driver for all of it, at about 2 GB/s: 14 s of the first sleep of 22 GiB of weights and twins."""
    return f"pinned_use_cuda_host_register:True,pinned_num_register_threads:{min(PINNING_THREADS, os.cpu_count() or 1)}"


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _quiet_tracker() -> None:
    """Start multiprocessing's resource tracker without its voice: where a start fails, it removes the shared memory
    that vLLM's processes left, and would tell of it after our error, in two lines that nobody can act on."""
    before = os.environ.get("PYTHONWARNINGS")
    quiet = "ignore::UserWarning:multiprocessing.resource_tracker"
    os.environ["PYTHONWARNINGS"] = f"{before},{quiet}" if before else quiet
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


def _import_hub() -> None:
    """Import the hub's client before the variable is set: it reads the variable once, at import, for good."""
    with suppress(ImportError):
        importlib.import_module("huggingface_hub.constants")


def engine_arguments(config: EngineConfig, path: str, reasoning_parser: str | None = None) -> Any:
    """``AsyncEngineArgs`` for this configuration on this machine.

    Raises:
        ConfigError: ``vllm_args`` names what vLLM does not know, or what ``EngineConfig`` has a field for.
        OutOfMemoryError: on a CPU, the KV cache alone is larger than the machine's memory.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    check_names(config.vllm_args, {field.name for field in dataclasses.fields(AsyncEngineArgs)})
    values: dict[str, Any] = {
        "model": path,
        "revision": config.revision,
        "dtype": config.dtype,
        "seed": config.seed,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "max_num_batched_tokens": config.max_num_batched_tokens,
        "kv_cache_memory_bytes": config.kv_cache_bytes,
        "gpu_memory_utilization": memory_share(config),
        "tensor_parallel_size": config.tensor_parallel_size,
        "enable_prefix_caching": config.enable_prefix_caching,
        "trust_remote_code": config.trust_remote_code,
        "scheduling_policy": "priority",  # equal priorities run first come, first served; others are honoured
        "disable_log_stats": True,  # our own recorder takes its place; vllm_args can switch vLLM's metrics on
        "additional_config": {},
        "structured_outputs_config": _structured_outputs(config),
    }
    if reasoning_parser:
        values["reasoning_parser"] = reasoning_parser  # grammars then begin after the reasoning
    values.update(policy_arguments(config.policy))
    values.update(cpu_defaults(config, path) if current_platform.is_cpu() else _gpu_defaults(config))
    extra = {name: value for name, value in config.vllm_args.items() if name != "structured_outputs_config"}
    if isinstance(additional := extra.pop("additional_config", None), dict):
        values["additional_config"] = {**additional, **values["additional_config"]}
    if isinstance(connector := extra.get("kv_transfer_config"), dict):
        extra["kv_transfer_config"] = _connector(connector)
    values.update(extra)
    return AsyncEngineArgs(**values)


def memory_share(config: EngineConfig) -> float:
    """vLLM's ``gpu_memory_utilization``. Where the cache's size is given, vLLM sizes nothing by it, and yet starts only
    where so much of the GPU is free."""
    if config.gpu_memory_utilization is not None:
        return config.gpu_memory_utilization
    return MEMORY_SHARE if config.kv_cache_bytes is None else NO_MEMORY_SHARE


def _connector(settings: dict[str, Any]) -> Any:
    """vLLM's configuration of a KV connector.

    Raises:
        ConfigError: a setting is wrong.
    """
    from vllm.config import KVTransferConfig

    try:
        return KVTransferConfig(**settings)
    except (TypeError, ValueError) as error:  # pydantic's, or an unknown name
        raise ConfigError(f"vllm_args['kv_transfer_config'] is {settings!r}: {error}") from error


def policy_arguments(policy: PrecisionPolicy) -> dict[str, Any]:
    """The engine arguments that make vLLM run the plugin under ``policy``; none where it quantizes nothing."""
    if not policy.quantizes:
        return {}
    fields = policy.model_dump(mode="json")
    return {
        "quantization": "mixquant",
        "hf_overrides": {"quantization_config": {"quant_method": "mixquant", "policy": fields}},
        "additional_config": {"mixquant": policy.fingerprint},  # part of the compile cache's key
    }


def _structured_outputs(config: EngineConfig) -> Any:
    """vLLM's settings of constrained decoding, with one backend for the engine's whole life: with ``auto`` the first
    constrained request would choose it for all that follow.

    Raises:
        ConfigError: another backend is asked for, or a setting is wrong.
    """
    from vllm.config import StructuredOutputsConfig

    settings = config.vllm_args.get("structured_outputs_config", {})
    if not isinstance(settings, dict):
        raise ConfigError(f"vllm_args['structured_outputs_config'] is {settings!r}; give a dict")
    backend = settings.get("backend", "auto")
    if backend not in ("auto", "xgrammar"):
        raise ConfigError(
            f"structured_outputs_config sets backend={backend!r}; tool calls and schemas are held by structural tags, "
            "which xgrammar alone reads: leave it out"
        )
    try:
        return StructuredOutputsConfig(**{**settings, "backend": "xgrammar"})
    except (TypeError, ValueError) as error:  # pydantic's, or an unknown name
        raise ConfigError(f"vllm_args['structured_outputs_config'] is {settings!r}: {error}") from error


def cpu_defaults(config: EngineConfig, path: str) -> dict[str, Any]:
    """float32 (bfloat16 is emulated on most CPUs), eager, a capped context and a KV cache that fits it."""
    if config.sleep_mode:
        raise ConfigError(
            "sleep_mode moves weights out of a GPU, and this machine runs on its CPU; leave it out: sleep() ends the "
            "engine's processes here, which gives all their memory back"
        )
    if config.capture_sizes:
        raise ConfigError("capture_sizes are CUDA graph sizes; this machine runs on its CPU, leave them None")
    text = model_config(path, config)
    dtype = "float32" if config.dtype == "auto" else config.dtype
    own = context_length(text)
    length = config.max_model_len or min(own or CPU_CONTEXT_CAP, CPU_CONTEXT_CAP)
    needed = (kv_bytes_per_token(text, _BYTES[dtype]) or 0) * length * 5 // 4
    cache, memory = config.kv_cache_bytes or max(CPU_KV_BYTES, needed), physical_memory()
    if memory is not None and cache > memory:  # vLLM would find out after half a minute
        raise OutOfMemoryError(
            f"the KV cache of {config.model!r} would take {cache / 2**30:.1f} GiB and this machine has "
            f"{memory / 2**30:.1f}; lower kv_cache_bytes or max_model_len (now {length})"
        )
    return {
        "dtype": dtype,
        "enforce_eager": True if config.enforce_eager is None else config.enforce_eager,
        "max_model_len": length,
        "kv_cache_memory_bytes": cache,
    }


def physical_memory() -> int | None:
    """Bytes of memory in this machine; ``None`` where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _gpu_defaults(config: EngineConfig) -> dict[str, Any]:
    """CUDA graphs to 2048 rows; dtype, attention backend and memory are left to vLLM."""
    return {**_graphs(config), **({"enable_sleep_mode": True} if config.sleep_mode else {})}


def _graphs(config: EngineConfig) -> dict[str, Any]:
    eager = bool(config.enforce_eager)
    if eager:
        if config.capture_sizes:
            raise ConfigError("capture_sizes and enforce_eager=True exclude each other")
        return {"enforce_eager": True}
    if config.capture_sizes is None and config.policy.quantizes:
        return {"enforce_eager": False}  # the plugin knows which sizes its modes need, and how much memory there is
    sizes = config.capture_sizes or [size for size in CAPTURE_SIZES if size <= EXACT_CAPTURE_LIMIT]
    max_rows = config.max_num_batched_tokens
    return {
        "enforce_eager": False,
        "cudagraph_capture_sizes": [size for size in sizes if max_rows is None or size <= max_rows],
    }
