from __future__ import annotations

import json
import logging
import os
import pty
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from nexusg.agent.lifecycle import AgentStopped, SessionConnecting, TaskFailed
from nexusg.config.model import Logging
from nexusg.observe.stdout import MasterLog, StdoutLog, setup_cli_logging


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def ends(opened: tuple[int, int]) -> Iterator[tuple[int, int]]:
    reader, writer = opened
    with open(reader, "rb", buffering=0), open(writer, "wb", buffering=0):
        yield opened


class Output:
    """What a log writes to a pipe."""

    def __init__(self, reader: int, writer: int) -> None:
        self.reader, self.writer = reader, writer
        self.log: StdoutLog | None = None

    def start(self, **settings: Any) -> StdoutLog:
        self.log = setup_cli_logging(Logging(**settings), self.writer)
        return self.log

    @property
    def text(self) -> str:
        assert self.log is not None
        assert self.log.close()
        return os.read(self.reader, 65536).decode()

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def output() -> Iterator[Output]:
    with ends(os.pipe()) as fds:
        output = Output(*fds)
        yield output
        if output.log is not None:
            output.log.close()


def test_events_are_json_lines_in_a_pipe(output: Output) -> None:
    log = output.start()
    log(AgentStopped(cut=0, at=1.5))
    log(SessionConnecting(backend="web", relay="ws://relay.test"))
    assert output.text == (
        '{"timestamp": "1970-01-01T00:00:01.500Z", "level": "info", '
        '"event": "agent.stopped", "cut": 0}\n'
    )


def test_a_field_cannot_stand_in_for_the_head(output: Output) -> None:
    log = output.start()
    log.line("error", "odd", level="info", event="other", name="x", timestamp="never")
    [line] = output.lines
    assert (line["level"], line["event"], line["name"]) == ("error", "odd", "x")
    assert line["timestamp"] != "never"


def test_the_lines_of_a_worker_carry_its_number(output: Output) -> None:
    output.log = log = setup_cli_logging(Logging(), output.writer, worker=0)
    log(AgentStopped(cut=0, at=1.5))
    logging.getLogger("lib").warning("odd")
    log.line("error", "odd", worker=7)
    first, *rest = output.text.splitlines()
    assert '"event": "agent.stopped", "worker": 0, "cut": 0}' in first
    assert [json.loads(line)["worker"] for line in rest] == [0, 0]


def test_the_log_of_a_master_is_written_without_a_thread(
    output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start_new_thread(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("nexusg.observe.sink.get_original", start_new_thread)
    output.log = log = MasterLog(Logging(), output.writer)
    log.line("info", "worker.started", worker=1)
    assert not log.writer.waiting
    [line] = output.lines
    assert (line["event"], line["worker"]) == ("worker.started", 1)


def test_level_is_a_setting(output: Output) -> None:
    log = output.start(level="debug")
    log(SessionConnecting(backend="web", relay="ws://relay.test"))
    assert output.lines[0]["event"] == "session.connecting"


def test_format_console_is_text_without_colors_in_a_pipe(output: Output) -> None:
    output.start(format="console")(AgentStopped(cut=0, at=1.5))
    assert output.text == "1970-01-01T00:00:01.500Z [info     ] agent.stopped cut=0\n"


@pytest.mark.parametrize(
    ("settings", "no_color", "shows"),
    [
        ({}, "", lambda text: "agent.stopped" in text and "\x1b[" in text),
        ({}, "1", lambda text: "agent.stopped cut=0" in text and "\x1b[" not in text),
        ({"format": "json"}, "", lambda text: json.loads(text)["cut"] == 0),
    ],
)
def test_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, str],
    no_color: str,
    shows: Callable[[str], bool],
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    with ends(pty.openpty()) as (reader, writer):
        log = StdoutLog(Logging(**settings), writer)
        log(AgentStopped(cut=0))
        assert log.close()
        assert shows(os.read(reader, 4096).decode())


def test_records_of_libraries_are_lines_too(output: Output) -> None:
    output.start()
    logger = logging.getLogger("websocket")
    logger.warning("odd %s", "frame")
    logger.info("not wanted")
    logger.critical("bad\x1b")
    assert [(line["level"], line["event"], line["message"]) for line in output.lines] == [
        ("warning", "log.record", "odd frame"),
        ("error", "log.record", "bad\x1b"),
    ]


def test_an_exception_of_a_library_is_shown_without_local_variables(output: Output) -> None:
    output.start()
    private = "hunter2" + "hunter2"
    try:
        raise ValueError(f"token={private}")
    except ValueError:
        logging.getLogger("lib").exception("it failed")
        logging.getLogger("lib").error("no exception", exc_info=(None, None, None))
    first, second = output.lines
    assert first["exception"][0]["exc_type"] == "ValueError"
    assert private not in str(first)
    assert "exception" not in second


def test_a_record_that_does_not_fit_its_format_is_still_a_line(output: Output) -> None:
    log = output.start()
    # Not through a logger: pytest's own handler would fail on it.
    record = logging.LogRecord("lib", logging.WARNING, "", 1, "%d of %d", ("hunter2",), None)
    assert log._handler is not None
    log._handler.emit(record)
    [line] = output.lines
    assert (line["logger"], line["message"]) == ("lib", "%d of %d")


def test_warnings_of_python_are_lines(output: Output) -> None:
    output.start()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)  # catch_warnings has put back what close() will need
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        [line] = output.lines
    assert line["logger"] == "py.warnings"
    assert "DeprecationWarning: old" in line["message"]


def test_a_task_failure_keeps_its_traceback_on_one_line(output: Output) -> None:
    log = output.start()
    log(TaskFailed(task="session", error="KeyError: 1", traceback="Traceback\n  File\n"))
    [line] = output.lines
    assert line["traceback"] == "Traceback\n  File\n"


def test_lost_lines_are_counted_in_the_log(output: Output) -> None:
    log = output.start()
    log._writer._capacity_bytes = 100
    for _ in range(3):
        log.line("info", "x" * 100)
    lines = output.lines
    assert {line["event"] for line in lines} == {"log.dropped"}
    assert sum(line["count"] for line in lines) == 3
    assert json.loads(log._dropped(7))["count"] == 7, "coverage does not see the thread"


def test_close_gives_logging_back(output: Output) -> None:
    handlers = list(logging.getLogger().handlers)
    show = warnings.showwarning
    log = output.start()
    assert logging.getLogger().handlers != handlers
    log.close()
    assert logging.getLogger().handlers == handlers
    assert warnings.showwarning is show
