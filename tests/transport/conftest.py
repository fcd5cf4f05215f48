"""Authorities, addresses where dialling fails, and the check that no socket stays open."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import gevent
import pytest
from gevent import socket

from tests.support.certs import Authority


if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority that clients trust."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that nobody trusts."""
    return Authority(tmp_path_factory.mktemp("stranger"), "nexusg stranger")


@pytest.fixture
def no_socket_left() -> Iterator[None]:
    """Fail a test after which more sockets are open than before, collected or not."""
    before = open_sockets()
    yield
    assert not open_sockets() - before


@pytest.fixture
def refusing() -> Iterator[tuple[str, int]]:
    """An address where nobody listens, and nobody else can."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()


@pytest.fixture
def deaf() -> Iterator[tuple[str, int]]:
    """An address that does not even refuse: its backlog is full, so Linux drops what comes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        gevent.sleep(0)
        yield listener.getsockname()
        for filler in fillers:
            filler.close()


def open_sockets() -> set[str]:
    """The open sockets of this process, on Linux."""
    found = set()
    for number in os.listdir("/proc/self/fd") if Path("/proc/self/fd").exists() else []:
        try:
            found.add(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
    return {target for target in found if target.startswith("socket:")}
