"""LangChain's own integration suite on a mixture of experts: the embedded model with each MLP as several equal experts.

Its router chooses two of three experts by random weights. As they are equal, exact rows write what the embedded model
writes; twins, counters and routing are a mixture's. An engine of its own, so it is not collected with the other tests:

    python -m pytest -p no:langsmith_plugin tests/langchain_standard/mixture_suite.py
"""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from langchain_core.language_models import BaseChatModel
from real_suite import RealSuite
from safetensors.torch import load_file, save_file

from mixquant_agents import EngineConfig, VllmEngine
from mixquant_agents.embedded import prepare

EXPERTS, CHOSEN = 3, 2
AS_DENSE = "the embedded model itself fails it in the same way with policy mixquant-fp8, and with exact:"
NAMES = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


def mixture(dense: Path, folder: Path) -> Path:
    """The model in ``dense``, of Llama's kind, as one of Mixtral's with equal experts."""
    shutil.copytree(dense, folder, ignore=shutil.ignore_patterns("*.safetensors", "adapter*"))
    config = json.loads((dense / "config.json").read_text())
    config |= {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral",
        "num_local_experts": EXPERTS, "num_experts_per_tok": CHOSEN,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for file in dense.glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            layer, found, part = name.partition(".mlp.")
            if not found:
                tensors[name] = tensor
                continue
            for expert in range(EXPERTS):
                tensors[f"{layer}.block_sparse_moe.experts.{expert}.{NAMES[part.split('.')[0]]}.weight"] = (
                    tensor.clone()
                )
            router = torch.randn(EXPERTS, config["hidden_size"], generator=generator)
            tensors.setdefault(f"{layer}.block_sparse_moe.gate.weight", router.to(tensor.dtype))
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mixture_engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[VllmEngine]:
    folder = mixture(prepare(), tmp_path_factory.mktemp("mixture") / "model")
    config = EngineConfig(
        model=str(folder), policy="mixquant-fp8", max_model_len=2048, max_num_seqs=16, max_num_batched_tokens=512,
        kv_cache_bytes=96 * 2**20,
    )  # fmt: skip
    engine = VllmEngine.shared(config)
    await engine.start()
    yield engine
    await engine.aclose()


class TestMixture(RealSuite):
    max_tokens = 128

    @pytest.fixture(autouse=True)
    def _on_the_mixture(self, mixture_engine: VllmEngine) -> None:
        self.engine = mixture_engine

    @pytest.mark.xfail(strict=True, reason=f"{AS_DENSE} its answer is longer than max_tokens")
    def test_structured_output_optional_param(self, model: BaseChatModel) -> None:
        super().test_structured_output_optional_param(model)

    @pytest.mark.xfail(strict=True, reason=f"{AS_DENSE} it does not repeat the characters")
    def test_unicode_tool_call_integration(self, model: BaseChatModel) -> None:
        super().test_unicode_tool_call_integration(model)
