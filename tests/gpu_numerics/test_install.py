"""The keys of captured graphs: one for each mode, found without comparing."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

from vllm.forward_context import BatchDescriptor

from mixquant_agents.quant.gpu.install import _variant
from mixquant_agents.quant.gpu.steps import Mode


def test_keys_differ_by_mode_and_are_the_same_object_each_time() -> None:
    routing: Any = SimpleNamespace(batches={})
    keys = {mode: _variant(routing, BatchDescriptor(256), mode) for mode in Mode}
    assert len(set(keys.values())) == 3
    assert all(_variant(routing, BatchDescriptor(256), mode) is key for mode, key in keys.items())
    assert _variant(routing, BatchDescriptor(512), Mode.EXACT) != keys[Mode.EXACT]


def test_a_copy_finds_the_same_graph_and_a_change_another() -> None:
    routing: Any = SimpleNamespace(batches={})
    key = _variant(routing, BatchDescriptor(256), Mode.QUANTIZED)
    graphs = {key: "captured"}
    assert graphs[dataclasses.replace(key)] == "captured"
    assert dataclasses.replace(key, num_tokens=128) not in graphs
    assert BatchDescriptor(256) not in graphs
    assert key.num_tokens == 256
