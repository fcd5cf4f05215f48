"""How long one token may take, and how long to wait between the attempts to get it.

It must not know what is attempted. Clock, randomness and sleep come from outside.
"""

from __future__ import annotations

import copy
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import gevent


if TYPE_CHECKING:
    from collections.abc import Callable

    from nexusg.errors import TokenError

E = TypeVar("E", bound="Exception")


#: Between attempts at the same token: 0.5 s, then twice as much each time, give or take a quarter.
FIRST_S, JITTER = 0.5, 0.25
#: An attempt that has less than this is not begun: it could only fail.
LEAST_S = 0.25
#: A step ends this long before the whole does, so that its own error comes first.
MARGIN_S = 0.05


@dataclass(frozen=True, slots=True)
class Timing:
    """Where time and chance come from. ``clock`` is monotonic, ``wall`` is unix time."""

    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    sleep: Callable[[float], object] = gevent.sleep
    rng: Callable[[], float] = random.random  #: in [0, 1)

    def jittered(self, delay_s: float) -> float:
        """``delay_s`` give or take JITTER of it: many devices must not come back together."""
        return delay_s * (1 + JITTER * (2 * self.rng() - 1))


class Pace:
    """The time for one token, from now on."""

    def __init__(self, timing: Timing, limit_s: float) -> None:
        self.limit_s = limit_s
        self._timing = timing
        self._until = timing.clock() + limit_s
        self._failures = 0

    def left_s(self) -> float:
        """Seconds that are left, never negative."""
        return max(0.0, self._until - self._timing.clock())

    def step_s(self) -> float:
        """Seconds that one step may take."""
        return max(0.0, self.left_s() - MARGIN_S)

    def back_off(self, error: TokenError) -> None:
        """Wait before the attempt that follows on ``error``; raise it if there is no time. Blocks.

        Retry-After is obeyed.
        """
        delay_s = self._timing.jittered(FIRST_S * 2.0**self._failures)
        self._failures += 1
        self.wait(max(delay_s, getattr(error, "retry_after_s", None) or 0.0), error)

    def wait(self, delay_s: float, error: TokenError) -> None:
        """Wait for ``delay_s``, or raise ``error`` if no attempt could follow. Blocks."""
        if delay_s + LEAST_S > self.left_s():
            raise error
        self._timing.sleep(delay_s)


def again(error: E) -> E:
    """The same error to be raised once more, without the trace of the first time."""
    return copy.copy(error)
