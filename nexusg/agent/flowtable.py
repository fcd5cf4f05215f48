"""The UDP flows of an agent in the order of their last datagram, and how many there may be."""

from __future__ import annotations

import collections
import resource
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from nexusg.agent.flows import UdpFlow


#: Of the file descriptors that the process may have; the others are for everything else.
DESCRIPTORS_SHARE = 1 / 2


def affordable(limit: int) -> int:
    """``limit``, or as many flows as there are file descriptors for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit if soft == resource.RLIM_INFINITY else min(limit, int(soft * DESCRIPTORS_SHARE))


class FlowTable:
    """At most ``limit`` flows: a new one takes the place of the one that was longest unused.

    Users of UDP can pretend to be any number of users, and each flow costs a socket.
    """

    __slots__ = ("_flows", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._flows: collections.OrderedDict[UdpFlow, None] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._flows)

    def add(self, flow: UdpFlow) -> None:
        """Let ``flow`` in, which may end another one."""
        if len(self._flows) >= self.limit:
            next(iter(self._flows)).evict()
        self._flows[flow] = None

    def used(self, flow: UdpFlow) -> None:
        """``flow``, which is in the table, has just moved a datagram."""
        self._flows.move_to_end(flow)

    def discard(self, flow: UdpFlow) -> None:
        """``flow`` has ended."""
        self._flows.pop(flow, None)
