"""Syncing the store to the disk, beside the writer.

A commit only writes to the operating system, which survives a kill at once; syncing it to the disk, which a power cut
asks for, takes from 1 ms to seconds on a busy disk. So a thread of its own syncs the log right after each commit, and
moves the log into the database (a checkpoint, which syncs too) when it has grown: the writer waits for the disk only
when it begins the log anew after that, once in some thousand turns.

What a power cut can take is therefore what was recorded while a batch gathered (50 ms), plus two of the disk's own
syncs at most: one that was under way when the batch was committed, and the batch's own. :attr:`Syncer.delays` are
those times as measured.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections import deque
from pathlib import Path

__all__ = ["CHECKPOINT_BYTES", "Syncer", "sync_folder"]

log = logging.getLogger(__name__)

CHECKPOINT_BYTES = 16 << 20
"""Size of the log beyond which it is moved into the database."""


class Syncer:
    """One daemon thread per open store.

    Attributes:
        delays: seconds from a commit until the disk had it, of the last commits.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()  # SQLite puts the log beside what a link leads to
        self._log = Path(f"{self._path}-wal")
        self._work = threading.Event()
        self._stop = False
        self._waiting_since: float | None = None
        self._complained = False
        self.delays: deque[float] = deque(maxlen=1_000)
        self._thread: threading.Thread | None = None
        self._start()

    def _start(self) -> None:
        """Where no thread is to be had the next commit tries again: until then a power cut could take what was
        written, a kill nothing."""
        thread = threading.Thread(target=self._run, name="mixquant-syncer", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            log.debug("telemetry: syncing %s to the disk is put off: %s", self._path, error)
        else:
            self._thread = thread

    def committed(self) -> None:
        """There is something to sync. Returns at once. A thread that was ended is replaced."""
        if self._waiting_since is None:
            self._waiting_since = time.monotonic()
        if (self._thread is None or not self._thread.is_alive()) and not self._stop:
            self._start()
        self._work.set()

    def close(self) -> None:
        """Sync what is left and stop."""
        self._stop = True
        self._work.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def _run(self) -> None:
        try:
            self._work_until_stopped()
        except BaseException:  # the thread was ended from outside; the next commit starts another
            log.error("telemetry: the thread that syncs %s to the disk was ended", self._path, exc_info=True)

    def _work_until_stopped(self) -> None:
        sync_folder(self._path.parent)  # the log's name must survive, too
        self._checkpoint()
        stopping = False
        while not stopping:
            self._work.wait()
            self._work.clear()
            stopping = self._stop
            since, self._waiting_since = self._waiting_since, None
            size = self._sync_log()
            if since is not None:
                self.delays.append(time.monotonic() - since)
            if size > CHECKPOINT_BYTES and not stopping:
                self._checkpoint()

    def _sync_log(self) -> int:
        """Sync the log; its size in bytes, 0 where there is none (it was moved into the database, synced)."""
        # Never so the database: closing any descriptor of it drops this process's POSIX locks on it, and another
        # process would take itself for the last one and delete the log under us. The log carries no locks.
        try:
            descriptor = os.open(self._log, os.O_RDONLY)
        except OSError:
            return 0
        try:
            size = os.fstat(descriptor).st_size
            os.fsync(descriptor)
        except OSError as error:
            if not self._complained:
                self._complained = True
                log.warning("telemetry: %s could not be synced to the disk: %s", self._log, error)
            return 0
        finally:
            os.close(descriptor)
        return size

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


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` survive a power cut; where the system cannot, nothing happens."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
