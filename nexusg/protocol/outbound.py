"""Connections that the relay makes for us: requests, and their results (PROTOCOL.md section 11.3).

A stream that we asked for is one like any other from its success on. Until then it is only known
here, so that nothing the relay says about it can be taken for a message of a stream; and until it
is *settled*, which success does, nothing is sent for it (`stream.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexusg.errors import LocalProtocolError
from nexusg.protocol.credit import SendWindow
from nexusg.protocol.messages import NIL_ID, Control, Event
from nexusg.protocol.states import STREAM, SessionState, StreamInput, advance
from nexusg.protocol.stream import Cause, Stream


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nexusg.protocol.session import AgentSession
    from nexusg.protocol.stream import StreamListener

    OpenOutbound = Callable[["OutboundStream"], StreamListener]


class OutboundStream(Stream):
    """A connection that the relay makes to ``target_addr``. Made by `AgentSession`.

    It is ``settled`` when the relay has succeeded, which ``on_credit`` tells; call ``dialled`` when
    the local program has been told, too. A refusal ends it with Cause.REFUSED.
    """

    __slots__ = ("refusal", "target_addr")

    def __init__(
        self, session: AgentSession, request: Control, forward_window: int, now: float
    ) -> None:
        super().__init__(session, request, forward_window, now, recorded=True)
        self.target_addr = request.target_addr
        self.refusal = ""  #: the relay's reason, which may be empty

    def connected(self, credits: int) -> None:
        """The relay has made the connection, and grants ``credits``; without any, no limit."""
        self.window = SendWindow(credits or None)
        self.settle()

    def refused(self, reason: str) -> None:
        """The relay does not make the connection."""
        self.state = advance(STREAM, self.state, StreamInput.REFUSED)
        self.refusal = reason
        self.listener.on_end(Cause.REFUSED)


class Requests:
    """The requests of one session that the relay has not answered."""

    __slots__ = ("_session", "_waiting")

    def __init__(self, session: AgentSession) -> None:
        self._session = session
        self._waiting: dict[bytes, OutboundStream] = {}

    def send(
        self,
        client_id: bytes,
        target_addr: str,
        open_stream: OpenOutbound,
        forward_window: int,
        now: float,
    ) -> None:
        """Commit an outbound_connect for ``host:port``; ``open_stream`` gives the listener.

        ``client_id`` is a random UUID. Raises LocalProtocolError unless the session is open, and
        does nothing then.
        """
        session = self._session
        if session.state is not SessionState.OPEN:
            raise LocalProtocolError(
                f"no connection can be asked for while the session is {session.state.value}"
            )
        if client_id == NIL_ID or client_id in self._waiting or client_id in session.streams:
            raise LocalProtocolError("a connection needs an ID of its own")
        request = Control(Event.OUTBOUND_CONNECT.value, client_id, target_addr=target_addr)
        stream = OutboundStream(session, request, forward_window, now)
        stream.listener = open_stream(stream)
        self._waiting[client_id] = stream
        session.send_control(request)

    def receive(self, result: Control) -> None:
        """The relay's outbound_result; a connection that nobody waits for is disowned."""
        session = self._session
        stream = self._waiting.pop(result.client_id, None)
        if stream is None:
            if result.success and result.client_id not in session.streams:
                session.disown(result.client_id)
        elif result.success:
            session.streams[stream.id] = stream
            session.sooner = True  # there is a stream whose health is to be watched
            stream.connected(result.credits)
        else:
            stream.refused(result.reason)

    def forget(self, stream: Stream) -> None:
        """``stream`` has closed; if it is still waited for, its success will come too late."""
        self._waiting.pop(stream.id, None)

    def take(self) -> Iterable[OutboundStream]:
        """All that are waited for, for the last time."""
        waiting, self._waiting = self._waiting, {}
        return waiting.values()
