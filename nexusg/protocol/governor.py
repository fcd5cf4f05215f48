"""Keeps parallel uploads from filling the relay's lane (PROTOCOL.md section 5.6).

All data for one agent waits in one lane of 256 messages at the relay, and a message that finds it
full costs its user the connection. So the credits that are out over all busy streams stay below
that: the more of them there are, the less each gets. An idle stream keeps what it has, since
credits cannot be taken back, and is given no more than its share once it is busy.
"""

from __future__ import annotations

import collections


#: Of the lane's 256 messages; the rest is for connects, disconnects and first data.
LANE_BUDGET = 192
#: A stream is busy this long after it was due credits.
BUSY_S = 1.0


class Governor:
    """Shares the lane of one session among its busy streams."""

    __slots__ = ("_busy",)

    def __init__(self) -> None:
        self._busy: collections.OrderedDict[bytes, float] = collections.OrderedDict()

    def share(self, client_id: bytes, now: float) -> int:
        """How many credits a stream may have out; it is busy from ``now`` on."""
        busy = self._busy
        busy.pop(client_id, None)  # to its end, so that the order stays that of time
        busy[client_id] = now
        while next(iter(busy.values())) <= now - BUSY_S:
            busy.popitem(last=False)
        return LANE_BUDGET // len(busy)

    def forget(self, client_id: bytes) -> None:
        """The stream has ended: its share is free."""
        self._busy.pop(client_id, None)
