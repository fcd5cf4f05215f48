"""The address of a relay: what a wss:// or ws:// URL may say. It knows no sockets."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

import idna

from nexusg.errors import DialFailed
from nexusg.transport.connect import join_host_port


DEFAULT_PORTS = {"wss": 443, "ws": 80}

_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
# The path and query characters of RFC 3986, but not ";", at which websocket-client cuts the path.
_RESOURCE = re.compile(r"/[A-Za-z0-9/._~!$&'()*+,=:%-]*(\?[A-Za-z0-9/._~!$&'()*+,=:%?-]*)?")


@dataclass(frozen=True, slots=True)
class RelayAddress:
    """Where a relay listens. ``host`` has no brackets; ``resource`` is path and query."""

    scheme: str
    host: str
    port: int
    resource: str = field(repr=False)  # a query may hold a secret

    @property
    def secure(self) -> bool:
        """Whether TLS is spoken."""
        return self.scheme == "wss"

    @property
    def place(self) -> str:
        """``host:port`` for messages."""
        return join_host_port(self.host, self.port)

    @property
    def host_header(self) -> str:
        """The Host header: with the port if it is not the scheme's own (RFC 9110 section 7.2)."""
        host = self.host.partition("%")[0]  # the zone of a link-local address is local
        place = join_host_port(host, self.port)
        return place.rpartition(":")[0] if self.port == DEFAULT_PORTS[self.scheme] else place


def parse_address(url: str) -> RelayAddress:
    """Read a relay's URL. Raises DialFailed with code ``address``, naming the way out."""
    if not url.strip():
        raise _refuse("the relay address is empty; write wss://host:port/connect")
    if "@" in url:
        raise _refuse("the relay address must not hold a user or password: relays take tokens only")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _refuse(f"{_shown(url)} cannot be used: {error}") from error
    if parts.scheme not in DEFAULT_PORTS:
        raise _refuse(f"{_shown(url)} does not begin with wss:// (or ws://){_suggestion(parts)}")
    if port == 0:
        raise _refuse(f"{_shown(url)} has port 0; ports are 1 to 65535")
    resource = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    # urlsplit drops tabs and line ends silently.
    if not _RESOURCE.fullmatch(resource) or "#" in url or re.search(r"\s", url):
        raise _refuse(f"{_shown(url)} has a character that must be written as %XX")
    try:
        host = ascii_host(parts.hostname or "")
    except ValueError as error:
        raise _refuse(f"{_shown(url)} cannot be used: {error}") from error
    return RelayAddress(parts.scheme, host, port or DEFAULT_PORTS[parts.scheme], resource)


def ascii_host(host: str) -> str:
    """A host name in its ASCII form, or a literal, fit for a header. Raises ValueError."""
    if not host.isascii():
        host = idna.encode(host, uts46=True).decode("ascii")  # its IDNAError is a ValueError
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass  # a name
    if not _NAME.fullmatch(host):
        raise ValueError("the host name is not valid")
    return host


def _refuse(message: str) -> DialFailed:
    return DialFailed(message, "address")


def _shown(url: str) -> str:
    """The URL for a message, without its query, which may hold a secret."""
    return f"the relay address {url.partition('?')[0]!r}"


def _suggestion(parts: SplitResult) -> str:
    better = {"https": "wss", "http": "ws"}.get(parts.scheme)
    return f": write {better}:// for {parts.scheme}://" if better else ""
