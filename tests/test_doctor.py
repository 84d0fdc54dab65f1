"""``mixquant doctor`` tells what this machine can do, and what is missing."""

import json
from pathlib import Path

import pytest

from mixquant_agents import doctor
from mixquant_agents.cli import app


@pytest.mark.slow
def test_json_has_the_named_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["device"]
    assert set(report["formats"]) == {"exact", "nvfp4", "fp8", "int8", "mxfp4"}
    native = {name for name, support in report["formats"].items() if support["status"] == "native"}
    assert set(report["kernels"]) == native - {"exact"}
    assert report["nested"]["status"] in ("native", "emulated", "refused")
    assert report["auto"]["storage"] in ("separate", "nested")
    for support in report["formats"].values():
        assert support["status"] in ("native", "emulated", "refused")
        assert (support["reason"] is None) == (support["status"] == "native")
    assert report["auto"]["prefill_format"] in report["formats"]


def test_missing_parts_are_problems_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    monkeypatch.setattr(doctor.metadata, "entry_points", lambda group: ())
    report = doctor.examine()
    assert any("'mixquant-agents[cpu]'" in problem for problem in report["problems"])
    assert any("entry point" in problem for problem in report["problems"])
    assert app.run(["doctor"]) == 1
    said = capsys.readouterr().out
    assert (
        "problem: vLLM is not installed: pip install 'mixquant-agents[gpu]' (NVIDIA) or 'mixquant-agents[cpu]'\n"
        in said
    )
    assert "why" not in said  # no table without formats
    assert "next:" not in said


def test_unusable_cache_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MIXQUANT_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    report = doctor.examine()
    assert report["embedded"]["cache"] is None
    assert any("MIXQUANT_CACHE" in problem for problem in report["problems"])


def test_mixture_is_told_which_layers_would_have_twins(tmp_path: Path) -> None:
    from mixquant_agents.bench.shapes import write_model
    from mixquant_agents.doctor import expert_layers

    model = str(write_model("qwen3-30b-a3b", tmp_path))
    small, large = (expert_layers(model, memory_gib=size) for size in (80, 140))
    assert small is not None
    assert large is not None
    assert small["format"] == "fp8"
    assert (len(small["quantized"]) + len(small["exact"]), len(large["exact"])) == (48, 0)
    assert small["exact"][0] == "model.layers.0.mlp.experts"
    assert "of 48 layers of experts have a quantized twin" in small["text"]
    assert expert_layers(str(write_model("qwen3-8b", tmp_path)), memory_gib=80) is None


def test_configuration_is_not_asked_of_the_hub_in_vain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a network each question takes a minute; and the hub's "embedded" is somebody else's model."""
    import transformers

    from mixquant_agents import embedded
    from mixquant_agents.bench.shapes import write_model

    asked: list[str] = []

    def ask(name: str, **_: object) -> None:
        asked.append(name)
        raise OSError

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", ask)
    monkeypatch.setattr(embedded, "prepare", lambda: write_model("qwen3-30b-a3b", tmp_path))
    plan = doctor.expert_layers("embedded", memory_gib=80)
    assert plan is not None
    assert plan["exact"][0] == "model.layers.0.mlp.experts"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert doctor.expert_layers("somebody/model") is None
    assert asked == []
