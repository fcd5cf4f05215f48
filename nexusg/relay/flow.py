"""One user's UDP flow once its backend is known: the listener of its stream (PROTOCOL.md 5.7).

It has the real relay's manners, the bad ones included. It never waits for its user; whoever calls
`forward` may wait for the agent.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gevent.event import Event

from nexusg.protocol.messages import format_id
from nexusg.relay.user import STARVED_S


if TYPE_CHECKING:
    from collections.abc import Callable

    from nexusg.protocol.messages import Control
    from nexusg.protocol.relay_stream import RelayStream
    from nexusg.relay.link import Link
    from nexusg.relay.shared import Shared


#: A flow that has ended is not told of the end of its session, so whoever still waits looks.
LOOK_S = 0.02


class Flow:
    """``answer`` sends the user one datagram, without waiting, or raises OSError."""

    def __init__(self, shared: Shared, link: Link, answer: Callable[[memoryview], object]) -> None:
        self.over = False  #: the next datagram of the user is lost, and the one after opens anew
        self.used_at = 0.0  #: when the user last sent something (monotonic seconds)
        self._shared = shared
        self._link = link
        self._answer = answer
        self._stream: RelayStream
        self._mute = False  # the writer has ended over a datagram that was too large
        self._changed = Event()

    def open(self, connect: Control) -> bool:
        """Announce the stream; False if that was lost in a full lane."""
        stream = self._link.session.open(connect, self)
        if stream is not None:
            self._stream = stream
            habits = self._shared.habits
            stream.deaf_to_grants = int(habits.lose_first_grant)
            stream.granter.held |= habits.never_grant
        return stream is not None

    def forward(self, datagram: bytes) -> None:
        """Pass a datagram on once there is a credit for it, or give up the flow. Blocks.

        As in the real relay neither the agent's disconnect nor the flow's idle timeout ends the
        wait, and the whole port waits with it.
        """
        stream, link = self._stream, self._link
        deadline = time.monotonic() + (self._shared.config.idle_timeout_s or STARVED_S)
        while not stream.window.ready and link.session.established:
            if time.monotonic() >= deadline:
                self.end()
                return
            self._changed.clear()
            self._changed.wait(LOOK_S)
        if stream.open and not link.congested:  # else this one is lost
            if not stream.send(datagram):
                self.end()
            link.flush()

    def end(self) -> None:
        """The flow is over for the relay: tell the agent."""
        self.over = True
        if not self._stream.open:
            return
        if self._shared.habits.lose_disconnects:
            self._stream.forget()
        else:
            self._stream.end()
        self._link.flush()
        self._shared.log("user.gone", stream=format_id(self._stream.id), agent=self._link.peer)

    # The stream's listener -------------------------------------------------------------------

    def on_data(self, payload: memoryview) -> None:
        """Send it to the user; a too large one ends the writer, and the one after it the flow."""
        if self._mute:
            self.end()
        elif len(payload) > self._shared.config.udp_max_datagram_bytes:
            self._mute = True
        else:
            try:
                self._answer(payload)
            except OSError:  # the kernel is full, or the relay stops
                pass
            self._stream.consumed()

    def on_credit(self) -> None:
        """Let `forward` look again."""
        self._changed.set()

    def on_end(self, reason: str) -> None:
        """The agent has ended the flow, or is gone itself."""
        self.over = True
