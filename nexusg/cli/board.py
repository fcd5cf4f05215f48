"""Where several workers write how they are, for their master, who tells the service manager.

It is memory that all of them share, made before the first fork: to write there takes no time, and a
master that is busy holds nobody up. Nobody waits for anybody, so a number may be read while the one
beside it changes; they are only shown.
"""

from __future__ import annotations

import mmap
import time
from functools import partial
from typing import TYPE_CHECKING

from .reports import Report, Reports


if TYPE_CHECKING:
    from collections.abc import Callable

    from nexusg.agent.lifecycle import LifecycleEvent

    from .notify import Notifier

#: How soon the first report of a worker is seen: until then there is no manager to be told.
FIRST_LOOK_S = 0.1
#: What a new worker gets beyond the time of the watchdog: it may import a large application.
STARTING_S = 60.0

# A worker's numbers: when it wrote them, whether it ever did, sessions, wanted sessions, streams.
_AT, _EVER, _SESSIONS, _WANTED, _STREAMS, _FIELDS = range(6)


class Board:
    """The reports of ``count`` workers, which are numbered from 0. False if nobody wants to know.

    ``clock`` gives monotonic seconds, which are the same in all processes.
    """

    def __init__(
        self, count: int, notifier: Notifier, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.notifier = notifier
        self._count = count
        self._clock = clock
        self._numbers = memoryview(mmap.mmap(-1, 8 * _FIELDS * count)).cast("d")
        self._ready = False

    def __bool__(self) -> bool:
        return bool(self.notifier)

    @property
    def every_s(self) -> float:
        """How often the master is to look."""
        return self.notifier.every_s if self._ready else FIRST_LOOK_S

    def reports(self, number: int, on_event: Callable[[LifecycleEvent], object]) -> Reports:
        """In the worker: what writes down how its agent is. The manager is left to the master."""
        self.notifier.close()
        return Reports(on_event, partial(self.write, number), self.notifier.every_s)

    def write(self, number: int, report: Report) -> None:
        """In the worker: how it is. A problem is not passed on, the log has it."""
        at, figures = number * _FIELDS, (report.sessions, report.wanted, report.streams)
        for field, value in enumerate((self._clock(), 1, *figures)):
            self._numbers[at + field] = value

    def expect(self, number: int) -> None:
        """In the master: the process of this worker begins, or has ended."""
        at = number * _FIELDS
        self._numbers[at + _AT] = self._clock() + STARTING_S
        for field in (_SESSIONS, _WANTED, _STREAMS):
            self._numbers[at + field] = 0

    def silent(self, number: int) -> bool:
        """In the master: whether that worker hangs; once for each time it has to be waited for."""
        limit_s = self.notifier.watchdog_s
        if self._clock() - self._numbers[number * _FIELDS + _AT] <= limit_s:
            return False
        self.expect(number)
        return True

    def tell(self, running: int, *, stopping: bool = False) -> None:
        """In the master: tell the manager, as soon as every worker has been heard of."""
        self._ready = self._ready or all(self._column(_EVER))
        if not (self._ready or stopping):
            return
        sums = (int(sum(self._column(field))) for field in (_SESSIONS, _WANTED, _STREAMS))
        sessions, wanted, streams = sums
        report = Report(sessions, wanted, streams, stopping)
        status = f"{report}, {running} of {self._count} workers"
        self.notifier.beat(status, stopping=stopping)

    def _column(self, field: int) -> list[float]:
        return [float(number) for number in self._numbers[field::_FIELDS]]
