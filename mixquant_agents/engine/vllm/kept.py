"""Prefixes that somebody will come back for: held in the prefix cache while an agent's tool runs.

vLLM forgets the blocks that were used least recently, whoever needs them again. It has no way to pin them; but whoever
asks for a prefix makes its blocks the most recent. So a held prefix is asked for again (a request of one token, whose
prompt is found in the cache) whenever others have used so much of the cache that its blocks would soon be the oldest.
An idle engine is asked for nothing.

Pure bookkeeping: no clock of its own, no engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from mixquant_agents.precision.static_prefix import BlockKeys

__all__ = ["KeptPrefix", "KeptPrefixes", "Pieces", "Reuse"]

_READ_AHEAD = 32
"""Prefetched beginnings that are remembered, to say later what they were good for."""

REFRESH_SHARE = 0.5
"""A held prefix is asked for again when others have used this share of the blocks that were free."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """In which pieces a growing prompt is read while turns run. Each piece costs whoever writes a longer step, so there
    are few of them, however long the prompt gets.

    Attributes:
        tokens: of a piece at least.
        share: of what has been read, a piece at least.
    """

    tokens: int = 3600
    share: float = 0.25

    def worth_reading(self, read: int, length: int) -> bool:
        """Whether a prompt of which ``length`` tokens are known and ``read`` were read is read on now."""
        return length - read >= max(self.tokens, self.share * read)


@dataclass(slots=True, eq=False)
class KeptPrefix:
    """One held prefix.

    Attributes:
        thread: whose it is.
        token_ids: its tokens.
        keys: what tells its blocks from others'.
        until: when nobody needs it any more, seconds of the caller's clock.
        used_since: tokens that others have put into the cache since it was last asked for.
        refreshing: it is being asked for.
    """

    thread: str
    token_ids: Sequence[int]
    keys: BlockKeys
    until: float
    used_since: int = 0
    refreshing: bool = False


@dataclass(frozen=True, slots=True)
class Reuse:
    """What was done beforehand for a prompt: tokens at its beginning that were held, and that were read ahead."""

    held: int = 0
    read_ahead: tuple[int, int] | None = None
    """From which token to which."""


@dataclass(slots=True)
class KeptPrefixes:
    """All held prefixes of one engine.

    Attributes:
        capacity: tokens that the KV cache holds; ``None`` where that is not known: then nothing is asked for again.
        warmed: tokens that were read ahead.
        evicted: held prefixes that were gone all the same when they were asked for.
        hits: turns that found their held prefix.
    """

    capacity: int | None = None
    warmed: int = 0
    evicted: int = 0
    hits: int = 0
    _held: dict[str, list[KeptPrefix]] = field(default_factory=dict)
    _ahead: deque[tuple[int, Sequence[int], str]] = field(default_factory=lambda: deque(maxlen=_READ_AHEAD))
    _reading: list[tuple[Sequence[int], str]] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(map(len, self._held.values()))

    @property
    def tokens(self) -> int:
        """Tokens of all held prefixes."""
        return sum(len(prefix.token_ids) for prefixes in self._held.values() for prefix in prefixes)

    def hold(self, prefix: KeptPrefix, limit: int | None = None) -> bool:
        """Hold a prefix; it takes the place of what it goes on from, which stays where there is no room for more.

        Args:
            limit: most tokens; of a longer one its beginning is held.

        Returns:
            Whether it is held: all held prefixes together may take half of the cache.
        """
        if limit is not None:
            prefix.token_ids = prefix.token_ids[:limit]
        before = self._held.get(prefix.thread, [])
        remaining = [other for other in before if not _begins(prefix.token_ids, other.token_ids)]
        replaced = sum(len(other.token_ids) for other in before) - sum(len(other.token_ids) for other in remaining)
        if self.capacity is not None and self.tokens - replaced + len(prefix.token_ids) > self.capacity // 2:
            return False
        self._held[prefix.thread] = [*remaining, prefix]
        return True

    def release(self, thread: str) -> int:
        """Hold nothing of a thread any more; returns how many prefixes it had."""
        return len(self._held.pop(thread, ()))

    def drop(self, prefix: KeptPrefix) -> None:
        """Hold this one no more."""
        held = self._held.get(prefix.thread, [])
        if prefix in held:
            held.remove(prefix)
        if not held:
            self._held.pop(prefix.thread, None)

    def take(self, thread: str | None, token_ids: Sequence[int], salt: str) -> Reuse:
        """The turn that a prefix was held or read ahead for has come.

        Args:
            salt: the turn's, of :class:`BlockKeys`: under another one the same tokens are other blocks.
        """
        held = 0
        for prefix in list(self._held.get(thread, ())) if thread is not None else ():
            if prefix.keys.salt == salt and _begins(token_ids, prefix.token_ids):
                held = max(held, len(prefix.token_ids))
                self.drop(prefix)
        ahead = None
        for entry in list(self._ahead):
            begin, ids, of_salt = entry
            if of_salt == salt and _begins(token_ids, ids):
                ahead = (min(begin, ahead[0]) if ahead else begin, max(len(ids), ahead[1]) if ahead else len(ids))
                self._ahead.remove(entry)
        return Reuse(held, ahead)

    def found(self, reuse: Reuse, cached: int, block: int) -> None:
        """Of a turn's prompt ``cached`` tokens were found: all that was held for it, or not."""
        if reuse.held and cached + block >= reuse.held:
            self.hits += 1

    def read_ahead(self, token_ids: Sequence[int], cached: int, salt: str) -> None:
        """These tokens are in the cache now, under ``salt``; ``cached`` of them were there before."""
        self.warmed += len(token_ids) - cached
        if len(token_ids) > cached:
            self._ahead.append((cached, tuple(token_ids), salt))

    @contextmanager
    def reading(self, token_ids: Sequence[int], salt: str) -> Iterator[None]:
        """These tokens are being read while the body runs."""
        entry = (token_ids, salt)
        self._reading.append(entry)
        try:
            yield
        finally:
            self._reading.remove(entry)

    def read_length(self, token_ids: Sequence[int], salt: str) -> int:
        """How many tokens at the beginning were read ahead for a turn that has not come yet, or are being read."""
        begun = [*self._reading, *((ids, of_salt) for _, ids, of_salt in self._ahead)]
        return max((len(ids) for ids, of_salt in begun if of_salt == salt and _begins(token_ids, ids)), default=0)

    def used(self, tokens: int, usage: float, now: float) -> list[KeptPrefix]:
        """Note that a turn put ``tokens`` into the cache; the prefixes that must be asked for again.

        Args:
            usage: share (0..1) of the cache that running turns hold.
            now: seconds of the caller's clock; prefixes whose time is over are let go.
        """
        for prefix in [prefix for held in self._held.values() for prefix in held if prefix.until <= now]:
            self.drop(prefix)
        if self.capacity is None:
            return []
        free = self.capacity * max(0.0, 1.0 - usage)
        due = []
        for prefix in (prefix for held in self._held.values() for prefix in held):
            prefix.used_since += tokens
            if not prefix.refreshing and prefix.used_since >= REFRESH_SHARE * free:
                prefix.refreshing, prefix.used_since = True, 0
                due.append(prefix)
        return due

    def refreshed(self, prefix: KeptPrefix, cached: int, block: int) -> None:
        """A held prefix was asked for and ``cached`` of its tokens were found. What was not is read anew by then; a
        cache that cannot hold it is not asked again."""
        prefix.refreshing = False
        if cached + 2 * block < len(prefix.token_ids):
            self.evicted += 1
            self.drop(prefix)

    def forget(self) -> None:
        """The cache has been emptied."""
        self._held.clear()
        self._ahead.clear()


def _begins(token_ids: Sequence[int], prefix: Sequence[int]) -> bool:
    """Whether ``token_ids`` begin with ``prefix``."""
    length = len(prefix)
    if len(token_ids) < length or (length and token_ids[length - 1] != prefix[-1]):  # the same length rarely ends alike
        return False
    return list(token_ids[:length]) == list(prefix)
