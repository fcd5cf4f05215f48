"""Tells when the network has changed, where the system has netlink sockets (Linux).

What counts as a change is read in `netlink.py`. What to do about it is not known here.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import gevent
from gevent import socket

from nexusg.agent.netlink import GROUPS, Notice, parse


if TYPE_CHECKING:
    from collections.abc import Callable

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
        self._task: Task | None = None

    def start(self) -> bool:
        """Watch from now on; return whether that works here. If not, ``note`` says why."""
        try:
            sock = _open()
        except OSError as error:
            self.note = f"network changes are not watched: {error.strerror or error}"
            return False
        self.note = ""
        self._known.clear()
        self._task = self._tasks.spawn("network", self._watch, sock)
        self._task.rawlink(lambda _: sock.close())  # however it ends, even before it begins
        return True

    def stop(self) -> None:
        """Watch no longer. Idempotent; never blocks."""
        if self._task is not None:
            self._task.kill(block=False)
            self._task = None

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
        if not notice.there and notice.kind == "link":
            # The addresses and routes it had come again with it; not all of them are taken back.
            gone = notice.interface
            self._known = {what for what in self._known if what[1] != gone}
            return False
        if not notice.there:
            self._known.discard(notice.what)
            return True
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


def _words(notice: Notice) -> str:
    """``eth0: address added``."""
    change = "up" if notice.kind == "link" else f"{notice.kind} {_VERBS[notice.there]}"
    return f"{_interface(notice.interface)}{change}"


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
