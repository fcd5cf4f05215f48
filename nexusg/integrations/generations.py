"""What the workers of one server know of each other: a page of memory that all of them share.

Workers have ages: numbers that grow, as gunicorn counts them. The page tells one that retires
whether another one is on its way to take over, and whether it has. It must not know what.
"""

from __future__ import annotations

import mmap
import struct


# Aligned words, each written at once, so that no reader ever sees half of one.
_WORD = struct.Struct("=Q")
_ANNOUNCED, _SETTLED, _TAKEOVERS = (_WORD.size * index for index in range(3))


class Generations:
    """Make it before the first fork; every process that comes of it has the same page."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, 3 * _WORD.size)

    @property
    def announced(self) -> int:
        """The age of the youngest worker there ever was; 0 before the first."""
        return self._get(_ANNOUNCED)

    @property
    def settled(self) -> int:
        """The age of the youngest that has taken over, or never will; 0 before the first."""
        return self._get(_SETTLED)

    @property
    def takeovers(self) -> int:
        """Changes with each: a count, from which those of the same moment may be missing."""
        return self._get(_TAKEOVERS)

    def announce(self, age: int) -> None:
        """A worker is about to come into being."""
        self._set(_ANNOUNCED, max(age, self.announced))

    def take_over(self, age: int) -> None:
        """A worker has all it needs to take the place of another."""
        self.settle(age)
        self._set(_TAKEOVERS, self.takeovers + 1)

    def settle(self, age: int) -> None:
        """Nobody needs to wait for this worker any more."""
        self._set(_SETTLED, max(age, self.settled))

    def _get(self, place: int) -> int:
        (value,) = _WORD.unpack_from(self._page, place)
        return int(value)

    def _set(self, place: int, value: int) -> None:
        _WORD.pack_into(self._page, place, value)
