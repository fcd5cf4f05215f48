"""One stream at the relay: credits both ways, and the agent's pause (PROTOCOL.md sections 4, 5).

It has two states only, known to the relay or not. It knows no user socket: the shell keeps the
buffer towards the user and says when the user has taken a message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from nexusg.errors import LocalProtocolError
from nexusg.protocol.credit import WINDOW, CappedWindow, Granter
from nexusg.protocol.lanes import Lane
from nexusg.protocol.messages import Control, Event, encode_control, encode_grant


if TYPE_CHECKING:
    from nexusg.protocol.relay_session import RelaySession


class RelayListener(Protocol):
    """The shell of one stream. None of its methods may block or raise."""

    def on_data(self, payload: memoryview) -> None:
        """Reverse data, one message, perhaps empty; the view is valid only during the call.

        Call ``stream.consumed()`` once the user's kernel has taken it.
        """

    def on_credit(self) -> None:
        """The agent has granted, paused or resumed: look at the stream again."""

    def on_end(self, reason: str) -> None:
        """The agent has ended the stream for ``reason``; "session_ended" when the agent is gone."""


class RelayStream:
    """One user's connection. Made by `RelaySession.open`."""

    __slots__ = (
        "_session",
        "bytes_in",
        "bytes_out",
        "connect",
        "deaf_to_grants",
        "granter",
        "id",
        "listener",
        "open",
        "paused",
        "window",
    )

    def __init__(self, session: RelaySession, connect: Control, listener: RelayListener) -> None:
        self._session = session
        self.id = connect.client_id
        self.connect = connect
        self.listener = listener
        self.window = CappedWindow()
        self.granter = Granter(connect.credits or WINDOW)
        self.granter.first()  # it went out in the connect
        self.granter.held = not connect.credits  # a relay of old, without credits
        self.paused = False
        self.open = True  #: neither the user nor the agent has ended it
        self.deaf_to_grants = 0  #: how many grants of the agent to ignore, for tests
        self.bytes_in = self.bytes_out = 0

    @property
    def sendable(self) -> bool:
        """Whether `send` would take a message now. A pause does not matter: it is about reading."""
        return self.open and self.window.ready

    def send(self, payload: bytes | memoryview) -> bool:
        """Commit one data message; False if it was lost in a full lane, which is the stream's end.

        Raises LocalProtocolError without a credit, or when the stream has ended.
        """
        if not self.open:
            raise LocalProtocolError("no data can be sent on a stream that has ended")
        self.window.take()
        self.bytes_out += len(payload)
        return self._session.send_data(self.id, payload)

    def consumed(self, frames: int = 1) -> None:
        """The user's kernel has taken ``frames`` messages: give the agent credits when due."""
        self.granter.consume(frames)
        self.grant_due()

    def grant_due(self) -> None:
        """Give the credits that are due; they stay due while their lane is full."""
        if not self.open:
            return
        if not self._session.room(Lane.CONTROL):
            self._session.owe(self)
        elif credits := self.granter.due():
            self._session.send(Lane.CONTROL, encode_grant(self.id, credits))

    def end(self) -> bool:
        """The user has gone: tell the agent. False if that was lost in a full lane."""
        if not self.open:
            return True
        self.forget()
        disconnect = Control(Event.DISCONNECT, self.id)
        return self._session.send(Lane.DATA, encode_control(disconnect))

    def forget(self) -> None:
        """The user has gone, and the agent is never told (PROTOCOL.md section 4.4)."""
        self.open = False
        self._session.forget(self)

    # Called by the session -------------------------------------------------------------------

    def granted(self, credits: int) -> None:
        """The agent's resume_stream, with or without credits: it un-pauses in any case."""
        self.paused = False
        if credits > 0 and self.deaf_to_grants:
            self.deaf_to_grants -= 1
        else:
            self.window.grant(credits)
        self.listener.on_credit()

    def pause(self) -> None:
        """The agent's pause_stream."""
        self.paused = True
        self.listener.on_credit()

    def ended(self, reason: str) -> None:
        """The agent, or the end of the session, has ended the stream."""
        self.open = False
        self.listener.on_end(reason)
