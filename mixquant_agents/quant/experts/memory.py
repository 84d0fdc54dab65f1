"""Which layers of experts have twins: as many as fit, decided when the model is made and before weights are read.

Those that cost the most arithmetic for their size go first. Among equals the last layers do: what is quantized early
changes all that comes after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["ExpertsMemory", "Offer"]

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Offer:
    """A layer that would have a twin.

    Attributes:
        prefix: its full name.
        nbytes: of its twin.
        work: multiplications of a row.
    """

    prefix: str
    nbytes: int
    work: int


@dataclass(slots=True)
class ExpertsMemory:
    """The plan of one worker.

    Attributes:
        offers: of all layers of experts, in the model's order.
        room: bytes for their twins; ``None``: not decided, or all the same.
        exact: layers without a twin, for lack of room.
    """

    offers: list[Offer] = field(default_factory=list)
    room: int | None = None
    exact: frozenset[str] = frozenset()
    settled: bool = False

    def settle(self, room: int | None) -> frozenset[str]:
        """Decide, once; ``room`` in bytes, ``None`` for no limit. Returns the layers that stay exact."""
        self.room, self.settled = room, True
        if room is None:
            return self.exact
        order = sorted(enumerate(self.offers), key=lambda pair: (-pair[1].work / pair[1].nbytes, -pair[0]))
        exact = set()
        for _, offer in order:
            if offer.nbytes <= room:
                room -= offer.nbytes
            else:
                exact.add(offer.prefix)
        self.exact = frozenset(exact)
        return self.exact

    @property
    def needed(self) -> int:
        """Bytes of all twins that were offered."""
        return sum(offer.nbytes for offer in self.offers)

    @property
    def taken(self) -> int:
        """Bytes of the twins that there are."""
        return sum(offer.nbytes for offer in self.offers if offer.prefix not in self.exact)

    def describe(self) -> str:
        """One line for the log and for people; empty where all have twins."""
        if not self.exact:
            return ""
        routed = len(self.offers) - len(self.exact)
        room = 0.0 if self.room is None else self.room / GIB
        return (
            f"{routed} of {len(self.offers)} layers of experts have a quantized twin: {room:.1f} GiB are left for "
            f"them, and all need {self.needed / GIB:.1f} GiB; the others run exact"
        )

    def status(self) -> dict[str, Any]:
        """Plain JSON."""
        if not self.offers:
            return {}
        names = [offer.prefix for offer in self.offers]
        return {
            "expert_layers": {
                "quantized": [name for name in names if name not in self.exact],
                "exact": [name for name in names if name in self.exact],
                "room_bytes": self.room,
                "reason": self.describe() or None,
            }
        }
