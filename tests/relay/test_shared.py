from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from nexusg.relay.settings import RelayConfig
from nexusg.relay.shared import Shared


if TYPE_CHECKING:
    import pytest


def test_the_log_goes_to_logging(caplog: pytest.LogCaptureFixture) -> None:
    shared = Shared(RelayConfig(secret=""))
    with caplog.at_level(logging.INFO, "nexusg.relay"):
        shared.log("relay.started", url="ws://x")
        shared.log("agent.gone")
    shared.log("agent.gone")  # not wanted at this level
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "relay.started url=ws://x"),
        ("INFO", "agent.gone"),
    ]


def test_or_to_whoever_wants_it(caplog: pytest.LogCaptureFixture) -> None:
    told = []
    shared = Shared(RelayConfig(secret="", on_log=lambda *args: told.append(args)))
    shared.log("agent.gone", agent="a")
    assert told == [("agent.gone", {"agent": "a"})]
    assert caplog.records == []


def test_a_task_that_fails_is_logged() -> None:
    told = []
    shared = Shared(RelayConfig(secret="", on_log=lambda *args: told.append(args)))
    shared.tasks.spawn("bad", {}.__getitem__, "key").join()
    assert told == [("relay.task_failed", {"task": "bad", "error": "KeyError: 'key'"})]
