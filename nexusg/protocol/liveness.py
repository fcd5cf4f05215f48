"""Whether the other side is still there: the session by WebSocket pings, streams by health pings.

Both are sweeps over marks, without a timer for each message or stream (PROTOCOL.md 1.3, 7).
"""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from collections.abc import Iterable

    from nexusg.protocol.stream import Stream


#: The reference's cadence, which relays and NATs are used to.
PING_AFTER_S = 5.0
#: Twice that without a sign of life is a dead link.
SILENCE_S = 10.0
#: The same after a network change, when the old path is probably gone.
PROBE_S = 3.0
#: The longest time between two sweeps over the streams.
SWEEP_S = 5.0
#: The shortest, and the shortest wait for a pong: no setting may turn the sweeps into a spin.
FLOOR_S = 0.1
#: Thousands of streams that were opened together must not hold everything up together.
PINGS_AT_A_TIME = 256
#: One lost pong is not a verdict.
PINGS_BEFORE_VERDICT = 2


class Sign(enum.Enum):
    """What `Liveness.check` asks for."""

    FINE = "fine"
    PING = "ping"
    DEAD = "dead"


class Liveness:
    """When to ping the relay and when to give it up. Any byte received is a sign of life.

    There is no verdict without an unanswered ping: a process that stood still for a while has not
    looked for what arrived meanwhile.
    """

    __slots__ = ("_dead_at", "heard_at")

    def __init__(self, now: float) -> None:
        self.heard_at = now
        self._dead_at: float | None = None  # None until the ping

    def heard(self, now: float) -> None:
        """Bytes have arrived."""
        self.heard_at = now
        self._dead_at = None

    def probe(self, now: float) -> None:
        """The network has changed: the caller sends a ping, and silence is judged sooner."""
        dead_at = now + PROBE_S
        self._dead_at = dead_at if self._dead_at is None else min(self._dead_at, dead_at)

    def check(self, now: float) -> Sign:
        """Judge at ``now``; after PING the caller sends one. DEAD is said once."""
        if now < self.deadline:
            return Sign.FINE
        if self._dead_at is None:
            self._dead_at = max(self.heard_at + SILENCE_S, now + PROBE_S)
            return Sign.PING
        self._dead_at = math.inf
        return Sign.DEAD

    @property
    def deadline(self) -> float:
        """When to check next; infinity after the verdict."""
        return self.heard_at + PING_AFTER_S if self._dead_at is None else self._dead_at


@dataclasses.dataclass(frozen=True, slots=True)
class HealthPolicy:
    """Settings of the stream health checks, in seconds (PROTOCOL.md section 7)."""

    enabled: bool = True
    inactivity_s: float = 60.0
    pong_s: float = 5.0


class Health:
    """Finds streams that the relay has forgotten without telling."""

    __slots__ = ("_asked", "_policy", "_pong_s", "_sweep_at", "sweep_s")

    def __init__(self, policy: HealthPolicy, now: float) -> None:
        self._policy = policy
        self.sweep_s = max(FLOOR_S, min(SWEEP_S, policy.inactivity_s))
        self._pong_s = max(FLOOR_S, policy.pong_s)
        self._sweep_at = now + self.sweep_s
        self._asked: dict[Stream, float] = {}  # when, the oldest question first

    def sweep(self, streams: Iterable[Stream], now: float) -> list[Stream] | None:
        """Refresh the idle marks; the streams to ping. None between two sweeps.

        When there are too many for one, the next one comes soon.
        """
        if now < self._sweep_at:
            return None
        self._sweep_at = now + self.sweep_s
        silent = []
        limit = now - self._policy.inactivity_s
        for stream in streams:
            if stream.activity != stream.idle_mark:
                stream.idle_mark = stream.activity
                self.pong(stream, now)
            elif (
                self._policy.enabled
                and stream.idle_since <= limit
                and stream.pingable
                and stream not in self._asked
            ):
                silent.append(stream)
                if len(silent) == PINGS_AT_A_TIME:
                    self._sweep_at = now + FLOOR_S
                    break
        for stream in silent:
            self.ask(stream, now)
        return silent

    def ask(self, stream: Stream, now: float) -> None:
        """The caller sends a health ping for ``stream`` now."""
        stream.outstanding_pings += 1
        self._wait(stream, now)

    def pong(self, stream: Stream, now: float) -> None:
        """The relay knows the stream."""
        stream.outstanding_pings = 0
        stream.idle_since = now
        self._asked.pop(stream, None)

    def overdue(self, now: float, heard_at: float) -> tuple[list[Stream], list[Stream]]:
        """Streams whose pong is overdue: those to ask again, and those to give up.

        No verdict while the session itself has not been heard since the question.
        """
        again: list[Stream] = []
        lost: list[Stream] = []
        for stream, asked_at in list(self._asked.items()):
            if asked_at + self._pong_s > now:
                break
            if not stream.pingable or stream.activity != stream.idle_mark:
                stream.outstanding_pings = 0
                del self._asked[stream]
            elif heard_at < asked_at:
                self._wait(stream, now)
            elif stream.outstanding_pings < PINGS_BEFORE_VERDICT:
                again.append(stream)
            else:
                lost.append(stream)
                del self._asked[stream]
        return again, lost

    def forget(self, stream: Stream) -> None:
        """The stream has ended."""
        self._asked.pop(stream, None)

    @property
    def deadline(self) -> float:
        """When to look next."""
        for asked_at in self._asked.values():
            return min(self._sweep_at, asked_at + self._pong_s)
        return self._sweep_at

    def _wait(self, stream: Stream, now: float) -> None:
        self._asked.pop(stream, None)  # to its end, so that the order stays that of time
        self._asked[stream] = now
