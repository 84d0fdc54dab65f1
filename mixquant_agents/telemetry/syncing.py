"""Syncing the store to the disk, beside the writer.

A commit only writes to the operating system, which survives a kill at once; syncing it to the disk, which a power cut
asks for, takes from 1 ms to seconds on a busy disk. So a thread of its own syncs the log right after each commit, and
moves the log into the database (a checkpoint, which syncs too) when it has grown: the writer never waits for the
disk.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from pathlib import Path

__all__ = ["Syncer"]

log = logging.getLogger(__name__)

CHECKPOINT_BYTES = 16 << 20
"""Size of the log beyond which it is moved into the database."""


class Syncer:
    """One daemon thread per open store."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log = Path(f"{path}-wal")
        self._work = threading.Event()
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="mixquant-syncer", daemon=True)
        self._thread.start()

    def committed(self) -> None:
        """There is something to sync. Returns at once."""
        self._work.set()

    def close(self) -> None:
        """Sync what is left and stop."""
        self._stop = True
        self._work.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        self._checkpoint()  # the file was made without waiting for the disk
        while not self._stop:
            self._work.wait()
            self._work.clear()
            self._sync_log()
            with contextlib.suppress(OSError):
                if self._log.stat().st_size > CHECKPOINT_BYTES:
                    self._checkpoint()

    def _sync_log(self) -> None:
        # Never so the database: closing any descriptor of it drops this process's POSIX locks on it, and another
        # process would take itself for the last one and delete the log under us. The log carries no locks.
        with contextlib.suppress(OSError):
            descriptor = os.open(self._log, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _checkpoint(self) -> None:
        """Move the log into the database and sync that: through SQLite, which keeps its locks."""
        try:
            connection = sqlite3.connect(self._path, timeout=1, isolation_level=None)
            try:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            finally:
                connection.close()
        except sqlite3.Error as error:
            log.debug("telemetry: the checkpoint was put off: %s", error)
