"""A calibration that is not there yet, made while the model is loaded: once, in a process of its own, never in the way.

Only where a GPU is: on a CPU it would take longer than it is worth before a first answer. Whatever goes wrong, the
engine starts: twins are then rounded to the nearest value and activations scaled by 1, and the status says why.
"""

from __future__ import annotations

import json
import logging
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence

from mixquant_agents.errors import ConfigError, FormatRefusedError
from mixquant_agents.precision.policy import PrecisionPolicy
from mixquant_agents.precision.support import DeviceInfo
from mixquant_agents.quant.calibration.store import Calibration, by_hand, file_name, folder_of

__all__ = ["SECONDS", "calibration_for", "command"]

_log = logging.getLogger("vllm.mixquant")

SECONDS = 300.0
"""After so long the process is ended; vLLM waits ten minutes for its processes, and weights are still to be read."""
_FAILED_SECONDS = 3600.0
"""So long no start tries again what failed: a full GPU may be free by then, and each try costs up to the time above."""


def command(model: str, policy: PrecisionPolicy) -> list[str]:
    """What makes the calibration that ``policy`` reads."""
    recipe = policy.recipe
    return [
        *(sys.executable, "-m", "mixquant_agents.quant.calibration", model),
        *("--rounding", recipe.weight_rounding, "--weight-scales", recipe.weight_scales),
        *("--channel-scales", recipe.channel_scales),
    ]


def calibration_for(
    policy: PrecisionPolicy,
    model: str | None,
    device: DeviceInfo,
    *,
    make: bool,
    run: Callable[[Sequence[str]], str | None] | None = None,
) -> tuple[Calibration | None, str | None]:
    """What ``policy`` asks for, and why it is not there.

    Args:
        policy: with ``calibration="auto"`` the calibration in the cache is taken, or made.
        model: the checkpoint's folder.
        device: where the engine runs.
        make: whether it may be made now.
        run: makes it by a command, and returns why it could not.

    Raises:
        FormatRefusedError: the folder that the policy names has none.
    """
    if policy.calibration != "auto" or not policy.quantizes:
        return Calibration.of(policy, model), None
    try:
        path = folder_of(model or "") / file_name(policy.recipe)
        if not path.is_file():
            reason = _missing(policy, model or "", path, device, make=make, run=run or _run)
            if reason is not None:
                return None, reason
        return Calibration(path), None
    except (ConfigError, FormatRefusedError, OSError) as error:
        return None, str(error)
    except Exception as error:  # a start must not fail for it, whatever a file system or a library does
        _log.warning("mixquant: the calibration cannot be had", exc_info=True)
        return None, f"{type(error).__name__}: {error}"


def _missing(
    policy: PrecisionPolicy,
    model: str,
    path: pathlib.Path,
    device: DeviceInfo,
    *,
    make: bool,
    run: Callable[[Sequence[str]], str | None],
) -> str | None:
    """Make the file; why it is still not there, if so."""
    remedy = f"once by hand: {by_hand(model, path)}"
    if device.kind != "cuda" or not make:
        where = "on a CPU" if device.kind != "cuda" else "while an engine runs"
        return f"the model is not calibrated, and is not {where}; {remedy}"
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    failed = path.with_suffix(".failed")
    with FileLock(path.with_suffix(".lock")):  # ranks of one engine, and engines of one model, wait for the first
        if path.is_file():
            return None
        if failed.is_file() and 0 <= time.time() - failed.stat().st_mtime < _FAILED_SECONDS:
            return f"{failed.read_text()}; it is tried again after an hour, or {remedy}"
        reason = run(command(model, policy))
        if reason is None:
            failed.unlink(missing_ok=True)
        else:
            failed.write_text(reason)
        return reason


def _run(words: Sequence[str]) -> str | None:
    """Run the command, its progress into the engine's log; why it failed, if it did."""
    _log.warning("mixquant: calibrating the model for NVFP4 (once; kept in the cache)")
    with tempfile.TemporaryFile() as errors:  # a pipe that nobody reads would fill up
        process = subprocess.Popen(  # noqa: S603 - our own module
            words, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace"
        )
        limit = threading.Timer(SECONDS, process.kill)
        limit.start()
        try:
            for line in process.stdout or ():
                _log.warning("mixquant: calibrating: %s", _progress(line))
            process.wait()
        finally:
            limit.cancel()
            process.kill()
            process.wait()
        errors.seek(0)
        last = errors.read().decode(errors="replace").strip().splitlines()[-1:] or [f"status {process.returncode}"]
    return None if process.returncode == 0 else f"calibrating failed: {last[0]}"


def _progress(line: str) -> str:
    """A line for the log. What libraries print goes there as it is."""
    try:
        progress = json.loads(line)
        return f"{progress['what']}, {100 * progress['share']:.0f} %"
    except (ValueError, KeyError, TypeError):
        return line.strip()
