"""Netlink messages, made by hand."""

from __future__ import annotations

import socket
import struct

from nexusg.agent.netlink import NEW_ADDRESS, NEW_LINK, NEW_ROUTE


UP, LOOPBACK, RUNNING = 0x1, 0x8, 0x40


def message(kind: int, body: bytes) -> bytes:
    """A message, padded."""
    length = 16 + len(body)
    return struct.pack("=IHHII", length, kind, 0, 0, 0) + body + bytes(-length % 4)


def attribute(kind: int, value: bytes) -> bytes:
    """An attribute of a message, padded."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def link(index: int = 7, flags: int = UP | RUNNING, kind: int = NEW_LINK) -> bytes:
    """A link that is up and running."""
    return message(kind, struct.pack("=BxHiII", 0, 1, index, flags, 0))


def address(
    index: int = 7, host: str = "192.0.2.1", kind: int = NEW_ADDRESS, flags: int = 0, scope: int = 0
) -> bytes:
    """An address on a link."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    packed = socket.inet_pton(family, host)
    attributes = attribute(1, packed)
    if family == socket.AF_INET:
        attributes += attribute(2, packed)
    return message(kind, struct.pack("=BBBBi", family, 24, flags, scope, index) + attributes)


def route(index: int = 7, kind: int = NEW_ROUTE, length: int = 0, sort: int = 1) -> bytes:
    """A default route."""
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, length, 0, 0, 254, 3, 0, sort, 0)
    body += attribute(5, socket.inet_aton("192.0.2.254"))
    return message(kind, body + (attribute(4, struct.pack("=i", index)) if index else b""))
