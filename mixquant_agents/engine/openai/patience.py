"""How long a turn waits for its server, and when it is sent again.

A turn is sent again only where nothing of its answer was given out: no server was there, a server was busy, or the
connection broke before the first token. A server that says when to come back is believed.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from mixquant_agents.errors import RemoteEngineError

__all__ = ["Patience", "Waiting", "passing", "retry_after", "retry_wait"]

_LASTING = frozenset({501, 505, 511})
"""HTTP statuses of servers whose trouble does not pass: the method or its version is unknown, a login is missing."""
LONGEST_WAIT = 60.0
"""Seconds. A server that asks for a longer pause is not waited for: the error says how long it asked for."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds that a turn waits.

    Attributes:
        connect: for a connection.
        first_token: from the request until the first token.
        silence: after it, between two signs of the server.
    """

    connect: float
    first_token: float
    silence: float


class Waiting:
    """The patience of one request.

    Args:
        url: the server, for messages.

    Attributes:
        begun: something of the answer was given out, were it log probabilities alone: from then on only silence counts.
    """

    def __init__(self, patience: Patience, url: str) -> None:
        self._patience, self._url = patience, url
        self._deadline = asyncio.get_running_loop().time() + patience.first_token
        self.begun = False

    @asynccontextmanager
    async def sign(self) -> AsyncIterator[None]:
        """Wait for the next sign of the server.

        Raises:
            RemoteEngineError: it did not come in time.
        """
        now = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(now + self._patience.silence if self.begun else self._deadline) as clock:
                yield
        except TimeoutError:
            if not clock.expired():  # the connection's own
                raise
            raise self._error() from None

    def _error(self) -> RemoteEngineError:
        if self.begun:
            return RemoteEngineError(
                f"{self._url} fell silent for {self._patience.silence:g} seconds in the middle of the answer; look at "
                "it, or raise OpenAIEngine(silence_timeout=…)",
                status=408,
            )
        return RemoteEngineError(
            f"{self._url} did not answer in time: no token came within {self._patience.first_token:g} seconds; look at "
            "it, or raise OpenAIEngine(first_token_timeout=…)",
            status=408,
        )


def passing(status: int | None) -> bool:
    """Whether this HTTP status means trouble that may pass: a busy server, or a gateway that has lost it (520 to 529
    are Cloudflare's and Anthropic's)."""
    return status is not None and (status == 429 or 500 <= status < 600) and status not in _LASTING


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a ``Retry-After`` header, from 0 on; ``None`` without one that can be read.

    A date is measured against the server's own ``Date``: its clock need not be ours.
    """
    text = headers.get("retry-after")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        until, now = _date(text), _date(headers.get("date", "")) or datetime.now(UTC)
        if until is None:
            return None
        seconds = (until - now).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)


def retry_wait(error: RemoteEngineError, tries: int) -> float | None:
    """Seconds until the request is sent again after it failed ``tries`` times; ``None``: it is not."""
    if not error.retryable:
        return None
    if error.retry_after is not None:
        return error.retry_after if error.retry_after <= LONGEST_WAIT else None
    pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (tries - 1))
    return float(pause * random.uniform(0.75, 1.0))  # noqa: S311 - so that clients do not come back together
