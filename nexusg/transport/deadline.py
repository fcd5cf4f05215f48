"""One point in time that several blocking steps share. It knows no sockets."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import gevent


if TYPE_CHECKING:
    from collections.abc import Iterator


class Deadline:
    """The end of ``seconds_s`` from now, on the monotonic clock."""

    __slots__ = ("_at",)

    def __init__(self, seconds_s: float) -> None:
        self._at = time.monotonic() + seconds_s

    def remaining(self) -> float:
        """Seconds that are left, never negative."""
        return max(0.0, self._at - time.monotonic())

    @property
    def expired(self) -> bool:
        """Whether nothing is left."""
        return self.remaining() == 0.0


@contextmanager
def limit(deadline: Deadline, error: Exception) -> Iterator[None]:
    """Raise ``error`` from a block that still waits when the deadline comes.

    The block itself is interrupted by a gevent.Timeout, a BaseException, which no ``except
    Exception`` in a library mistakes for an error of its own. A block that never switches
    greenlets is not interrupted.
    """
    timeout = gevent.Timeout(deadline.remaining())
    timeout.start()
    try:
        yield
    except gevent.Timeout as expired:
        if expired is not timeout:
            raise
        raise error from expired
    finally:
        timeout.close()
