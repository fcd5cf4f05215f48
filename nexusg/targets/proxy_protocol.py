"""The header that tells a local service who its user is: HAProxy's PROXY protocol, v1 and v2.

The sections are those of proxy-protocol.txt. It makes bytes, and knows no sockets.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import TYPE_CHECKING

from nexusg.protocol.messages import parse_id


if TYPE_CHECKING:
    from nexusg.targets.request import ConnectRequest

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address


OFF, V1, V2 = "off", "v1", "v2"

# The relay does not tell which of its addresses the user came to. Loopback stands for it, because
# the unspecified addresses make Envoy refuse the header: they are not unicast.
_DESTINATIONS: dict[int, Address] = {
    4: ipaddress.IPv4Address("127.0.0.1"),
    6: ipaddress.IPv6Address("::1"),
}
_PORTS = range(0x10000)

# Section 2.2: signature, version and command, family and protocol, length.
_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_HEAD = struct.Struct("!12sBBH")
_LOCAL, _PROXY = 0x20, 0x21
_TCP = {4: 0x11, 6: 0x21}
_TLV = struct.Struct("!BH")
_AUTHORITY, _UNIQUE_ID = 0x02, 0x05
# HAProxy refuses a header with a longer one, and no host name is longer (RFC 1035 section 2.3.4).
_AUTHORITY_BYTES = 255


def header(version: str, request: ConnectRequest | None) -> bytes:
    """What goes before the first byte of the user, for ``version`` ``v1`` or ``v2``.

    Without a ``request`` the connection is our own, for example a health check: in v1 that comes
    from loopback, because some receivers refuse ``UNKNOWN`` (section 2.1), in v2 it is LOCAL.

    A user whose address the relay did not tell is ``UNKNOWN`` in v1. In v2 it is the command LOCAL
    without addresses, since receivers must take that, and may refuse PROXY with an unspecified
    family (section 2.2).
    """
    return _VERSIONS[version](request)


def _v1(request: ConnectRequest | None) -> bytes:
    if request is None:
        return b"PROXY TCP4 127.0.0.1 127.0.0.1 0 0\r\n"
    source = _source(request)
    if source is None:
        return b"PROXY UNKNOWN\r\n"
    version, destination = source.version, _DESTINATIONS[source.version]
    ports = f"{_port(request.client_port)} {_port(request.port)}"
    return f"PROXY TCP{version} {source} {destination} {ports}\r\n".encode("ascii")


def _v2(request: ConnectRequest | None) -> bytes:
    source = None if request is None else _source(request)
    if request is None or source is None:
        return _HEAD.pack(_SIGNATURE, _LOCAL, 0, 0)
    addresses = source.packed + _DESTINATIONS[source.version].packed
    ports = struct.pack("!HH", _port(request.client_port), _port(request.port))
    rest = addresses + ports + _tlv(_UNIQUE_ID, parse_id(request.client_id)) + _authority(request)
    return _HEAD.pack(_SIGNATURE, _PROXY, _TCP[source.version], len(rest)) + rest


def _source(request: ConnectRequest) -> Address | None:
    """The user's address, as IPv4 if it is one in the form of IPv6, and without a zone."""
    try:
        address = ipaddress.ip_address(request.client_ip.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def _port(port: int) -> int:
    return port if port in _PORTS else 0


def _authority(request: ConnectRequest) -> bytes:
    """The host name the user asked for (section 2.2.2); nothing if it was only a port."""
    name = request.original_hostname.encode("utf-8", "replace")
    if not name or len(name) > _AUTHORITY_BYTES or name.startswith(b"tcp:"):
        return b""
    return _tlv(_AUTHORITY, name)


def _tlv(kind: int, value: bytes) -> bytes:
    return _TLV.pack(kind, len(value)) + value


_VERSIONS = {V1: _v1, V2: _v2}
