"""The same failure again and again is one line a minute.

It must not know logging: it is told of events and says which of them are worth a line.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nexusg.agent.lifecycle import (
    MessageIgnored,
    ReauthFailed,
    SessionConnected,
    SessionFailed,
    SessionRejected,
    TokenStderr,
)


if TYPE_CHECKING:
    from collections.abc import Callable

    from nexusg.agent.lifecycle import LifecycleEvent

INTERVAL_S = 60.0  # an operator who looks at a log sees that it still goes on

#: How many different failures are remembered. Relays and commands choose the texts, so there must
#: be a bound; a forgotten one costs a line too many.
MAX_REMEMBERED = 256

#: What makes two failures the same: what varies from one to the next (how many attempts, when the
#: next one begins, which session) is left out.
IDENTITY: dict[type[LifecycleEvent], tuple[str, ...]] = {
    SessionFailed: ("backend", "relay", "code", "error"),
    SessionRejected: ("backend", "relay", "stage", "reason"),
    MessageIgnored: ("backend", "relay", "what"),
    ReauthFailed: ("backend", "relay", "error", "final"),
    TokenStderr: ("backend", "line"),
}

_ENDED_BY_CONNECTING = (SessionFailed, SessionRejected)

Key = tuple[type, tuple[object, ...]]


@dataclass(slots=True)
class _Memory:
    logged_at: float
    suppressed: int = 0


class Repeats:
    """Counts what is the same as before. ``clock`` is in seconds and never goes back."""

    def __init__(self, clock: Callable[[], float], interval_s: float = INTERVAL_S) -> None:
        self._clock = clock
        self._interval_s = interval_s
        self._memory: OrderedDict[Key, _Memory] = OrderedDict()

    def check(self, event: LifecycleEvent) -> int | None:
        """None: this event is not worth a line. Else how many like it were left out before it."""
        if isinstance(event, SessionConnected):
            self._forget(event.backend, event.relay)
        identity = IDENTITY.get(type(event))
        if identity is None:
            return 0
        key = (type(event), tuple(getattr(event, name) for name in identity))
        now = self._clock()
        memory = self._memory.get(key)
        if memory is not None and now - memory.logged_at < self._interval_s:
            memory.suppressed += 1
            return None
        self._memory[key] = _Memory(now)
        self._memory.move_to_end(key)
        if len(self._memory) > MAX_REMEMBERED:
            self._memory.popitem(last=False)
        return memory.suppressed if memory else 0

    def _forget(self, backend: str, relay: str) -> None:
        """After a success the next failure is news."""
        for key in list(self._memory):
            kind, values = key
            if kind in _ENDED_BY_CONNECTING and values[:2] == (backend, relay):
                del self._memory[key]
