"""Starts that fail: each ends in one readable line, leaves nothing, and the next call may try again."""

from __future__ import annotations

import asyncio
import json
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from mixquant_agents.config import EngineConfig, PrecisionPolicy
from mixquant_agents.engine.vllm import VllmEngine
from mixquant_agents.engine.vllm.args import physical_memory
from mixquant_agents.engine.vllm.startup import StartControl
from mixquant_agents.errors import (
    ConfigError,
    DamagedWeightsError,
    EngineClosedError,
    FormatRefusedError,
    MixQuantError,
    ModelNotFoundError,
    OutOfMemoryError,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shape = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 300,
        "max_position_embeddings": 256,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(shape))
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(vocab={"<unk>": 0, "</s>": 1}, unk_token="<unk>"))  # noqa: S106  no password
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>").save_pretrained(tmp_path)  # noqa: S106  no password
    return tmp_path


def below() -> set[psutil.Process]:
    """This process's children, but for the one that multiprocessing keeps until the end."""
    children = psutil.Process().children(recursive=True)
    return {child for child in children if "resource_tracker" not in " ".join(child.cmdline())}


async def failing(
    config: EngineConfig, kind: type[MixQuantError], capfd: pytest.CaptureFixture[str], *, tries: int = 2
) -> str:
    """The message of a start that fails as ``kind``, leaving neither processes nor output on stdout. Tried again it
    fails again, and is not remembered: a folder may be repaired."""
    before = below()
    async with VllmEngine(config) as engine:
        for _ in range(tries):
            with pytest.raises(kind) as caught:
                await engine.start()
            assert type(caught.value) is kind
    assert capfd.readouterr().out == ""
    assert below() <= before
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_a_missing_folder(capfd: pytest.CaptureFixture[str]) -> None:
    assert "'/no/model/here' does not exist" in await failing(
        EngineConfig(model="/no/model/here"), ModelNotFoundError, capfd
    )


async def test_truncated_weights(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    assert "model.safetensors" in await failing(EngineConfig(model=str(folder)), DamagedWeightsError, capfd)


async def test_a_hub_id_that_cannot_be_reached(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = await failing(EngineConfig(model="nobody/no-such-model", revision="v9"), ModelNotFoundError, capfd)
    assert "'nobody/no-such-model' (revision 'v9')" in said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_model_len": 4096}, "max_model_len"),
        ({"vllm_args": {"no_such": 1}}, "no such engine argument"),
        ({"vllm_args": {"block_size": -5}}, "block_size"),
        ({"tool_parser": "nope"}, "tool_parser 'nope' is unknown"),
        ({"chat_template": "/no/template"}, "is not a file"),
    ],
)
async def test_settings_that_cannot_be_honoured(
    folder: Path, capfd: pytest.CaptureFixture[str], settings: dict[str, Any], said: str
) -> None:
    assert said in await failing(EngineConfig(model=str(folder), policy="exact", **settings), ConfigError, capfd)


@pytest.mark.slow
async def test_a_cache_that_the_free_memory_does_not_hold(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Refused by the worker itself, whose words come back through vLLM's log."""
    memory = physical_memory()
    assert memory is not None
    settings: dict[str, Any] = {"kv_cache_bytes": int(0.98 * memory), "vllm_args": {"load_format": "dummy"}}
    said = await failing(EngineConfig(model=str(folder), policy="exact", **settings), OutOfMemoryError, capfd, tries=1)
    assert re.search(r"do not fit \(Available memory .* \([\d.]+/[\d.]+ GiB\) .* requested .* \([\d.]+ GiB\)\); ", said)
    assert said.endswith("lower kv_cache_bytes, max_model_len or max_num_seqs, or take a smaller model")


@pytest.mark.slow
async def test_a_format_that_the_worker_refuses(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The plugin's refusal comes out of a process of vLLM's with its class and its remedy."""
    policy = PrecisionPolicy(prefill_format="nvfp4", prefill_checkpoint="/no/such/checkpoint")
    settings: dict[str, Any] = {"policy": policy, "vllm_args": {"load_format": "dummy"}}
    said = await failing(EngineConfig(model=str(folder), **settings), FormatRefusedError, capfd, tries=1)
    assert "prefill_checkpoint='/no/such/checkpoint' is neither a folder nor on the hub" in said
    assert "leave it out" in said


def test_a_start_that_was_given_up_ends_at_its_next_stage() -> None:
    control = StartControl("m")
    control.check()
    assert not control.cancel_start()
    control.cancelled = False
    with suppress(ZeroDivisionError), control.launching():
        assert control.cancel_start()  # there may be processes at any moment: ask again
        raise ZeroDivisionError
    assert not control.cancel_start()  # the launch failed, and has cleared away its own
    control.cancelled = False
    with control.launching():
        pass
    assert control.cancel_start()  # they are there, and the start ends them: wait for it
    for stage in (control.check, control.launching().__enter__):
        with pytest.raises(EngineClosedError, match="'m' was closed while it was starting"):
            stage()


@pytest.mark.slow
async def test_closing_does_not_wait_for_a_start(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = below()
    engine = VllmEngine(EngineConfig(model=str(folder), policy="exact", vllm_args={"load_format": "dummy"}))
    starting = asyncio.create_task(engine.start())
    while not below() - before:
        await asyncio.sleep(0.05)
        assert not starting.done(), await starting
    await asyncio.sleep(1)  # the engine core imports vLLM now
    began = time.monotonic()
    await engine.aclose()
    assert time.monotonic() - began < 5  # the whole start takes 20
    with pytest.raises(EngineClosedError, match="was closed while it was starting"):
        await starting
    assert below() <= before
    assert "Engine ready" not in capfd.readouterr().err


async def test_a_closed_engine_stays_closed() -> None:
    engine = VllmEngine(EngineConfig(model="/no/model/here"))
    await asyncio.gather(engine.aclose(), engine.aclose())
    with pytest.raises(MixQuantError, match="closed"):
        await engine.count_tokens([{"role": "user", "content": "x"}])
