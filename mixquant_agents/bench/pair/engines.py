"""The two engines of a pair, each in a process of its own, and the connector between them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mixquant_agents.bench.own_process import OwnProcessEngine, vllm_engine
from mixquant_agents.bench.pair.columns import LEASE_SECONDS
from mixquant_agents.bench.pair.options import Options
from mixquant_agents.bench.shapes import model_folder
from mixquant_agents.config import EngineConfig, PrecisionPolicy
from mixquant_agents.errors import ConfigError

__all__ = ["engine_configs", "own_process_engines"]

ONE_THREAD = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


def engine_configs(options: Options, scratch: Path, *, gpus: bool) -> tuple[EngineConfig, EngineConfig]:
    """Of the reading and of the writing engine, which differ by their policy alone.

    Args:
        scratch: an empty folder: for a shape's model, and for the KV that goes over the disk.
    """
    settings: dict[str, Any] = {}
    extra: dict[str, Any] = {"kv_transfer_config": _connector(options, scratch / "kv", gpus=gpus)}
    model = options.model
    if options.random_weights:
        model = str(model_folder(options.model, scratch, options.tokenizer))
        settings |= {"tool_parser": None, "reasoning_parser": None}
        extra["load_format"] = "dummy"
    elif options.turns:
        from mixquant_agents.bench.scripted_logits import SCRIPTED_LOGITS  # imports torch and vLLM

        extra["logits_processors"] = [SCRIPTED_LOGITS]
    if options.block:
        extra["block_size"] = options.block
    conversation = options.turns * (options.new + options.turn_answer) + 512
    settings |= {
        "model": model,
        "max_model_len": max(*options.prompt_lengths, options.mixed_prompt, conversation) + options.answer + 64,
        "max_num_seqs": max(16, 2 * options.writers),
        "kv_cache_bytes": int(options.kv_gib * 2**30),
        "enable_prefix_caching": options.connector != "example",
        "enforce_eager": options.eager or None,
        "vllm_args": extra,
    }
    # NIXL brings all but the last token's KV, the example connector whole blocks.
    recomputed = 1 if options.connector == "nixl" else options.block + 1
    reading = PrecisionPolicy.of(options.policy)
    reading = reading.model_copy(update={"exact_last_token": True, "exact_last_tokens": recomputed})
    return EngineConfig(policy=reading, **settings), EngineConfig(policy=PrecisionPolicy.of("exact"), **settings)


def own_process_engines(
    configs: tuple[EngineConfig, EngineConfig], *, gpus: bool
) -> tuple[OwnProcessEngine, OwnProcessEngine]:
    """An engine for each of ``configs``, with a GPU of its own or a thread; not started.

    Raises:
        ConfigError: CUDA_VISIBLE_DEVICES names one GPU.
    """
    reading, writing = _environments(gpus=gpus)
    return OwnProcessEngine(vllm_engine(configs[0]), reading), OwnProcessEngine(vllm_engine(configs[1]), writing)


def _environments(*, gpus: bool) -> tuple[dict[str, str], dict[str, str]]:
    if not gpus:
        return ONE_THREAD, ONE_THREAD
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",") if name.strip()]
    if len(visible) < 2:
        raise ConfigError(f"a pair needs two GPUs, and CUDA_VISIBLE_DEVICES={','.join(visible)!r} names {len(visible)}")
    return {"CUDA_VISIBLE_DEVICES": visible[0]}, {"CUDA_VISIBLE_DEVICES": visible[1]}


def _connector(options: Options, storage: Path, *, gpus: bool) -> dict[str, Any]:
    """vLLM's ``kv_transfer_config``."""
    if options.connector == "example":
        return {
            "kv_connector": "ExampleConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"shared_storage_path": str(storage)},
        }
    return {
        "kv_connector": "NixlConnector",
        "kv_role": "kv_both",
        "kv_buffer_device": "cuda" if gpus else "cpu",
        "kv_connector_extra_config": {
            "kv_lease_duration": int(LEASE_SECONDS),
            "bidirectional_kv_xfer": True,
            "decoder_kv_blocks_ttl": options.kept_seconds,
            "kv_recompute_threshold": 1,
        },
    }
