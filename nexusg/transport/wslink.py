"""The socket of one session: a blocking read, and non-blocking writes that coalesce.

It moves bytes and knows nothing of what they mean. Output piles up in the core during a turn of the
loop and leaves in one write at its end, so that batches form by themselves and nothing waits for
them; a batch that is full leaves at once. What the kernel does not take is written when it does, by
the hub, so that no greenlet is needed to write.
"""

from __future__ import annotations

import collections
import errno
import os
import time
from typing import TYPE_CHECKING, Any, Protocol

import gevent
from gevent import get_hub, ssl
from gevent.event import Event

from nexusg.errors import SessionLost
from nexusg.transport.waiting import READ, WRITE, release, wait, watcher


if TYPE_CHECKING:
    from collections.abc import Callable

    from gevent._types import _IoWatcher

    from nexusg.transport.channel import Channel


#: This much output leaves at once, and so much one stream adds at most when it is let in. While the
#: kernel takes nothing, nobody is let in, so a control message waits behind one batch that is under
#: way, one that has piled up, and what TCP_NOTSENT_LOWAT leaves to the kernel: 256 KiB.
BATCH_BYTES = 96 * 1024
#: Neither reading nor writing waits for anything while the kernel is willing, so after so many
#: bytes others have a turn. A read counts for some bytes in itself, so that a turn is some 30 reads
#: of small messages at most.
TURN_BYTES, READ_COST_BYTES = 192 * 1024, 6 * 1024

_CLOSED = "the connection to the relay was closed"
_STOPPED = "nothing more is read"


class Output(Protocol):
    """What is needed of the protocol core."""

    pending_bytes: int

    def take_output(self) -> bytes:
        """The next bytes to write, empty when there are none."""


class WsLink:
    """Reads and writes the socket of one session; made when the upgrade is done."""

    def __init__(
        self,
        channel: Channel,
        output: Output,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.bytes_in = self.bytes_out = 0
        self.closed = False
        self._reading = True
        #: When the write that waits for the kernel last made progress (monotonic seconds), or None.
        self.writing_since: float | None = None
        channel.unblock()
        self._channel = channel
        self._output = output
        self._clock = clock
        self._loop: Any = get_hub().loop
        self._readable: _IoWatcher | None = None
        self._writable: _IoWatcher | None = None
        self._blocked = False  # the kernel takes nothing now, or nothing more is to be written
        self._failure: SessionLost | None = None
        self._over = Event()  # closed, or failed
        self._flushed = Event()
        self._waiting: collections.deque[Event] = collections.deque()
        self._invited = 0  # let in, and not running yet: nobody may come before them
        self._scheduled = False  # the end of this turn of the loop will be seen
        self._read_bytes = self._written_bytes = 0  # in this turn

    # Reading ---------------------------------------------------------------------------------

    def read_into(self, buffer: memoryview) -> int:
        """Fill ``buffer`` with what there is; return the count. Blocks.

        Raises SessionLost at the end of the connection.
        """
        if self._read_bytes > TURN_BYTES:
            self._read_bytes = 0
            gevent.sleep(0)
        try:
            count = self._receive(buffer)
        except OSError as error:
            raise lost(error) from error
        if count == 0:
            raise SessionLost("the relay closed the connection without a close frame", "eof")
        self.bytes_in += count
        self._read_bytes += count + READ_COST_BYTES
        return count

    def _receive(self, buffer: memoryview) -> int:
        if self._channel.drained and self._reading:
            self._wait_readable()  # rather than to be told that there is nothing
        while self._reading:
            try:
                return self._channel.read_into(buffer)
            except BlockingIOError:
                self._wait_readable()
        raise OSError(errno.ECANCELED, _STOPPED)

    def _wait_readable(self) -> None:
        if self._readable is None:
            self._readable = watcher(self._channel, READ, _CLOSED)
        wait(self._readable)

    # Writing ---------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether whoever has more to send should `wait_for_room` first."""
        return self._blocked or self._invited > 0 or self._written_bytes >= TURN_BYTES

    def flush(self) -> None:
        """There is output: have it written, at the end of this turn at the latest. Never blocks."""
        if not (self._blocked or self.closed):
            if self._output.pending_bytes >= BATCH_BYTES:
                self._write_out(BATCH_BYTES)
                self._see_turn()
            elif self._output.pending_bytes and not self._scheduled:
                self._see_turn()

    def wait_for_room(self) -> None:
        """Return when it is the caller's turn to add a batch, or the link is closed. Blocks.

        Whoever asked first is let in first. A turn is to be used even if the link is `full` again:
        who gave it up because another has filled the link meanwhile might wait for ever.
        """
        if not self.closed:
            place = Event()
            self._waiting.append(place)
            self._see_turn()
            try:
                place.wait()
            finally:
                if place.is_set():
                    self._invited -= 1
                else:
                    place.set()  # killed: the place is nobody's

    def wait_broken(self) -> None:
        """Return when the link is closed. Raises SessionLost when a write has failed. Blocks."""
        self._over.wait()
        if self._failure is not None:
            raise self._failure

    def wait_flushed(self, timeout_s: float) -> bool:
        """Wait until all output has been handed to the kernel; whether it was. Blocks."""
        self._flushed.clear()
        self.flush()
        if self._unwritten and not self._over.is_set():
            self._flushed.wait(timeout_s)
        return not self._unwritten

    @property
    def _unwritten(self) -> bool:
        return self._blocked or bool(self._output.pending_bytes)

    def _see_turn(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.run_callback(self._turn)

    def _turn(self) -> None:
        """A turn of the loop is over: write what has piled up, and let streams add more."""
        self._scheduled = False
        self._written_bytes = 0
        if self._over.is_set():
            return
        self._write_out(1)
        self._let_in()
        if not self._unwritten:
            self._flushed.set()

    def _write_out(self, least_bytes: int) -> None:
        """Write while there is at least so much, and the kernel takes it."""
        output, channel = self._output, self._channel
        try:
            while not self._blocked and output.pending_bytes >= least_bytes:
                data = output.take_output()
                self.bytes_out += len(data)
                self._written_bytes += len(data)
                if not channel.write(data):
                    self._wait_for_kernel()
        except OSError as error:
            self._break(error)

    def _wait_for_kernel(self) -> None:
        self._blocked, self.writing_since = True, self._clock()
        if self._writable is None:
            self._writable = watcher(self._channel, WRITE, _CLOSED)
        self._writable.start(self._go_on)

    def _go_on(self) -> None:
        """The kernel takes more. Called by the hub."""
        assert self._writable is not None
        channel = self._channel
        before = channel.unsent
        try:
            done = channel.flush()
        except OSError as error:
            self._break(error)
            return
        if channel.unsent < before:
            self.writing_since = self._clock()
        if done:
            self._writable.stop()
            self._blocked, self.writing_since = False, None
            self._turn()

    def _break(self, error: OSError) -> None:
        self._failure = lost(error)
        self._blocked, self.writing_since = True, None  # nothing more is written
        if self._writable is not None:
            self._writable.stop()
        self._over.set()
        self._flushed.set()

    def _let_in(self) -> None:
        """Wake as many waiters as there is room for in one turn."""
        if not self._blocked:
            for _ in range(TURN_BYTES // BATCH_BYTES):
                if self._waiting:
                    self._invite()
            if self._waiting:  # whoever is let in may have nothing to add
                self._see_turn()

    def _invite(self) -> None:
        place = self._waiting.popleft()
        if not place.is_set():
            self._invited += 1
            place.set()

    # The end ---------------------------------------------------------------------------------

    def stop_reading(self) -> None:
        """Make the reader raise SessionLost while writing goes on. Never blocks."""
        self._reading = False
        if self._readable is not None:
            release(self._readable, _STOPPED)
            self._readable = None

    def close(self) -> None:
        """Close the socket, without a close frame; wakes all who wait. Idempotent."""
        if not self.closed:
            self.closed = True
            for used in (self._readable, self._writable):
                if used is not None:
                    release(used, _CLOSED)
            self._readable = self._writable = None
            self._channel.close()
            self._over.set()
            self._flushed.set()
            while self._waiting:
                self._invite()

    def disown(self) -> None:
        """In a child of fork: make the descriptor lead nowhere, whoever still uses it. No bytes
        are sent, and the parent's connection is untouched. Never blocks."""
        if not self.closed:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, self._channel.fileno(), inheritable=False)
            os.close(nowhere)


def lost(error: OSError) -> SessionLost:
    """The SessionLost for what the operating system said of the socket."""
    text = error.strerror or str(error)
    if isinstance(error, ConnectionError):
        return SessionLost(f"the connection to the relay was reset: {text}", "reset")
    if isinstance(error, ssl.SSLError):
        return SessionLost(f"TLS with the relay failed: {text}", "tls")
    return SessionLost(f"the connection to the relay failed: {text}", "io")
