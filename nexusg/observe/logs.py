"""Every lifecycle event as one log line: the event's name, its level, its fields.

`LogObserver` is a subscriber of an agent. In a program of somebody else it writes to that program's
logger (`LogObserver.for_logger`) and configures nothing; for the command line see ``stdout``.
It must not know what the agent does, nor where a line ends up.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nexusg.agent.lifecycle import OutboundConnected, StreamClosed, StreamConnected

from .redaction import redact_fields
from .repeats import Repeats


if TYPE_CHECKING:
    from nexusg.agent.lifecycle import LifecycleEvent

Fields = dict[str, Any]

#: What takes a line: its level, its name, the Unix time it is about, and its fields.
Emit = Callable[[str, str, float, Fields], None]

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

#: Ends of a stream that an operator may want to look into. All others are how streams end.
ABNORMAL_ENDS = frozenset({"dial_failed", "buffer_full", "timeout", "local_error"})

_NAMES: dict[type[LifecycleEvent], tuple[str, ...]] = {}  # the fields of each kind of event

_HIDDEN: dict[str, tuple[type[LifecycleEvent], ...]] = {
    "all": (),
    "closed": (StreamConnected, OutboundConnected),
    "off": (StreamConnected, OutboundConnected, StreamClosed),
}


class LogObserver:
    """Gives lifecycle events to ``emit`` as log lines. Call it with each event; it never blocks.

    ``level`` is the least severe one that is logged: debug, info, warning or error. ``streams``
    says which lines a stream gets: all, closed (only at its end) or off. A failure that repeats
    itself is logged once, then at most once a minute with ``repeated``, the number of lines that
    were left out. ``clock`` is for tests.
    """

    def __init__(
        self,
        emit: Emit,
        *,
        level: str = "info",
        streams: str = "all",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._emit = emit
        self._threshold = LEVELS[level]
        self._hidden = _HIDDEN[streams]
        self._repeats = Repeats(clock)

    @classmethod
    def for_logger(cls, logger: Any, *, level: str = "debug", streams: str = "all") -> LogObserver:
        """Log to a logger of structlog or of the standard library, which also filters by level.

        A structlog logger gets the name and the fields. A record of ``logging`` has them in its
        message and, for formatters that want them, as the dictionary ``record.nexusg``.
        """
        standard = isinstance(logger, (logging.Logger, logging.LoggerAdapter))
        to = _to_standard if standard else _to_structlog
        return cls(functools.partial(to, logger), level=level, streams=streams)

    def __call__(self, event: LifecycleEvent) -> None:
        """Log one event, if it is worth a line."""
        level = level_of(event)
        if LEVELS[level] < self._threshold or isinstance(event, self._hidden):
            return
        repeated = self._repeats.check(event)
        if repeated is None:
            return
        fields = fields_of(event)
        if repeated:
            fields["repeated"] = repeated
        self._emit(level, event.name(), event.at, fields)

    def line(self, level: str, name: str, /, **fields: object) -> None:
        """Log something that is not an event of an agent."""
        if LEVELS[level] >= self._threshold:
            self._emit(level, name, time.time(), fields)


def level_of(event: LifecycleEvent) -> str:
    """The level of an event: its own, but for streams whose end deserves a look."""
    if isinstance(event, StreamClosed) and event.reason in ABNORMAL_ENDS:
        return "warning"
    return event.level


def fields_of(event: LifecycleEvent) -> Fields:
    """The fields of an event that say something, in their order; seconds to a tenth of a ms."""
    fields: Fields = {}
    kind = type(event)
    names = _NAMES.get(kind)
    if names is None:
        names = tuple(field.name for field in dataclasses.fields(kind) if field.name != "at")
        _NAMES[kind] = names
    for name in names:
        value = getattr(event, name)
        if isinstance(value, float):
            value = round(value, 4)
        if value is not None and value not in ("", ()):
            fields[name] = value
    return fields


def _to_structlog(logger: Any, level: str, name: str, _at: float, fields: Fields) -> None:
    getattr(logger, level)(name, **redact_fields(None, level, fields))


def _to_standard(logger: Any, level: str, name: str, _at: float, fields: Fields) -> None:
    number = LEVELS[level]
    if logger.isEnabledFor(number):
        fields = redact_fields(None, level, fields)
        pairs = "".join(f" {key}={_shown(value)}" for key, value in fields.items())
        logger.log(number, "%s%s", name, pairs, extra={"nexusg": {"event": name, **fields}})


def _shown(value: object) -> str:
    text = str(value)
    plain = text.isprintable() and not set(text) & set(" \"'=")
    return text if plain else repr(text)
