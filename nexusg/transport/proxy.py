"""HTTP proxies between this agent and its relay: which one, and CONNECT through it.

The environment means what it means to Go programs (golang.org/x/net/http/httpproxy), with
ALL_PROXY besides. It knows no TLS and no WebSockets.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from nexusg.errors import DialFailed
from nexusg.transport.address import ascii_host
from nexusg.transport.connect import join_host_port
from nexusg.transport.deadline import limit
from nexusg.transport.httphead import read_head
from nexusg.transport.tls import connection_errors
from nexusg.version import __version__


if TYPE_CHECKING:
    from collections.abc import Mapping

    from gevent import socket

    from nexusg.transport.address import RelayAddress
    from nexusg.transport.deadline import Deadline

    IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

DEFAULT_PORT = 80  # for a proxy address without a port, as Go has it
MAX_HEAD_BYTES = 16 * 1024  # an answer to CONNECT is a few hundred bytes

_NO_PROXY_ENTRY = re.compile(r"(?:\[(?P<literal>[^]]+)\]|(?P<name>[^:]*))(?::(?P<port>\d{1,5}))?")


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy. ``credentials`` are ``user:password``, decoded, and never shown."""

    host: str
    port: int
    credentials: str | None = field(default=None, repr=False)

    @property
    def place(self) -> str:
        """The proxy for messages."""
        return f"the proxy {join_host_port(self.host, self.port)}"


def proxy_for(address: RelayAddress, environ: Mapping[str, str]) -> Proxy | None:
    """The proxy that the environment names for a relay, or None.

    HTTPS_PROXY is for wss, HTTP_PROXY for ws, ALL_PROXY for both; upper case before lower. A relay
    on this machine, or one that NO_PROXY names, has none. Raises DialFailed with code ``proxy`` for
    one that cannot be used.
    """
    scheme = "HTTPS_PROXY" if address.secure else "HTTP_PROXY"
    names = [scheme, scheme.lower(), "ALL_PROXY", "all_proxy"]
    variable = next((name for name in names if environ.get(name)), None)
    if variable is None or _goes_direct(address, environ):
        return None
    return _parse(environ[variable].strip(), variable)


def connect_through(
    sock: socket.socket, proxy: Proxy, host: str, port: int, deadline: Deadline
) -> None:
    """Have a connected proxy open a tunnel to ``host``; the socket is the tunnel then. Blocks.

    Raises DialFailed with code ``proxy``, or ``timeout`` when the deadline comes (RFC 9110 section
    9.3.6).
    """
    target = join_host_port(host, port)
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}", f"User-Agent: nexusg/{__version__}"]
    if proxy.credentials is not None:
        secret = proxy.credentials.encode(errors="surrogateescape")  # as the environment had it
        encoded = base64.b64encode(secret).decode()
        lines.append(f"Proxy-Authorization: Basic {encoded}")
    late = DialFailed(f"{proxy.place} did not open a tunnel to {target} in time", "timeout")
    with limit(deadline, late), connection_errors(proxy.place, "proxy"):
        sock.sendall("\r\n".join([*lines, "", ""]).encode("ascii"))
        head = read_head(sock, MAX_HEAD_BYTES, place=proxy.place, code="proxy")
    if not 200 <= head.status < 300:
        raise _refusal(head.status, proxy, target)
    # TLS and HTTP clients speak first, so nothing through the tunnel can have come yet.
    if head.rest:
        raise _failed(f"{proxy.place} sent {len(head.rest)} bytes before the tunnel was used")


def _refusal(status: int, proxy: Proxy, target: str) -> DialFailed:
    hint = ""
    if status == 407 and proxy.credentials is None:
        hint = ": it wants credentials, as in http://user:password@host:port"
    elif status == 407:
        hint = ": it wants other credentials"
    elif status == 403:
        hint = ": it does not allow this destination"
    return _failed(f"{proxy.place} refused a tunnel to {target} with status {status}{hint}")


def _goes_direct(address: RelayAddress, environ: Mapping[str, str]) -> bool:
    host = address.host.lower().rstrip(".")
    literal = _literal(host)
    if host == "localhost" or (literal and literal.is_loopback):
        return True
    entries = (environ.get("NO_PROXY") or environ.get("no_proxy") or "").lower().split(",")
    return any(_matches(entry.strip(), host, literal, address.port) for entry in entries)


def _matches(entry: str, host: str, literal: IpAddress | None, port: int) -> bool:
    """Whether an entry of NO_PROXY names the host: ``*``, a name and all names below it, ``.name``
    for those below it only, a literal or a network; all but ``*`` and networks with or without a
    port."""
    if entry == "*":
        return True
    if "/" in entry:
        return literal is not None and _in_network(literal, entry)
    parts = _NO_PROXY_ENTRY.fullmatch(entry)
    name = (parts["literal"] or parts["name"]) if parts else entry  # else a bare IPv6 literal
    if parts and parts["port"] and int(parts["port"]) != port:
        return False
    if literal:
        return literal == _literal(name)
    suffix = name.removeprefix("*")
    if suffix.startswith("."):
        return host.endswith(suffix)
    return bool(name) and (host == name or host.endswith("." + name))


def _in_network(literal: IpAddress, entry: str) -> bool:
    try:
        return literal in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False


def _literal(text: str) -> IpAddress | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _parse(value: str, variable: str) -> Proxy:
    """Read a proxy's URL. The value is never shown: it may hold a password."""
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        host, port = ascii_host(parts.hostname or ""), parts.port
    except ValueError:  # without its cause, whose text may be part of a password
        raise _failed(f"{variable} holds no proxy address; write http://host:port") from None
    if parts.scheme != "http":
        detail = " (TLS inside TLS is not possible here)" if parts.scheme == "https" else ""
        raise _failed(
            f"{variable} names a proxy of a kind that is not supported{detail}; write http://host:port"
            " of an HTTP proxy, or put the relay into NO_PROXY"
        )
    credentials = None
    if parts.username is not None:
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return Proxy(host, DEFAULT_PORT if port is None else port, credentials)


def _failed(message: str) -> DialFailed:
    return DialFailed(message, "proxy")
