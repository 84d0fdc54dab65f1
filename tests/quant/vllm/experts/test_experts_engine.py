"""A mixture of experts in a real engine: a tiny one of Qwen3's kind with random weights, in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixquant_agents.bench import shapes
from mixquant_agents.bench.gpu.check_weights import random_model
from mixquant_agents.bench.prefill.engines import EngineProcess
from mixquant_agents.config import PrecisionPolicy
from mixquant_agents.engine.vllm.args import policy_arguments

pytestmark = pytest.mark.engine
TINY = {
    **shapes.SHAPES["qwen3-moe-tiny"], "hidden_size": 64, "moe_intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "num_experts": 8, "num_experts_per_tok": 2,
    "vocab_size": 2048, "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
PROMPTS = [np.random.default_rng(seed).integers(10, 2000, size=40).tolist() for seed in range(3)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    folder = tmp_path_factory.mktemp("mixture")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(shapes.SHAPES, "tiny", TINY)
        model = random_model("tiny", folder)
    arguments = {
        "model": str(model), "skip_tokenizer_init": True, "max_model_len": 512, "max_num_batched_tokens": 256,
        "max_num_seqs": 8, "enforce_eager": True, "disable_log_stats": True, "dtype": "float32",
        "kv_cache_memory_bytes": 64 * 2**20, **policy_arguments(PrecisionPolicy.of("mixquant-fp8")),
    }  # fmt: skip
    process = EngineProcess("mixture", arguments, Path(folder) / "engine.log")
    process.go()
    process.wait_for("ready")
    yield process
    process.close()


def scores(engine: EngineProcess, policy: PrecisionPolicy | str) -> np.ndarray[Any, np.dtype[np.float64]]:
    switch(engine, policy)
    return np.concatenate([np.asarray(each) for each in engine.ask(do="score", prompts=PROMPTS)["logprobs"]])


def switch(engine: EngineProcess, policy: PrecisionPolicy | str) -> dict[str, Any]:
    status: dict[str, Any] = engine.ask(do="policy", policy=PrecisionPolicy.of(policy).model_dump(mode="json"))[
        "status"
    ]
    return status


def test_every_format_reads_near_exact_in_its_order(engine: EngineProcess) -> None:
    exact = scores(engine, "exact")
    errors = {
        name: float(np.sqrt(((scores(engine, name) - exact) ** 2).mean()))
        for name in ("uniform-int8", "uniform-fp8", "uniform-nvfp4")
    }
    assert 0 < errors["uniform-int8"] < errors["uniform-fp8"] < errors["uniform-nvfp4"] < 2
    without = PrecisionPolicy(prefill_format="fp8", decode_format="fp8", ignored_layers=("re:.*experts",))
    assert not np.array_equal(scores(engine, without), scores(engine, "uniform-fp8")), "experts are quantized, too"


def test_exact_rows_of_mixed_steps_write_what_exact_engines_write(engine: EngineProcess) -> None:
    """Under a threshold above the prompts' lengths they are read exact; longer ones beside them are quantized."""
    switch(engine, "exact")
    alone = engine.ask(do="greedy", prompts=PROMPTS, answer=6)
    switch(engine, PrecisionPolicy(prefill_format="int8", row_threshold=60))
    company = [np.random.default_rng(9).integers(10, 2000, size=200).tolist()]
    beside = engine.ask(do="greedy", prompts=PROMPTS[:1], answer=6, company=company)
    assert beside["answers"][0] == alone["answers"][0]


def test_status_tells_layers_of_experts(engine: EngineProcess) -> None:
    status = switch(engine, "mixquant-fp8")
    assert status["layer_formats"] == {"fp8-emulated": 6}
    layers = [f"model.layers.{layer}.mlp.experts" for layer in (0, 1)]
    assert status["expert_layers"] == {"quantized": layers, "exact": [], "room_bytes": None, "reason": None}
