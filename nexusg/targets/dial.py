"""From the text of one target to a connection: ``host:port``, ``tls://host:port``, ``unix:/path``
or ``unix:@name``. It knows neither ``wsgi:`` nor that there may be several targets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gevent import socket, ssl

from nexusg.errors import DialFailed, TargetError
from nexusg.targets.certificates import Certificates
from nexusg.targets.proxy_protocol import OFF, header
from nexusg.targets.sockets import SocketTarget, TlsSocketTarget
from nexusg.transport.connect import (
    closed_on_error,
    connect_native,
    connect_tcp,
    connect_unix,
    join_host_port,
)
from nexusg.transport.deadline import Deadline, limit
from nexusg.transport.failure import ConnectError, failure_code, words
from nexusg.transport.tls import wrap


if TYPE_CHECKING:
    from nexusg.config.destination import Destination
    from nexusg.targets.base import Target
    from nexusg.targets.request import ConnectRequest

#: For the look-up, all addresses, and TLS together (PROTOCOL.md section 6.2).
TIMEOUT_S = 10.0

UNIX = "unix:"
TLS = "tls://"

_CERTIFICATES = Certificates()  # for whoever brings none


def dial(
    target: str,
    how: Destination,
    request: ConnectRequest | None,
    buffer: bytearray,
    timeout_s: float = TIMEOUT_S,
    certificates: Certificates = _CERTIFICATES,
) -> Target:
    """Connect to a local service; ``buffer`` is what it is read into.

    The PROXY protocol header, if ``how`` asks for one, goes before TLS and before anything of the
    user; without a ``request`` it is for a connection of our own, not a user's. Names are resolved
    each time (PROTOCOL.md section 10.3). Raises TargetError with code ``refused``, ``timeout``,
    ``dns``, ``unreachable``, ``tls`` or ``io``. Blocks.
    """
    try:
        if not target.startswith(TLS):
            return _dial_plain(target, how, request, buffer, timeout_s)
        late = TargetError(f"target {target}: not connected within {timeout_s:.3g} s", "timeout")
        with limit(Deadline(timeout_s), late):
            return _dial_tls(target, how, request, buffer, timeout_s, certificates)
    except (ConnectError, DialFailed) as error:
        raise TargetError(f"target {target}: {error}", error.code) from error


def _dial_plain(
    target: str,
    how: Destination,
    request: ConnectRequest | None,
    buffer: bytearray,
    timeout_s: float,
) -> SocketTarget:
    sock: Any
    if target.startswith(UNIX):
        sock = connect_unix(target[len(UNIX) :], timeout_s)
    else:
        sock = connect_native(*split(target), timeout_s)
    _introduce(sock, target, how, request)
    return SocketTarget(sock, target, buffer)


def _dial_tls(
    target: str,
    how: Destination,
    request: ConnectRequest | None,
    buffer: bytearray,
    timeout_s: float,
    certificates: Certificates,
) -> TlsSocketTarget:
    # Before the connection: a service should not see one that cannot be used.
    context = _context(target, how, certificates)
    host, port = split(target)
    sock = connect_tcp(host, port, timeout_s)
    _introduce(sock, target, how, request)
    place, without = join_host_port(host, port), "write the target without tls://"
    wrapped = wrap(sock, context, how.tls.server_name or host, place=place, without=without)
    return TlsSocketTarget(wrapped, target, buffer)


def _context(target: str, how: Destination, certificates: Certificates) -> ssl.SSLContext:
    try:
        return certificates.client(how.tls)
    except TargetError as error:  # it cannot know for whom
        raise TargetError(f"target {target}: {error}", error.code) from error


def _introduce(sock: Any, target: str, how: Destination, request: ConnectRequest | None) -> None:
    """Say who the user is, in one segment."""
    if how.proxy_protocol == OFF:
        return
    with closed_on_error(sock):
        try:
            sock.sendall(header(how.proxy_protocol, request))
        except OSError as error:
            text = f"target {target}: the connection broke at once: {words(error)}"
            raise TargetError(text, failure_code(error)) from error


def split(target: str, protocol: str = "tcp") -> tuple[str, int]:
    """Host and port of a target. Raises TargetError if no port of ``protocol`` is named so.

    Without a host it is this one, as with the reference agent.
    """
    host, _, service = target.removeprefix(TLS).rpartition(":")
    try:
        port = int(service) if service.isdecimal() else socket.getservbyname(service, protocol)
    except OSError as error:
        text = f"target {target}: the system knows no {protocol.upper()} service {service!r}"
        raise TargetError(text, "dns") from error
    return host.strip("[]") or "localhost", port
