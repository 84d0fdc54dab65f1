"""The symbols of vLLM that are hooked: all there in the installed release, and a missing one is found and named."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import touched

from mixquant_agents import quant
from mixquant_agents.quant.vllm.contract import CONTRACT, KERNELS, check, installed_source, main
from mixquant_agents.quant.vllm.symbols import Symbol, missing

PLUGIN = Path(quant.__file__).parent


@pytest.mark.slow
def test_installed_vllm_has_every_hooked_symbol() -> None:
    assert check(installed_source()) == []


def sources() -> list[Path]:
    return sorted(PLUGIN.rglob("*.py"))


def in_contract(module: str, name: str) -> bool:
    """Whether something imported from vLLM is a named symbol, or a module or class of named ones."""
    places = [place for need in CONTRACT for place in need.places]
    if any(place.module == f"{module}.{name}" for place in places):
        return True
    return any(place.module == module and place.name.split(".")[0] == name for place in places)


NAMED = {place.name.rpartition(".")[2] for need in CONTRACT for place in need.places}


def test_vllm_is_imported_in_its_folder_and_by_named_kernels_alone() -> None:
    outside = {
        path.relative_to(PLUGIN).as_posix()
        for path in sources()
        if touched.imports(path) and PLUGIN / "vllm" not in path.parents
    }
    assert outside == set(KERNELS)


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(PLUGIN).as_posix())
def test_contract_names_what_is_touched_of_vllm(path: Path) -> None:
    """Or a move of it would go unseen."""
    unnamed = {f"{module}:{name}" for module, name in touched.imports(path) - {("vllm", "")}
               if not in_contract(module, name)}  # fmt: skip
    unnamed |= touched.patched(path) - NAMED
    if PLUGIN / "vllm" in path.parents or path.relative_to(PLUGIN).as_posix() in KERNELS:
        unnamed |= touched.attributes(path) - NAMED
    assert not unnamed


def test_reading_of_sources_finds_what_it_is_for(tmp_path: Path) -> None:
    """The test above would pass on anything if the sources were read wrongly."""
    path = tmp_path / "hook.py"
    path.write_text(
        "from typing import Any\n"
        "from vllm.config import VllmConfig\n"
        "def install():\n"
        "    from vllm import platforms\n"
        "    wrap(platforms.current, 'hooked', lambda original: original)\n"
        "def hook(original: Any):\n"
        "    def method(self: Any, ours: int, *args: Any):\n"
        "        batch = original(self).batch\n"
        "        for request in batch.requests:\n"
        "            rows = [row.slot for row in request.rows]\n"
        "        getattr(self, 'maybe', None)\n"
        "        ours.not_theirs\n"
        "        self.written = batch.shape\n"
        "    return method\n"
    )
    assert touched.imports(path) == {("vllm.config", "VllmConfig"), ("vllm", "platforms")}
    assert touched.patched(path) == {"hooked"}
    assert touched.attributes(path) == {
        "batch", "current", "hooked", "maybe", "requests", "rows", "slot", "written",
    }  # fmt: skip


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
def test_moved_symbol_is_named(tmp_path: Path, file: str, old: str, new: str) -> None:
    root = copied(tmp_path)
    path = root / file
    assert old in path.read_text(), "this test must change something"
    path.write_text(path.read_text().replace(old, new))
    problems = check(root)
    assert len(problems) == 1
    assert file.removesuffix(".py").replace("/", ".") in problems[0]


def test_renamed_parameter_is_named() -> None:
    tree = ast.parse("class A:\n    def f(self, layer): ...\n    def g(self, *args): ...\n")
    assert "no parameter x" in (missing(tree, Symbol("m", "A.f", ("layer", "x"))) or "")
    assert missing(tree, Symbol("m", "A.g", ("anything",))) is None


@pytest.mark.slow
def test_script_reports_and_exits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = copied(tmp_path)
    assert main(["--source", str(root)]) == 0
    (root / "vllm/v1/worker/worker_base.py").unlink()
    assert main(["--source", str(root)]) == 1
    assert "vllm.v1.worker.worker_base" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["--source", str(tmp_path / "nowhere")])
    assert stopped.value.code == 2


def test_symbol_missing_at_run_time_is_one_readable_error() -> None:
    import vllm

    from mixquant_agents.errors import EngineStartError
    from mixquant_agents.quant.vllm.patching import wrap

    class Runner:
        pass

    with pytest.raises(EngineStartError, match=rf"vLLM {vllm.__version__}.*Runner\.prepare_inputs"):
        wrap(Runner, "prepare_inputs", lambda original: original)
