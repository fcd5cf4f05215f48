"""The server with real sockets: dialogues, refusals, and an accept loop that survives."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import Greenlet
from gevent.event import Event

from nexusg.config.secret import Secret
from nexusg.outbound import server as module
from nexusg.outbound.listener import ListenError, parse_listen_address
from nexusg.outbound.server import Client, Socks5Server
from nexusg.outbound.socks5 import Credentials, Reply, Request
from tests.conftest import MS
from tests.support.source import ROOT


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

AMPLE_S = 5.0
GREETING = b"\x05\x01\x00"
EXAMPLE = b"\x05\x01\x00\x03\x0cexample.test\x01\xbb"


class Owner:
    """Whom a server hands its clients to."""

    def __init__(self, address: str = "127.0.0.1:0", **options: Any) -> None:
        self.clients: list[Client] = []
        self.refusals: list[tuple[str, str]] = []
        self.troubles: list[str] = []
        self.more = Event()
        self.tasks: list[Any] = []
        self.server = Socks5Server(
            parse_listen_address(address),
            spawn=self._spawn,
            serve=self._serve,
            refused=self._refused,
            troubled=self._troubled,
            **options,
        )
        self.place = self.server.start()

    def connect(self, first: bytes = b"") -> socket.socket:
        """A program that connects and says ``first``."""
        if self.place.startswith("unix:"):
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(AMPLE_S)
            sock.connect(self.place.removeprefix("unix:"))
        else:
            host, _, port = self.place.rpartition(":")
            sock = socket.create_connection((host.strip("[]"), int(port)), AMPLE_S)
        sock.sendall(first)
        return sock

    def wait(self, condition: Callable[[], object]) -> None:
        """Wait until ``condition()`` holds."""
        with gevent.Timeout(AMPLE_S, AssertionError("never came true")):
            while not condition():
                self.more.clear()
                self.more.wait()

    def client(self) -> Client:
        """The first one that was handed over."""
        self.wait(lambda: self.clients)
        return self.clients[0]

    def stop(self) -> None:
        """End everything."""
        self.server.stop()
        for client in self.clients:
            client.sock.close()
        gevent.killall(self.tasks)

    def _spawn(self, _name: str, function: Any, *args: Any) -> None:
        self.tasks.append(Greenlet.spawn(function, *args))

    def _serve(self, client: Client) -> None:
        self.clients.append(client)
        self.more.set()

    def _refused(self, name: str, reason: str) -> None:
        self.refusals.append((name, reason))
        self.more.set()

    def _troubled(self, reason: str) -> None:
        self.troubles.append(reason)
        self.more.set()


@pytest.fixture
def start() -> Iterator[Callable[..., Owner]]:
    owners: list[Owner] = []

    def start_(*args: Any, **options: Any) -> Owner:
        owners.append(Owner(*args, **options))
        return owners[-1]

    yield start_
    for owner in owners:
        owner.stop()


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data


def test_a_client_is_handed_over(start: Any) -> None:
    owner = start()
    with owner.connect(GREETING) as sock:
        assert sock.recv(100) == b"\x05\x00"
        sock.sendall(EXAMPLE + b"early bird")
        client = owner.client()
        assert client.request == Request("example.test", 443)
        assert client.early == b"early bird"
        assert client.name == f"127.0.0.1:{sock.getsockname()[1]}"
        client.accept()
        client.sock.sendall(b"hello")
        client.sock.close()
        assert read_all(sock) == Reply.SUCCEEDED.message + b"hello"
    assert owner.refusals == []


def test_byte_by_byte(start: Any) -> None:
    owner = start()
    with owner.connect() as sock:
        for at in range(len(GREETING)):
            sock.sendall(GREETING[at : at + 1])
            gevent.sleep(0)
        assert sock.recv(100) == b"\x05\x00"
        for at in range(len(EXAMPLE)):
            sock.sendall(EXAMPLE[at : at + 1])
            gevent.sleep(0)
        assert owner.client().request.target == "example.test:443"


def test_a_password(start: Any) -> None:
    owner = start(credentials=Credentials("me", Secret("hunter2")))
    with owner.connect(b"\x05\x01\x02\x01\x02me\x07hunter2" + EXAMPLE) as sock:
        owner.client().accept()
        owner.clients[0].sock.close()
        assert read_all(sock) == b"\x05\x02\x01\x00" + Reply.SUCCEEDED.message
    with owner.connect(b"\x05\x01\x02\x01\x02me\x07hunter3" + EXAMPLE) as sock:
        assert read_all(sock) == b"\x05\x02\x01\x01"
    [(_, reason)] = owner.refusals
    assert reason == "wrong user or password"


def test_a_refusal_arrives_whatever_was_unread(start: Any) -> None:
    """PROTOCOL.md section 11.4: a reset would eat the reply."""
    owner = start()
    with owner.connect(GREETING + EXAMPLE + bytes(100_000)) as sock:
        client = owner.client()
        refusing = Greenlet.spawn(client.refuse, Reply.NOT_ALLOWED)
        assert read_all(sock) == b"\x05\x00" + Reply.NOT_ALLOWED.message
        sock.close()
        refusing.get(timeout=AMPLE_S)
        assert client.sock.fileno() == -1


def test_in_a_child_of_fork_nothing_is_said(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is the parent's, who may say something else."""
    owner = start()
    with owner.connect(GREETING + EXAMPLE) as sock:
        client = owner.client()
        monkeypatch.setattr(client, "_pid", -1)
        client.refuse(Reply.FAILURE)
        assert read_all(sock) == b"\x05\x00"


def test_a_bad_dialogue_is_answered_and_closed(start: Any) -> None:
    owner = start()
    with owner.connect(GREETING + b"\x05\x02\x00\x01" + bytes(50_000)) as sock:
        assert read_all(sock) == b"\x05\x00" + Reply.COMMAND.message
    with owner.connect(b"GET / HTTP/1.1\r\n\r\n" + bytes(50_000)) as sock:
        assert read_all(sock) == b""
        name = f"127.0.0.1:{sock.getsockname()[1]}"
    assert [reason for _, reason in owner.refusals] == [
        "command 2 is not supported",
        "the client seems to speak HTTP, not SOCKS5",
    ]
    assert owner.refusals[1][0] == name


def test_one_that_goes_on_talking_is_closed(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINGER_S", 20 * MS)
    owner = start()
    with owner.connect(b"\x04") as sock:
        assert sock.recv(1) == b""
        gevent.joinall(owner.tasks[1:], timeout=AMPLE_S)
        assert all(task.ready() for task in owner.tasks[1:])


def test_silence(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 20 * MS)
    owner = start()
    with owner.connect(b"\x05") as sock:
        assert read_all(sock) == b""
    assert owner.refusals[0][1] == "it made no request in time"


@pytest.mark.parametrize("reset", [False, True], ids=["end", "reset"])
def test_one_that_leaves_is_not_mentioned(start: Any, reset: bool) -> None:
    owner = start()
    sock = owner.connect(GREETING)
    assert sock.recv(100) == b"\x05\x00"
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    gevent.joinall(owner.tasks[1:], timeout=AMPLE_S)
    assert (owner.clients, owner.refusals) == ([], [])


def test_a_unix_socket(start: Any, tmp_path: Path) -> None:
    owner = start(f"unix:{tmp_path}/socks")
    with owner.connect(GREETING + EXAMPLE) as sock:
        client = owner.client()
        assert client.name == owner.place == f"unix:{tmp_path}/socks"
        client.accept()
        assert sock.recv(2) == b"\x05\x00"
        assert sock.recv(100) == Reply.SUCCEEDED.message
    owner.server.stop()
    assert not (tmp_path / "socks").exists()


# Start and stop ----------------------------------------------------------------------------------


def test_stop_leaves_clients_alone_and_takes_no_more(start: Any) -> None:
    owner = start()
    with owner.connect(GREETING + EXAMPLE) as sock:
        owner.client()
        owner.server.stop()
        owner.server.stop()
        with pytest.raises(ConnectionRefusedError):
            owner.connect()
        owner.clients[0].accept()
        assert sock.recv(2) == b"\x05\x00"
        assert sock.recv(100) == Reply.SUCCEEDED.message


def test_stopped_between_accept_and_the_first_word(start: Any) -> None:
    owner = start()
    with owner.connect(GREETING) as sock:
        while len(owner.tasks) < 2:
            gevent.sleep(0)
        owner.server.stop()
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        assert (owner.clients, owner.refusals) == ([], [])


def test_stopped_while_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking up a name may take long."""
    server = Socks5Server(
        parse_listen_address("127.0.0.1:0"),
        spawn=print,
        serve=print,
        refused=print,
        troubled=print,
    )
    server.stop()
    with pytest.raises(ListenError, match="stopped") as caught:
        server.start()
    assert caught.value.final


def test_a_child_closes_its_copy(start: Any, tmp_path: Path) -> None:
    owner = start(f"unix:{tmp_path}/socks")
    owner.server.disown()
    assert (tmp_path / "socks").exists()


def test_a_taken_address(start: Any) -> None:
    owner = start()
    with pytest.raises(ListenError, match="Address already in use"):
        start(owner.place)


def test_killed_in_the_midst_of_a_dialogue(start: Any) -> None:
    owner = start()
    with owner.connect(GREETING) as sock:
        assert sock.recv(100) == b"\x05\x00"
        gevent.killall(owner.tasks)
        assert sock.recv(100) == b""


# The accept loop ---------------------------------------------------------------------------------


def test_failures_to_accept_are_waited_out(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reports the first of a row, and pauses longer and longer."""
    pauses: list[float] = []
    real_sleep = gevent.sleep
    failures = [OSError(24, "Too many open files")] * 7
    real_accept = gevent.socket.socket.accept

    def accept(self: Any) -> Any:
        accepted = real_accept(self)
        if failures:
            accepted[0].close()
            raise failures.pop()
        return accepted

    def sleep(seconds: float = 0) -> None:
        if seconds:
            pauses.append(seconds)
        real_sleep(0)

    monkeypatch.setattr(module.gevent, "sleep", sleep)
    monkeypatch.setattr(gevent.socket.socket, "accept", accept)
    owner = start()
    for _ in range(7):
        owner.connect().close()
    with owner.connect(GREETING + EXAMPLE):
        owner.client()
    assert owner.troubles == [f"cannot accept on {owner.place}: Too many open files"]
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


PROGRAM = """
import os, resource, socket
import gevent
from nexusg.outbound.listener import parse_listen_address
from nexusg.outbound.server import Socks5Server

troubles, served = [], []
server = Socks5Server(
    parse_listen_address("127.0.0.1:0"), spawn=lambda name, *what: gevent.spawn(*what),
    serve=served.append, refused=print, troubled=troubles.append,
)
place = server.start()
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
asking = b"\\x05\\x01\\x00" + b"\\x05\\x01\\x00\\x03\\x01x\\x00\\x50"
sock = gevent.socket.socket()
held = []
try:
    while True:
        held.append(os.dup(0))
except OSError:
    pass
sock.connect(("127.0.0.1", int(place.rpartition(":")[2])))
sock.sendall(asking)
gevent.sleep(0.1)
assert not served and len(troubles) == 1, (served, troubles)
assert "Too many open files" in troubles[0]
for number in held:
    os.close(number)
with gevent.Timeout(5):
    while not served:
        gevent.sleep(0.01)
served[0].accept()
assert sock.recv(2) == b"\\x05\\x00"
print("served")
"""


def test_it_survives_running_out_of_descriptors() -> None:
    """PROTOCOL.md section 16.1, no. 19; in a process that is not patched."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "served\n", "")
