"""Forks: no connection of SQLite may be open while the process forks.

SQLite keeps a process's locks on a file in one table of the process. A forked child inherits that table but not the
locks: it would take itself for safe, and the parent, on leaving, for the last one that uses the file, and delete the
log that the child is writing to. So whatever holds a connection lets go of it before a fork, and opens it anew after.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol

__all__ = ["FORK_SECONDS", "Forkable", "notify_of_forks"]

FORK_SECONDS = 5.0
"""Longest that a fork waits for a transaction to end."""


class Forkable(Protocol):
    """What holds connections, or a thread that does."""

    def before_fork(self) -> None:
        """Let go of connections, and keep others from opening them until the fork is over."""
        ...

    def after_fork_in_parent(self) -> None:
        """Go on."""
        ...

    def after_fork_in_child(self) -> None:
        """Begin anew: locks and threads of the parent are of no use here."""
        ...


_holders: weakref.WeakSet[Forkable] = weakref.WeakSet()


def notify_of_forks(holder: Forkable) -> None:
    """Tell ``one`` of every fork of this process."""
    _holders.add(holder)


def _before() -> None:
    for holder in list(_holders):
        holder.before_fork()


def _in_parent() -> None:
    for holder in list(_holders):
        holder.after_fork_in_parent()


def _in_child() -> None:
    for holder in list(_holders):
        holder.after_fork_in_child()


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
