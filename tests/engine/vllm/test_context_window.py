"""The window that is told before the start is the one that the engine will have."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from mixquant_agents.config import EngineConfig
from mixquant_agents.engine.vllm import VllmEngine
from mixquant_agents.engine.vllm import context_window as module
from mixquant_agents.engine.vllm.context_window import context_window, runs_on_cpu

NAMED = {"model_type": "llama"}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
CASES: list[tuple[dict[str, Any], int]] = [
    ({"max_position_embeddings": 32768}, 32768),
    ({"n_positions": 1024}, 1024),
    ({"max_position_embeddings": 131072, "model_max_length": 8192}, 8192),
    ({"text_config": {"max_position_embeddings": 40960}, "vision_config": {"max_position_embeddings": 77}}, 40960),
    ({"thinker_config": {"text_config": {"max_position_embeddings": 32768}}}, 32768),
    ({"max_position_embeddings": 8192, "rope_scaling": {"type": "linear", "factor": 4.0}}, 32768),
    ({"max_position_embeddings": 8192, "rope_scaling": {"rope_type": "dynamic", "factor": 2}}, 16384),
    ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 131072),
    ({"max_position_embeddings": 32768, "rope_parameters": YARN}, 32768),
    ({"max_position_embeddings": 32768, "rope_scaling": None}, 32768),
    ({"max_position_embeddings": 32768, "rope_scaling": {"type": "default", "mrope_section": [1]}}, 32768),
    (
        {
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0]},
        },
        4096,
    ),
    (
        {
            "model_type": "gemma3_text",
            "max_position_embeddings": 131072,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        131072,
    ),
    (
        {
            "max_position_embeddings": 8192,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 2.0},
                "sliding_attention": {"rope_type": "default"},
            },
        },
        16384,
    ),
]


def folder_of(tmp_path: Path, described: dict[str, Any], name: str = "config.json") -> EngineConfig:
    (tmp_path / name).write_text(json.dumps(described), encoding="utf-8")
    return EngineConfig(model=str(tmp_path), policy="exact")


@pytest.mark.parametrize(("described", "window"), CASES)
@pytest.mark.parametrize("cpu", [False, True])
def test_window_of_a_local_folder(
    described: dict[str, Any], window: int, cpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "runs_on_cpu", lambda: cpu)
    told = context_window(folder_of(tmp_path, {**NAMED, **described}))
    assert told == window if not cpu else told is not None and told <= 8192
    assert VllmEngine(folder_of(tmp_path, {**NAMED, **described})).info.max_model_len == told


def test_window_that_is_asked_for_counts(tmp_path: Path) -> None:
    folder_of(tmp_path, {"max_position_embeddings": 32768})
    assert context_window(EngineConfig(model=str(tmp_path), max_model_len=512)) == 512


def test_window_that_the_class_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 3's description leaves it out: its class has the number."""
    monkeypatch.setattr(module, "runs_on_cpu", lambda: False)
    assert context_window(folder_of(tmp_path, {"model_type": "gemma3", "text_config": {"hidden_size": 64}})) == 131072


def test_window_of_mistral_s_own_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "runs_on_cpu", lambda: False)
    assert context_window(folder_of(tmp_path, {"max_seq_len": 40960}, "params.json")) == 40960


@pytest.mark.parametrize("revision", [None, "v2"])
def test_window_of_a_model_in_the_hub_s_cache(
    revision: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / (revision or "main")).write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    folder_of(repository / "snapshots" / "abc", {"max_position_embeddings": 4096})
    assert context_window(EngineConfig(model="owner/name", revision=revision)) == 4096
    assert context_window(EngineConfig(model="owner/other")) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"max_position_embeddings": "many"}', '{"max_position_embeddings": -1}'])
def test_description_that_is_none_tells_nothing(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "runs_on_cpu", lambda: False)
    (tmp_path / "config.json").write_text(text)
    assert context_window(EngineConfig(model=str(tmp_path))) is None
    assert context_window(EngineConfig(model=str(tmp_path / "missing"))) is None


def test_cpu_build_is_found_out_as_vllm_does() -> None:
    assert runs_on_cpu() is True or sys.platform != "linux"
    from vllm.platforms import current_platform

    assert runs_on_cpu() is current_platform.is_cpu()
