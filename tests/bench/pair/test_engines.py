"""Both engines of a pair differ by their policy alone, and each has a device or a thread of its own."""

from pathlib import Path

import pytest

from mixquant_agents.bench.pair.engines import engine_configs, own_process_engines
from mixquant_agents.bench.pair.options import Options
from mixquant_agents.errors import ConfigError


def options(*arguments: str) -> Options:
    return Options.parsed(["--turns", "0", *arguments])


def test_configs_differ_by_their_policy_alone(tmp_path: Path) -> None:
    reading, writing = engine_configs(options("--policy", "mixquant-fp8"), tmp_path, gpus=False)
    assert writing.policy.name == "exact"
    assert reading.model_copy(update={"policy": writing.policy}) == writing
    assert writing.vllm_args["kv_transfer_config"]["kv_buffer_device"] == "cpu"


@pytest.mark.parametrize(("connector", "recomputed"), [("nixl", 1), ("example", 17)])
def test_policy_runs_as_many_tokens_exact_as_the_pair(tmp_path: Path, connector: str, recomputed: int) -> None:
    reading, _ = engine_configs(options("--connector", connector, "--block", "16"), tmp_path, gpus=False)
    assert (reading.policy.exact_last_token, reading.policy.exact_last_tokens) == (True, recomputed)
    assert reading.enable_prefix_caching is (connector == "nixl")


def test_one_gpu_makes_no_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,")
    with pytest.raises(ConfigError, match="'3' names 1"):
        own_process_engines(engine_configs(options(), tmp_path, gpus=True), gpus=True)


def test_kv_that_is_never_fetched_back_is_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options("--turns", "5", "--kept-seconds", "5")
    assert "--kept-seconds 5: give more than 5" in capsys.readouterr().err
    assert options("--turns", "5", "--kept-seconds", "6").kept_seconds == 6


def test_command_line_is_kept_and_lengths_are_numbers() -> None:
    parsed = options("--lengths", "256,1024")
    assert parsed.command == "python -m mixquant_agents.bench.pair --turns 0 --lengths 256,1024"
    assert parsed.prompt_lengths == [256, 1024]
