"""What the kernel tells about links, addresses and routes (rtnetlink(7), Linux). Pure.

Only what can make a relay reachable, or a connection useless, is noticed: an interface that is up,
an address, a default route.
"""

from __future__ import annotations

import struct
import sys
from typing import TYPE_CHECKING, Any, NamedTuple


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# linux/rtnetlink.h, linux/netlink.h, linux/if.h, linux/if_addr.h
_LINK, _IPV4_ADDRESS, _IPV4_ROUTE, _IPV6_ADDRESS, _IPV6_ROUTE = 0x1, 0x10, 0x40, 0x100, 0x400
GROUPS = _LINK | _IPV4_ADDRESS | _IPV4_ROUTE | _IPV6_ADDRESS | _IPV6_ROUTE
NEW_LINK, DEL_LINK, NEW_ADDRESS, DEL_ADDRESS, NEW_ROUTE, DEL_ROUTE = 16, 17, 20, 21, 24, 25

_HEADER = struct.Struct("=IHHII")  # length with this header, type, flags, sequence, port
_LINK_BODY = struct.Struct("=BxHiII")  # family, device type, index, flags, which of them changed
_ADDRESS_BODY = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, index
_ROUTE_BODY = struct.Struct("=8BI")  # family, lengths, tos, table, protocol, scope, type, flags
_ATTRIBUTE = struct.Struct("=HH")  # length with this header, type

_UP, _LOOPBACK, _RUNNING = 0x1, 0x8, 0x40
_LOOPBACK_INDEX = 1  # in every network namespace
_SCOPE_LINK = 253  # from there on up, an address is of no use beyond the link
_TENTATIVE = 0x40  # an IPv6 address that is still being checked for duplicates
_ADDRESS, _LOCAL = 1, 2  # attributes of an address: IPv6 has the first, IPv4 both
_OUT_INTERFACE, _GATEWAY = 4, 5  # attributes of a route
_UNICAST = 1


class Notice(NamedTuple):
    """One message that matters: ``what`` is there, or is not there any more."""

    kind: str  #: ``link``, ``address`` or ``default route``
    what: tuple[Any, ...]  #: the same for the same thing
    there: bool

    @property
    def interface(self) -> int:
        """The index of its interface, 0 if the message names none."""
        index: int = self.what[1]
        return index


def parse(data: bytes) -> Iterator[Notice]:
    """The notices in one datagram. Takes any bytes: what it cannot read, it passes over."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            return
        body = data[offset + _HEADER.size : offset + length]
        offset += _aligned(length)
        layout, read = _READERS.get(kind, (_HEADER, None))
        if read is not None and len(body) >= layout.size:
            notice = read(kind, body)
            if notice is not None:
                yield notice


def _link(kind: int, body: bytes) -> Notice | None:
    _, _, index, flags, _ = _LINK_BODY.unpack_from(body)
    if flags & _LOOPBACK:
        return None
    there = kind == NEW_LINK and flags & (_UP | _RUNNING) == _UP | _RUNNING
    return Notice("link", ("link", index), there)


def _address(kind: int, body: bytes) -> Notice | None:
    family, prefix, flags, scope, index = _ADDRESS_BODY.unpack_from(body)
    there = kind == NEW_ADDRESS
    if index == _LOOPBACK_INDEX or scope >= _SCOPE_LINK or (there and flags & _TENTATIVE):
        return None
    found = _attributes(body[_ADDRESS_BODY.size :])
    address = found.get(_LOCAL) or found.get(_ADDRESS)
    return Notice("address", ("address", index, family, prefix, address), there)


def _route(kind: int, body: bytes) -> Notice | None:
    family, length, _, _, table, _, _, sort, _ = _ROUTE_BODY.unpack_from(body)
    if length or sort != _UNICAST:
        return None
    found = _attributes(body[_ROUTE_BODY.size :])
    index = int.from_bytes(found.get(_OUT_INTERFACE, b"")[:4], sys.byteorder)
    what = ("route", index, family, table, found.get(_GATEWAY))
    return Notice("default route", what, kind == NEW_ROUTE)


_READERS: dict[int, tuple[struct.Struct, Callable[[int, bytes], Notice | None]]] = {
    NEW_LINK: (_LINK_BODY, _link),
    DEL_LINK: (_LINK_BODY, _link),
    NEW_ADDRESS: (_ADDRESS_BODY, _address),
    DEL_ADDRESS: (_ADDRESS_BODY, _address),
    NEW_ROUTE: (_ROUTE_BODY, _route),
    DEL_ROUTE: (_ROUTE_BODY, _route),
}


def _attributes(data: bytes) -> dict[int, bytes]:
    """What follows the body of a message, as far as it can be read."""
    found = {}
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size or offset + length > len(data):
            break
        found[kind] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += _aligned(length)
    return found


def _aligned(length: int) -> int:
    return (length + 3) & ~3
