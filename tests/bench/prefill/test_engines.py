"""Engine arguments by column."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from mixquant_agents.bench.prefill.engines import EngineProcess, column_arguments
from mixquant_agents.bench.prefill.plan import COLUMNS
from mixquant_agents.config import EngineConfig, PrecisionPolicy
from mixquant_agents.engine.vllm.args import policy_arguments
from mixquant_agents.errors import EngineStartError


def test_columns_share_graph_sizes() -> None:
    found = {column: column_arguments(column, Path("m"), 1.0, dummy=True) for column in COLUMNS}
    assert "compilation_config" not in found["exact_default"]
    sizes = [a["compilation_config"]["cudagraph_capture_sizes"] for c, a in found.items() if c != "exact_default"]
    assert all(each == sizes[0] for each in sizes)
    assert max(sizes[0]) >= 2048
    assert "quantization" not in found["exact"]


def test_column_arguments_switch_the_plugin_on_as_the_engine_does() -> None:
    for column, preset in (("mixquant-fp8", "mixquant-fp8"), ("mixquant-fp8-exact-last", "mixquant-fp8")):
        policy = PrecisionPolicy.of(preset)
        arguments = column_arguments(column, Path("m"), 1.0, dummy=True)
        wanted = policy_arguments(EngineConfig(model="m", policy=preset).policy)
        assert {name: arguments[name] for name in wanted} == wanted
        assert wanted["hf_overrides"]["quantization_config"]["policy"] == policy.model_dump(mode="json")
    assert policy_arguments(PrecisionPolicy.of("exact")) == {}
    assert "hf_overrides" not in column_arguments("uniform-fp8", Path("m"), 1.0, dummy=True)


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        ("AmbiguousGlobalPerLayerAttributeError: 'head_dim' is a per-layer attribute and may vary across layers.",
         "upgrade vLLM to 0.28 or later"),
        ("ZeroDivisionError: division by zero", "did not start: ZeroDivisionError: division by zero; see "),
    ],
)  # fmt: skip
def test_engine_that_fails_to_start_says_why_and_what_would_work(tmp_path: Path, cause: str, words: str) -> None:
    answer = json.dumps({"event": "failed", "text": cause})
    worker = (sys.executable, "-c", f"print({answer!r}, flush=True); input()")
    engine = EngineProcess("mixquant-fp8", {"model": "shapes/gemma"}, tmp_path / "log", worker)
    with pytest.raises(EngineStartError, match="engine 'mixquant-fp8' did not start") as error:
        engine.wait_for("ready")
    engine.close()
    assert words in str(error.value)
    assert str(tmp_path / "log") in str(error.value)
