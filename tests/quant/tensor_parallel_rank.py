"""One rank of the tensor-parallel test: builds vLLM's parallel Linear layers with the plugin and checks its shard.

Run as ``python tensor_parallel_rank.py RANK WORLD FILE``; prints ``ok`` and exits with 0.
"""

from __future__ import annotations

import sys

import pytest
import torch
from torch.nn.functional import linear

K, HEADS, KV_HEADS, HEAD = 64, 8, 2, 16


def refuse_together(rank: int) -> None:
    """A product that is wrong on one rank stops every rank, and says whose it is."""
    from mixquant_agents.errors import FormatRefusedError
    from mixquant_agents.quant.vllm.graph_hooks import _check_kernels

    class Runtime:
        kernels = None

        def check_kernels(self) -> None:
            if rank == 1:
                raise FormatRefusedError("the product is wrong")

    with pytest.raises(FormatRefusedError, match="rank 1: the product is wrong"):
        _check_kernels(Runtime())


def main(rank: int, world: int, file: str) -> None:
    import vllm.v1.worker.cpu_model_runner  # noqa: F401 - the runner exists before the model, as in a worker
    from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
    from vllm.distributed import (
        cleanup_dist_env_and_memory,
        init_distributed_environment,
        initialize_model_parallel,
    )
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear

    from mixquant_agents.config import PrecisionPolicy
    from mixquant_agents.quant.ops.sources import PlainRows
    from mixquant_agents.quant.runtime import Runtime
    from mixquant_agents.quant.step import QUANTIZED, forced
    from mixquant_agents.quant.vllm.method import MixQuantConfig, device_info

    vllm_config = VllmConfig(device_config=DeviceConfig("cpu"))
    with set_current_vllm_config(vllm_config):
        init_distributed_environment(world, rank, f"file://{file}", rank, "gloo")
        initialize_model_parallel(tensor_model_parallel_size=world)
        config = MixQuantConfig(PrecisionPolicy.of("mixquant-nvfp4-plain"))
        config.packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate", "up"]}
        config.runtime = Runtime(config.policy, device_info(), switchable=True)
        layer = "model.layers.0."
        qkv = QKVParallelLinear(K, HEAD, HEADS, KV_HEADS, False, quant_config=config, prefix=layer + "attn.qkv_proj")
        up = MergedColumnParallelLinear(K, [48, 48], False, quant_config=config, prefix=layer + "mlp.gate_up_proj")
        down = RowParallelLinear(48, K, False, quant_config=config, prefix=layer + "mlp.down_proj")
        generator = torch.Generator().manual_seed(0)
        q, k, v = (torch.randn(n * HEAD, K, generator=generator) for n in (HEADS, KV_HEADS, KV_HEADS))
        gate_w, up_w = torch.randn(48, K, generator=generator), torch.randn(48, K, generator=generator)
        down_w = torch.randn(K, 48, generator=generator)
        for name, weight in (("q", q), ("k", k), ("v", v)):
            qkv.weight_loader_v2(qkv.weight, weight, name)
        up.weight_loader_v2(up.weight, gate_w, 0)
        up.weight_loader_v2(up.weight, up_w, 1)
        down.weight_loader_v2(down.weight, down_w)
        x = torch.randn(7, K, generator=generator)

        def part(w: torch.Tensor) -> torch.Tensor:
            return w.chunk(world)[rank]

        twin = down.quant_method.twin
        for module, shard in (
            (qkv, torch.cat([part(q), part(k), part(v)])),
            (up, torch.cat([part(gate_w), part(up_w)])),
            (down, down_w.chunk(world, dim=1)[rank].contiguous()),
        ):
            module.quant_method.process_weights_after_loading(module)
            assert torch.equal(module.weight, shard), "the exact weight is not this rank's shard"
            built, expected = module.quant_method.state, twin.build(shard)
            assert all(torch.equal(a, b) for a, b in zip(built, expected, strict=True)), "the twin is another's"
        for module, shard in (
            (qkv, torch.cat([part(q), part(k), part(v)])),
            (up, torch.cat([part(gate_w), part(up_w)])),
        ):
            with forced(QUANTIZED):
                out = module(x)[0]
            torch.testing.assert_close(out, twin.product(PlainRows(x), twin.build(shard)))
        hidden = torch.randn(7, 48, generator=generator)
        shards = [
            (hidden.chunk(world, 1)[r].contiguous(), down_w.chunk(world, 1)[r].contiguous()) for r in range(world)
        ]
        expected_sum = sum(twin.product(PlainRows(h), twin.build(w)) for h, w in shards)
        with forced(QUANTIZED):
            out = down(shards[rank][0])[0]
        torch.testing.assert_close(out, expected_sum, rtol=1e-5, atol=1e-5)
        error = (out - linear(hidden, down_w)).norm() / linear(hidden, down_w).norm()
        assert 0.01 < error < 0.3, f"not the rounded product: relative error {error:.3f}"
        refuse_together(rank)
        torch.distributed.barrier()
        # gloo's threads must end before the interpreter does: one that still runs then aborts the process.
        cleanup_dist_env_and_memory()
    print("ok")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
