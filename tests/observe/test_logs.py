from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pytest
import structlog
from structlog.testing import CapturingLogger

from nexusg.agent import lifecycle
from nexusg.agent.lifecycle import (
    AgentStarted,
    LifecycleEvent,
    SessionConnected,
    SessionConnecting,
    SessionFailed,
    SessionRejected,
    StreamClosed,
    StreamConnected,
    StreamPaused,
)
from nexusg.observe.logs import ABNORMAL_ENDS, LogObserver, fields_of, level_of
from nexusg.observe.redaction import REDACTED
from nexusg.protocol.messages import Reason
from tests.support.clock import FakeClock


HERE: dict[str, Any] = {"backend": "web", "relay": "wss://relay.test/connect"}
STREAM: dict[str, Any] = {
    **HERE,
    "session": "s1",
    "stream": "0b7c1a52-6f0e-4a58-9e2f-4f6f9a3f1c11",
    "hostname": "app.test",
    "port": 443,
    "client": "192.0.2.1:5000",
    "transport": "tcp",
    "is_tls": True,
    "target": "127.0.0.1:8080",
}
CONNECTED = SessionConnected(**HERE, session="s1", took_s=0.123456, tls="", at=12.5)
OPENED = StreamConnected(**STREAM, took_s=0.001)
PAUSED = StreamPaused(**HERE, session="s1", stream="x", buffered_bytes=9)
FAILED = SessionFailed(**HERE, code="dns", error="no such name", attempts=1, retry_in_s=1.0)


def closed(reason: str = "normal") -> StreamClosed:
    return StreamClosed(
        **STREAM, reason=reason, ended_by="user", error="", bytes_in=0, bytes_out=7, duration_s=2
    )


class Lines(list[Any]):
    """What an observer emits."""

    def __call__(self, level: str, name: str, at: float, fields: dict[str, Any]) -> None:
        self.append((level, name, at, fields))

    @property
    def names(self) -> list[str]:
        return [name for _, name, _, _ in self]


def example(kind: type[LifecycleEvent]) -> LifecycleEvent:
    """An event with something in every field."""
    samples: dict[str, Any] = {"str": "x", "int": 3, "float": 0.5, "bool": True}
    samples |= {"float | None": 0.5, "int | None": 3, "tuple[str, ...]": ("a",)}
    fields = {f.name: samples[str(f.type)] for f in dataclasses.fields(kind) if f.name != "at"}
    return kind(**fields)


EVENTS = [
    value
    for value in vars(lifecycle).values()
    if isinstance(value, type) and issubclass(value, LifecycleEvent) and value.__annotations__
]


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.name())
def test_every_event_is_a_line_with_all_its_fields(kind: type[LifecycleEvent]) -> None:
    lines = Lines()
    event = example(kind)
    LogObserver(lines, level="debug")(event)
    [(level, name, at, fields)] = lines
    assert (level, name, at) == (kind.level, kind.name(), event.at)
    assert list(fields) == [f.name for f in dataclasses.fields(kind) if f.name != "at"]


def test_empty_fields_are_left_out_but_zero_is_not_empty() -> None:
    assert fields_of(CONNECTED) == {**HERE, "session": "s1", "took_s": 0.1235}
    assert fields_of(AgentStarted(version="1", backends=(), sessions=0)) == {
        "version": "1",
        "sessions": 0,
    }
    rejected = SessionRejected(**HERE, stage="attest", reason="", attempts=1, retry_in_s=None)
    assert set(fields_of(rejected)) == {*HERE, "stage", "attempts"}
    assert fields_of(closed())["bytes_in"] == 0


@pytest.mark.parametrize("reason", [str(reason.value) for reason in Reason])
def test_only_ends_that_deserve_a_look_are_warnings(reason: str) -> None:
    assert level_of(closed(reason)) == ("warning" if reason in ABNORMAL_ENDS else "info")


def test_the_reasons_are_those_of_the_protocol() -> None:
    assert {reason.value for reason in Reason} > ABNORMAL_ENDS
    assert Reason.NORMAL.value not in ABNORMAL_ENDS


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["session.connecting", "session.connected", "session.failed"]),
        ("info", ["session.connected", "session.failed"]),
        ("warning", ["session.failed"]),
        ("error", []),
    ],
)
def test_level_filters(level: str, expected: list[str]) -> None:
    lines = Lines()
    observer = LogObserver(lines, level=level)
    for event in (SessionConnecting(**HERE), CONNECTED, FAILED):
        observer(event)
    assert lines.names == expected


@pytest.mark.parametrize(
    ("streams", "expected"),
    [
        ("all", ["stream.connected", "stream.paused", "stream.closed", "stream.closed"]),
        ("closed", ["stream.paused", "stream.closed", "stream.closed"]),
        ("off", ["stream.paused"]),
    ],
)
def test_which_lines_a_stream_gets(streams: str, expected: list[str]) -> None:
    lines = Lines()
    observer = LogObserver(lines, level="debug", streams=streams)
    for event in (OPENED, PAUSED, closed(), closed("timeout")):
        observer(event)
    assert lines.names == expected


def test_repeats_are_collapsed_and_counted() -> None:
    lines, clock = Lines(), FakeClock()
    observer = LogObserver(lines, clock=clock)
    for _ in range(3):
        observer(FAILED)
    clock.advance(60)
    observer(FAILED)
    assert [fields.get("repeated") for _, _, _, fields in lines] == [None, 2]


def test_other_lines_are_filtered_by_level_too() -> None:
    lines = Lines()
    observer = LogObserver(lines, level="warning")
    observer.line("warning", "config.warning", message="odd", name="x", level="y")
    observer.line("info", "supervisor.detected")
    [(level, name, at, fields)] = lines
    assert (level, name) == ("warning", "config.warning")
    assert fields == {"message": "odd", "name": "x", "level": "y"}
    assert at > 1_600_000_000


def test_a_host_with_structlog_gets_names_and_fields() -> None:
    capturing = CapturingLogger()
    logger = structlog.wrap_logger(capturing, processors=[], wrapper_class=structlog.BoundLogger)
    observer = LogObserver.for_logger(logger)
    observer(CONNECTED)
    observer.line("error", "odd", token="hunter2")
    assert [(call.method_name, call.kwargs) for call in capturing.calls] == [
        ("info", {"event": "session.connected", **fields_of(CONNECTED)}),
        ("error", {"event": "odd", "token": REDACTED}),
    ]
    assert not structlog.is_configured()


def test_a_host_with_logging_gets_records(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("nexusg.test")
    caplog.set_level(logging.INFO, logger.name)
    observer = LogObserver.for_logger(logger)
    observer(SessionConnecting(**HERE))
    observer(FAILED)
    observer.line("info", "odd", token="hunter2", text="100% a\nb", empty="")
    first, second = caplog.records
    assert (first.levelname, first.getMessage()) == (
        "WARNING",
        "session.failed backend=web relay=wss://relay.test/connect code=dns "
        "error='no such name' attempts=1 retry_in_s=1.0",
    )
    assert first.nexusg == {"event": "session.failed", **fields_of(FAILED)}  # type: ignore[attr-defined]
    assert second.getMessage() == r"odd token=[redacted] text='100% a\nb' empty="


def test_an_adapter_is_a_logger_of_logging(caplog: pytest.LogCaptureFixture) -> None:
    adapter = logging.LoggerAdapter(logging.getLogger("nexusg.test"), {})
    LogObserver.for_logger(adapter, level="warning")(FAILED)
    assert caplog.records[0].getMessage().startswith("session.failed ")


def test_a_host_keeps_its_logging_settings() -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    LogObserver.for_logger(logging.getLogger("nexusg.test"))(CONNECTED)
    assert (root.level, list(root.handlers)) == before
