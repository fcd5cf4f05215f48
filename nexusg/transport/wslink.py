"""The socket of one session: a blocking read, and a writer that coalesces.

It moves bytes and knows nothing of what they mean. One greenlet reads, and one, in `run_writer`,
writes. Output piles up in the core during a turn of the loop and leaves in one write, so that
batches form by themselves and nothing waits for them.
"""

from __future__ import annotations

import collections
import os
import time
from typing import TYPE_CHECKING, Protocol

import gevent
from gevent import socket, ssl
from gevent.event import Event

from nexusg.errors import SessionLost


if TYPE_CHECKING:
    from collections.abc import Callable


#: Above this much unsent output the streams stop reading their local services. With one write of
#: 64 KiB under way and TCP_NOTSENT_LOWAT, a control message waits behind less than 256 KiB.
ROOM_BYTES = 32 * 1024
#: What one stream adds at most when it is let in.
SHARE_BYTES = 64 * 1024
#: gevent's recv never yields while there are bytes, so the reader does after so many. A read
#: counts for some bytes in itself, so that a turn is some 30 reads of small messages at most.
TURN_BYTES, READ_COST_BYTES = 64 * 1024, 2048


class Output(Protocol):
    """What the writer needs of the protocol core."""

    pending_bytes: int

    def take_output(self) -> bytes:
        """The next bytes to write, empty when there are none."""


class WsLink:
    """Reads and writes the socket of one session; made when the upgrade is done."""

    def __init__(
        self,
        connection: socket.socket | ssl.SSLSocket,
        output: Output,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.bytes_in = self.bytes_out = 0
        self.closed = False
        #: When the write under way last made progress (monotonic seconds), or None.
        self.writing_since: float | None = None
        self._socket = connection
        self._output = output
        self._clock = clock
        self._idle = False
        self._writing = True
        self._wake = Event()
        self._flushed = Event()
        self._waiting: collections.deque[Event] = collections.deque()
        self._turn_bytes = 0

    # Reading ---------------------------------------------------------------------------------

    def read_into(self, buffer: memoryview) -> int:
        """Fill ``buffer`` with what there is; return the count. Blocks.

        Raises SessionLost at the end of the connection.
        """
        if self._turn_bytes > TURN_BYTES:
            self._turn_bytes = 0
            gevent.sleep(0)
        try:
            count: int = self._socket.recv_into(buffer)
        except OSError as error:
            raise lost(error) from error
        if count == 0:
            raise SessionLost("the relay closed the connection without a close frame", "eof")
        self.bytes_in += count
        self._turn_bytes += count + READ_COST_BYTES
        return count

    # Writing ---------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether whoever has more to send should `wait_for_room` first."""
        return self._output.pending_bytes >= ROOM_BYTES

    def flush(self) -> None:
        """There is output: have it written in the next turn of the loop. Never blocks."""
        if self._idle and self._output.pending_bytes:
            self._rouse()

    def wait_for_room(self) -> None:
        """Return when more may be added to the output, or the link is closed. Blocks.

        Whoever asked first is let in first.
        """
        if not self.closed:
            turn = Event()
            self._waiting.append(turn)
            self._rouse()
            turn.wait()

    def run_writer(self) -> None:
        """Write all output until `close`, in a greenlet of its own. Blocks.

        Raises SessionLost when the connection is gone.
        """
        try:
            while not self.closed:
                data = self._output.take_output()
                if data:
                    self._write(data)
                elif not self._waiting:
                    self._sleep()
                # With waiters this must not sleep: whoever is let in may have nothing to add.
                if self._let_in() and not self._output.pending_bytes:
                    gevent.sleep(0)
        finally:
            self._writing = False
            self._flushed.set()

    def wait_flushed(self, timeout_s: float) -> bool:
        """Wait until all output has been handed to the kernel; whether it was. Blocks."""
        if self._idle and not self._output.pending_bytes:
            return True
        if self._writing:
            self._flushed.clear()
            self.flush()
            self._flushed.wait(timeout_s)
        # With nothing pending, what was taken last may still be on its way into the kernel.
        return self._writing and self._idle and not self._output.pending_bytes

    def stop_reading(self) -> None:
        """Make the reader raise SessionLost while the writer goes on. Never blocks."""
        if not self.closed:
            try:
                # Not SSLSocket.shutdown: that drops the TLS state, which the writer still needs.
                socket.socket.shutdown(self._socket, socket.SHUT_RD)
            except OSError:
                self.close()

    def close(self) -> None:
        """Close the socket, without a close frame; wakes reader, writer and waiters. Idempotent."""
        if not self.closed:
            self.closed = True
            try:
                # While someone waits on it, gevent puts off the close to the loop's next event.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
            except OSError:  # it is no longer connected
                pass
            self._socket.close()
            self._wake.set()
            self._flushed.set()
            while self._waiting:
                self._waiting.popleft().set()

    def disown(self) -> None:
        """In a child of fork: make the descriptor lead nowhere, whoever still uses it. No bytes
        are sent, and the parent's connection is untouched. Never blocks."""
        if not self.closed:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, self._socket.fileno(), inheritable=False)
            os.close(nowhere)

    def _rouse(self) -> None:
        self._idle = False
        self._wake.set()

    def _sleep(self) -> None:
        self._wake.clear()
        self._idle = True
        self._flushed.set()
        self._wake.wait()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                self.writing_since = self._clock()
                count = self._socket.send(view)
                self.bytes_out += count
                view = view[count:]
        except OSError as error:
            raise lost(error) from error
        self.writing_since = None

    def _let_in(self) -> bool:
        """Wake as many waiters as there is room for; whether any was."""
        room = ROOM_BYTES - self._output.pending_bytes
        woken = False
        while self._waiting and room > 0:
            self._waiting.popleft().set()
            room -= SHARE_BYTES
            woken = True
        return woken


def lost(error: OSError) -> SessionLost:
    """The SessionLost for what the operating system said of the socket."""
    text = error.strerror or str(error)
    if isinstance(error, ConnectionError):
        return SessionLost(f"the connection to the relay was reset: {text}", "reset")
    if isinstance(error, ssl.SSLError):
        return SessionLost(f"TLS with the relay failed: {text}", "tls")
    return SessionLost(f"the connection to the relay failed: {text}", "io")
