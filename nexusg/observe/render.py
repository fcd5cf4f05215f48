"""The two shapes of a log line: a JSON object, and text for people.

It must not know events, nor where the lines go.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from structlog.dev import ConsoleRenderer, plain_traceback
from structlog.processors import ExceptionRenderer, JSONRenderer
from structlog.tracebacks import ExceptionDictTransformer

from .redaction import redact_fields, suspicious


if TYPE_CHECKING:
    from structlog.typing import Processor

#: Makes a whole line of ``timestamp``, ``level``, ``event`` and further fields, in their order.
Renderer = Callable[[dict[str, Any]], bytes]

# Every control character as its picture (U+2400) or, if it has none, as the replacement character,
# so that no field can move the cursor or end the line.
_CONTROLS = {
    **{code: chr(0x2400 + code) for code in range(32)},
    **dict.fromkeys(range(127, 160), "\ufffd"),
}
# The values of nearly every line; a line of these with nothing suspicious in it is finished as soon
# as it is JSON, which spares each field a search of its own.
_PLAIN = frozenset({str, int, float, bool, type(None)})
_JSON = JSONRenderer(ensure_ascii=False)
_PLAIN_JSON = json.JSONEncoder(ensure_ascii=False).encode  # the same, made once
_IN_TRACEBACK = {code: text for code, text in _CONTROLS.items() if chr(code) not in "\n\t"}


def timestamp(at: float) -> str:
    """Unix time as RFC 3339 in UTC with milliseconds."""
    moment = datetime.fromtimestamp(at, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def renderer(*, console: bool, colors: bool = False) -> Renderer:
    """What makes lines: without secrets, and tracebacks without the values of variables."""
    chain = _console(colors) if console else _json()
    plain = None if console else _PLAIN_JSON

    def render(fields: dict[str, Any]) -> bytes:
        value: Any = fields
        if (
            plain is None
            or not _PLAIN.issuperset(map(type, fields.values()))
            or suspicious(value := plain(fields))
        ):
            value = _through(chain, fields)
        # Half a surrogate pair, such as in the name of a file, becomes its escape.
        return f"{value}\n".encode("utf-8", "backslashreplace")

    return render


def _through(chain: list[Processor], value: Any) -> Any:
    for processor in chain:
        value = processor(None, "", value)
    return value


def _json() -> list[Processor]:
    exceptions = ExceptionRenderer(ExceptionDictTransformer(show_locals=False))
    return [exceptions, redact_fields, _JSON]


def _console(colors: bool) -> list[Processor]:
    text = ConsoleRenderer(
        0,  # no padding behind the event; structlog 25 has renamed the parameter
        colors=colors,
        sort_keys=False,
        exception_formatter=plain_traceback,  # the default shows local variables
    )
    return [_traceback_below, redact_fields, _harmless, text]


def _traceback_below(_logger: object, _method: str, fields: Any) -> Any:
    """A traceback stands below its line, whether it is alive or a field of an event."""
    if "traceback" in fields:
        fields["exception"] = fields.pop("traceback")
    return ExceptionRenderer()(None, "", fields)


def _harmless(_logger: object, _method: str, fields: Any) -> Any:
    for name, value in fields.items():
        if isinstance(value, str):
            table = _IN_TRACEBACK if name == "exception" else _CONTROLS
            fields[name] = value.translate(table)
    return fields
