"""How long to wait before the next session (PROTOCOL.md section 8.3).

It opens nothing and waits for nothing: clock and randomness come from outside. What an error means
is its ``retry``; its text is never looked at.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from nexusg.errors import Retry


if TYPE_CHECKING:
    from collections.abc import Callable

#: Failures and short sessions: anything between FLOOR_S and a limit that doubles from 1 s to 60 s.
BACKOFF_FIRST_S, BACKOFF_MAX_S = 1.0, 60.0
# Full jitter may come out as nothing at all, and "not at once" is what a back-off means.
FLOOR_S = 0.5
#: Rejections: the credentials will hardly be better in a minute, and the relay logs each of them.
REJECTED_FIRST_S, REJECTED_MAX_S = 5.0, 300.0
#: No token: the agent's own provider may need a moment only.
TOKEN_FIRST_S = 2.0
#: The authorizer has suspended or revoked this device.
BARRED_S = 900.0
#: HTTP 429 without Retry-After.
RATE_LIMITED_S = 60.0
#: A session of this length was a good one.
HEALTHY_S = 60.0
#: Agents that lose a good session together come back within this time.
HERD_S = 1.0
#: Delays that grow take this part more at most. Below 1, so the next one is never shorter.
JITTER = 0.25
#: A network change ends a wait; the next may end one after 1 s, 2 s, 4 s … 60 s.
WAKE_FIRST_S, WAKE_MAX_S = 1.0, 60.0

# What a change of the network is no reason to try again after.
_NOT_CURED = (Retry.REJECTED, Retry.RATE_LIMITED, Retry.BARRED)


class ReconnectPolicy:
    """The delays of one session slot. ``rng`` gives numbers in [0, 1), ``clock`` monotonic seconds.

    Each kind of failure has a counter of its own. A counter is reset by what proves its kind wrong:
    that of rejections by an accepted session, that of missing tokens by anything that needed one,
    that of failures and short sessions only by a session of HEALTHY_S.
    """

    def __init__(
        self, rng: Callable[[], float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.attempts = 0  #: failed in a row, for whatever reason, since the last accepted session
        self.rejections = 0  #: in a row; other failures do not interrupt the row
        self._rng = rng
        self._clock = clock
        self._failures = 0
        self._missing_tokens = 0
        self._last = Retry.BACKOFF
        self._wakes = 0
        self._wake_from = -float("inf")

    def delay_s(self, error: Exception, accepted_s: float | None = None) -> float:
        """Count ``error``, and return how long to wait.

        ``accepted_s`` is for how long the relay had accepted the session, None if it never did.
        An error without a ``retry`` is a failure like any other.
        """
        if accepted_s is not None:
            self.attempts = self.rejections = self._missing_tokens = 0
            if accepted_s >= HEALTHY_S:
                self._failures = self._wakes = 0
        retry = self._last = getattr(error, "retry", Retry.BACKOFF)
        self.attempts += 1
        if retry is Retry.TOKEN:
            self._missing_tokens += 1
            return self._growing(TOKEN_FIRST_S, self._missing_tokens)
        if retry is Retry.BARRED:
            return BARRED_S * (1 + JITTER * self._rng())
        self._missing_tokens = 0
        if retry is Retry.REJECTED:
            self.rejections += 1
            return self._growing(REJECTED_FIRST_S, self.rejections)
        if retry is Retry.LOST and accepted_s is not None and accepted_s >= HEALTHY_S:
            return HERD_S * self._rng()
        self._failures += 1
        limit_s = _doubled(BACKOFF_FIRST_S, self._failures, BACKOFF_MAX_S)
        if retry is Retry.RATE_LIMITED:
            asked_s: float | None = getattr(error, "retry_after_s", None)
            least_s = RATE_LIMITED_S if asked_s is None else max(asked_s, limit_s)
            return least_s * (1 + JITTER * self._rng())
        return FLOOR_S + (limit_s - FLOOR_S) * self._rng()

    def wake(self) -> bool:
        """The network has changed: whether to end the present wait and try now.

        If so, the next delays are short as well. Not after what a network does not cure; and
        changes that go on and on are heeded ever more rarely, until a session is a good one.
        """
        if self._last in _NOT_CURED or self._clock() < self._wake_from:
            return False
        self._wakes += 1
        self._wake_from = self._clock() + _doubled(WAKE_FIRST_S, self._wakes, WAKE_MAX_S)
        self._failures = self._missing_tokens = 0
        return True

    def _growing(self, first_s: float, count: int) -> float:
        delay_s = _doubled(first_s, count, REJECTED_MAX_S) * (1 + JITTER * self._rng())
        return min(delay_s, REJECTED_MAX_S)


def _doubled(first_s: float, count: int, most_s: float) -> float:
    """``first_s`` for a count of 1, twice as much for each one more, up to ``most_s``."""
    return min(first_s * 2.0 ** min(count - 1, 32), most_s)
