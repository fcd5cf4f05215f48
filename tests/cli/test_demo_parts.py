from __future__ import annotations

import argparse
import contextlib
from typing import Any

import pytest
from gevent import socket

from nexusg.agent.lifecycle import ReauthCompleted, SessionConnected, SessionFailed, SessionRejected
from nexusg.cli import demo_parts
from nexusg.cli.demo_client import Reply
from nexusg.cli.demo_parts import Steps, Unexpected, Watch


WHERE: dict[str, Any] = {"backend": "demo", "relay": "wss://x"}


def test_the_reason_is_remembered() -> None:
    watch = Watch(None)
    watch(SessionFailed(**WHERE, code="dns", error="no name", attempts=1, retry_in_s=1))
    assert watch.problem == "no name"
    watch(SessionRejected(**WHERE, stage="attest", reason="no", attempts=1, retry_in_s=1))
    assert watch.problem == "no"
    watch(SessionConnected(**WHERE, session="s1", took_s=0.0124, tls=""))
    assert (watch.how, watch.connected.is_set()) == ("without TLS, 12 ms", True)


def test_renewals_are_counted() -> None:
    watch = Watch(None)
    watch(ReauthCompleted(**WHERE, session="s1", took_s=0.25, attempts=1))
    assert watch.renewals == [0.25]
    assert watch.changed.is_set()


def test_the_log_is_told() -> None:
    told: list[object] = []
    log: Any = told.append
    event = SessionConnected(**WHERE, session="s1", took_s=0.01, tls="TLSv1.3")
    Watch(log)(event)
    assert told == [event]


def test_the_log_is_there_if_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    with contextlib.ExitStack() as stack:
        nothing = argparse.Namespace(log_level=None, log_format=None)
        assert demo_parts.agent_log(nothing, stack) is None
        something = argparse.Namespace(log_level="debug", log_format=None)
        assert demo_parts.agent_log(something, stack) is not None


def test_steps(capfd: pytest.CaptureFixture[str]) -> None:
    steps = Steps()
    steps.step("relay", "waits")
    steps.more("for you")
    steps.step("agent", "comes")
    assert capfd.readouterr().out == (
        "1. relay      waits\n              for you\n2. agent      comes\n"
    )


def test_a_port_that_is_taken_is_not_wanted() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert demo_parts.free_port(port) == 0
    assert demo_parts.free_port(port) == port


def test_a_summary() -> None:
    reply = Reply("200 OK", "It works", 0.0124)
    assert demo_parts.summary(reply) == "200 OK, 8 bytes in 12 ms"
    with pytest.raises(Unexpected, match=r"^the page said 200 OK$"):
        demo_parts.summary(Reply("200 OK", "", 0))
