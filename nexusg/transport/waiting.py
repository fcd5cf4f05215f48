"""Waiting for a non-blocking socket, so that closing it can end the wait.

gevent's own sockets cannot be waited for by two greenlets at a time without cost, and a socket that
is waited for is closed late. It knows nothing of what is read or written.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from gevent import get_hub
from gevent.hub import Waiter


if TYPE_CHECKING:
    from gevent._types import _IoWatcher

READ, WRITE = 1, 2  # the event masks of gevent's loop.io


def watcher(sock: Any, events: int, closed: str) -> _IoWatcher:
    """A watcher for the socket. Raises OSError with the text ``closed`` if that has been closed."""
    number = sock.fileno()
    if number < 0:
        raise OSError(errno.EBADF, closed)
    return get_hub().loop.io(number, events)


def wait(watcher: _IoWatcher) -> None:
    """Wait for ``watcher``, as ``hub.wait`` does, but so that `release` can end it. Blocks."""
    waiter: Waiter[Any] = Waiter()
    watcher.start(waiter.switch, waiter)
    try:
        waiter.get()
    finally:
        watcher.stop()


def rouse(watcher: _IoWatcher) -> None:
    """Let whoever waits for ``watcher`` go on soon, as if there were something. Never blocks."""
    waiting = watcher.args  # type: ignore[attr-defined]  # missing in the stubs
    if waiting:
        get_hub().loop.run_callback(waiting[0].switch, waiting[0])


def release(watcher: _IoWatcher, closed: str) -> None:
    """Close ``watcher`` now, and let whoever waits for it raise OSError soon. Never blocks.

    Do this before the socket is closed: while a watcher is active on its descriptor, gevent puts
    the close off to the next event of the loop, which may be seconds away.
    """
    waiting = watcher.args  # type: ignore[attr-defined]  # missing in the stubs
    watcher.close()
    if waiting:
        get_hub().loop.run_callback(waiting[0].throw, OSError(errno.EBADF, closed))
