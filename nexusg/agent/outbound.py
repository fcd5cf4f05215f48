"""A stream that a local program has asked for: the same pump, but it is the relay that dials.

The local end is the program's connection. It is told that it is connected before any data reaches
it, and if it is not, why (PROTOCOL.md section 11).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexusg.agent.lifecycle import OutboundConnected, OutboundRefused
from nexusg.agent.streams import StreamPump
from nexusg.outbound.socks5 import Reply, reply_for
from nexusg.protocol.messages import Reason
from nexusg.protocol.stream import Cause
from nexusg.targets.sockets import SocketTarget


if TYPE_CHECKING:
    from nexusg.agent.session import Session
    from nexusg.outbound.server import Client
    from nexusg.protocol.outbound import OutboundStream


#: The relay dials for at most 10 s (PROTOCOL.md section 11.2).
RESULT_TIMEOUT_S = 15.0

# Seen from the program, who is its stream's user, the other end is the target.
_ENDS = {"user": "target", "target": "user"}


class ProgramTarget(SocketTarget):
    """The connection of a program; what it said behind its request is read first."""

    __slots__ = ("_early",)

    def __init__(self, client: Client, buffer: bytearray) -> None:
        super().__init__(client.sock, client.name, buffer)
        self._early = memoryview(client.early)

    def try_read(self, limit: int) -> memoryview | None:
        """At most ``limit`` bytes, valid until the next switch; None when there is nothing yet.

        Raises OSError.
        """
        early, self._early = self._early[:limit], self._early[limit:]
        return early if len(early) else super().try_read(limit)


class OutboundPump(StreamPump):
    """The shell of one connection through the relay."""

    __slots__ = ("_client",)

    stream: OutboundStream

    def __init__(self, session: Session, stream: OutboundStream, client: Client) -> None:
        stream.hostname, stream.conn_port = client.request.host, client.request.port
        stream.client_ip = client.name
        super().__init__(session, stream)
        self._client = client

    @property
    def target_name(self) -> str:
        """What the program has asked for."""
        return self.stream.target_addr

    def on_end(self, cause: Cause) -> None:
        """The relay or the session has ended the stream, or the relay has refused it."""
        if cause is Cause.REFUSED:
            reason = self.stream.refusal or "no reason given"
            self.finish(Reason.DIAL_FAILED, "user", f"the relay refused: {reason}")
        else:
            super().on_end(cause)

    def _run(self) -> None:
        if not self.stream.settled:
            self._wait(RESULT_TIMEOUT_S)
        if not self.stream.settled:
            text = f"the relay has not answered within {RESULT_TIMEOUT_S:g} s"
            self.finish(Reason.TIMEOUT, "agent", text)
            return
        try:
            self._client.accept()
        except OSError as failure:
            error = failure.strerror or str(failure)
            self.finish(Reason.LOCAL_ERROR, "target", f"the program has gone: {error}")
            return
        self._begin(ProgramTarget(self._client, self.session.context.buffer))

    def _user_left(self) -> None:
        if self._target is not None:
            super()._user_left()
        else:  # the program is first told that it was connected, and given what there was
            self._user_gone = True

    def _report_connected(self) -> None:
        context = self.session.context
        took_s = round(context.clock() - self.stream.opened_at, 4)
        context.emit(OutboundConnected(**self._names(), took_s=took_s))

    def _report_closed(self, reason: Reason, ended_by: str, error: str) -> None:
        if self._target is not None:
            super()._report_closed(reason, _ENDS.get(ended_by, ended_by), error)
            return
        context, client = self.session.context, self._client
        context.counters.outbound_refused += 1
        refusing = context.tasks.spawn("socks refusal", client.refuse, self._reply(reason))
        refusing.rawlink(lambda _: client.sock.close())  # if it is killed before it has begun
        context.emit(
            OutboundRefused(
                **self.session.names(),
                **self._id(),
                client=client.name,
                target=self.target_name,
                error=error or f"the stream has ended: {reason.value}",
            )
        )

    def _reply(self, reason: Reason) -> Reply:
        if reason is Reason.DIAL_FAILED:
            return reply_for(self.stream.refusal)
        return Reply.TIMED_OUT if reason is Reason.TIMEOUT else Reply.FAILURE
