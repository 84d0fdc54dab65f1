"""The turns of a command, kept in the turn store, so that the dashboard shows what was just run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mixquant_agents.cli.output import own_command
from mixquant_agents.errors import StoreError

if TYPE_CHECKING:
    from rich.console import Console

    from mixquant_agents.telemetry import StoreRecorder

__all__ = ["next_step", "recorded_turns"]


@contextmanager
def recorded_turns(
    store: Path | None, notes: Console, *, record: bool = True, content: bool = False
) -> Iterator[StoreRecorder | None]:
    """A recorder for the turns of a command, closed at the end; ``None`` where nothing is recorded.

    A store that a caller did not name and that cannot be used costs the command nothing: a note says why.

    Args:
        store: the file; ``None`` is the user's own.
        content: keep messages, tool arguments and results, too.

    Raises:
        StoreError: a named store cannot be used.
    """
    if not record:
        yield None
        return
    from mixquant_agents.telemetry import StoreRecorder

    recorder = StoreRecorder(store, content=content)
    try:
        recorder.check()
    except StoreError as error:
        recorder.close()
        if store is not None:
            raise
        notes.print(f"nothing is recorded: {error}", style="yellow", soft_wrap=True)
        yield None
        return
    try:
        yield recorder
    finally:
        recorder.close()


def next_step(notes: Console, recorder: StoreRecorder | None, store: Path | None) -> None:
    """Say where the turns are and what shows them. Call it when the recorder is closed."""
    if recorder is None:
        return
    if recorder.dropped:
        notes.print(f"{recorder.dropped} turns could not be recorded: {recorder.problem}", style="yellow")
        return
    named = "" if store is None else f" --store {store}"
    notes.print(f"\nRecorded in {recorder.path}. See where the time went:", style="dim", soft_wrap=True)
    notes.print(f"  {own_command()} dashboard --open{named}", soft_wrap=True)
