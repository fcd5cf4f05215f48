"""An agent's lifecycle events as lines in the log of the server that it lives in.

The names and fields are those of the agent's own log. It must not know what is done about an event.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Protocol

from nexusg.agent.lifecycle import OutboundConnected, StreamClosed, StreamConnected
from nexusg.attest.redact import redact


if TYPE_CHECKING:
    from nexusg.agent.lifecycle import LifecycleEvent


# The server has its own line for each request; these are for those who ask for more.
_EACH_STREAM = (StreamConnected, StreamClosed, OutboundConnected)
#: Ends of a stream that an operator may want to look into all the same.
_ABNORMAL = frozenset({"dial_failed", "buffer_full", "timeout", "local_error"})

_NO_FIELD = ("at", "traceback")


class Log(Protocol):
    """What is needed of a logger."""

    def debug(self, message: str, *args: object) -> object:
        """A line for those who look for a bug."""

    def info(self, message: str, *args: object) -> object:
        """A usual line."""

    def warning(self, message: str, *args: object) -> object:
        """Something that may need attention."""

    def error(self, message: str, *args: object) -> object:
        """Something that needs it."""


class _Line:
    """The text of an event, made only if somebody reads it."""

    def __init__(self, event: LifecycleEvent) -> None:
        self._event = event

    def __str__(self) -> str:
        event = self._event
        pairs = [event.name()]
        for field in dataclasses.fields(event):
            value = getattr(event, field.name)
            if field.name not in _NO_FIELD and value is not None and value not in ("", ()):
                pairs.append(f"{field.name}={_shown(value)}")
        text = " ".join(pairs)
        trace = getattr(event, "traceback", "")
        return redact(f"{text}\n{trace.rstrip()}" if trace else text)


def log_event(log: Log, event: LifecycleEvent) -> None:
    """Write the line of ``event`` at its level; those of single streams at debug."""
    getattr(log, _level(event))("nexusg: %s", _Line(event))


def _level(event: LifecycleEvent) -> str:
    if isinstance(event, StreamClosed) and event.reason in _ABNORMAL:
        return "warning"
    return "debug" if isinstance(event, _EACH_STREAM) else event.level


def _shown(value: Any) -> str:
    if isinstance(value, float):
        value = round(value, 4)
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    text = str(value)
    plain = text.isprintable() and not set(text) & set(" \"'=")
    return text if plain else repr(text)
