"""Turns in one SQLite file: one process or several write, any number read.

Reading order, along the way of a turn: :mod:`recorder` (the recorder that most programs want) → :mod:`writer` (events
to rows, one transaction a batch) with :mod:`linker` (which run, which tools), :mod:`prefix_cache` (hashes of the
prompt), :mod:`content` and :mod:`sanitize` → :mod:`schema` and :mod:`rows` (tables, and turns as their rows) →
:mod:`rollups` with :mod:`aggregate` (sums per minute to day) → :mod:`connection`, :mod:`fsync`, :mod:`retention` (the
file) → :mod:`reader` with :mod:`filters` and :mod:`models` (what is asked, and what comes back).
"""

from __future__ import annotations

from mixquant_agents.telemetry.store.connection import default_store_path
from mixquant_agents.telemetry.store.filters import TurnFilter
from mixquant_agents.telemetry.store.models import Series, StoredSpan, ThreadSummary
from mixquant_agents.telemetry.store.reader import TurnStore
from mixquant_agents.telemetry.store.rows import StoredTurn

__all__ = [
    "Series",
    "StoredSpan",
    "StoredTurn",
    "ThreadSummary",
    "TurnFilter",
    "TurnStore",
    "default_store_path",
]
