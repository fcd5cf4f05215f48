"""The IDs of streams that ended a moment ago: late data for them is normal (PROTOCOL.md 4.5)."""

from __future__ import annotations

import collections


#: How many ended streams are remembered, so that late data for them is dropped without a word.
MAX_TOMBSTONES = 16_384
#: Data is late when it crossed our disconnect on the way: a minute is generous.
TOMBSTONE_S = 60.0


class Tombstones:
    """A bounded set of IDs, each forgotten after a while."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until: collections.OrderedDict[bytes, float] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._until)

    def holds(self, client_id: bytes, now: float) -> bool:
        """Whether ``client_id`` is still remembered at ``now``."""
        return self._until.get(client_id, now) > now

    def add(self, client_id: bytes, now: float) -> None:
        """Remember ``client_id`` from ``now`` on, and forget what is too old or too much."""
        until = self._until
        until.pop(client_id, None)  # to its end, so that the order stays that of time
        until[client_id] = now + TOMBSTONE_S
        while len(until) > MAX_TOMBSTONES or next(iter(until.values())) <= now:
            until.popitem(last=False)
