"""One greenlet per UDP flow: it dials, then carries the local service's datagrams to the relay.

What the user sends is handed to the kernel by the session's reader, at once or never. Its credit
goes back on receipt, whatever becomes of it: a relay that waited for one would keep all users of
the port waiting (PROTOCOL.md section 5.7).

What the service sends is read only when it can be sent on. Until then the kernel keeps it, up to
its receive buffer, and then drops what comes: that costs no memory of ours, a burst survives a
moment without credits, and old datagrams are not sent long after their time.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

from nexusg.agent.shell import StreamShell
from nexusg.errors import NoRoute, TargetError
from nexusg.protocol.messages import Reason
from nexusg.transport.failure import words


if TYPE_CHECKING:
    from nexusg.agent.session import Session
    from nexusg.protocol.stream import Stream
    from nexusg.targets.udp import UdpTarget


#: Datagrams kept while the service's name is looked up, as with the reference (section 12).
EARLY_DATAGRAMS = 64


class UdpFlow(StreamShell):
    """The shell of one UDP stream: a `StreamListener`, its socket, and its greenlet."""

    __slots__ = ("_early", "_early_dropped")

    _target: UdpTarget | None

    def __init__(self, session: Session, stream: Stream) -> None:
        super().__init__(session, stream)
        self._early: collections.deque[bytes] = collections.deque()
        self._early_dropped = 0
        session.context.flows.add(self)

    def on_data(self, payload: memoryview | bytes) -> None:
        """Hand one datagram to the kernel, or drop and count it."""
        self.stream.consumed()
        self.session.context.flows.used(self)
        if self._target is None:
            self._keep(payload)
            return
        try:
            self._target.try_send(payload)
        except OSError as error:  # somebody has closed the socket that a connect handler gave
            self.finish(Reason.LOCAL_ERROR, "target", words(error))

    def evict(self) -> None:
        """End the flow, because another one needs its place."""
        self.session.context.counters.flows_evicted += 1
        text = f"the longest unused of {self.session.context.flows.limit} flows"
        self.finish(Reason.BUFFER_FULL, "agent", text)

    def losses(self) -> dict[str, int]:
        """How many datagrams were lost here, by cause: ``early`` and those of `UdpTarget`."""
        found = {"early": self._early_dropped} if self._early_dropped else {}
        if self._target is not None:
            found.update(self._target.losses())
        return found

    def _keep(self, datagram: memoryview | bytes) -> None:
        budget = self.session.context.budget
        if len(self._early) >= EARLY_DATAGRAMS or budget.exceeded:
            self._early_dropped += 1
            return
        self._early.append(bytes(datagram))
        self.buffered_bytes += len(datagram)
        budget.add(len(datagram))

    def _run(self) -> None:
        try:
            target = self.session.connector.connect_flow(self.stream)
        except (TargetError, NoRoute) as error:
            self._dial_failed(error)
            return
        if self.done:
            target.close()
            return
        self._target = target
        self._report_connected()
        self.stream.dialled()
        try:
            while self._early:
                target.try_send(self._early.popleft())
            self._drop_early()
            self._carry(target)
        except OSError as error:
            self.finish(Reason.LOCAL_ERROR, "target", words(error))

    def _carry(self, target: UdpTarget) -> None:
        """Carry datagrams until the flow is ended. Blocks. Raises OSError."""
        stream, link, context = self.stream, self.session.link, self.session.context
        limit = context.config.limits.udp_datagram_bytes
        while True:
            # Each wait may take long, so what is needed is looked at again after it.
            if not stream.sendable:
                self._wait(None)
                continue
            if link.full:
                link.wait_for_room()
                if not stream.sendable:
                    continue
            datagram = target.try_read(limit)
            if datagram is None:
                target.wait_readable()
                continue
            stream.send_datagram(datagram)
            context.flows.used(self)
            link.flush()

    def _user_left(self) -> None:
        # There is no half-close to pass on, and nothing that could still be on its way.
        self.finish(Reason.NORMAL, "user", "")

    def _release(self) -> None:
        context = self.session.context
        self._drop_early()
        context.flows.discard(self)
        context.counters.datagrams_dropped.update(self.losses())

    def _drop_early(self) -> None:
        self._early.clear()
        self.session.context.budget.release(self.buffered_bytes)
        self.buffered_bytes = 0

    def _figures(self) -> dict[str, Any]:
        stream, losses = self.stream, self.losses()
        return {
            "datagrams_in": stream.frames_in,
            "datagrams_out": stream.window.sent,
            "dropped": sum(losses.values()),
            "dropped_by": ", ".join(f"{cause} {count}" for cause, count in losses.items()),
        }
