"""Which backend serves a user: pools by exact host, by wildcard and by port claim (PROTOCOL.md 14).

It knows names and weights only; what a backend is, is its caller's business.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Generic, TypeVar

from nexusg.config.hostnames import WILDCARD, never_matches


if TYPE_CHECKING:
    from collections.abc import Iterable


T = TypeVar("T")


class Pool(Generic[T]):
    """Classic weighted round robin: weights are walked down in steps of their common divisor."""

    def __init__(self) -> None:
        self._members: list[tuple[T, int]] = []
        self._at = -1
        self._level = 0

    def __len__(self) -> int:
        return len(self._members)

    def add(self, member: T, weight: int) -> None:
        """Add ``member``, even if it is there already; ``weight`` is at least 1."""
        self._members.append((member, weight))
        self._at, self._level = -1, 0

    def remove(self, member: T) -> None:
        """Remove ``member`` wherever it is."""
        self._members = [entry for entry in self._members if entry[0] is not member]
        self._at, self._level = -1, 0

    def pick(self) -> T | None:
        """The next member, None without any."""
        if not self._members:
            return None
        weights = [weight for _, weight in self._members]
        while True:
            self._at = (self._at + 1) % len(weights)
            if self._at == 0:
                self._level -= math.gcd(*weights)
                if self._level <= 0:
                    self._level = max(weights)
            if weights[self._at] >= self._level:
                return self._members[self._at][0]


class Pools(Generic[T]):
    """All pools. A pool that was once used stays, since an empty exact one hides the wildcard."""

    def __init__(self) -> None:
        self._pools: dict[str, Pool[T]] = {}

    def add(self, member: T, names: Iterable[str], weight: int) -> None:
        """Register ``member`` under normalised host names, wildcards and route keys."""
        for name in names:
            self._pools.setdefault(name, Pool()).add(member, weight)

    def remove(self, member: T) -> None:
        """Forget ``member``."""
        for pool in self._pools.values():
            pool.remove(member)

    def pick(self, name: str) -> T | None:
        """The next backend for a host name or route key, None if nothing serves it.

        An exact pool comes first, even an empty one (PROTOCOL.md section 10.5).
        """
        if "*" in name:  # a user's name is never a pattern
            return None
        pool = self._pools.get(name)
        if pool is None:
            label, _, rest = name.partition(".")
            wildcard = WILDCARD + rest
            if label and not never_matches(wildcard):
                pool = self._pools.get(wildcard)
        return None if pool is None else pool.pick()
