"""The checkpoint is looked at before any process starts."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest

from mixquant_agents.config import EngineConfig
from mixquant_agents.engine.vllm.checkpoint import check_weights, context_length, kv_bytes_per_token, model_path
from mixquant_agents.errors import DamagedWeightsError, ModelNotFoundError


def write_safetensors(path: Path, data: int = 16, cut: int = 0) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [data // 4], "data_offsets": [0, data]}}).encode()
    blob = struct.pack("<Q", len(header)) + header + bytes(data)
    path.write_bytes(blob[: len(blob) - cut])


def model_folder(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    write_safetensors(path / "model.safetensors")
    return path


def test_a_whole_model_passes(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    assert model_path(EngineConfig(model=str(folder))) == (str(folder), True)


def test_a_hub_id_is_left_to_vllm() -> None:
    assert model_path(EngineConfig(model="Qwen/Qwen3-0.6B")) == ("Qwen/Qwen3-0.6B", False)


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nothing", "~/no-such-model", "a/b/c"])
def test_a_missing_folder_is_named(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        model_path(EngineConfig(model=name))


def test_a_folder_without_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"config\.json"):
        model_path(EngineConfig(model=str(tmp_path)))


def test_a_description_that_is_no_json_is_named(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / "config.json").write_text("{half")
    with pytest.raises(DamagedWeightsError, match=r"config\.json is unreadable .*; download the model again"):
        model_path(EngineConfig(model=str(folder)))


@pytest.mark.parametrize("cut", [1, 8, 16])
def test_a_truncated_file_is_named_with_both_sizes(tmp_path: Path, cut: int) -> None:
    folder = model_folder(tmp_path / "m")
    write_safetensors(folder / "model.safetensors", cut=cut)
    with pytest.raises(DamagedWeightsError, match=r"model\.safetensors has \d+ bytes, its header says \d+"):
        model_path(EngineConfig(model=str(folder)))


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 40, struct.pack("<Q", 4) + b"null", struct.pack("<Q", 9) + b"not json!"]
)
def test_a_header_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(DamagedWeightsError, match="header"):
        check_weights(folder)


def test_a_shard_that_the_index_names_must_exist(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    index = {"weight_map": {"w": "model.safetensors", "v": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DamagedWeightsError, match=r"model-2\.safetensors is missing"):
        check_weights(folder)
    (folder / "model.safetensors.index.json").write_text("{")
    with pytest.raises(DamagedWeightsError, match=r"index\.json is unreadable"):
        check_weights(folder)


def test_shape_of_the_embedded_model() -> None:
    shape = SimpleNamespace(
        max_position_embeddings=8192, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, head_dim=64
    )
    assert context_length(shape) == 8192
    assert kv_bytes_per_token(shape, 4) == 2 * 30 * 3 * 64 * 4


def test_layers_with_shapes_of_their_own_are_added_up() -> None:
    from transformers import Gemma4TextConfig

    layer_types = ["sliding_attention", "sliding_attention", "full_attention"]
    shape = Gemma4TextConfig(
        num_hidden_layers=3, layer_types=layer_types, num_attention_heads=8, num_key_value_heads=4, head_dim=32,
        global_head_dim=64, num_global_key_value_heads=1, attention_k_eq_v=True, hidden_size=128,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="per-layer attribute"):
        _ = shape.head_dim
    assert kv_bytes_per_token(shape, 2) == 2 * 2 * (4 * 32 + 4 * 32 + 1 * 64)


def test_an_unknown_shape_is_none() -> None:
    assert context_length(SimpleNamespace()) is None
    assert kv_bytes_per_token(SimpleNamespace(num_hidden_layers=2), 4) is None
    width_from_hidden = SimpleNamespace(num_hidden_layers=1, num_attention_heads=4, hidden_size=64)
    assert kv_bytes_per_token(width_from_hidden, 2) == 2 * 4 * 16 * 2
