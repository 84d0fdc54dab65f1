"""The command line and environment of one ``vllm serve`` with the plugin."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixquant_agents.config import EngineConfig
from mixquant_agents.engine.vllm.args import cpu_defaults, memory_share, policy_arguments
from mixquant_agents.engine.vllm.context_window import runs_on_cpu
from mixquant_agents.errors import ConfigError, MissingDependencyError

__all__ = ["ServerCommand", "server_command"]

_FROM_CONFIG = (
    "revision", "dtype", "seed", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "tensor_parallel_size",
    "chat_template",
)  # fmt: skip
"""Fields of ``EngineConfig`` that have a flag of the same name."""
_OURS = {"--model", "--host", "--port", "--quantization", "--hf-overrides", "--served-model-name"}
"""Flags that are set here and cannot be given."""


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """One server, ready to be started.

    Attributes:
        arguments: the whole command line.
        env: what is added to this process's environment.
        url: where it will answer, without ``/v1``.
    """

    arguments: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    url: str = ""


def server_command(
    config: EngineConfig,
    path: str,
    *,
    name: str,
    host: str,
    port: int,
    parsers: tuple[str | None, str | None] = (None, None),
    extra: Sequence[str] = (),
    replica: int = 0,
    replicas: int = 1,
) -> ServerCommand:
    """The command of replica ``replica`` of ``replicas`` on this machine.

    Args:
        path: folder or hub id of the model.
        name: the name under which it is served.
        parsers: names of the tool parser and the reasoning parser; ``None`` for none.
        extra: further flags of ``vllm serve``.

    Raises:
        ConfigError: ``extra`` sets what is set here.
        MissingDependencyError: vLLM is not installed.
    """
    if refused_flags := sorted({word.partition("=")[0] for word in extra} & _OURS):
        raise ConfigError(f"{refused_flags[0]} is set by mixquant serve; use --model, --policy, --host or --port")
    on_cpu = runs_on_cpu()
    values: dict[str, Any] = {name_: getattr(config, name_) for name_ in _FROM_CONFIG}
    values["kv_cache_memory_bytes"] = config.kv_cache_bytes
    values["gpu_memory_utilization"] = memory_share(config)
    values["enforce_eager"] = config.enforce_eager
    values["trust_remote_code"] = config.trust_remote_code
    if not config.enable_prefix_caching:
        values["no_enable_prefix_caching"] = True
    if on_cpu:
        values |= cpu_defaults(config, path)
    if config.capture_sizes is not None:
        values["cudagraph_capture_sizes"] = list(config.capture_sizes)
    tool_parser, reasoning_parser = parsers
    values |= {
        "host": host,
        "port": port,
        "served_model_name": name,
        "scheduling_policy": "priority",
        "enable_prompt_tokens_details": True,
        "enable_auto_tool_choice": tool_parser is not None,
        "tool_call_parser": tool_parser,
        "reasoning_parser": reasoning_parser,
        **policy_arguments(config.policy),
        **config.vllm_args,
    }
    if _has_flag("enable_per_request_metrics"):
        values["enable_per_request_metrics"] = True
    env = {"VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if Path(path).is_dir():
        env["HF_HUB_OFFLINE"] = "1"
    env |= _cores(replica, replicas) if on_cpu else _gpus(config.tensor_parallel_size, replica, replicas)
    return ServerCommand((*_program(path), *_flags(values), *extra), env, f"http://{host}:{port}")


def _flags(values: Mapping[str, Any]) -> list[str]:
    """``{"max_model_len": 2048, "enforce_eager": True}`` → ``["--max-model-len", "2048", "--enforce-eager"]``."""
    words: list[str] = []
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        if value is None or value is False:
            continue
        if value is True:
            words.append(flag)
        elif isinstance(value, Mapping):
            words += [flag, json.dumps(value)]
        elif isinstance(value, list | tuple):
            words += [flag, *map(str, value)]
        else:
            words += [flag, str(value)]
    return words


def _program(path: str) -> list[str]:
    """vLLM's command line. That of the CPU wheel asks for the version of a package "vllm", which it is not, and ends;
    its server module takes the same flags."""
    if _installed("vllm"):
        return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", path]
    if importlib.util.find_spec("vllm") is None:
        raise MissingDependencyError("vLLM is not installed; install mixquant-agents[gpu] or mixquant-agents[cpu]")
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", path]


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _has_flag(name: str) -> bool:
    """Whether the installed server knows a flag of its front end, read from its source."""
    spec = importlib.util.find_spec("vllm")
    folder = Path(spec.origin).parent / "entrypoints" if spec is not None and spec.origin else Path()
    paths = (folder / "launchers" / "cli_args.py", folder / "openai" / "cli_args.py")
    return any(f"    {name}:" in path.read_text() for path in paths if path.is_file())


def _cores(replica: int, replicas: int) -> dict[str, str]:
    """A share of this machine's cores for each replica. Where there are fewer cores than replicas each has one thread:
    threads of two engines on the same cores wait for each other at every barrier, which costs a hundredfold."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    share = cores[replica::replicas] or [cores[replica % len(cores)]] if cores else []
    bound = ",".join(map(str, share)) or "auto"
    return {
        "VLLM_CPU_OMP_THREADS_BIND": os.environ.get("VLLM_CPU_OMP_THREADS_BIND", bound),
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": "1",
    }


def _gpus(each: int, replica: int, replicas: int) -> dict[str, str]:
    """The GPUs of a replica, from those that this process may use; all where there is one replica."""
    if replicas == 1:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(each * replicas)]
    if len(names) < each * replicas:
        raise ConfigError(
            f"{replicas} replicas of {each} GPUs need {each * replicas}, and CUDA_VISIBLE_DEVICES names {len(names)}"
        )
    return {"CUDA_VISIBLE_DEVICES": ",".join(names[replica * each : (replica + 1) * each])}
