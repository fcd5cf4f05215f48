"""Token buckets before the endpoints, with namek's defaults (TPM.md A.6)."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from nexusg.relay.authorizer.refusal import Refusal


if TYPE_CHECKING:
    from collections.abc import Callable

RETRY_AFTER_MAX_S = 60


@dataclasses.dataclass(frozen=True, slots=True)
class Rate:
    """So many requests a second in the long run, and so many at once."""

    per_s: float
    burst: int


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """The rates of all clients together, of one address, and of one device."""

    enrollment: Rate = Rate(10, 20)
    enrollment_each: Rate = Rate(2, 5)
    nonce: Rate = Rate(200, 400)
    nonce_each: Rate = Rate(50, 100)
    device_write: Rate = Rate(1, 10)
    device_read: Rate = Rate(2, 20)


class Limiter:
    """``clock`` in seconds; while it stands still no bucket fills."""

    def __init__(self, limits: Limits | None, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock
        self._buckets: dict[tuple[str, str], tuple[float, float]] = {}  # tokens, as of when

    def public(self, kind: str, address: str) -> None:
        """Count a request for ``enrollment`` or ``nonce`` from ``address``. Raises Refusal."""
        self._take(f"{kind}_each", address)
        self._take(kind, "")

    def device(self, kind: str, device_id: str) -> None:
        """Count a ``device_read`` or ``device_write``. Raises Refusal."""
        self._take(kind, device_id)

    def _take(self, kind: str, key: str) -> None:
        if self._limits is None:
            return
        rate: Rate = getattr(self._limits, kind)
        now = self._clock()
        tokens, since = self._buckets.get((kind, key), (rate.burst, now))
        tokens = min(tokens + (now - since) * rate.per_s, rate.burst)
        granted = tokens >= 1
        self._buckets[kind, key] = (tokens - granted, now)
        if not granted:
            wait_s = math.ceil((1 - tokens) / rate.per_s)
            raise Refusal(429, "rate limit exceeded", retry_after_s=min(wait_s, RETRY_AFTER_MAX_S))
