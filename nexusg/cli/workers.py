"""The rules of several workers: which are to run, when the dead come back, what the end means.

They know no process, signal or clock: the master (``master``) says what has happened and when, in
monotonic seconds, and does what is due.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .exits import Exit


BACKOFF_FIRST_S = 1.0  # a worker that dies at its start must not take the processor for itself
BACKOFF_MAX_S = 60.0
STABLE_S = 60.0  # what ended a worker that ran this long is not what ended the one before it

#: What a worker may take beyond the grace for its streams: last words to the relays, a token
#: command that has to be killed, the last lines of its log.
MARGIN_S = 10.0


@dataclass(slots=True)
class Slot:
    """The place of one worker, whichever process fills it."""

    number: int
    pid: int = 0  #: 0 while there is none
    since: float = 0.0  #: when that process was started
    due_at: float = -math.inf  #: when the next one is
    deaths: int = 0  #: in a row
    gave_up: bool = False  #: the relay keeps refusing its credentials

    def bury(self, now: float) -> None:
        """Its process is no more; the next one is due after a while."""
        if self.pid and now - self.since >= STABLE_S:
            self.deaths = 0
        self.pid = 0
        self.due_at = now + min(BACKOFF_FIRST_S * 2 ** min(self.deaths, 10), BACKOFF_MAX_S)
        self.deaths += 1


class Workers:
    """``count`` workers, none of which runs yet."""

    def __init__(self, count: int) -> None:
        self.slots = tuple(Slot(number) for number in range(count))
        self.stopping = False
        self.kill_at = math.inf  #: when a stop has taken too long
        self._code = Exit.OK

    @property
    def running(self) -> list[Slot]:
        """Those with a process."""
        return [slot for slot in self.slots if slot.pid]

    @property
    def ended(self) -> bool:
        """Whether no worker runs nor will."""
        return not self.running and (self.stopping or all(slot.gave_up for slot in self.slots))

    @property
    def exit_code(self) -> Exit:
        """What the end means for the whole."""
        return Exit.REFUSED if all(slot.gave_up for slot in self.slots) else self._code

    @property
    def wake_at(self) -> float:
        """When something is due next, without anything happening."""
        return min([self.kill_at, *(slot.due_at for slot in self._missing())])

    def due(self, now: float) -> list[Slot]:
        """Those that are to be started."""
        return [slot for slot in self._missing() if slot.due_at <= now]

    def started(self, slot: Slot, pid: int, now: float) -> None:
        """A process fills the place."""
        slot.pid, slot.since = pid, now

    def exited(self, slot: Slot, code: int, now: float) -> None:
        """Its process has ended with this exit code; a negative one is that of a signal."""
        slot.bury(now)
        if code == Exit.REFUSED:
            slot.gave_up = True
        elif code == Exit.USAGE:
            self._code = Exit.USAGE  # the next one would not fare better
        elif code != Exit.OK and self.stopping and self._code is Exit.OK:
            self._code = Exit.FAILED

    @property
    def unusable(self) -> bool:
        """Whether a worker could not use the configuration, so that all must stop."""
        return self._code is Exit.USAGE

    def stop(self, within_s: float, now: float) -> None:
        """Nothing is started any more; who still runs after ``within_s`` is to be killed."""
        self.stopping = True
        self.kill_at = min(self.kill_at, now + within_s)

    def overdue(self, now: float) -> list[Slot]:
        """Those that have not stopped in time; each call gives them once."""
        if now < self.kill_at:
            return []
        self.kill_at = math.inf
        return self.running

    def _missing(self) -> list[Slot]:
        if self.stopping:
            return []
        return [slot for slot in self.slots if not slot.pid and not slot.gave_up]
