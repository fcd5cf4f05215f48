"""Checks of targets over real sockets: what passes, what does not, and how often."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import Greenlet, socket
from gevent.server import StreamServer

from nexusg.agent import health as health_module
from nexusg.agent.health import JITTER, HealthCheck
from nexusg.config.model import Destination, TargetHealth, TargetTls
from nexusg.errors import TargetError
from nexusg.targets.base import READ_BYTES
from nexusg.targets.certificates import Certificates
from nexusg.targets.pool import Pool
from tests.conftest import MS
from tests.support.certs import Authority
from tests.support.clock import FakeClock


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nexusg.targets.pool import Member

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Web:
    """Answers each request with ``answer`` and closes; keeps what it was asked."""

    def __init__(self) -> None:
        self.answer: list[bytes] = [OK]  # in pieces
        self.asked: list[bytes] = []
        self.errors: list[OSError] = []
        self.preface = 0  # bytes before the request
        self.targets: list[str] = []
        self._servers: list[StreamServer] = []

    def listen(self, listener: Any = None, **options: Any) -> str:
        """The target under which it can be reached from now on."""
        if listener is None:
            listener = socket.socket()
            listener.bind(("127.0.0.1", 0))
            listener.listen(8)
        server = StreamServer(listener, self._serve, **options)
        server.start()
        self._servers.append(server)
        address = listener.getsockname()
        return f"unix:{address}" if isinstance(address, str) else "{}:{}".format(*address)

    def stop(self) -> None:
        """Listen no longer. Blocks."""
        for server in self._servers:
            server.stop(timeout=1)

    def _serve(self, sock: Any, _: object) -> None:
        try:
            self._talk(sock)
        except OSError as error:
            self.errors.append(error)
        finally:
            sock.close()

    def _talk(self, sock: Any) -> None:
        asked = sock.recv(self.preface) if self.preface else b""
        while not asked.endswith(b"\r\n\r\n") or len(asked) == self.preface:
            piece = sock.recv(4096)
            if not piece:
                break
            asked += piece
        self.asked.append(asked)
        for piece in self.answer:
            sock.sendall(piece)
            gevent.sleep(0)


@pytest.fixture
def web() -> Iterator[Web]:
    web = Web()
    yield web
    web.stop()


@pytest.fixture
def nobody() -> Iterator[str]:
    """A target where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield "{}:{}".format(*sock.getsockname())


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "LINGER_STEP_S", 2 * MS)


class Checked:
    """A pool, its checks, and what was found."""

    def __init__(
        self,
        *targets: str,
        path: str | None = None,
        host: str | None = None,
        interval_s: float = 1 * MS,
        timeout_s: float = 5,
        rng: Callable[[], float] = lambda: 0.5,
        **destination: Any,
    ) -> None:
        self.clock = FakeClock()
        self.news: list[tuple[str, str]] = []
        self.bugs: list[BaseException] = []
        self.pool = Pool(
            targets,
            2,
            on_down=lambda one: self.news.append(("down", one.error)),
            on_up=lambda one, _: self.news.append(("up", one.target)),
            clock=self.clock,
        )
        health = TargetHealth(path, host, interval_s, timeout_s, 2)
        self.check = HealthCheck(
            self.pool,
            Destination(targets=targets, health=health, **destination),
            bytearray(READ_BYTES),
            Certificates(),
            rng=rng,
            failed=self.bugs.append,
        )

    def once(self) -> str:
        """What one check of the first target has found; empty for nothing. Blocks."""
        self.check._check(self.pool.members[0])
        assert not self.bugs
        return self.pool.members[0].error

    def start(self) -> Greenlet[..., Any]:
        """Run the checks in a greenlet."""
        return Greenlet.spawn(self.check.run)

    def wait(self, count: int) -> None:
        """Until ``count`` changes were told of. Blocks."""
        with gevent.Timeout(5):
            while len(self.news) < count:
                gevent.sleep(MS)


def unix_listener(folder: Path) -> Any:
    """A unix socket that listens."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "web.sock"))
    listener.listen(8)
    return listener


# A connection is enough ------------------------------------------------------------------------


def test_a_service_that_accepts(web: Web) -> None:
    target = web.listen()
    checked = Checked(target)
    assert checked.once() == ""
    gevent.sleep(MS)
    assert web.asked == [b""]


def test_nobody_there(nobody: str) -> None:
    found = Checked(nobody).once()
    assert found == f"target {nobody}: cannot connect to {nobody}: Connection refused"


def test_down_and_up_again(web: Web, tmp_path: Path) -> None:
    """One good check is enough."""
    target = f"unix:{tmp_path}/web.sock"
    checked = Checked(target)
    run = checked.start()
    checked.wait(1)
    assert checked.pool.members[0].down_since is not None
    web.listen(unix_listener(tmp_path))
    checked.wait(2)
    run.kill()
    assert checked.news[0][0] == "down"
    assert checked.news[1] == ("up", target)


def test_all_are_checked_in_turn(web: Web, nobody: str) -> None:
    checked = Checked(nobody, web.listen(), "unix:/nowhere")
    run = checked.start()
    checked.wait(2)
    run.kill()
    assert [one.down_since is None for one in checked.pool.members] == [False, True, False]
    assert not checked.bugs


def test_an_application_of_this_process_is_not_checked() -> None:
    checked = Checked("wsgi:shop:app", interval_s=99)
    checked.check.run()
    assert checked.news == []


def test_a_bug_ends_no_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it good news about the target."""
    checked = Checked("127.0.0.1:9")
    checked.pool.members[0]._checks_failed = 1

    def bug(*_: object) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(health_module, "dial", bug)
    run = checked.start()
    while len(checked.bugs) < 3:
        gevent.sleep(MS)
    run.kill()
    assert checked.pool.members[0]._checks_failed == 1


# HTTP ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 204, 302, 399])
def test_good_answers(web: Web, status: int) -> None:
    web.answer = [b"HTTP/1.1 %d Fine\r\n\r\n" % status]
    assert Checked(web.listen(), path="/healthz").once() == ""


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
def test_bad_answers(web: Web, status: int) -> None:
    web.answer = [b"HTTP/1.1 %d No\r\n\r\n" % status]
    target = web.listen()
    checked = Checked(target, path="/healthz")
    assert checked.once() == f"target {target}: GET /healthz was answered with {status}"
    assert checked.once()
    assert [news[0] for news in checked.news] == ["down"]


def test_what_is_asked(web: Web) -> None:
    target = web.listen()
    assert Checked(target, path="/healthz?deep=1").once() == ""
    (asked,) = web.asked
    lines = asked.decode().split("\r\n")
    assert lines[0] == "GET /healthz?deep=1 HTTP/1.1"
    assert lines[1] == f"Host: {target}"
    assert "Connection: close" in lines
    assert re.search(r"User-Agent: nexusg/\S+ \(health check\)", asked.decode())


def test_for_a_name(web: Web) -> None:
    assert Checked(web.listen(), path="/", host="app.example.com").once() == ""
    assert b"\r\nHost: app.example.com\r\n" in web.asked[0]


def test_answers_that_only_announce_one(web: Web) -> None:
    web.answer = [b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 ", b"500 No\r\n\r\n"]
    assert "answered with 500" in Checked(web.listen(), path="/").once()
    web.answer = [b"HTTP/1.1 103 Early Hints\r\n\r\n", OK]
    assert Checked(web.listen(), path="/").once() == ""


def test_an_answer_in_pieces(web: Web) -> None:
    web.answer = [bytes([byte]) for byte in OK]
    assert Checked(web.listen(), path="/").once() == ""


def test_a_long_answer_is_read_away(web: Web) -> None:
    """The service is not reset in the midst of it."""
    web.answer = [OK, *[bytes(10_000)] * 20]
    assert Checked(web.listen(), path="/").once() == ""
    assert web.errors == []


def test_but_not_for_ever(web: Web) -> None:
    web.answer = [OK, *[bytes(100_000)] * 100]
    assert Checked(web.listen(), path="/").once() == ""
    gevent.sleep(MS)
    assert web.errors


def test_a_service_that_keeps_the_connection(web: Web) -> None:
    """It was asked to close, and the answer is good all the same."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    run = Greenlet.spawn(Checked("{}:{}".format(*listener.getsockname()), path="/").once)
    sock, _ = listener.accept()
    sock.sendall(OK)
    assert run.get(timeout=5) == ""
    sock.close()
    listener.close()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ([], "it closed the connection without an answer"),
        ([b"HTTP/1.1 2"], "it closed the connection in the middle of its answer"),
        (
            [b"SSH-2.0-OpenSSH_9.2\r\n"],
            "it answered b'SSH-2.0-OpenSSH_9.2\\r\\n', which is not HTTP",
        ),
        ([b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 3000], "it sent more than 16384 bytes of header"),
    ],
)
def test_no_answer(web: Web, answer: list[bytes], expected: str) -> None:
    web.answer = answer
    target = web.listen()
    assert Checked(target, path="/").once() == f"target {target}: {expected}"


def test_silence() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        target = "{}:{}".format(*listener.getsockname())
        found = Checked(target, path="/", timeout_s=10 * MS).once()
    assert found.startswith(f"target {target}: no answer to a check in ")


def test_a_connection_that_breaks(web: Web) -> None:
    def reset(sock: Any, _: object) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    server = StreamServer(listener, reset)
    server.start()
    target = "{}:{}".format(*listener.getsockname())
    found = Checked(target, path="/").once()
    assert found == f"target {target}: the check's connection broke: Connection reset by peer"
    server.stop()


# Everything a stream meets ---------------------------------------------------------------------


def test_over_a_unix_socket(web: Web, tmp_path: Path) -> None:
    assert Checked(web.listen(unix_listener(tmp_path)), path="/").once() == ""
    assert b"\r\nHost: localhost\r\n" in web.asked[0]


def test_over_tls(web: Web, authority: Authority) -> None:
    place = web.listen(ssl_context=authority.server_context())
    target = f"tls://{place}"
    assert Checked(target, path="/", tls=TargetTls(ca_file=str(authority.ca_file))).once() == ""
    assert f"\r\nHost: {place}\r\n".encode() in web.asked[0]


def test_over_tls_with_a_stranger(web: Web, authority: Authority) -> None:
    target = "tls://" + web.listen(
        ssl_context=authority.server_context(), do_handshake_on_connect=False
    )
    assert "is not accepted" in Checked(target).once()


@pytest.mark.parametrize(
    ("version", "head"),
    [
        ("v1", b"PROXY TCP4 127.0.0.1 127.0.0.1 0 0\r\n"),
        ("v2", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"),
    ],
)
def test_nobody_is_connected(web: Web, version: str, head: bytes) -> None:
    """A service that insists on a PROXY header gets one that names no user."""
    web.preface = len(head)
    assert Checked(web.listen(), path="/", proxy_protocol=version).once() == ""
    assert web.asked[0].startswith(head + b"GET / HTTP/1.1\r\n")


# Pace ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("random", "part"), [(0.0, 1 - JITTER), (0.5, 1.0), (1.0, 1 + JITTER)])
def test_the_interval_varies(random: float, part: float) -> None:
    checked = Checked("127.0.0.1:9", interval_s=10, rng=lambda: random)
    assert checked.check._pause_s() == pytest.approx(10 * part)


def test_the_first_check_is_at_once(web: Web) -> None:
    run = Checked(web.listen(), path="/", interval_s=99).start()
    with gevent.Timeout(5):
        while not web.asked:
            gevent.sleep(MS)
    run.kill()


def test_an_error_of_a_target_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the pool gets is what was found."""
    found: list[tuple[Member, TargetError | None]] = []
    checked = Checked("127.0.0.1:9")
    error = TargetError("target 127.0.0.1:9: gone", "refused")

    def fail(*_: object) -> Any:
        raise error

    monkeypatch.setattr(health_module, "dial", fail)
    monkeypatch.setattr(checked.pool, "checked", lambda *what: found.append(what))
    checked.check._check(checked.pool.members[0])
    assert found == [(checked.pool.members[0], error)]
