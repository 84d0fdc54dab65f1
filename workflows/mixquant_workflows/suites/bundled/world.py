"""The small world of the bundled-tools suite: files, a database, documents, notes and a clock that stands still."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from pathlib import Path

from langchain_core.tools import BaseTool

from mixquant_tools.calculator import calculator_tool
from mixquant_tools.clock import time_tools, unit_tool
from mixquant_tools.file_tools import file_tools
from mixquant_tools.files import Folder
from mixquant_tools.retrieval import Document, DocumentIndex, NoteBook, note_tools, read_tool, search_tool
from mixquant_tools.sql import Database, sql_tools

__all__ = ["DOCUMENTS", "FILES", "NOW", "build_world"]

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

FILES = {
    "todo.txt": "call the plumber\nbuy oat milk\npay the water bill\n",
    "inventory.csv": "item,quantity,price\nhammer,14,19\nsaw,6,27\nnails,340,2\nladder,3,85\n",
    "team/contacts.txt": "Ana Ruiz, 555-0142\nBen Okoro, 555-0178\nMei Tanaka, 555-0119\n",
    "recipes/pancakes.md": "# Pancakes\nFlour: 250 g\nMilk: 500 ml\nEggs: 4\nServes 8\n",
    "logs/server.log": (
        "09:00 started\n09:14 WARNING disk 81 percent\n10:02 ERROR lost database\n10:05 database back\n11:30 stopped\n"
    ),
    "budget.txt": "rent 1200\nfood 430\ntrain 95\n",
}

EMPLOYEES = [
    (1, "Ana", "sales", 4100, "Lima"),
    (2, "Ben", "sales", 3900, "Lagos"),
    (3, "Mei", "design", 4600, "Kobe"),
    (4, "Tom", "design", 4400, "Leeds"),
    (5, "Eva", "support", 3300, "Graz"),
    (6, "Raj", "support", 3500, "Pune"),
    (7, "Liv", "design", 5200, "Oslo"),
]
ORDERS = [
    (1, "Ana", "lamp", 3, 40),
    (2, "Ben", "desk", 1, 320),
    (3, "Ana", "chair", 4, 75),
    (4, "Zoe", "lamp", 2, 40),
    (5, "Ben", "shelf", 2, 110),
]

DOCUMENTS = [
    Document(
        "vacation.md", "# Vacation\nEvery employee has 27 days of vacation a year. Unused days expire in April.\n"
    ),
    Document("travel.md", "# Travel\nTrain tickets are booked second class. The daily food allowance is 38 euros.\n"),
    Document("office.md", "# Office\nThe office in Graz has 14 desks. The door code is changed on the first Monday.\n"),
    Document("printer.md", "# Printer\nThe printer on floor 2 needs toner model TX-450. Ask Raj for a new one.\n"),
    Document("garden.md", "# Garden\nTomatoes are watered every 2 days. The greenhouse is kept at 22 degrees.\n"),
    Document("ferry.md", "# Ferry\nThe ferry to Hven leaves at 7:45 from pier 3. A crossing takes 30 minutes.\n"),
    Document("library.md", "# Library\nBooks may be kept for 21 days. A late book costs 2 euros a week.\n"),
    Document("bakery.md", "# Bakery\nThe bakery opens at 6:30. Its rye bread weighs 750 grams and costs 5 euros.\n"),
    Document("observatory.md", "# Observatory\nThe telescope has a mirror of 180 centimetres and was built in 1974.\n"),
    Document(
        "museum.md", "# Museum\nThe museum is closed on Tuesdays. A ticket costs 12 euros, for students 7 euros.\n"
    ),
]


def build_world(folder: Path) -> dict[str, BaseTool]:
    """Make the world in an empty ``folder``; returns every tool by name. The files lie in ``folder / "files"``."""
    for path, text in FILES.items():
        target = folder / "files" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    with sqlite3.connect(folder / "company.db") as database:
        database.execute("CREATE TABLE employees (id INTEGER, name TEXT, department TEXT, salary INTEGER, city TEXT)")
        database.execute(
            "CREATE TABLE orders (id INTEGER, customer TEXT, product TEXT, quantity INTEGER, price INTEGER)"
        )
        database.executemany("INSERT INTO employees VALUES (?, ?, ?, ?, ?)", EMPLOYEES)
        database.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?)", ORDERS)
    database.close()
    index = DocumentIndex(DOCUMENTS)
    tools = [
        calculator_tool(),
        unit_tool(),
        *time_tools(lambda: NOW),
        *file_tools(Folder(folder / "files")),
        *sql_tools(Database(folder / "company.db")),
        search_tool(index, max_chars=1_500),
        read_tool(index),
        *note_tools(NoteBook()),
    ]
    return {tool.name: tool for tool in tools}
