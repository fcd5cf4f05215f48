from __future__ import annotations

import logging
from typing import Any

import pytest

from nexusg.agent import lifecycle
from nexusg.integrations.lines import log_event
from tests.integrations.doubles import Log


SLOT = {"backend": "web", "relay": "wss://relay.test/connect"}
STREAM: dict[str, Any] = {
    **SLOT,
    "session": "s1",
    "stream": "1",
    "hostname": "app.example.com",
    "port": 443,
    "client": "192.0.2.1:5",
    "transport": "tcp",
    "is_tls": True,
    "target": "handler:gunicorn",
}
END: dict[str, Any] = {
    **STREAM,
    "ended_by": "user",
    "error": "",
    "bytes_in": 0,
    "bytes_out": 7,
    "duration_s": 0.25,
}


def line(event: lifecycle.LifecycleEvent) -> str:
    """The one line of ``event``."""
    log = Log()
    log_event(log, event)
    [text] = log.lines
    return text


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (
            lifecycle.SessionConnected(**SLOT, session="s1", took_s=0.123456, tls=""),
            "info: nexusg: session.connected backend=web relay=wss://relay.test/connect "
            "session=s1 took_s=0.1235",
        ),
        (
            lifecycle.SessionRejected(
                **SLOT, stage="attest", reason="no 'aud'", attempts=2, retry_in_s=None
            ),
            "error: nexusg: session.rejected backend=web relay=wss://relay.test/connect "
            "stage=attest reason=\"no 'aud'\" attempts=2",
        ),
        (
            lifecycle.AgentStarted(version="1", backends=("a", "b"), sessions=2),
            "info: nexusg: agent.started version=1 backends=a,b sessions=2",
        ),
        (
            lifecycle.AgentStarted(version="1", backends=(), sessions=0),
            "info: nexusg: agent.started version=1 sessions=0",
        ),
        (
            lifecycle.TaskFailed(task="reader", error="Bug", traceback="Traceback\n  here\n"),
            "error: nexusg: task.failed task=reader error=Bug\nTraceback\n  here",
        ),
    ],
)
def test_lines(event: lifecycle.LifecycleEvent, expected: str) -> None:
    assert line(event) == expected


def test_lines_of_streams_are_for_those_who_ask() -> None:
    assert line(lifecycle.StreamConnected(**STREAM, took_s=0.0)).startswith("debug: ")
    assert line(lifecycle.OutboundConnected(**STREAM, took_s=0.0)).startswith("debug: ")
    assert line(lifecycle.StreamClosed(**END, reason="normal")).startswith("debug: ")


@pytest.mark.parametrize("reason", ["dial_failed", "buffer_full", "timeout", "local_error"])
def test_unless_there_is_something_wrong(reason: str) -> None:
    text = line(lifecycle.StreamClosed(**{**END, "error": "full"}, reason=reason))
    assert text.startswith("warning: ")
    assert f"reason={reason}" in text
    assert "error=full" in text


def test_there_is_no_token_in_a_line() -> None:
    token = "eyJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJhdXRob3JpemVyIn0.c2lnbmF0dXJlLW9mLWEtdG9rZW4"
    text = line(lifecycle.TokenStderr(backend="web", line=f"here: {token}"))
    assert "[redacted]" in text
    assert token not in text


def test_a_line_cannot_be_forged() -> None:
    text = line(lifecycle.MessageIgnored(**SLOT, session="s1", what="a\n[ERROR] b"))
    assert "\n" not in text


def test_a_line_that_nobody_reads_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are two for each stream."""
    monkeypatch.setattr("nexusg.integrations.lines.redact", {}.__getitem__)  # fails
    log = logging.getLogger("tests.integrations.lines")
    log.setLevel(logging.INFO)
    log_event(log, lifecycle.StreamConnected(**STREAM, took_s=0.0))
