"""Dialling local services over real sockets."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import socket

from nexusg.errors import TargetError
from nexusg.targets.dial import dial, split
from tests.targets.conformance import BUFFER, TargetContract, read, receive


if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nexusg.targets.base import Target


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(1)
        yield sock


def place(listener: Any) -> str:
    return f"127.0.0.1:{listener.getsockname()[1]}"


class TestDialled(TargetContract):
    """The whole contract over a connection as agents make them."""

    def connect(self) -> tuple[Target, Any]:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
            sock.listen(1)
            target = dial(place(sock), BUFFER)
            target._sock.setsockopt(  # type: ignore[attr-defined]
                socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024
            )
            return target, sock.accept()[0]


def talk(target: Target, listener: Any) -> None:
    peer, _ = listener.accept()
    assert target.try_send(b"ping") == 4
    assert receive(peer, 4) == b"ping"
    peer.sendall(b"pong")
    assert read(target) == b"pong"
    target.close()
    peer.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", ""])
def test_tcp(listener: socket.socket, host: str) -> None:
    name = f"{host}:{listener.getsockname()[1]}"
    target = dial(name, BUFFER)
    assert target.name == name
    assert target._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)  # type: ignore[attr-defined]
    talk(target, listener)


def test_ipv6() -> None:
    with socket.socket(socket.AF_INET6) as listener:
        try:
            listener.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        listener.listen(1)
        talk(dial(f"[::1]:{listener.getsockname()[1]}", BUFFER), listener)


def test_unix(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(1)
        target = dial(f"unix:{tmp_path / 's'}", BUFFER)
        assert target.name == f"unix:{tmp_path / 's'}"
        talk(target, listener)


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="Linux only")
def test_abstract() -> None:
    name = f"nexusg-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen(1)
        talk(dial(f"unix:@{name}", BUFFER), listener)


def test_refused(listener: socket.socket) -> None:
    name = place(listener)
    listener.close()
    with pytest.raises(TargetError) as caught:
        dial(name, BUFFER)
    assert str(caught.value) == f"target {name}: cannot connect to {name}: Connection refused"
    assert caught.value.code == "refused"


def test_no_such_unix_socket(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="No such file or directory") as caught:
        dial(f"unix:{tmp_path / 's'}", BUFFER)
    assert caught.value.code == "refused"


def test_no_such_name() -> None:
    """A label that is too long fails in the resolver without asking a name server."""
    with pytest.raises(TargetError, match=r"^target x+") as caught:
        dial(f"{'x' * 64}.invalid:80", BUFFER)
    assert caught.value.code == "dns"


def test_timeout(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as filler:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        filler.connect(str(tmp_path / "s"))
        with pytest.raises(TargetError, match="took longer than") as caught:
            dial(f"unix:{tmp_path / 's'}", BUFFER, timeout_s=0.01)
    assert caught.value.code == "timeout"


def test_an_interrupted_dial_leaves_no_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as filler:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        filler.connect(str(tmp_path / "s"))
        open_before = len(os.listdir("/proc/self/fd"))
        late = TargetError("late", "timeout")
        with pytest.raises(TargetError) as caught, gevent.Timeout(0.01, late):
            dial(f"unix:{tmp_path / 's'}", BUFFER)
        assert caught.value is late
        assert len(os.listdir("/proc/self/fd")) <= open_before


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:80", ("::1", 80)),
        ("app.internal:http", ("app.internal", 80)),
        (":8080", ("localhost", 8080)),
    ],
)
def test_split(target: str, expected: tuple[str, int]) -> None:
    assert split(target) == expected


def test_an_unknown_service_is_named() -> None:
    with pytest.raises(TargetError, match="knows no TCP service 'no-such-service'") as caught:
        dial("127.0.0.1:no-such-service", BUFFER)
    assert caught.value.code == "dns"
