"""The wheel holds the three packages, all their data files and their entry points, and nothing else."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "mixquant_agents": ROOT / "mixquant_agents",
    "mixquant_tools": ROOT / "tools" / "mixquant_tools",
    "mixquant_workflows": ROOT / "workflows" / "mixquant_workflows",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
def test_wheel_holds_the_packages_whole(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {
        f"{package}/{path.relative_to(root).as_posix()}"
        for package, root in PACKAGES.items()
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == wanted
    for data in ("suites/data/heldout.jsonl.gz", "demo_notes/cache.md", "py.typed"):
        assert f"mixquant_workflows/{data}" in names


@pytest.mark.slow
def test_wheel_registers_the_plugin_and_the_commands(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    parser = configparser.ConfigParser(delimiters="=")
    parser.read_string(archive.read(name).decode())
    assert parser["vllm.general_plugins"]["mixquant"] == "mixquant_agents.quant:register"
    assert parser["console_scripts"]["mixquant"] == "mixquant_agents.cli:main"
    assert set(parser["mixquant.commands"]) == {"demo", "export", "bench.agents", "bench.peers", "bench.replay"}


@pytest.mark.slow
def test_unpacked_wheel_works_anywhere(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import sys; sys.path.insert(0, 'site')\n"
        "import mixquant_workflows.suites.heldout as heldout\n"
        "assert 'site' in heldout.__file__, heldout.__file__\n"
        "assert len(heldout.load_tasks()) == 2200\n"
        "assert 'mixquant_training' not in sys.modules\n"
        "from mixquant_agents.cli.app import run\n"
        "raise SystemExit(run(['bench', 'prefill', '--predict', 'h200']))\n"
    )
    assert "predicted, not measured" in run(sys.executable, "-c", code, cwd=tmp_path)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", tmp_path_factory.mktemp("sdist"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_package_works_in_an_environment_of_its_own(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installed by pip from what would be published. Its dependencies are lent by the environment of the tests."""
    package: Path = request.getfixturevalue(kind)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    environment = tmp_path / "env"
    program = environment / "bin"
    run(sys.executable, "-m", "venv", "--without-pip", str(environment))
    (site,) = (environment / "lib").glob("python3.*/site-packages")
    # Behind what is installed here, and without the editable install's own paths, which a .pth file in there names.
    lent = [path for path in sys.path if path.endswith("site-packages")]
    install = (sys.executable, "-m", "pip", "--python", str(program / "python"), "install", "--no-deps", "--no-index")
    (site / "lent.pth").write_text("\n".join(lent) + "\n")
    run(*install, "--no-build-isolation", "--ignore-installed", str(package))
    code = (
        "import mixquant_agents, mixquant_tools, mixquant_workflows as w; print(mixquant_agents.__file__, w.__file__)"
    )
    assert run(str(program / "python"), "-c", code, cwd=tmp_path).count(str(site)) == 2
    if kind == "sdist":  # the same files, installed another way
        return
    assert run(str(program / "mixquant"), "--version", cwd=tmp_path).startswith("mixquant-agents ")
    report = json.loads(run(str(program / "mixquant"), "doctor", "--json", cwd=tmp_path))
    assert report["problems"] == []
    assert report["versions"]["mixquant-agents"]
    assert report["extras"]["tools"] == []


@pytest.mark.slow
def test_extras_are_what_the_readme_names(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith("METADATA"))
    metadata = archive.read(name).decode()
    extras = {line.split(": ")[1] for line in metadata.splitlines() if line.startswith("Provides-Extra: ")}
    assert {"gpu", "cpu", "tools", "dashboard", "langchain", "openai", "bench"} <= extras
    named = set(re.findall(r"mixquant-agents\[([a-z,]+)\]", (ROOT / "README.md").read_text()))
    assert {extra for group in named for extra in group.split(",")} <= extras
    assert "Requires-Dist: vllm<0.33,>=0.23; extra == 'gpu'" in metadata


def build(kind: str, folder: Path) -> Path:
    """The ``wheel`` or ``sdist`` of this tree, the only file in ``folder``."""
    run(sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder))
    (path,) = folder.glob({"wheel": "*.whl", "sdist": "*.tar.gz"}[kind])
    return path


def run(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)  # noqa: S603 - a command of ours
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout
