"""The symbols of vLLM that are hooked: all there in the installed release, and a missing one is found and named."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from mixquant_agents import quant
from mixquant_agents.quant.vllm.contract import CONTRACT, check, installed_source, main
from mixquant_agents.quant.vllm.symbols import Symbol, missing

PLUGIN = Path(quant.__file__).parent


@pytest.mark.slow
def test_the_installed_vllm_has_every_hooked_symbol() -> None:
    assert check(installed_source()) == []


def test_hooked_and_patched_names_are_in_the_contract() -> None:
    """What ``wrap`` replaces must be named, or a move of it would go unseen."""
    wrapped = set()
    for path in sorted((PLUGIN / "vllm").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "wrap":
                wrapped |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
            if isinstance(node, ast.Constant) and node.value in ("_prepare_inputs", "prepare_inputs"):
                wrapped.add(node.value)
    named = {place.name.rpartition(".")[2] for need in CONTRACT for place in need.places}
    assert {"execute_model", "_prepare_inputs", "prepare_inputs", "set_additional_forward_context"} <= wrapped
    assert wrapped <= named


def copied(tmp_path: Path) -> Path:
    """The installed modules that the contract names."""
    source = installed_source()
    for module in {place.module for need in CONTRACT for place in need.places}:
        path = source.joinpath(*module.split(".")).with_suffix(".py")
        path = path if path.is_file() else path.with_suffix("") / "__init__.py"
        copy = tmp_path / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    return tmp_path


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("vllm/v1/worker/gpu_model_runner.py", "def _prepare_inputs(", "def _prepare_model_inputs("),
        ("vllm/v1/worker/gpu/model_runner.py", "def prepare_inputs(", "def prepare("),
        ("vllm/v1/core/sched/output.py", "preempted_req_ids:", "evicted_req_ids:"),
        ("vllm/v1/worker/gpu/states.py", "self.num_computed_tokens_np", "self.computed_np"),
        ("vllm/forward_context.py", "num_tokens=num_tokens,", "tokens=num_tokens,"),
        ("vllm/forward_context.py", "additional_kwargs: dict", "extra_kwargs: dict"),
    ],
)
def test_a_moved_symbol_is_named(tmp_path: Path, file: str, old: str, new: str) -> None:
    root = copied(tmp_path)
    path = root / file
    assert old in path.read_text(), "this test must change something"
    path.write_text(path.read_text().replace(old, new))
    problems = check(root)
    assert len(problems) == 1
    assert file.removesuffix(".py").replace("/", ".") in problems[0]


def test_a_renamed_parameter_is_named() -> None:
    tree = ast.parse("class A:\n    def f(self, layer): ...\n    def g(self, *args): ...\n")
    assert "no parameter x" in (missing(tree, Symbol("m", "A.f", ("layer", "x"))) or "")
    assert missing(tree, Symbol("m", "A.g", ("anything",))) is None


@pytest.mark.slow
def test_the_script_reports_and_exits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = copied(tmp_path)
    assert main(["--source", str(root)]) == 0
    (root / "vllm/v1/worker/worker_base.py").unlink()
    assert main(["--source", str(root)]) == 1
    assert "vllm.v1.worker.worker_base" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["--source", str(tmp_path / "nowhere")])
    assert stopped.value.code == 2


def test_a_symbol_missing_at_run_time_is_one_readable_error() -> None:
    import vllm

    from mixquant_agents.errors import EngineStartError
    from mixquant_agents.quant.vllm.patching import wrap

    class Runner:
        pass

    with pytest.raises(EngineStartError, match=rf"vLLM {vllm.__version__}.*Runner\.prepare_inputs"):
        wrap(Runner, "prepare_inputs", lambda original: original)
