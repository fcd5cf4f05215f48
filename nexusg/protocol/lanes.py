"""The relay's two bounded queues towards one agent, with what they lose (PROTOCOL.md section 4.4).

The data lane holds connects, data and disconnects, the control lane credits, pongs and challenges.
One writer takes from both. A message for a full lane is refused; what that means is decided by
whoever wanted to send it. A session without lanes commits everything to the output at once.
"""

from __future__ import annotations

import collections
import enum
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from nexusg.protocol.wire import Wire


#: Messages in each lane of every server since v0.3.9 (PROTOCOL.md section 4.6).
LANE_MESSAGES = 256
#: The lanes are emptied into the output only as fast as that is written.
REFILL_BYTES = 32 * 1024


class Lane(enum.IntEnum):
    """Which queue a message belongs to."""

    DATA = 0
    CONTROL = 1


class Lanes:
    """Both queues, in front of ``wire``; each holds at most ``limit`` messages."""

    __slots__ = ("_last", "_limit", "_queues", "_wire")

    def __init__(self, wire: Wire, limit: int = LANE_MESSAGES) -> None:
        self._wire = wire
        self._limit = limit
        self._queues: tuple[collections.deque[bytes | str], ...] = (
            collections.deque(),
            collections.deque(),
        )
        self._last = Lane.CONTROL

    def __len__(self) -> int:
        """How many messages wait in both lanes."""
        return sum(map(len, self._queues))

    def room(self, lane: Lane) -> bool:
        """Whether ``put`` would take a message for ``lane``."""
        return len(self._queues[lane]) < self._limit

    def put(self, lane: Lane, message: bytes | str) -> bool:
        """Queue a binary message or a text; False, and it is lost, if the lane is full."""
        if not self.room(lane):
            return False
        self._queues[lane].append(message)
        return True

    def refill(self) -> None:
        """Commit messages as long as the output is short.

        The real relay picks a lane at random when both have something; taking turns does the same
        on average, and the same each time.
        """
        wire = self._wire
        while wire.pending_bytes < REFILL_BYTES and len(self):
            lane = Lane(1 - self._last)
            if not self._queues[lane]:
                lane = self._last
            self._last = lane
            message = self._queues[lane].popleft()
            if isinstance(message, str):
                wire.send_text(message)
            else:
                wire.send_binary(message)

    def clear(self) -> None:
        """Forget everything: nothing may follow a close frame."""
        for queue in self._queues:
            queue.clear()
