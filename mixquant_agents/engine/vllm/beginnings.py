"""Which static beginnings are worth reading exact: those that other conversations share. Pure.

A static beginning is read exact once and lent from the prefix cache ever after (see
:mod:`mixquant_agents.precision.static_prefix`). Where each prompt brings tools of its own, nobody comes to borrow, and
every prompt would be read at exact's speed for the most part. So an engine begins by reading them exact. Once several
in a row have been seen in one conversation alone, it reads a new one quantized until a second conversation shows it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

__all__ = ["PATIENCE", "SharedBeginnings"]

PATIENCE = 8
"""So many beginnings in a row that nobody shared are read exact before the next has to be seen twice."""

_MEMORY = 4096


class SharedBeginnings:
    """What one engine has seen of static beginnings, the least recently seen forgotten first."""

    def __init__(self) -> None:
        self._exact: OrderedDict[Hashable, bool] = OrderedDict()
        self._alone = 0

    def exact(self, beginning: Hashable, *, opens: bool) -> bool:
        """Whether to read it exact; what was once read so stays so.

        Args:
            beginning: its identity.
            opens: a conversation begins with it. A later turn of one says nothing about others.
        """
        known = beginning in self._exact
        if opens and known:
            self._alone = 0
            self._exact[beginning] = True
        elif not known:
            self._alone += 1
            self._exact[beginning] = self._alone <= PATIENCE
            while len(self._exact) > _MEMORY:
                self._exact.popitem(last=False)
        self._exact.move_to_end(beginning)
        return self._exact[beginning]

    def will_be_shared(self, beginning: Hashable) -> None:
        """Somebody read it ahead: it is exact from now on."""
        self._exact[beginning] = True
        self._exact.move_to_end(beginning)
