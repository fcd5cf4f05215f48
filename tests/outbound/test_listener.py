"""Listening sockets of both kinds, and what is left of them."""

from __future__ import annotations

import os
import socket
import stat
from typing import TYPE_CHECKING, Any

import pytest

from nexusg.outbound import listener as module
from nexusg.outbound.listener import (
    ListenAddress,
    Listener,
    ListenError,
    parse_listen_address,
)
from nexusg.transport.failure import ConnectError


if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def opened() -> Iterator[Any]:
    made: list[Listener] = []

    def open_(text: str) -> Listener:
        made.append(Listener(parse_listen_address(text)))
        made[-1].open()
        return made[-1]

    yield open_
    for one in made:
        one.close()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:1080", ListenAddress("127.0.0.1", 1080)),
        (" localhost:0 ", ListenAddress("localhost", 0)),
        (":1080", ListenAddress("", 1080)),
        ("[::1]:1080", ListenAddress("::1", 1080)),
        ("unix:/run/a b", ListenAddress(path="/run/a b")),
        ("unix:@name", ListenAddress(path="@name")),
    ],
)
def test_addresses(text: str, address: ListenAddress) -> None:
    assert parse_listen_address(text) == address
    assert address.place == text.strip()


@pytest.mark.parametrize("text", ["", "nowhere", "1080", "a:b", "a:99999", "unix:", "unix:a"])
def test_no_addresses(text: str) -> None:
    with pytest.raises(ListenError, match="cannot listen") as caught:
        parse_listen_address(text)
    assert caught.value.final


# TCP ---------------------------------------------------------------------------------------------


def port_of(one: Listener) -> int:
    return int(one.place.rpartition(":")[2])


@pytest.mark.parametrize(
    ("text", "host"),
    [("127.0.0.1:0", "127.0.0.1"), ("localhost:0", "127.0.0.1"), ("[::1]:0", "[::1]")],
)
def test_tcp(opened: Any, text: str, host: str) -> None:
    one = opened(text)
    port = port_of(one)
    assert one.place == f"{host}:{port}"
    with socket.create_connection((host.strip("[]"), port), 5):
        one.sock.accept()[0].close()
    one.close()
    one.close()
    assert one.place == text
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host.strip("[]"), port), 5)


def test_every_interface(opened: Any) -> None:
    """An empty host is IPv6 and IPv4."""
    one = opened(":0")
    assert one.place.startswith("[::]:")
    for host in ("127.0.0.1", "::1"):
        with socket.create_connection((host, port_of(one)), 5):
            one.sock.accept()[0].close()


def test_every_interface_of_a_host_without_ipv6(
    opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = module._bound

    def without(address: Any, shared: bool) -> Any:
        if address.family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return bound(address, shared)

    monkeypatch.setattr(module, "_bound", without)
    assert opened(":0").place.startswith("0.0.0.0:")


@pytest.mark.parametrize("host", ["127.0.0.1", ""])
def test_taken(opened: Any, host: str) -> None:
    one = opened(f"{host}:0")
    port = port_of(one)
    with pytest.raises(ListenError) as caught:
        opened(f"{host}:{port}")
    assert str(caught.value) == f"cannot listen on {host}:{port}: Address already in use"
    assert not caught.value.final


def test_processes_may_share_a_port() -> None:
    """As the workers of one agent do."""
    first = Listener(ListenAddress("127.0.0.1", 0), shared=True)
    first.open()
    second = Listener(ListenAddress("127.0.0.1", port_of(first)), shared=True)
    second.open()
    second.close()
    first.close()


def test_a_name_that_is_none(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(host: str, port: int) -> None:
        raise ConnectError(f"cannot resolve {host}: unknown", "dns")

    monkeypatch.setattr(module, "resolve", fail)
    with pytest.raises(ListenError, match=r"on no\.such:1: cannot resolve no\.such: unknown"):
        opened("no.such:1")


# Unix --------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socks"


def connect(path: Path | str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))


def test_a_file_of_its_owner(opened: Any, path: Path) -> None:
    one = opened(f"unix:{path}")
    assert one.place == f"unix:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    connect(path)
    one.close()
    assert not path.exists()


def test_an_abstract_name(opened: Any) -> None:
    name = f"nexusg-test-{os.getpid()}"
    one = opened(f"unix:@{name}")
    connect(f"\0{name}")
    one.close()
    with pytest.raises(ConnectionRefusedError):
        connect(f"\0{name}")


def test_a_stale_file_is_replaced(opened: Any, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    opened(f"unix:{path}")
    connect(path)


def test_one_that_is_in_use_is_not(opened: Any, path: Path) -> None:
    opened(f"unix:{path}")
    with pytest.raises(ListenError, match="Address already in use"):
        opened(f"unix:{path}")
    connect(path)


def test_nothing_else_is_replaced(opened: Any, path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(ListenError, match="a file of this name that is no socket"):
        opened(f"unix:{path}")
    assert path.read_text() == "precious"


def test_a_folder_that_is_not_there(opened: Any, path: Path) -> None:
    with pytest.raises(ListenError, match="No such file or directory"):
        opened(f"unix:{path}/socks")


def test_the_file_of_a_successor_is_left_alone(opened: Any, path: Path) -> None:
    one = opened(f"unix:{path}")
    path.unlink()
    opened(f"unix:{path}")
    one.close()
    connect(path)


def test_a_file_that_is_gone_already(opened: Any, path: Path) -> None:
    one = opened(f"unix:{path}")
    path.unlink()
    one.close()


def test_a_child_leaves_the_file_alone(opened: Any, path: Path) -> None:
    opened(f"unix:{path}").disown()
    assert path.exists()
