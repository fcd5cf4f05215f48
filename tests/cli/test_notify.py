"""What a service manager hears: with real sockets, and nothing between."""

from __future__ import annotations

import math
import os
import secrets
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from nexusg.cli.notify import STATUS_CHARS, STATUS_S, Notifier
from tests.support.manager import Manager
from tests.support.source import ROOT


if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    abstract = request.param == "abstract"
    with Manager(f"@nexusg-{secrets.token_hex(8)}") if abstract else Manager.at(tmp_path) as one:
        yield one


@pytest.fixture
def notifier(manager: Manager) -> Iterator[Notifier]:
    notifier = Notifier(manager.address)
    yield notifier
    notifier.close()


def test_ready_comes_first_and_once(manager: Manager, notifier: Notifier) -> None:
    notifier.beat("0 of 1 sessions")
    notifier.beat("1 of 1 sessions")
    assert manager.take() == [
        ["READY=1", "STATUS=0 of 1 sessions"],
        ["STATUS=1 of 1 sessions"],
    ]


def test_no_news_are_no_message(manager: Manager, notifier: Notifier) -> None:
    notifier.beat("fine")
    notifier.beat("fine")
    assert len(manager.take()) == 1


def test_a_watchdog_hears_of_every_beat(manager: Manager) -> None:
    notifier = Notifier(manager.address, watchdog_s=4.0)
    notifier.beat("fine")
    notifier.beat("fine")
    notifier.end("stopped")
    assert notifier.every_s == 2.0
    assert manager.take() == [
        ["READY=1", "STATUS=fine", "WATCHDOG=1"],
        ["WATCHDOG=1"],
        ["STOPPING=1", "STATUS=stopped", "WATCHDOG=1"],
    ]


def test_stopping_is_said_once(manager: Manager, notifier: Notifier) -> None:
    notifier.beat("fine")
    notifier.beat("2 left", stopping=True)
    notifier.beat("1 left", stopping=True)
    notifier.end("done")
    assert manager.take()[1:] == [
        ["STOPPING=1", "STATUS=2 left"],
        ["STATUS=1 left"],
        ["STATUS=done"],
    ]


def test_after_the_end_it_is_silent(manager: Manager, notifier: Notifier) -> None:
    assert notifier
    notifier.end("done")
    assert not notifier
    notifier.beat("not quite")
    assert manager.take() == [["STOPPING=1", "STATUS=done"]]


def test_a_status_is_one_line_of_bounded_length(manager: Manager, notifier: Notifier) -> None:
    """Or a relay's words would be read as lines of their own."""
    notifier.beat("refused:\nMAINPID=1\r\n  gone")
    notifier.beat("ä" * 10_000)
    (_, first), (second,) = manager.take()
    assert first == "STATUS=refused: MAINPID=1 gone"
    assert len(second) == len("STATUS=") + STATUS_CHARS
    assert second.endswith("ä…")


def test_what_did_not_fit_is_told_again(tmp_path: Path) -> None:
    """The manager reads nothing while it boots a whole system: the kernel keeps a few messages."""
    with Manager.at(tmp_path) as manager:
        busy = Notifier(manager.address)
        number = 0
        while busy._send(f"X_NUMBER={number}"):
            number += 1
        assert number > 0
        notifier = Notifier(manager.address)
        notifier.beat("lost")
        assert len(manager.take()) == number
        notifier.beat("fine")
        assert manager.take() == [["READY=1", "STATUS=fine"]]
        for one in (busy, notifier):
            one.close()


def test_a_manager_that_is_gone_is_no_error(tmp_path: Path) -> None:
    """And one that comes back, as after `systemctl daemon-reexec`, hears everything."""
    with Manager.at(tmp_path) as manager:
        notifier = Notifier(manager.address)
    notifier.beat("nobody listens")
    with Manager.at(tmp_path) as manager:
        notifier.beat("fine")
        assert manager.take() == [["READY=1", "STATUS=fine"]]
    notifier.end("done")


def test_without_a_manager() -> None:
    notifier = Notifier()
    assert not notifier
    assert notifier.every_s == STATUS_S
    notifier.beat("fine")
    notifier.end("done")


# The environment -------------------------------------------------------------------------------


def found(environ: dict[str, str]) -> tuple[bool, float]:
    """Whether a manager is found, and its watchdog's time."""
    notifier = Notifier.found(environ)
    try:
        return bool(notifier), notifier.watchdog_s
    finally:
        notifier.close()


@pytest.mark.parametrize("address", ["/run/systemd/notify", "@/org/freedesktop/systemd1/notify"])
def test_it_is_found_in_the_environment_and_taken_out(address: str) -> None:
    environ = {
        "NOTIFY_SOCKET": address,
        "WATCHDOG_USEC": "30000000",
        "WATCHDOG_PID": str(os.getpid()),
        "HOME": "/",
    }
    assert found(environ) == (True, 30.0)
    assert environ == {"HOME": "/"}


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "notify"])
def test_no_socket_or_one_of_another_kind(address: str) -> None:
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"}
    assert found(environ) == (False, math.inf)
    assert environ == {}


@pytest.mark.parametrize(
    ("watchdog", "expected_s"),
    [
        ({}, math.inf),
        ({"WATCHDOG_USEC": "500000"}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, math.inf),
        ({"WATCHDOG_USEC": "0"}, math.inf),
        ({"WATCHDOG_USEC": "-1"}, math.inf),
        ({"WATCHDOG_USEC": "soon"}, math.inf),
        ({"WATCHDOG_USEC": "¹"}, math.inf),
    ],
)
def test_whose_watchdog_it_is(watchdog: dict[str, str], expected_s: float) -> None:
    assert found({"NOTIFY_SOCKET": "/run/nobody", **watchdog}) == (True, expected_s)


NO_HUB = """
from gevent import monkey
monkey.patch_all()
import gevent, sys
from nexusg.cli.notify import Notifier
notifier = Notifier(sys.argv[1])
notifier.beat("fine")
assert gevent._hub_local.get_hub_if_exists() is None
"""


def test_it_needs_no_hub(tmp_path: Path) -> None:
    """The master of several workers has none, and must not make one before it forks."""
    with Manager.at(tmp_path) as manager:
        command = [sys.executable, "-c", NO_HUB, manager.address]
        subprocess.run(command, cwd=ROOT, check=True, timeout=10)
        assert manager.take() == [["READY=1", "STATUS=fine"]]
