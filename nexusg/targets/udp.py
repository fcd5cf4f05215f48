"""A local service over UDP: a connected datagram socket of its own for each flow.

One datagram goes in, one comes out, empty ones too; nothing is ever queued or waited for on the way
in. A service that is down costs the datagrams sent to it meanwhile, and never the flow.
"""

from __future__ import annotations

import collections
import errno
import struct
from typing import TYPE_CHECKING, Any

from gevent import socket

from nexusg.errors import TargetError
from nexusg.targets.dial import TIMEOUT_S, TLS, UNIX, split
from nexusg.targets.sockets import Endpoint
from nexusg.transport.connect import connect_udp
from nexusg.transport.failure import ConnectError


if TYPE_CHECKING:
    from collections.abc import Mapping


# Linux's SO_MEMINFO, which the socket module does not name: nine figures of 32 bits, the last of
# which counts the datagrams that found the receive buffer full (SK_MEMINFO_DROPS).
_MEMINFO, _FIGURES = 55, struct.Struct("9I")


class UdpTarget(Endpoint):
    """A connected datagram socket of gevent, which it takes over. OSError means it was closed.

    ``drops`` counts the datagrams it has lost, by cause: ``refused`` (the system reported that one
    did not arrive, as when nobody listens), ``full`` (the kernel had no room for it) and
    ``oversize`` (from the service, and above the limit).
    """

    __slots__ = ("_overflowed", "drops")

    def __init__(self, sock: Any, name: str, buffer: bytearray) -> None:
        super().__init__(sock, name, buffer)
        self.drops: collections.Counter[str] = collections.Counter()
        self._overflowed = 0

    def try_send(self, datagram: memoryview | bytes) -> bool:
        """Hand one datagram to the kernel; False, and it is dropped and counted, if that failed.

        Never switches greenlets. Raises OSError when it was closed.
        """
        for attempt in (1, 2):
            try:
                self._sock.send(datagram)
                return True
            except BlockingIOError:
                self.drops["full"] += 1
                return False
            except OSError as error:
                # What is reported first may have become of an earlier datagram (RFC 1122 4.1.3.3),
                # and then this one has not been tried yet.
                self._refused(error, count=attempt == 1)
        return False

    def try_read(self, limit: int) -> memoryview | None:
        """The next datagram of at most ``limit`` bytes, valid until the next switch.

        None when there is none, or when it was too large or a report of a refusal instead: then
        `wait_readable` returns at once if there is more. Raises OSError when it was closed.
        """
        view = memoryview(self._buffer)[:limit]
        try:
            size = self._sock.recv_into(view, limit, socket.MSG_TRUNC)  # its true size
        except BlockingIOError:
            return None
        except OSError as error:
            self._refused(error)
            return None
        if size > limit:
            self.drops["oversize"] += 1
            return None
        return view[:size]

    def overflowed(self) -> int:
        """How many datagrams of the service the kernel has dropped because nobody read them.

        0 where the kernel does not tell (Linux before 4.12, other systems).
        """
        try:
            figures = self._sock.getsockopt(socket.SOL_SOCKET, _MEMINFO, _FIGURES.size)
            self._overflowed = _FIGURES.unpack(figures)[-1]
        except (OSError, struct.error):
            pass
        return self._overflowed

    def losses(self) -> Mapping[str, int]:
        """All datagrams lost so far, by cause: ``drops``, and ``overflow`` for the kernel's."""
        overflowed = self.overflowed()
        return {**self.drops, "overflow": overflowed} if overflowed else self.drops

    def close(self) -> None:
        """Close, and wake up whoever waits in a method with an OSError; idempotent."""
        self.overflowed()
        super().close()

    def _refused(self, error: OSError, *, count: bool = True) -> None:
        if error.errno == errno.EBADF:
            raise error
        self.drops["refused"] += count


def dial_udp(target: str, buffer: bytearray, timeout_s: float = TIMEOUT_S) -> UdpTarget:
    """A socket for one flow to ``host:port``; names are resolved each time.

    ``timeout_s`` is for that. Raises TargetError with code ``dns``, ``timeout``, ``unreachable`` or
    ``io``. Blocks.
    """
    if target.startswith((UNIX, TLS)):
        raise TargetError(f"target {target}: a UDP flow needs host:port", "io")
    host, port = split(target, "udp")
    try:
        sock = connect_udp(host, port, timeout_s)
    except ConnectError as error:
        raise TargetError(f"target {target}: {error}", error.code) from error
    return UdpTarget(sock, target, buffer)
