"""A target over any object that can receive, send and be closed: a paramiko channel, a pipe.

Its methods may switch greenlets. What they may not do is block the process, and that is up to the
object.
"""

from __future__ import annotations

import errno
from typing import Any

import gevent
from gevent.socket import SHUT_WR

from nexusg.targets.base import READ_BYTES


class BlockingTarget:
    """Wraps ``thing``, which has ``recv(size)``, ``send(data)``, ``close()``, maybe ``shutdown``.

    Only `wait_readable` calls ``recv``, and keeps what it got for `try_read`. So a stream that does
    not want more never waits in it.
    """

    __slots__ = ("_chunk", "_closed", "_thing", "_waiting", "name")

    def __init__(self, thing: Any, name: str) -> None:
        self.name = name
        self._thing = thing
        self._chunk: memoryview | None = None  # received; an empty one is the end of file
        self._closed = False
        self._waiting: set[Any] = set()  # the greenlets in a method of ``thing``

    def __repr__(self) -> str:
        return f"<BlockingTarget {self.name}>"

    def try_send(self, data: memoryview | bytes) -> int:
        """Take nothing, because that cannot be done without waiting. Raises OSError."""
        self._check()
        return 0

    def send(self, data: memoryview | bytes) -> int:
        """Take at least one byte and return how many. Blocks. Raises OSError."""
        self._check()
        if not data:
            return 0
        sent = self._call("send", bytes(data))  # many objects take bytes only
        if not isinstance(sent, int) or sent <= 0:  # a closed paramiko channel returns 0
            raise OSError(errno.EPIPE, f"send() of {self._kind} returned {sent!r}")
        return sent

    def try_read(self, limit: int) -> memoryview | None:
        """What `wait_readable` has received, at most ``limit`` bytes of it. Raises OSError."""
        self._check()
        chunk = self._chunk
        if chunk:
            self._chunk = chunk[limit:] or None
            return chunk[:limit]
        return chunk

    def wait_readable(self) -> None:
        """Receive something, unless that is done. Blocks. Raises OSError."""
        self._check()
        if self._chunk is None:
            data = self._call("recv", READ_BYTES)
            if not isinstance(data, (bytes, bytearray, memoryview)):
                raise OSError(errno.EIO, f"recv() of {self._kind} returned {type(data).__name__}")
            self._chunk = memoryview(data)

    def unsent_bytes(self) -> int:
        """Return 0: it is not known."""
        return 0

    def shutdown_write(self) -> None:
        """Half-close, if the object can."""
        if not self._closed and hasattr(self._thing, "shutdown"):
            self._call_and_forget("shutdown", SHUT_WR)

    def close(self) -> None:
        """Close the object, and wake up whoever waits in it with an OSError; idempotent."""
        if self._closed:
            return
        self._closed = True
        self._call_and_forget("close")
        # Those that the object wakes up by itself have left it when this runs.
        gevent.get_hub().loop.run_callback(self._release)

    def _call(self, method: str, *args: Any) -> Any:
        current = gevent.getcurrent()
        self._waiting.add(current)
        try:
            return getattr(self._thing, method)(*args)
        except OSError:
            raise
        except Exception as error:  # the object is not ours and may raise anything
            text = f"{method}() of {self._kind} failed: {type(error).__name__}: {error}"
            raise OSError(errno.EIO, text) from error
        finally:
            self._waiting.discard(current)

    def _call_and_forget(self, method: str, *args: Any) -> None:
        try:
            self._call(method, *args)
        except OSError:  # it has gone; the next read says so, if there is one
            pass

    def _release(self) -> None:
        for greenlet in list(self._waiting):
            greenlet.throw(_closed())

    def _check(self) -> None:
        if self._closed:
            raise _closed()

    @property
    def _kind(self) -> str:
        return type(self._thing).__name__


def _closed() -> OSError:
    return OSError(errno.EBADF, "the connection to the target was closed")
