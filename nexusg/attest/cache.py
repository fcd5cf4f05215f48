"""Keeps the handshake token of one backend, so that a reconnect need not fetch one.

PROTOCOL.md section 9.3. It must not know how tokens are obtained.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gevent.lock import Semaphore

from nexusg.attest.base import Stage, Token, number, unverified_claims
from nexusg.errors import TokenTimeout


if TYPE_CHECKING:
    from collections.abc import Callable

    from nexusg.attest.base import TokenProvider, TokenRequest


#: A kept token is not used in its last seconds: dialling, and the relay's clock, need some.
EXPIRY_MARGIN_S = 5.0


@dataclass(frozen=True, slots=True)
class _Kept:
    """A token, whom it is for, and the span of the wall clock in which it may be used."""

    token: Token
    request: TokenRequest
    since: float
    until: float


class HandshakeCache:
    """A TokenProvider that keeps the handshake tokens of another one for ``cache_s`` seconds.

    A known expiry and the handshake's maximum age (``max_age_s`` since iat, 0 for none) shorten
    that. Callers at the same time share one fetch. ``clock`` gives unix seconds.
    """

    def __init__(
        self,
        provider: TokenProvider,
        cache_s: float,
        max_age_s: float = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._provider = provider
        self._cache_s = cache_s
        self._max_age_s = max_age_s
        self._clock = clock
        self._fetching = Semaphore()
        self._kept: _Kept | None = None
        self._generation = 0

    def get_token(self, request: TokenRequest, timeout_s: float) -> Token:
        """See TokenProvider. Blocks; waiting for another caller's fetch counts as well."""
        if request.stage is not Stage.HANDSHAKE or self._cache_s <= 0:
            return self._provider.get_token(request, timeout_s)
        deadline = time.monotonic() + timeout_s
        if (token := self._usable(request)) is not None:
            return token
        if not self._fetching.acquire(timeout=max(timeout_s, 0)):
            raise _waited(timeout_s)
        try:
            if (token := self._usable(request)) is not None:
                return token
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                raise _waited(timeout_s)
            return self._fetch(request, remaining_s)
        finally:
            self._fetching.release()

    def invalidate(self) -> None:
        """Drop the token, also the one that is being fetched, and tell the provider."""
        self._kept = None
        self._generation += 1
        self._provider.invalidate()

    def _usable(self, request: TokenRequest) -> Token | None:
        kept = self._kept
        if kept is None or kept.request != request:
            return None
        # The lower bound: a clock that was set back must not prolong anything.
        return kept.token if kept.since <= self._clock() < kept.until else None

    def _fetch(self, request: TokenRequest, timeout_s: float) -> Token:
        generation, since = self._generation, self._clock()
        token = self._provider.get_token(request, timeout_s)
        if generation == self._generation:
            self._kept = _Kept(token, request, since, self._until(token, since))
        return token

    def _until(self, token: Token, since: float) -> float:
        """When the token, asked for at ``since``, may not be used any more."""
        claims = unverified_claims(token.value)
        limits = [since + self._cache_s]
        limits += [
            expiry - EXPIRY_MARGIN_S
            for expiry in (token.expires_at, number(claims, "exp"))
            if expiry is not None
        ]
        issued = number(claims, "iat")
        limits += [
            (since if issued is None else issued) + age - EXPIRY_MARGIN_S
            for age in (self._max_age_s, number(claims, "handshake_max_age_seconds") or 0)
            if age > 0
        ]
        return min(limits)


def _waited(timeout_s: float) -> TokenTimeout:
    return TokenTimeout(f"waited {timeout_s:g} s for the handshake token that is being fetched")
