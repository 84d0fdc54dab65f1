"""What a command prints: results on stdout, everything else on stderr.

The consoles read no markup and no emoji codes: what is printed holds paths, names and answers, and ``[gpu]`` or
``:key:`` in one of them is meant.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console

__all__ = ["print_json", "progress_console", "result_console"]


def print_json(result: Mapping[str, Any]) -> None:
    """One JSON object on stdout; the only thing there when ``--json`` is given."""
    sys.stdout.write(json.dumps(result, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def result_console() -> Console:
    """For tables and answers: stdout."""
    return Console(highlight=False, markup=False, emoji=False)


def progress_console() -> Console:
    """For progress and notes: stderr."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)
