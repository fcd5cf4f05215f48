"""The nonces that quotes are made for: each good for a minute, and for one request."""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING

from nexusg.relay.authorizer.refusal import Refusal


if TYPE_CHECKING:
    from collections.abc import Callable

SIZE_BYTES = 32
TTL_S = 60.0
CAPACITY = 500_000


class Nonces:
    """``clock`` gives unix seconds."""

    def __init__(self, clock: Callable[[], float], capacity: int = CAPACITY) -> None:
        self._clock = clock
        self._capacity = capacity
        self._expiry: dict[str, float] = {}  # the oldest first

    def issue(self) -> tuple[str, float]:
        """A new nonce and when it expires (unix seconds). Raises Refusal."""
        self._sweep()
        if len(self._expiry) >= self._capacity:
            raise Refusal(503, "nonce store at capacity")
        nonce = base64.urlsafe_b64encode(os.urandom(SIZE_BYTES)).rstrip(b"=").decode()
        expires_at = self._expiry[nonce] = self._clock() + TTL_S
        return nonce, expires_at

    def consume(self, nonce: str) -> None:
        """Take it out of circulation. Raises Refusal when it is not one, or no longer."""
        expires_at = self._expiry.pop(nonce, None)
        if expires_at is None or self._clock() > expires_at:
            raise Refusal(401, "invalid or expired nonce")

    def forget(self) -> None:
        """None of those issued counts any more."""
        self._expiry.clear()

    def _sweep(self) -> None:
        now = self._clock()
        for nonce, expires_at in list(self._expiry.items()):
            if expires_at >= now:
                break
            del self._expiry[nonce]


def raw(nonce: str) -> bytes:
    """The bytes that a quote must contain. Only for a nonce that has been consumed."""
    return base64.urlsafe_b64decode(nonce + "=")
