"""KV cache of one longest request, which is kept free of twins of experts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mixquant_agents.quant.vllm.experts.room import _longest_request

FULL = SimpleNamespace(num_kv_heads=2, head_size=512, sliding_window=None, kv_sharing_target_layer_name=None)
WINDOW = SimpleNamespace(num_kv_heads=8, head_size=256, sliding_window=1024, kv_sharing_target_layer_name=None)
SHARED = SimpleNamespace(num_kv_heads=8, head_size=256, sliding_window=None, kv_sharing_target_layer_name="full.0")
EXPERTS = SimpleNamespace()


def config(layers: list[Any], count: int, *, all_keep_all: bool = False) -> Any:
    """Of a BF16 model whose largest layer has 8 heads of 512, 131072 tokens long, 8192 rows a step."""
    return SimpleNamespace(
        model_config=SimpleNamespace(
            max_model_len=131072, dtype=torch.bfloat16, get_num_kv_heads=lambda _: 8, get_head_size=lambda: 512,
            get_num_layers=lambda _: count,
        ),
        parallel_config=None,
        scheduler_config=SimpleNamespace(
            max_num_batched_tokens=8192, disable_hybrid_kv_cache_manager=all_keep_all
        ),
        compilation_config=SimpleNamespace(static_forward_context={str(i): layer for i, layer in enumerate(layers)}),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("layers", "all_keep_all", "values"),
    [
        ([FULL, WINDOW, WINDOW, EXPERTS], False, 2 * (131072 * 1024 + 2 * (1024 + 8192) * 2048)),
        ([FULL, WINDOW, WINDOW], True, 2 * 131072 * (1024 + 2 * 2048)),
        ([FULL, SHARED, SHARED], False, 2 * 131072 * 1024),
        ([FULL, EXPERTS, EXPERTS], False, 3 * 2 * 131072 * 8 * 512),  # two layers do not say
    ],
)
def test_layers_of_different_shape_are_added_up(layers: list[Any], all_keep_all: bool, values: int) -> None:
    assert _longest_request(config(layers, 3, all_keep_all=all_keep_all)) == int(1.1 * 2 * values)


def test_gemma_4_leaves_room_for_twins_on_a_card_of_80_gb() -> None:
    """25 layers with a window and 5 without: as the largest of each, all 30 would take 66 GiB."""
    one_by_one = _longest_request(config([*[WINDOW] * 25, *[FULL] * 5], 30))
    assert one_by_one < 5 * 2**30
    assert _longest_request(config([], 30)) > 60 * 2**30
