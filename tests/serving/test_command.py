"""The command lines of servers and router: what is asked for is in them, and nothing of the user's is lost."""

import json
from pathlib import Path
from typing import Any

import pytest

from mixquant_agents.config import EngineConfig, PrecisionPolicy
from mixquant_agents.errors import ConfigError
from mixquant_agents.serving import command
from mixquant_agents.serving.command import ServerCommand, server_command
from mixquant_agents.serving.health import figures, summary_line
from mixquant_agents.serving.router import router_command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model's folder, on a CPU whose defaults are at hand: the true ones (``tests/engine/vllm/test_args.py``) ask
    transformers."""
    defaults = {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": 2**30}
    monkeypatch.setattr(command, "cpu_defaults", lambda config, _: {**defaults, "max_model_len": config.max_model_len})
    described = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 64, "max_position_embeddings": 4096}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **described}))
    return str(tmp_path)


def made(path: str, extra: tuple[str, ...] = (), replica: int = 0, replicas: int = 1, **fields: Any) -> ServerCommand:
    config = EngineConfig(**{"model": path, "policy": PrecisionPolicy.of("mixquant-int8"), **fields})
    parsers = ("hermes", None)
    return server_command(
        config, path, name="m", host="127.0.0.1", port=8001, parsers=parsers, extra=extra, replica=replica,
        replicas=replicas,
    )  # fmt: skip


def value(words: tuple[str, ...], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_policy_metrics_and_tools_are_asked_for(folder: str) -> None:
    server = made(folder, ("--max-num-seqs", "7"), max_model_len=1024, vllm_args={"block_size": 32})
    words = server.arguments
    overrides = json.loads(value(words, "--hf-overrides"))
    assert value(words, "--quantization") == overrides["quantization_config"]["quant_method"] == "mixquant"
    assert overrides["quantization_config"]["policy"]["prefill_format"] == "int8"
    assert {"--enable-per-request-metrics", "--enable-prompt-tokens-details", "--enable-auto-tool-choice"} <= {*words}
    assert value(words, "--tool-call-parser") == "hermes"
    assert "--reasoning-parser" not in words
    assert (value(words, "--max-model-len"), value(words, "--block-size")) == ("1024", "32")
    assert words[-2:] == ("--max-num-seqs", "7")
    assert server.url == "http://127.0.0.1:8001"
    assert server.env["HF_HUB_OFFLINE"] == "1"


def test_exact_server_runs_without_the_plugin(folder: str) -> None:
    assert "--quantization" not in made(folder, policy=PrecisionPolicy.of("exact")).arguments


@pytest.mark.parametrize("flag", ["--quantization", "--port=9", "--hf-overrides"])
def test_flag_that_is_set_here_is_refused(folder: str, flag: str) -> None:
    with pytest.raises(ConfigError, match=flag.partition("=")[0]):
        made(folder, (flag, "x"))


def test_replicas_share_the_machine(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    monkeypatch.setattr(command.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    bound = [made(folder, replica=number, replicas=2).env["VLLM_CPU_OMP_THREADS_BIND"] for number in (0, 1)]
    assert bound == ["0,2", "1,3"]
    bound = [made(folder, replica=number, replicas=6).env["VLLM_CPU_OMP_THREADS_BIND"] for number in range(6)]
    assert bound == ["0", "1", "2", "3", "0", "1"], "two threads that share cores would wait for each other"
    monkeypatch.setattr(command, "runs_on_cpu", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    env = [made(folder, replica=number, replicas=2, tensor_parallel_size=2).env for number in (0, 1)]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in env] == ["4,5", "6,7"]
    with pytest.raises(ConfigError, match="need 6"):
        made(folder, replicas=3, tensor_parallel_size=2)


def test_router_never_sends_a_turn_again() -> None:
    words = router_command(["http://a:1", "http://b:1"], host="127.0.0.1", port=8000, prometheus_port=9)
    assert "--disable-retries" in words
    assert words[words.index("--worker-urls") + 1 :][:2] == ["http://a:1", "http://b:1"]
    with pytest.raises(ConfigError, match="cache_aware"):
        router_command(["http://a:1"], host="127.0.0.1", port=8000, prometheus_port=9, policy="psychic")
    with pytest.raises(ConfigError, match="needs servers"):
        router_command([], host="127.0.0.1", port=8000, prometheus_port=9)


def test_figures_are_summed_and_unknown_ones_left_out() -> None:
    text = (
        'vllm:num_requests_running{a="1"} 2.0\nvllm:num_requests_running{a="2"} 3\nvllm:kv_cache_usage_perc NaN\nodd\n'
    )
    assert figures(text) == {"running": 5.0}
    line = summary_line(
        [{"name": "a", "state": "ready", "running": 2.0}, {"name": "b", "state": "ended", "exit_code": 1}]
    )
    assert line == "a ready (2 running, 0 waiting), b ended (1)"
