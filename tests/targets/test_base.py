"""The interface of targets: every kind has all of it."""

from __future__ import annotations

import inspect

import pytest

from nexusg.protocol.messages import MAX_PAYLOAD_BYTES
from nexusg.targets.base import READ_BYTES, Target
from nexusg.targets.blocking import BlockingTarget
from nexusg.targets.memory import MemorySocket
from nexusg.targets.sockets import SocketTarget, TlsSocketTarget
from nexusg.targets.terminate import TerminatedTarget


KINDS = [BlockingTarget, MemorySocket, SocketTarget, TlsSocketTarget, TerminatedTarget]
METHODS = {
    name: method
    for name, method in vars(Target).items()
    if inspect.isfunction(method) and not name.startswith("_")
}


def test_reads_are_whole_frames() -> None:
    assert READ_BYTES % MAX_PAYLOAD_BYTES == 0


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_methods(kind: type, name: str) -> None:
    method = getattr(kind, name)
    assert list(inspect.signature(method).parameters) == list(
        inspect.signature(METHODS[name]).parameters
    )
    assert inspect.getdoc(method)


@pytest.mark.parametrize("kind", KINDS)
def test_many_cost_little(kind: type) -> None:
    assert all("__slots__" in vars(one) for one in kind.__mro__[:-1])


def test_the_interface_was_found() -> None:
    assert set(METHODS) == {
        "try_send",
        "send",
        "try_read",
        "wait_readable",
        "unsent_bytes",
        "shutdown_write",
        "close",
    }
