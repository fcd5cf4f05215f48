from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from nexusg.observe.redaction import REDACTED
from nexusg.observe.render import renderer, timestamp


HEAD = {"timestamp": timestamp(1700000000.1239), "level": "info", "event": "session.connected"}


def json_of(**fields: Any) -> Any:
    line = renderer(console=False)({**HEAD, **fields})
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    return json.loads(line)


def console(**fields: Any) -> str:
    return renderer(console=True)({**HEAD, **fields}).decode()


def failure() -> Any:
    """The exc_info of an error in a function with a secret in a local variable."""
    private = "hunter2" + "hunter2"
    try:
        raise ValueError("no luck" if private else "")
    except ValueError:
        return sys.exc_info()


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1700000000.1239, "2023-11-14T22:13:20.123Z"),
        (4102444799.9999, "2099-12-31T23:59:59.999Z"),
    ],
)
def test_time_is_rfc_3339_in_utc_with_milliseconds(at: float, text: str) -> None:
    assert timestamp(at) == text


def test_a_json_line_keeps_order_and_types() -> None:
    found = json_of(backend="web", took_s=0.25, port=443, is_tls=False, backends=("a", "b"))
    assert " ".join(found) == "timestamp level event backend took_s port is_tls backends"
    assert found["took_s"] == 0.25
    assert found["is_tls"] is False
    assert found["backends"] == ["a", "b"]


def test_json_is_readable_utf8_and_survives_what_is_not() -> None:
    line = renderer(console=False)({**HEAD, "hostname": "bücher.example", "line": "a\udcff\n"})
    assert "bücher.example".encode() in line
    assert json.loads(line)["line"] == "a\udcff\n"


def test_a_console_line_is_text() -> None:
    assert console(backend="web", code="refused", took_s=0.25) == (
        "2023-11-14T22:13:20.123Z [info     ] session.connected "
        "backend=web code=refused took_s=0.25\n"
    )


def test_a_field_cannot_move_the_cursor_or_end_the_line() -> None:
    line = console(error="a\n\x1b[2Jb\x7f\x9b", line="\x1b]0;t")
    assert line.count("\n") == 1
    assert line.rstrip("\n").isprintable()
    assert "a␊␛[2Jb\ufffd\ufffd" in line


def test_colors_only_when_wanted() -> None:
    assert "\x1b" not in console(backend="web")
    assert b"\x1b[" in renderer(console=True, colors=True)({**HEAD, "backend": "web"})


def test_secrets_are_taken_out_of_both() -> None:
    assert json_of(token="hunter2")["token"] == REDACTED
    assert "hunter2" not in console(token="hunter2")


def test_an_exception_is_shown_without_local_variables() -> None:
    [found] = json_of(exc_info=failure())["exception"]
    assert (found["exc_type"], found["exc_value"]) == ("ValueError", "no luck")
    assert found["frames"][-1]["name"] == "failure"
    assert "hunter2" not in str(found)

    text = console(exc_info=failure())
    assert text.splitlines()[-1] == "ValueError: no luck"
    assert "hunter2hunter2" not in text


def test_a_traceback_of_an_event_stands_below_the_line_on_a_console() -> None:
    trace = 'Traceback:\n\tFile "a"\nValueError: \x1b[31m'
    assert console(task="session", traceback=trace).splitlines()[1:] == [
        "Traceback:",
        '\tFile "a"',
        "ValueError: ␛[31m",
    ]
    assert json_of(traceback=trace)["traceback"] == trace
