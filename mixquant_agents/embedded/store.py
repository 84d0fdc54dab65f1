"""A cache of folders that are either whole or absent.

Layout under the root: ``<name>-<key>/`` (files and ``manifest.json``), ``<name>-<key>.lock``, and while one process
builds, ``.partial-<name>-<key>-<pid>/``. A folder gets its final name by one rename after its manifest is written, so a
killed process or a full disk leaves at most a partial folder, which the next build of that key removes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from mixquant_agents.embedded.progress import Progress
from mixquant_agents.errors import ConfigError, EngineStartError, MissingDependencyError

__all__ = ["cache_root", "ensure", "intact"]

MANIFEST = "manifest.json"
_SAMPLE = 16 * 1024  # bytes per sample
_SAMPLES = 32  # samples spread over a file


def cache_root() -> pathlib.Path:
    """``$MIXQUANT_CACHE`` if it is set and not empty, else the user's cache directory.

    Raises:
        ConfigError: the variable names something that is not a folder.
    """
    named = os.environ.get("MIXQUANT_CACHE")
    if named:
        root = pathlib.Path(os.path.expanduser(named))  # which leaves the name of an unknown user as it is
        if os.path.exists(root) and not os.path.isdir(root):
            raise ConfigError(f"MIXQUANT_CACHE={named!r} is not a folder; name one that exists or can be made")
        return root.absolute()
    import platformdirs

    return pathlib.Path(platformdirs.user_cache_dir("mixquant-agents", appauthor=False))


def ensure(
    root: pathlib.Path,
    name: str,
    parts: Mapping[str, Any],
    build: Callable[[pathlib.Path], None],
    progress: Progress,
) -> pathlib.Path:
    """The intact folder of ``name`` and ``parts``, built by ``build`` if it is missing or damaged.

    Args:
        root: the cache; made if it is missing.
        name: readable beginning of the folder's name.
        parts: JSON-able; everything the content depends on. Its hash is the key.
        build: writes the content into the empty folder it is given.
        progress: called with words about waiting, checking and the end.

    Raises:
        EngineStartError: the cache cannot be written. What ``build`` raises passes through.
    """
    try:
        import filelock
    except ImportError as error:
        raise MissingDependencyError(f"the embedded model needs filelock ({error}): pip install filelock") from error

    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    final = root / f"{name}-{key}"
    if intact(final):
        return final
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(root / f"{final.name}.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            progress("waiting for another process that prepares it", 0.0)
            lock.acquire()
        try:
            if not intact(final):  # another process may have built it meanwhile
                _build(root, final, parts, build, progress)
        finally:
            lock.release()
    except OSError as error:
        raise EngineStartError(_reason(root, error)) from error
    progress("ready", 1.0)
    return final


def _build(
    root: pathlib.Path,
    final: pathlib.Path,
    parts: Mapping[str, Any],
    build: Callable[[pathlib.Path], None],
    progress: Progress,
) -> None:
    """Build under the lock: clear leftovers, fill a partial folder, describe it, rename it."""
    for leftover in root.glob(f".partial-{final.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    partial = root / f".partial-{final.name}-{os.getpid()}"
    partial.mkdir()
    try:
        build(partial)
        progress("checksumming", 0.95)
        files = {path.relative_to(partial).as_posix(): _describe(path) for path in _files(partial)}
        (partial / MANIFEST).write_text(json.dumps({"parts": parts, "files": files}, indent=1))
        if final.exists():
            progress("replacing a damaged copy", 0.98)
            shutil.rmtree(final)
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)


def _describe(path: pathlib.Path) -> dict[str, int | str]:
    stat = path.stat()
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sampled": _sampled(path), "sha256": _sha256(path)}


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sampled(path: pathlib.Path) -> str:
    """SHA-256 over evenly spread samples, the first and last bytes among them; all of a small file."""
    size = path.stat().st_size
    if size <= _SAMPLE * _SAMPLES:
        return _sha256(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for index in range(_SAMPLES):
            file.seek((size - _SAMPLE) * index // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def intact(folder: pathlib.Path) -> bool:
    """Whether the folder holds exactly what its manifest says.

    Sizes and sampled hashes are always compared; a file whose modification time is not the recorded one is hashed
    whole.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files: dict[str, dict[str, Any]] = manifest["files"]
        for relative, entry in files.items():
            path = folder / relative
            stat = path.stat()
            if stat.st_size != entry["bytes"] or _sampled(path) != entry["sampled"]:
                return False
            if stat.st_mtime_ns != entry["mtime_ns"] and _sha256(path) != entry["sha256"]:
                return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return bool(files)


def _reason(root: pathlib.Path, error: OSError) -> str:
    cause = os.strerror(error.errno) if error.errno else str(error)
    remedy = "free 1 GB there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it writable"
    return (
        f"the embedded model cannot be prepared in {root}: {cause}; {remedy}, or set MIXQUANT_CACHE to another folder"
    )
