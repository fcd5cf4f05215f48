"""Tells when the network has changed, from the kernel's routing messages (rtnetlink(7), Linux).

Reading the messages is pure and takes any bytes. Only what can make a relay reachable, or a
connection useless, is a change: an interface that comes up, an address, a default route.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import gevent
from gevent import socket


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nexusg.agent.tasks import Task, Tasks


#: Changes come in flocks (a link, its addresses, its routes), and the last one counts.
DEBOUNCE_S = 1.0
# A message that does not fit is cut off. The kernel's own are below 8 KiB.
DATAGRAM_BYTES = 32 * 1024
# So many are read before other greenlets get their turn again.
MAX_DATAGRAMS = 64
# Only as many addresses and routes are remembered; a host with more hears of some changes twice.
MAX_KNOWN = 4096
# A log line names so many.
MAX_NAMED = 3

# linux/rtnetlink.h, linux/netlink.h, linux/if.h, linux/if_addr.h
_LINK, _IPV4_ADDRESS, _IPV4_ROUTE, _IPV6_ADDRESS, _IPV6_ROUTE = 0x1, 0x10, 0x40, 0x100, 0x400
GROUPS = _LINK | _IPV4_ADDRESS | _IPV4_ROUTE | _IPV6_ADDRESS | _IPV6_ROUTE
NEW_LINK, DEL_LINK, NEW_ADDRESS, DEL_ADDRESS, NEW_ROUTE, DEL_ROUTE = 16, 17, 20, 21, 24, 25

_HEADER = struct.Struct("=IHHII")  # length with this header, type, flags, sequence, port
_LINK_BODY = struct.Struct("=BxHiII")  # family, device type, index, flags, which of them changed
_ADDRESS_BODY = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, index
_ROUTE_BODY = struct.Struct(
    "=BBBBBBBBI"
)  # family, lengths, tos, table, protocol, scope, type, flags
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
    index: int  #: of the interface, 0 if the message names none


def parse(data: bytes) -> Iterator[Notice]:
    """The notices in one datagram. Takes any bytes: what it cannot read, it passes over."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            return
        body = data[offset + _HEADER.size : offset + length]
        offset += _aligned(length)
        layout, read = _READERS.get(kind, _NOBODY)
        if len(body) >= layout.size:
            notice = read(kind, body)
            if notice is not None:
                yield notice


class NetworkWatcher:
    """Calls ``callback(detail)`` about a second after the network has begun to change.

    The callback is called in a greenlet of ``tasks``; it must neither block nor raise.
    """

    def __init__(
        self,
        callback: Callable[[str], None],
        tasks: Tasks,
        sleep: Callable[[float], None] = gevent.sleep,
    ) -> None:
        self.note = ""  #: why nothing is watched, if so
        self._callback = callback
        self._tasks = tasks
        self._sleep = sleep
        self._known: set[tuple[Any, ...]] = set()
        self._socket: socket.socket | None = None
        self._task: Task | None = None

    def start(self) -> bool:
        """Watch from now on; return whether that works here. If not, ``note`` says why."""
        try:
            sock = self._socket = _open()
        except OSError as error:
            self.note = f"network changes are not watched: {error.strerror or error}"
            return False
        self.note = ""
        self._known.clear()
        self._task = self._tasks.spawn("network", self._watch, sock)
        return True

    def stop(self) -> None:
        """Watch no longer. Idempotent; never blocks."""
        if self._task is not None:
            self._task.kill(block=False)
            self._task = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _watch(self, sock: socket.socket) -> None:
        while True:
            socket.wait_read(sock.fileno())
            changes = self._read(sock)
            if changes:
                self._sleep(DEBOUNCE_S)
                changes += self._read(sock)
                self._callback(_summary(changes))

    def _read(self, sock: socket.socket) -> list[str]:
        """The changes in what has come. Never blocks. Raises OSError when the socket is broken."""
        changes = []
        for _ in range(MAX_DATAGRAMS):
            try:
                data = sock.recv(DATAGRAM_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno not in (errno.ENOBUFS, errno.EINTR):
                    raise
                # The kernel has dropped messages: whatever is known may be wrong.
                self._known.clear()
                changes.append("more than could be read")
                continue
            changes += [_words(notice) for notice in parse(data) if self._is_news(notice)]
        return changes

    def _is_news(self, notice: Notice) -> bool:
        """Whether it is a change. The kernel also repeats itself: Wi-Fi scans, renewed leases."""
        if not notice.there:
            self._known.discard(notice.what)
            return notice.kind != "link"  # what went with it says so itself
        if notice.what in self._known:
            return False
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known.add(notice.what)
        return True


def _open() -> socket.socket:
    """A socket that hears of links, addresses and routes. Raises OSError."""
    if not hasattr(socket, "AF_NETLINK"):
        raise OSError(errno.EAFNOSUPPORT, "this system has no netlink sockets")
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    try:
        sock.setblocking(False)
        sock.bind((0, GROUPS))
    except OSError:
        sock.close()
        raise
    return sock


def _link(kind: int, body: bytes) -> Notice | None:
    _, _, index, flags, _ = _LINK_BODY.unpack_from(body)
    if flags & _LOOPBACK:
        return None
    there = kind == NEW_LINK and flags & (_UP | _RUNNING) == _UP | _RUNNING
    return Notice("link", ("link", index), there, index)


def _address(kind: int, body: bytes) -> Notice | None:
    family, prefix, flags, scope, index = _ADDRESS_BODY.unpack_from(body)
    there = kind == NEW_ADDRESS
    if index == _LOOPBACK_INDEX or scope >= _SCOPE_LINK or (there and flags & _TENTATIVE):
        return None
    found = _attributes(body[_ADDRESS_BODY.size :])
    address = found.get(_LOCAL) or found.get(_ADDRESS)
    return Notice("address", ("address", index, family, prefix, address), there, index)


def _route(kind: int, body: bytes) -> Notice | None:
    family, length, _, _, table, _, _, sort, _ = _ROUTE_BODY.unpack_from(body)
    if length or sort != _UNICAST:
        return None
    found = _attributes(body[_ROUTE_BODY.size :])
    index = int.from_bytes(found.get(_OUT_INTERFACE, b"")[:4], "little")
    what = ("route", family, table, found.get(_OUT_INTERFACE), found.get(_GATEWAY))
    return Notice("default route", what, kind == NEW_ROUTE, index)


def _nothing(kind: int, body: bytes) -> None:
    """Not a message that matters."""


_Reader = tuple[struct.Struct, "Callable[[int, bytes], Notice | None]"]
_NOBODY: _Reader = (_HEADER, _nothing)
_READERS: dict[int, _Reader] = {
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


def _words(notice: Notice) -> str:
    """``eth0: address added``."""
    change = "up" if notice.kind == "link" else f"{notice.kind} {_VERBS[notice.there]}"
    return f"{_interface(notice.index)}{change}"


_VERBS = {True: "added", False: "removed"}


def _interface(index: int) -> str:
    try:
        return f"{socket.if_indextoname(index)}: "
    except (OSError, OverflowError):  # it has gone again, or there was none
        return f"interface {index}: " if index else ""


def _summary(changes: list[str]) -> str:
    different = list(dict.fromkeys(changes))
    more = len(different) - MAX_NAMED
    return ", ".join(different[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
