"""Questions to a database: what they answer, and that no statement runs or grows without end."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mixquant_tools.errors import AccessDeniedError, LimitError, ToolError, ToolInputError, ToolSetupError
from mixquant_tools.sql import Database, sql_tools


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with closing(sqlite3.connect(tmp_path / "d.db")) as database:
        database.execute("CREATE TABLE big (x)")
        database.executemany("INSERT INTO big VALUES (?)", [(n,) for n in range(2_000)])
        database.commit()
    return tmp_path / "d.db"


def test_sql_limits_rows(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "d.db") as database:
        database.execute("CREATE TABLE t (a, b)")
        database.executemany("INSERT INTO t VALUES (?, ?)", [(n, None) for n in range(9)])
    text = Database(tmp_path / "d.db", max_rows=2).as_text("SELECT a, b FROM t ORDER BY a DESC")
    assert text.splitlines()[:3] == ["a | b", "8 | NULL", "7 | NULL"]
    assert "limit is 2" in text
    assert Database(tmp_path / "d.db").as_text("SELECT a FROM t WHERE a > 99").endswith("(no rows)")
    with pytest.raises(ToolSetupError, match="no database file"):
        Database(tmp_path / "none.db")


@pytest.mark.slow
def test_sql_on_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "no.db").write_bytes(b"not a database" * 100)
    with closing(sqlite3.connect(tmp_path / "busy.db", isolation_level=None)) as writer:
        writer.execute("CREATE TABLE t (a)")
        writer.execute("BEGIN EXCLUSIVE")
        for name, why in (("no.db", "not a database"), ("busy.db", "locked")):
            database = Database(tmp_path / name, seconds=2)
            with pytest.raises(ToolInputError, match=why):
                database.query("SELECT * FROM t")
            with pytest.raises(ToolInputError, match=why):
                database.schema()


def test_views_and_computed_columns_call_functions_but_none_that_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "d.db")) as database:
        database.executescript(
            """CREATE TABLE t (a TEXT, b TEXT GENERATED ALWAYS AS (replace(a, 'x', 'y')) VIRTUAL);
            INSERT INTO t (a) VALUES ('axb');
            CREATE VIEW fine AS SELECT instr(a, 'x') AS i, trim(a, 'a') AS c, json_group_array(a) AS j FROM t;
            CREATE VIEW loads AS SELECT load_extension('/tmp/evil.so') AS l FROM t;
            CREATE VIEW lists AS SELECT * FROM pragma_database_list;"""
        )
    database = Database(tmp_path / "d.db")
    assert database.query("SELECT b, i, c, j FROM t, fine")[1] == [("ayb", 2, "xb", '["axb"]')]
    for name in ("loads", "lists"):
        with pytest.raises(ToolError):
            database.query(f"SELECT * FROM {name}")  # noqa: S608 # constants


def test_values_of_every_kind_come_back(path: Path) -> None:
    names, rows, more = Database(path).query(
        "SELECT 1, -9223372036854775808, 0.1, 9e999, NULL, 'a\u00e9\U0001f410', x'00ff', '', char(10) AS \"n\u00e4me\""
    )
    assert rows == [(1, -(2**63), 0.1, float("inf"), None, "aé🐐", b"\x00\xff", "", "\n")]
    assert names[-1] == "näme"
    assert not more
    shown = Database(path, max_cell=3).as_text("SELECT zeroblob(5) AS b, 'abcdef' AS t")
    assert shown == "b | t\n<5 bytes> | abc…"


def test_schema_with_a_huge_statement_is_shown(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        columns = ", ".join(f'"{"w" * 300}{number}"' for number in range(1_900))
        database.execute(f"CREATE TABLE wide ({columns})")
    schema = Database(path).schema()
    assert schema.startswith("CREATE TABLE big (x);\nCREATE TABLE wide (")
    assert len(schema) < 250_000


def test_a_database_in_wal_mode_is_read_while_it_is_written(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "w.db", isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode=WAL")
        writer.execute("CREATE TABLE t (a)")
        database = Database(tmp_path / "w.db")
        writer.execute("INSERT INTO t VALUES (1)")
        assert database.query("SELECT a FROM t")[1] == [(1,)]
        writer.execute("INSERT INTO t VALUES (2)")
        assert database.query("SELECT count(*) FROM t")[1] == [(2,)]


def doubling(levels: int, union: bool = False) -> str:
    """Common table expressions, each of which names the one before twice."""
    step = "SELECT * FROM c{0} UNION ALL SELECT * FROM c{0}" if union else "SELECT a.x FROM c{0} a, c{0} b"
    tables = ", ".join(f"c{n + 1}(x) AS (" + step.format(n) + ")" for n in range(levels))
    return f"WITH c0(x) AS (SELECT 1), {tables} SELECT count(*) FROM c{levels}"  # noqa: S608 # constants


ZEROS = "hex(zeroblob(90000))"
HOSTILE = {
    "doubling at 18 levels": doubling(18),
    "doubling at 25 levels": doubling(25),
    "doubling at 60 levels": doubling(60),
    "unions that double": doubling(20, union=True),
    "printf with a count": "SELECT printf('%.*c', 2147483647, 'x')",
    "printf in columns": "SELECT " + ", ".join(f"printf('%.*c', 2147483{n}, 'x')" for n in range(100, 340)),
    "format with commas": "SELECT sum(length(format('%,.*f', 99999, a.x + b.x))) FROM big a, big b",
    "instr in a loop": "SELECT sum(instr(ZEROS || x, hex(zeroblob(45000)) || 'b')) FROM big",
    "trim with many marks": "SELECT trim(ZEROS, replace(hex(zeroblob(45000)), '0', 'b') || '0') FROM big",
    "replace": "SELECT length(replace(ZEROS, '0', hex(zeroblob(1000))))",
    "quote of a blob": "SELECT quote(zeroblob(190000)) || quote(zeroblob(190000))",
    "group_concat": "SELECT length(group_concat(hex(randomblob(1000)))) FROM big a, big b",
    "json_group_array": "SELECT json_group_array(ZEROS) FROM big a, big b",
    "json_patch": """SELECT count(json_patch('{"a":1' || a.x || b.x || '}', '{}')) FROM big a, big b, big c""",
    "LIKE": "SELECT sum(ZEROS || a.x || b.x LIKE '%0%0%0%0%0%1x') FROM big a, big b",
    "GLOB": "SELECT sum(ZEROS || a.x || b.x GLOB '*0*0*0*0*0*1x') FROM big a, big b",
    "recursion": "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c",
    "kept recursion": "WITH RECURSIVE c(x, n) AS (SELECT ZEROS, 1 UNION SELECT x, n + 1 FROM c) SELECT max(n) FROM c",
    "join of 64 tables": "SELECT count(*) FROM " + ", ".join(f"big t{n}" for n in range(64)),  # noqa: S608 # constants
    "sorted blobs": "SELECT zeroblob(190000) b FROM big a, big c ORDER BY random()",
    "distinct texts": "SELECT count(DISTINCT hex(randomblob(90000))) FROM big a, big b",
    "a window": "SELECT sum(x) OVER (ORDER BY x) FROM (SELECT a.x FROM big a, big b)",
    "dates": "SELECT count(strftime('%J%J%J%J', a.x)) FROM big a, big b, big c",
}


@pytest.mark.slow
@pytest.mark.parametrize("statement", HOSTILE.values(), ids=HOSTILE.keys())
def test_statement_that_runs_or_grows_is_stopped(path: Path, statement: str) -> None:
    database = Database(path, seconds=0.5, memory_bytes=64 * 2**20)
    database.schema()  # the process has started
    began = time.monotonic()
    with pytest.raises(LimitError):
        database.query(statement.replace("ZEROS", ZEROS))
    assert time.monotonic() - began < 20  # unlimited they would run for hours
    assert database.query("SELECT count(*) FROM big")[1] == [(2_000,)], "the next statement is answered"


WIDE = {
    "blobs in columns": ("cast(y AS blob)", 240, ZEROS),
    "zeroblob in columns": ("zeroblob(190000)", 240, "1"),
    "texts in columns": ("y", 240, ZEROS),
    "controls in texts": ("y", 100, "replace(hex(zeroblob(9000)), '0', char(1))"),
    "rows": ("y", 1, ZEROS),
}


@pytest.mark.parametrize(("column", "count", "y"), WIDE.values(), ids=WIDE.keys())
def test_answer_is_bounded_in_bytes_and_memory(path: Path, column: str, count: int, y: str) -> None:
    statement = f"SELECT {', '.join([column] * count)} FROM (SELECT {y} y FROM big a, big b)"  # noqa: S608 # constants
    database = Database(path, seconds=20, max_rows=10_000, max_bytes=2**20)
    try:
        _, rows, more = database.query(statement)
    except LimitError as error:
        assert "one row has more than 1048576 bytes" in str(error)  # noqa: PT017 # either is a right answer
    else:
        assert more
        assert sum(len(cell) for row in rows for cell in row) <= 2**20
        assert "too large" in database.as_text(statement).splitlines()[-1]
    (worker,) = database._idle
    status = Path(f"/proc/{worker._process.pid}/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    assert peak < 300_000, "kB"


def test_memory_of_a_statement_is_bounded(path: Path) -> None:
    database = Database(path, seconds=30, memory_bytes=16 * 2**20)
    with pytest.raises(LimitError, match="memory"):
        database.query("SELECT hex(randomblob(90000)) t FROM big ORDER BY t")
    assert Database(path, seconds=30).query("SELECT x FROM big ORDER BY -x LIMIT 1")[1] == [(1_999,)]


async def test_event_loop_goes_on_while_a_statement_runs(path: Path) -> None:
    query = sql_tools(Database(path, seconds=0.5))[1]
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    call = {"type": "tool_call", "id": "1", "name": "query_database", "args": {"sql": doubling(25)}}
    message = await query.ainvoke(call)
    ticking.cancel()
    assert message.status == "error"
    assert "longer than 0.5 s" in message.content or "memory" in message.content
    assert ticks >= 5


def test_threads_share_a_database(path: Path) -> None:
    database = Database(path, seconds=10)
    answers: list[object] = []

    def ask(number: int) -> None:
        for _ in range(20):
            answers.append(database.query(f"SELECT {number}")[1] == [(number,)])  # noqa: PERF401 # seen as they come

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 160
    assert 1 <= len(database._idle) <= 4


def test_database_that_is_closed_or_whose_process_was_killed_starts_another(path: Path) -> None:
    database = Database(path)
    assert database.query("SELECT 1")[1] == [(1,)]
    (worker,) = database._idle
    os.kill(worker._process.pid, 9)
    worker._process.wait()
    assert database.query("SELECT 2")[1] == [(2,)]
    (worker,) = database._idle
    database.close()
    database.close()
    assert worker._process.returncode is not None
    assert database.query("SELECT 3")[1] == [(3,)]


def test_process_ends_with_its_database(path: Path) -> None:
    database = Database(path)
    database.query("SELECT 1")
    process = database._idle[0]._process
    del database
    assert process.returncode is not None


def _ask_after_fork(database: Database) -> None:
    assert database.query("SELECT 1")[1] == [(1,)]
    os._exit(0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_forked_process_does_not_share_the_pipe(path: Path) -> None:
    database = Database(path)
    database.query("SELECT 1")
    child = multiprocessing.get_context("fork").Process(target=_ask_after_fork, args=(database,))
    child.start()
    child.join(20)
    assert child.exitcode == 0
    assert database.query("SELECT 2")[1] == [(2,)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement", ["", "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x FROM c) SELECT x + 1 FROM c"]
)
def test_process_ends_when_its_parent_is_killed(path: Path, tmp_path: Path, statement: str) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "from mixquant_tools.sql import Database\n"
        f"database = Database({str(path)!r}, seconds=2, max_rows=10**9, max_bytes=10**9)\n"
        "database.query('SELECT 1')\n"
        "print(database._idle[0]._process.pid, flush=True)\n"
        f"database.query({statement!r}) if {statement!r} else __import__('time').sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE)  # noqa: S603 # our own script
    assert parent.stdout is not None
    child = Path(f"/proc/{int(parent.stdout.readline())}")
    parent.kill()
    parent.wait()
    parent.stdout.close()
    end = time.monotonic() + 10
    while child.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not child.exists()


@pytest.fixture
def alarms_ignored() -> Iterator[None]:
    import signal

    before = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGALRM, before)


def test_program_that_ignores_alarms_is_stopped_all_the_same(path: Path, alarms_ignored: None) -> None:
    with pytest.raises(LimitError, match=r"longer than 0\.2 s"):
        Database(path, seconds=0.2).query(HOSTILE["recursion"])


def test_statement_of_any_text_is_refused_in_words(path: Path) -> None:
    database = Database(path)
    for sql in ("\ud800", "SELECT '\x00'", "SELECT 1\nFROM nothing", "\n", "SELECT '\udfff'", "x" * 20_000):
        with pytest.raises(ToolError):
            database.query(sql)
    with pytest.raises(AccessDeniedError, match="only reading"):
        database.query("")
