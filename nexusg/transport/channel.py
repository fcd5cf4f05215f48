"""The bytes of a connection to a relay, plain or in TLS.

TLS goes through memory instead of OpenSSL's own reads and writes. Those are one write for each
record of 16 KiB, and two reads, where here one write takes a whole batch and one read all there is:
that is a quarter of what bulk data costs. And what is under way is kept here, so that nobody has to
repeat a blocked write with the same bytes, or to read in order to write.

A channel is blocking while it is dialled, and for good after `unblock`. It knows no frames.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from gevent import ssl
from gevent.monkey import get_original
from gevent.socket import SHUT_RDWR


if TYPE_CHECKING:
    from gevent import socket

#: What one read takes of what the kernel has, ten records of TLS. More would be a little cheaper,
#: and lets others wait longer.
READ_BYTES = 160 * 1024
#: What a record of TLS holds at most (RFC 8446 section 5.1).
RECORD_BYTES = 16 * 1024

_NativeSocket: Any = get_original("socket", "socket")


class Channel:
    """Plain bytes over a connected socket of gevent, which belongs to it."""

    __slots__ = ("_rest", "_sock", "drained")

    def __init__(self, sock: socket.socket) -> None:
        self._sock: Any = sock
        self._rest: memoryview | bytes = b""  # on its way, and not taken by the kernel
        #: Whether the last read took all there was, most likely.
        self.drained = False

    @property
    def tls_version(self) -> str | None:
        """The version of TLS, for example ``TLSv1.3``; None without TLS."""
        return None

    def fileno(self) -> int:
        """The descriptor; -1 when closed."""
        return self._sock.fileno()  # type: ignore[no-any-return]

    def unblock(self) -> None:
        """From now on never wait, but raise BlockingIOError, or leave a rest."""
        sock = self._sock
        # The methods in C are all that is needed where nothing may wait.
        self._sock = _NativeSocket(sock.family, sock.type, sock.proto, sock.detach())
        self._sock.setblocking(False)

    def read_into(self, buffer: memoryview) -> int:
        """Fill the start of ``buffer`` with what there is; 0 at the end.

        Raises OSError, and BlockingIOError when there is nothing yet. Blocks before `unblock`.
        """
        count: int = self._sock.recv_into(buffer)
        self.drained = count < len(buffer)
        return count

    @property
    def unsent(self) -> int:
        """How many bytes the kernel has not taken yet."""
        return len(self._rest)

    def write(self, data: bytes) -> bool:
        """Take all of ``data``, and hand on what the kernel takes; whether that is everything.

        Only while nothing is `unsent`. Raises OSError. Blocks before `unblock`.
        """
        self._rest = data
        return self.flush()

    def flush(self) -> bool:
        """Hand on what is left; whether that was everything. Raises OSError."""
        rest = self._rest
        try:
            count = self._sock.send(rest)
        except BlockingIOError:
            return False
        self._rest = memoryview(rest)[count:] if count < len(rest) else b""
        return not self._rest

    def recv(self, size: int) -> bytes:
        """At most ``size`` bytes; empty at the end. Raises OSError. Blocks."""
        buffer = bytearray(size)
        return bytes(buffer[: self.read_into(memoryview(buffer))])

    def sendall(self, data: bytes) -> None:
        """Write all of it. Raises OSError. Blocks."""
        done = self.write(data)
        while not done:
            done = self.flush()

    def close(self) -> None:
        """Close the socket. Never blocks or raises; idempotent."""
        with suppress(OSError):  # it is no longer connected
            # The end, rather than the reset that a close with unread input would be.
            self._sock.shutdown(SHUT_RDWR)
        self._sock.close()


class TlsChannel(Channel):
    """The same in TLS. Call `handshake` first.

    ``buffer`` is what the kernel's bytes are read into. Nothing stays in it from one switch of
    greenlets to the next, so one is enough for everything that reads in a thread.
    """

    __slots__ = ("_ended", "_failure", "_incoming", "_more", "_outgoing", "_raw", "_short", "_tls")

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        server_name: str,
        buffer: bytearray | None = None,
    ) -> None:
        super().__init__(sock)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        self._raw = memoryview(buffer if buffer is not None else bytearray(READ_BYTES))
        self._more = False  # there may be something to read without the kernel
        self._short = False  # the kernel has given less than there was room for
        self._ended = False  # the peer has said in TLS that nothing comes any more
        self._failure: ssl.SSLError | None = None

    def handshake(self) -> None:
        """Shake hands. Raises OSError, and SSLError among them. Blocks."""
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._say()
            except ssl.SSLError:
                with suppress(OSError):
                    self._say()  # the alert, which tells the peer why
                raise
            self._receive()
        self._say()

    @property
    def tls_version(self) -> str | None:
        """The version of TLS."""
        return self._tls.version()

    def read_into(self, buffer: memoryview) -> int:
        """See Channel. An end without TLS's own word for it is one, too."""
        while not self._ended:
            if self._more and (count := self._open(buffer)):
                self.drained = not self._more and self._short
                return count
            if not self._ended and not self._receive():
                break
        return 0

    @property
    def unsent(self) -> int:
        """How many bytes the kernel has not taken yet, as they are in TLS."""
        return len(self._rest) + self._outgoing.pending

    def write(self, data: bytes) -> bool:
        """See Channel."""
        self._tls.write(data)
        return self.flush()

    def flush(self) -> bool:
        """See Channel."""
        if not self._rest:
            self._rest = self._outgoing.read()
        return super().flush() and not self._outgoing.pending

    def _receive(self) -> int:
        count: int = self._sock.recv_into(self._raw)
        self._short = count < len(self._raw)
        if count:
            self._incoming.write(self._raw[:count])
            self._more = True
        else:
            self._incoming.write_eof()
        return count

    def _open(self, buffer: memoryview) -> int:
        """Decrypt what is in memory, as far as there is room; how much that was."""
        tls, incoming = self._tls, self._incoming
        count = 0
        try:
            while (
                self._more
                and not self._failure
                and (not count or len(buffer) - count >= RECORD_BYTES)
            ):
                # The stubs do not know that with a buffer it is the count.
                read: int = tls.read(len(buffer) - count, buffer[count:])  # type: ignore[assignment]
                if not read:
                    self._ended = True
                    break
                count += read
                # Looked at rather than tried, since an exception for each small message costs more.
                self._more = bool(incoming.pending or tls.pending())
        except ssl.SSLWantReadError:
            self._more = False  # a part of a record
        except ssl.SSLError as error:
            self._failure = error
        if self._outgoing.pending and not self._rest:
            with suppress(OSError):  # it will be found out by whoever writes
                self.flush()  # TLS has an answer of its own to something
        if self._failure is not None and not count:  # what came before it is whole
            raise self._failure
        return count

    def _say(self) -> None:
        while self.unsent:
            self.flush()
