"""Opening the store: one writer's connection, one reader's, and every failure as a :class:`StoreError` with the remedy.

Journal mode is WAL: readers never block the writer, several processes may write in turn, a kill leaves the last
commit. ``synchronous=NORMAL``: a commit does not wait for the disk; :mod:`~mixquant_agents.telemetry.store.fsync` syncs
it right after.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sqlite3
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from platformdirs import user_data_path

from mixquant_agents.errors import StoreError
from mixquant_agents.telemetry.store.fsync import CHECKPOINT_BYTES, sync_folder
from mixquant_agents.telemetry.store.questions import fill_questions
from mixquant_agents.telemetry.store.rollups import fill_bad_rollups
from mixquant_agents.telemetry.store.schema import (
    APPLICATION_ID,
    MIGRATIONS,
    OUTCOMES_VERSION,
    QUESTIONS_VERSION,
    SCHEMA_VERSION,
    add_missing_columns,
    add_missing_index,
)

__all__ = ["connect_reader", "connect_writer", "default_store_path", "explain"]

log = logging.getLogger(__name__)

BUSY_MILLISECONDS = 5_000

PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700
OTHERS = 0o077
"""What of a file's mode is not its owner's."""

_AS_TEXT = partial(str, encoding="utf-8", errors="replace")
"""Text of another program may be no UTF-8: it is read as far as it can be, and fails neither a page nor a turn."""


def default_store_path() -> Path:
    """``turns.sqlite`` in the user's data folder (``~/.local/share/mixquant`` on Linux), or what ``MIXQUANT_STORE``
    names."""
    named = os.environ.get("MIXQUANT_STORE")
    return Path(named).expanduser() if named else user_data_path("mixquant", appauthor=False) / "turns.sqlite"


def explain(error: Exception, path: Path) -> StoreError:
    """One clear line for what SQLite or the file system reported about ``path``."""
    if isinstance(error, OSError):
        return StoreError(f"turn store {path}: it cannot be reached ({error.strerror or error}); give another file")
    if isinstance(error, ValueError) and "\0" in str(path):
        return StoreError(f"turn store {str(path)!r}: no file can have this name; give another file")
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    reasons = {
        sqlite3.SQLITE_FULL: "the disk is full; free some space, or give another file",
        sqlite3.SQLITE_READONLY: "the file or its folder is read-only; change its permissions, or give another file",
        sqlite3.SQLITE_CANTOPEN: "it cannot be opened or created; check that the folder exists and may be written",
        sqlite3.SQLITE_NOTADB: "it is not a SQLite database; give another file",
        sqlite3.SQLITE_CORRUPT: "the file is damaged; move it away (a new store is made), or recover it with sqlite3",
        sqlite3.SQLITE_BUSY: "another process held its lock for too long; it is tried again",
        sqlite3.SQLITE_IOERR: "the disk reported an input/output error; check space and health of the disk",
    }
    reason = reasons.get(code, f"{type(error).__name__}: {error}")
    return StoreError(f"turn store {path}: {reason}")


def connect_writer(path: Path) -> sqlite3.Connection:
    """Open ``path`` for writing; create it and bring its schema up to date as needed.

    Raises:
        StoreError: with reason and remedy.
    """
    with _explained(path), contextlib.ExitStack() as on_failure:
        try:
            _make_private_folder(path.parent)
        except OSError as error:
            raise StoreError(
                f"turn store {path}: its folder cannot be made ({error.strerror}); give another file"
            ) from error
        _refuse_folder(path)
        _make(path)
        connection = sqlite3.connect(
            path, timeout=BUSY_MILLISECONDS / 1000, isolation_level=None, check_same_thread=False
        )
        on_failure.callback(connection.close)
        connection.text_factory = _AS_TEXT
        _refuse_foreign(connection, path)
        if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only takes effect before the first table
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA cache_size = -65536")
        connection.execute(f"PRAGMA journal_size_limit = {CHECKPOINT_BYTES // 4}")
        # Checkpoints wait for the disk: the syncer makes them; this bound only holds where it cannot keep up.
        connection.execute("PRAGMA wal_autocheckpoint = 65536")
        connection.execute("PRAGMA synchronous = NORMAL")
        _migrate(connection)
        _keep_private(connection, path)
        # Opening alone does not show that a file may be written.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('last_writer_pid', ?)", (os.getpid(),))
        connection.execute("COMMIT")
        on_failure.pop_all()
    return connection


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError, ValueError) as error:  # the latter: what no file can be called
        raise explain(error, path) from error


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise StoreError(f"turn store {path}: it is a folder; give the file in it")


def _make(path: Path) -> None:
    """Make a store that is whole from its first moment: beside, synced, then given its name.

    A power cut leaves no store or a whole one; of several processes that make it at once one wins. Where the file
    system has no hard links nothing is made here, and the caller makes the store in place.
    """
    if path.exists() or path.is_symlink():
        return
    beside = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE_FILE))
        with contextlib.closing(sqlite3.connect(beside, isolation_level=None)) as connection:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only takes effect before the first table
            connection.execute("PRAGMA synchronous = OFF")  # nobody knows of it yet
            connection.execute("PRAGMA journal_mode = MEMORY")
            _migrate(connection)
            connection.execute("PRAGMA journal_mode = WAL")
        descriptor = os.open(beside, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.link(beside, path)
        sync_folder(path.parent)
    except OSError as error:
        log.debug("the store %s is made in place: %s", path, error)
        with contextlib.suppress(OSError):  # an empty file becomes a store; what is wrong with it is said when it opens
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE_FILE))
    finally:
        for name in (beside, Path(f"{beside}-wal"), Path(f"{beside}-shm")):
            with contextlib.suppress(OSError):
                name.unlink()


def _make_private_folder(folder: Path) -> None:
    """Make ``folder`` and those above it that are missing, for their owner alone. One that exists is left as it is.

    Raises:
        OSError: it cannot be made.
    """
    if folder.is_dir():
        return
    if folder != folder.parent:
        _make_private_folder(folder.parent)
    folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)


def _keep_private(connection: sqlite3.Connection, path: Path) -> None:
    """Take a store from all but its owner: it holds what users asked and what tools found.

    Once: a store that was opened to others after that was opened on purpose, and a word in the log is all that is said
    of it. SQLite gives a new log and new shared memory the store's own permissions.
    """
    files = [path.resolve()]  # the log lies beside what a link leads to
    files += [Path(f"{files[0]}-wal"), Path(f"{files[0]}-shm")]
    if files[0].parent == user_data_path("mixquant", appauthor=False).resolve():
        files.append(files[0].parent)  # the folder of the default store is ours; any other may hold more than stores
    left_open = connection.execute("SELECT 1 FROM meta WHERE key = 'made_private'").fetchone() is not None
    if not left_open:
        try:
            for file in files:
                with contextlib.suppress(FileNotFoundError):
                    file.chmod(stat.S_IMODE(file.stat().st_mode) & ~OTHERS)
        except PermissionError:  # another user's file that we may write
            left_open = True
        connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('made_private', 1)")
    with contextlib.suppress(OSError):  # the file was taken away meanwhile
        mode = stat.S_IMODE(files[0].stat().st_mode)
        if left_open and mode & OTHERS and files[0] not in _told_open:
            _told_open.add(files[0])
            log.warning("turn store %s is open to others (mode %o); chmod it to 600 unless that is meant", path, mode)


_told_open: set[Path] = set()


def _refuse_foreign(connection: sqlite3.Connection, path: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    owner = connection.execute("PRAGMA application_id").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if tables and owner != APPLICATION_ID:
        raise StoreError(f"turn store {path}: this is another program's SQLite database; give another file")
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"turn store {path}: it was written by a newer mixquant-agents (schema {version}, this one knows "
            f"{SCHEMA_VERSION}); upgrade mixquant-agents, or give another file"
        )


_FILL = {OUTCOMES_VERSION: fill_bad_rollups, QUESTIONS_VERSION: fill_questions}
"""What fills the tables of a version from what the store held before it."""


def _migrate(connection: sqlite3.Connection) -> None:
    """Apply the missing migrations, each wholly or not at all; safe when several processes open the file at once."""
    while True:
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version >= SCHEMA_VERSION:
                add_missing_columns(connection)
                add_missing_index(connection)
                connection.execute("COMMIT")
                return
            for statement in _statements(MIGRATIONS[version]):
                connection.execute(statement)
            if version + 1 in _FILL:
                _FILL[version + 1](connection)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {version + 1}")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise


def _statements(script: str) -> list[str]:
    """The script's statements one by one (``executescript`` would commit the open transaction)."""
    statements, current = [], ""
    for piece in script.split(";"):
        current += piece + ";"
        if sqlite3.complete_statement(current):
            if current.strip(" \n;"):
                statements.append(current)
            current = ""
    return statements


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open an existing store read-only: this connection cannot change the file.

    Raises:
        StoreError: no such file, not a store, newer or not yet migrated, unreadable.
    """
    with _explained(path), contextlib.ExitStack() as on_failure:
        _refuse_folder(path)
        if not path.is_file():
            raise StoreError(
                f"turn store {path}: no such file; run an agent with a recorder first, or give another file"
            )
        connection = _read_only(path)
        on_failure.callback(connection.close)
        connection.text_factory = _AS_TEXT
        _refuse_foreign(connection, path)
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version < SCHEMA_VERSION:
            raise StoreError(
                f"turn store {path}: it has the older schema {version}; record one turn into it with this version "
                f"(which brings it to {SCHEMA_VERSION}), or run 'mixquant dashboard --migrate'"
            )
        on_failure.pop_all()
    return connection


def _read_only(path: Path) -> sqlite3.Connection:
    uri = path.resolve().as_uri()
    for mode in ("mode=ro", "mode=ro&immutable=1"):
        connection = sqlite3.connect(
            f"{uri}?{mode}", uri=True, timeout=5, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA query_only = ON")
            connection.execute("PRAGMA cache_size = -65536")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError:
            # A WAL store in a folder that may not be written cannot make its shared-memory file: read it as it lies,
            # unless there is a log with turns that such a reading would miss.
            connection.close()
            if mode != "mode=ro" or Path(f"{path.resolve()}-wal").exists():
                raise
            continue
        return connection
    raise AssertionError  # pragma: no cover - the loop returns or raises
