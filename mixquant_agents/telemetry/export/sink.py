"""What the exporting sinks have in common: they take events one by one, and an odd one stops no other."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from mixquant_agents.telemetry.events import Event

__all__ = ["ExportSink", "clean_text"]

log = logging.getLogger(__name__)


class ExportSink(ABC):
    """A sink that hands each event to a library. An event that the library refuses is left out and counted."""

    _lost = 0

    @abstractmethod
    def take(self, event: Event) -> None:
        """Export one event; may raise."""

    def write(self, batch: Sequence[Event]) -> None:
        """Export a batch."""
        for event in batch:
            try:
                self.take(event)
            except BaseException:  # also what an object's own ``__str__`` raises
                self._lost += 1
                if self._lost == 1:  # logged once
                    log.warning("telemetry: %s left an event out", type(self).__name__, exc_info=True)

    def retry_seconds(self) -> float | None:
        """What could not be exported is not tried again here."""
        return None

    def lost(self) -> int:
        """Events that could not be exported."""
        return self._lost

    @abstractmethod
    def close(self) -> None:
        """Release what is held."""


def clean_text(value: Any) -> Any:
    """``value`` with lone surrogates written out, which no wire format takes; other than text is left as it is."""
    if type(value) is str and not value.isascii():
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list):
        return [clean_text(item) for item in value]
    return value
