"""Open TCP, UDP and unix sockets within a time. It knows no TLS, and not whom it connects for."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from select import POLLOUT
from typing import TYPE_CHECKING, Any

import gevent
from gevent import select, socket
from gevent.monkey import get_original

from nexusg.transport.deadline import Deadline, limit
from nexusg.transport.failure import ConnectError, connect_error, failure_code
from nexusg.transport.resolve import known, resolve


if TYPE_CHECKING:
    from collections.abc import Iterator

    from nexusg.transport.resolve import SocketAddress

# How long an address has for itself before the next one is tried beside it: RFC 8305 section 5
# recommends 250 ms.
HEAD_START_S = 0.25
# How often a UDP socket may be given the port it connects to before that is somebody's doing.
MEETINGS = 5
# A unix listener with a full backlog refuses at once and nothing can be waited on, so try again:
# often enough not to be noticed, seldom enough to cost nothing.
UNIX_RETRY_S = 0.02

# Probe an idle peer after 30 s, then every 10 s; three unanswered probes end the connection. This
# is for connections without pings of their own, and keeps NAT entries alive.
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
_NEAR_OPTIONS = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
_OPTIONS = [
    *_NEAR_OPTIONS,
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in _KEEPALIVE.items()
        if hasattr(socket, name)
    ),
]
_NativeSocket: Any = get_original("socket", "socket")
_NONBLOCK = getattr(socket, "SOCK_NONBLOCK", 0)  # on Linux it spares a system call
_HOST_ITSELF = ("127.", "::1")


def join_host_port(host: str, port: int) -> str:
    """``host:port``, with brackets around an IPv6 literal (RFC 3986 section 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def connect_tcp(host: str, port: int, timeout_s: float) -> socket.socket:
    """Connect to a name or literal, within one time for the look-up and every address of it.

    The socket comes back blocking (for its greenlet), with TCP_NODELAY and keepalive. Raises
    ConnectError. Blocks.
    """
    native = connect_native(host, port, timeout_s)
    # The socket is made first: it must not be lost between the two.
    sock = socket.socket(native.family, native.type, native.proto, native.fileno())
    native.detach()
    return sock


def connect_native(host: str, port: int, timeout_s: float) -> Any:
    """The same, but the socket is one of the standard library, and non-blocking.

    It is smaller and sooner made than one of gevent, by the watchers that it does not have.
    """
    place = join_host_port(host, port)
    deadline = Deadline(timeout_s)
    addresses = known(host, port)
    if not addresses:
        late = ConnectError(f"looking up {host} took longer than {timeout_s:.3g} s", "timeout")
        with limit(deadline, late):
            addresses = resolve(host, port)
    pending: dict[int, Any] = {}
    failures: list[OSError] = []
    # On the loopback that is all, so nothing is set up to wait.
    if winner := _begin(addresses.pop(0), pending, failures):
        return winner
    late = ConnectError(f"connecting to {place} took longer than {timeout_s:.3g} s", "timeout")
    with limit(deadline, late):
        return _race(addresses, pending, failures, place)


def connect_udp(host: str, port: int, timeout_s: float) -> socket.socket:
    """A UDP socket with a name or literal as its peer; ``timeout_s`` is for the look-up.

    Whether anybody listens cannot be found out, so the first address that has a route it is. IPv4
    goes first, because a service that ``localhost`` stands for may well not know IPv6. Raises
    ConnectError. Blocks.
    """
    place = join_host_port(host, port)
    late = ConnectError(f"looking up {host} took longer than {timeout_s:.3g} s", "timeout")
    with limit(Deadline(timeout_s), late):
        addresses = resolve(host, port)
    failures: list[OSError] = []
    for target in sorted(addresses, key=lambda address: address.family != socket.AF_INET):
        for _ in range(MEETINGS):
            try:
                sock = socket.socket(target.family, socket.SOCK_DGRAM)
                with closed_on_error(sock):
                    sock.connect(target.address)
            except OSError as error:
                failures.append(error)
                break
            if not _meets_itself(sock):
                return sock
            sock.close()
            failures.append(OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)))
    raise connect_error(place, failures[0]) from failures[0]


def connect_unix(path: str, timeout_s: float) -> socket.socket:
    """Connect to a unix stream socket; ``@name`` is abstract. Raises ConnectError. Blocks."""
    address = "\0" + path[1:] if path.startswith("@") else path
    late = ConnectError(f"connecting to {path} took longer than {timeout_s:.3g} s", "timeout")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with closed_on_error(sock), limit(Deadline(timeout_s), late):
        sock.setblocking(False)
        try:
            while (code := sock.connect_ex(address)) == errno.EAGAIN:
                gevent.sleep(UNIX_RETRY_S)
            if code:
                raise OSError(code, os.strerror(code))
        except OSError as error:
            raise connect_error(path, error) from error
        sock.setblocking(True)
        return sock


@contextmanager
def closed_on_error(sock: socket.socket) -> Iterator[None]:
    """Close the socket when the block does not end well."""
    try:
        yield
    except BaseException:  # a time limit and the end of a greenlet too
        sock.close()
        raise


def _race(
    waiting: list[SocketAddress], pending: dict[int, Any], failures: list[OSError], place: str
) -> Any:
    """The first connection that succeeds, each address with a head start on the next (RFC 8305).

    One greenlet waits for all of them, so a time limit leaves nothing behind.
    """
    try:
        while waiting or pending:
            if waiting and (winner := _begin(waiting.pop(0), pending, failures)):
                return winner
            if pending and (winner := _finished(pending, failures, bool(waiting))):
                return winner
    finally:
        for loser in pending.values():
            loser.close()
    # IPv6 without a route is the rule on many hosts, and no explanation if IPv4 failed otherwise.
    worst = min(failures, key=lambda error: failure_code(error) == "unreachable")
    raise connect_error(place, worst) from worst


def _begin(target: SocketAddress, pending: dict[int, Any], failures: list[OSError]) -> Any:
    """Begin to connect; the socket if that is done already, as it is on the loopback."""
    try:
        sock = _NativeSocket(target.family, socket.SOCK_STREAM | _NONBLOCK)
    except OSError as error:
        failures.append(error)
        return None
    number = sock.fileno()
    pending[number] = sock
    # The host itself needs no probes: its kernel knows when a connection ends.
    for option in _NEAR_OPTIONS if target.address[0].startswith(_HOST_ITSELF) else _OPTIONS:
        sock.setsockopt(*option)
    if sock.gettimeout() != 0.0:
        sock.setblocking(False)
    code = sock.connect_ex(target.address)
    if code == errno.EINPROGRESS:
        code = sock.connect_ex(target.address)  # which spares a turn of the loop
    if code == errno.EALREADY:
        return None
    return _judged(number, 0 if code == errno.EISCONN else code, pending, failures)


def _finished(pending: dict[int, Any], failures: list[OSError], more: bool) -> Any:
    """A connected socket, or None after failures or the head start. Blocks."""
    poll = select.poll()  # not select(): it cannot take descriptors beyond 1023
    for number in pending:
        poll.register(number, POLLOUT)
    for number, _ in poll.poll(HEAD_START_S * 1000 if more else None):
        code = pending[number].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if winner := _judged(number, code, pending, failures):
            return winner
    return None


def _judged(number: int, code: int, pending: dict[int, Any], failures: list[OSError]) -> Any:
    """The socket if it is connected to somebody; a failure otherwise."""
    sock = pending.pop(number)
    if not code and _meets_itself(sock):
        code = errno.ECONNREFUSED
    if not code:
        return sock
    sock.close()
    failures.append(OSError(code, os.strerror(code)))
    return None


def _meets_itself(sock: Any) -> bool:
    """Whether the system picked as our own port the one we connect to, where nobody listens.

    It happens on loopback, to whoever dials long enough a service that is down, and then keeps the
    service from binding its port.
    """
    try:
        return bool(sock.getsockname() == sock.getpeername())
    except OSError:  # gone already; the first read will say so
        return False
