"""The store behind the live pages: it may not exist yet, be replaced, or be unreadable for a while."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from mixquant_agents.telemetry.store.reader import TurnStore

__all__ = ["StoreSource"]


class StoreSource:
    """Opens the store when it is there, and again when the file was replaced."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._store: TurnStore | None = None
        self._identity: tuple[int, int] | None = None

    def exists(self) -> bool:
        """Whether there is a file to open."""
        return os.path.isfile(self.path)

    def store(self) -> TurnStore:
        """The open store.

        Raises:
            StoreError: it cannot be opened.
        """
        with self._lock:
            try:
                status = os.stat(self.path)
                identity = (status.st_dev, status.st_ino)
            except OSError:
                identity = None
            if self._store is None or identity != self._identity:
                if self._store is not None:
                    self._store.close()
                    self._store = None
                self._store = TurnStore(self.path)
                self._identity = identity
            return self._store

    def version(self) -> tuple[object, ...]:
        """Changes whenever there may be something new to show. Call it from one thread only.

        Raises:
            StoreError: the store cannot be read.
        """
        if not self.exists():
            return ("missing",)
        return (id(self.store()), self.store().change_counter())
