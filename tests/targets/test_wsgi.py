"""Applications served in memory, asked byte by byte as a stream would."""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import Greenlet
from gevent.event import Event

from nexusg.errors import TargetError
from nexusg.targets import wsgi
from nexusg.targets.memory import LIMIT_BYTES, MemorySocket
from nexusg.targets.request import ConnectRequest
from nexusg.targets.wsgi import WsgiService
from tests.conftest import MS
from tests.support.relayed import AMPLE_S
from tests.targets.conformance import TargetContract, turns


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Environ = dict[str, Any]
    Start = Callable[..., Any]

USER = ("192.0.2.7", 50000)
HEAD = b"Host: app.example.com\r\n"


def request(**fields: Any) -> ConnectRequest:
    usual: dict[str, Any] = {
        "backend": "web",
        "client_id": "00000000-0000-0000-0000-000000000001",
        "hostname": "app.example.com",
        "original_hostname": "App.Example.com",
        "port": 443,
        "client_ip": USER[0],
        "client_port": USER[1],
        "is_tls": False,
        "transport": "tcp",
    }
    return ConnectRequest(**{**usual, **fields})


def spawn(_name: str, function: Callable[..., object], *args: object) -> Greenlet[..., object]:
    return Greenlet.spawn(function, *args)


class Bench:
    """Serves one application; collects what it complains about."""

    def __init__(self) -> None:
        self.errors: list[tuple[str, BaseException]] = []
        self.output: list[str] = []
        self.users: list[Any] = []

    def serve(self, app: Callable[[Environ, Start], Any], name: str = "wsgi:test") -> WsgiService:
        return WsgiService(
            app,
            name,
            on_error=lambda _request, line, error: self.errors.append((line, error)),
            on_output=self.output.append,
        )

    def user(
        self, app: Any, first: bytes = b"", *, tls: bool = False, **fields: Any
    ) -> MemorySocket:
        service = app if isinstance(app, WsgiService) else self.serve(app)
        fields.setdefault("client_id", f"00000000-0000-0000-0000-{len(self.users):012}")
        target: Any = service.connect(request(**fields), spawn, tls)
        self.users.append(target)
        target.settimeout(AMPLE_S)
        target.sendall(first)
        return target  # type: ignore[no-any-return]


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    for user in bench.users:
        user.close()


def to_end(user: MemorySocket) -> bytes:
    """All that comes. Blocks."""
    found = b""
    while data := user.recv(65536):
        found += data
    return found


def answer(user: MemorySocket) -> tuple[bytes, bytes]:
    """Status line and body of one answer with a length. Blocks."""
    found = b""
    while b"\r\n\r\n" not in found:
        data = user.recv(1)
        assert data, found
        found += data
    head = found.lower()
    length = int(head.partition(b"content-length:")[2].split()[0])
    body = b""
    while len(body) < length:
        body += user.recv(length - len(body))
    return found.partition(b"\r\n")[0], body


def get(path: str = "/", more: bytes = b"") -> bytes:
    return b"GET %s HTTP/1.1\r\n%b%b\r\n" % (path.encode(), HEAD, more)


def post(body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%b" % (HEAD, len(body), body)


def hello(environ: Environ, start_response: Start) -> list[bytes]:
    """Answers with the path."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ["PATH_INFO"].encode()]


def digest(environ: Environ, start_response: Start) -> list[bytes]:
    """Answers with the hash of the body."""
    found = hashlib.sha256()
    while data := environ["wsgi.input"].read(10_000):
        found.update(data)
    start_response("200 OK", [])
    return [found.hexdigest().encode()]


class Ask:
    """An application that keeps what it was told."""

    def __init__(self) -> None:
        self.environ: Environ = {}

    def __call__(self, environ: Environ, start_response: Start) -> list[bytes]:
        self.environ = environ
        return hello(environ, start_response)


class TestContract(TargetContract):
    """The target, without the application: the test is at the other end."""

    def connect(self) -> tuple[Any, Any]:
        ends: list[Any] = []
        target = WsgiService(hello, "wsgi:contract").connect(
            request(), lambda _name, _function, sock, *_: ends.append(sock), False
        )
        return target, ends[0]


# What it is told ----------------------------------------------------------------------------------


def test_it_sees_the_user_and_the_public_address(bench: Bench) -> None:
    ask = Ask()
    line, body = answer(bench.user(ask, get("/a?b=c"), tls=True, is_tls=True))
    assert (line, body) == (b"HTTP/1.1 200 OK", b"/a")
    seen = ask.environ
    assert (seen["REMOTE_ADDR"], seen["REMOTE_PORT"]) == ("192.0.2.7", "50000")
    assert (seen["SERVER_NAME"], seen["SERVER_PORT"]) == ("app.example.com", "443")
    assert (seen["HTTP_HOST"], seen["wsgi.url_scheme"]) == ("app.example.com", "https")
    assert seen["nexusg.request"].original_hostname == "App.Example.com"
    assert "HTTP_X_FORWARDED_FOR" not in seen


@pytest.mark.parametrize(
    ("fields", "name", "port"),
    [
        ({"hostname": "tcp:8443", "port": 8443}, "localhost", "8443"),
        ({"hostname": "", "port": 80}, "localhost", "80"),
        ({"client_ip": "2001:db8::7"}, "app.example.com", "443"),
    ],
)
def test_names_of_every_kind(bench: Bench, fields: dict[str, Any], name: str, port: str) -> None:
    ask = Ask()
    answer(bench.user(ask, get(), **fields))
    assert (ask.environ["SERVER_NAME"], ask.environ["SERVER_PORT"]) == (name, port)
    assert ask.environ["REMOTE_ADDR"] == fields.get("client_ip", USER[0])
    assert ask.environ["wsgi.url_scheme"] == "http"


def test_a_user_who_is_not_known(bench: Bench) -> None:
    ask = Ask()
    answer(bench.user(ask, get(), client_ip="", client_port=0))
    assert (ask.environ["REMOTE_ADDR"], ask.environ["REMOTE_PORT"]) == ("", "0")


def test_a_user_cannot_claim_to_be_another_one(bench: Bench) -> None:
    ask = Ask()
    answer(bench.user(ask, get(more=b"Remote-Addr: 1.2.3.4\r\nRemote_Addr: 1.2.3.4\r\n")))
    assert ask.environ["REMOTE_ADDR"] == USER[0]


def test_tls_that_nobody_ends_is_refused() -> None:
    service = WsgiService(hello, "wsgi:shop:app")
    with pytest.raises(TargetError, match="wsgi:shop:app: the user speaks TLS") as caught:
        service.connect(request(is_tls=True), spawn, False)
    assert caught.value.code == "tls"
    assert repr(service) == "<WsgiService wsgi:shop:app>"


def test_it_is_a_proper_server(bench: Bench) -> None:
    """The standard library's own judge of both sides."""
    from wsgiref.validate import validator

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        environ["wsgi.input"].read(5)
        environ["wsgi.errors"].write("said\n")
        environ["wsgi.errors"].flush()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"valid"]

    user = bench.user(validator(app), post(b"12345"))
    user.shutdown_write()
    assert b"\r\nvalid\r\n" in to_end(user)
    assert (bench.errors, bench.output) == ([], ["said"])


# HTTP ---------------------------------------------------------------------------------------------


def test_keep_alive_and_pipelining(bench: Bench) -> None:
    user = bench.user(hello, get("/1"))
    assert answer(user) == (b"HTTP/1.1 200 OK", b"/1")
    user.sendall(get("/2") + get("/3") + get("/4", b"Connection: close\r\n"))
    assert [answer(user)[1] for _ in range(3)] == [b"/2", b"/3", b"/4"]
    assert user.recv(1) == b""


def test_the_end_of_the_user_is_the_end(bench: Bench) -> None:
    user = bench.user(hello, get("/1"))
    answer(user)
    user.shutdown_write()
    assert user.recv(1) == b""


def test_a_generator_is_sent_as_it_comes(bench: Bench) -> None:
    go = Event()

    def app(_environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"first"
        go.wait()
        yield b"second"

    user = bench.user(app, get(more=b"Connection: close\r\n"))
    found = b""
    while not found.endswith(b"5\r\nfirst\r\n"):
        found += user.recv(100)
    go.set()
    assert to_end(user) == b"6\r\nsecond\r\n0\r\n\r\n"


def test_a_body_is_read_as_it_comes(bench: Bench) -> None:
    pieces: list[bytes] = []
    seen = Event()

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        while data := environ["wsgi.input"].read(3):
            pieces.append(data)
            seen.set()
        start_response("200 OK", [])
        return [b"done"]

    head = b"POST / HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    user = bench.user(app, head + b"3\r\nabc\r\n")
    assert seen.wait(AMPLE_S)
    assert pieces == [b"abc"]
    user.sendall(b"6\r\ndefghi\r\n0\r\n\r\n" + get("/next"))
    assert answer(user)[1] == b"done"
    assert pieces == [b"abc", b"def", b"ghi"]


def test_continue_is_said_when_the_body_is_wanted(bench: Bench) -> None:
    ahead = b"POST / HTTP/1.1\r\n" + HEAD + b"Content-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    user = bench.user(digest, ahead)
    expected = b"HTTP/1.1 100 Continue\r\n\r\n"
    found = b""
    while len(found) < len(expected):
        found += user.recv(len(expected) - len(found))
    assert found == expected
    user.sendall(b"body")
    assert answer(user)[1] == hashlib.sha256(b"body").hexdigest().encode()


def test_large_bodies_both_ways_in_bounded_memory(bench: Bench) -> None:
    """Each direction holds LIMIT_BYTES, and a user who does not read stops the application."""
    made = 0
    piece = bytes(10_000)

    def app(environ: Environ, start_response: Start) -> Iterator[bytes]:
        nonlocal made
        environ["wsgi.input"].read()
        start_response("200 OK", [("Content-Length", str(300 * len(piece)))])
        for _ in range(300):
            made += len(piece)
            yield piece

    user = bench.user(app)
    sent = user.try_send(post(bytes(10 * LIMIT_BYTES)))
    assert sent == LIMIT_BYTES
    turns()
    rest = post(bytes(10 * LIMIT_BYTES))[sent:]
    Greenlet.spawn(user.sendall, rest).join()
    turns()
    assert made < LIMIT_BYTES + 3 * len(piece), "it waits for the user"
    assert answer(user)[1] == bytes(300 * len(piece))


def test_what_is_no_http_is_answered_with_400_and_not_shouted_about(
    bench: Bench, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    garbage = [
        b"\x16\x03\x01 nonsense\r\n\r\n",
        b"GET / HTTP/7.1\r\n\r\n",
        get(more=b"Many: headers\r\n" * 200),
        get(more=b"Long: " + b"x" * 70_000 + b"\r\n"),
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    ]
    for first in garbage:
        assert to_end(bench.user(hello, first)).startswith(b"HTTP/1.1 400 "), first[:40]
    assert to_end(bench.user(hello, b"GET /" + b"x" * 9000)).startswith(b"HTTP/1.1 414 ")
    chunked = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n"
    assert to_end(bench.user(digest, chunked)).startswith(b"HTTP/1.1 400 ")
    assert capfd.readouterr() == ("", "")
    assert (bench.errors, bench.output) == ([], [])
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


def test_what_is_no_http_is_mentioned_to_who_asks(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "nexusg.wsgi"):
        to_end(bench.user(hello, b"nonsense\r\n\r\n"))
    assert "Invalid HTTP method" in caplog.text


def test_a_user_who_leaves_before_the_refusal(bench: Bench) -> None:
    user = bench.user(hello, b"nonsense\r\n\r\n")
    user.close()
    turns()


@pytest.mark.parametrize("first", [b"", get("/1")])
def test_who_says_nothing_is_not_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, first: bytes
) -> None:
    monkeypatch.setattr(wsgi, "IDLE_TIMEOUT_S", 10 * MS)
    assert to_end(bench.user(hello, first)).endswith(b"/1" if first else b"")


def test_who_never_ends_the_head_is_not_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even if something comes all the time."""
    monkeypatch.setattr(wsgi, "HEAD_TIMEOUT_S", 20 * MS)
    user = bench.user(hello, b"GET / HTTP/1.1\r\n")

    def drip() -> None:
        while not user.ended:
            user.send(b"A")
            gevent.sleep(MS)

    dripping = Greenlet.spawn(drip)
    assert to_end(user).startswith(b"HTTP/1.1 400 ")
    dripping.get(timeout=AMPLE_S)


def test_a_request_may_take_as_long_as_it_likes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The patience is for heads, not for bodies and answers."""
    monkeypatch.setattr(wsgi, "IDLE_TIMEOUT_S", 10 * MS)
    monkeypatch.setattr(wsgi, "HEAD_TIMEOUT_S", 10 * MS)
    user = bench.user(digest, post(b"12345")[:-1])
    gevent.sleep(30 * MS)
    user.sendall(b"5")
    assert answer(user)[1] == hashlib.sha256(b"12345").hexdigest().encode()


# What goes wrong ----------------------------------------------------------------------------------


def test_an_error_is_500_and_reported(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    def app(_environ: Environ, _start_response: Start) -> list[bytes]:
        raise LookupError("no price list")

    service = bench.serve(app)
    assert to_end(bench.user(service, get("/shop?token=secret"))).startswith(b"HTTP/1.1 500 ")
    assert to_end(bench.user(service, get())).startswith(b"HTTP/1.1 500 "), "the next one"
    (line, error), _ = bench.errors
    assert (line, repr(error)) == ("GET /shop", "LookupError('no price list')")
    assert error.__traceback__ is not None
    assert capfd.readouterr() == ("", "")


def test_an_error_in_the_midst_ends_the_answer(bench: Bench) -> None:
    def app(_environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"so far"
        raise LookupError("no more")

    assert to_end(bench.user(app, get())).endswith(b"so far\r\n")
    assert [line for line, _ in bench.errors] == ["GET /"]


def test_exit_is_an_error_like_any_other(bench: Bench) -> None:
    def app(_environ: Environ, _start_response: Start) -> list[bytes]:
        raise SystemExit(3)

    assert to_end(bench.user(app, get())).startswith(b"HTTP/1.1 500 ")
    assert [str(error) for _, error in bench.errors] == ["3"]


def test_an_interrupt_goes_to_the_program(bench: Bench) -> None:
    def app(_environ: Environ, _start_response: Start) -> list[bytes]:
        raise KeyboardInterrupt

    user = bench.user(app, get())
    with pytest.raises(KeyboardInterrupt):
        user.recv(1)
    assert to_end(user).startswith(b"HTTP/1.1 500 ")
    assert not bench.errors


def test_the_end_of_a_killed_application_is_no_error(bench: Bench) -> None:
    tasks: list[Any] = []
    waiting = Event()
    closed: list[str] = []

    def app(_environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            yield b"x"
            waiting.set()
            Event().wait()
        finally:
            closed.append("closed")

    service = bench.serve(app)
    target: Any = service.connect(request(), lambda *a: tasks.append(spawn(*a)), False)
    target.sendall(get())
    assert waiting.wait(AMPLE_S)
    tasks[0].kill(timeout=AMPLE_S)
    assert to_end(target).endswith(b"1\r\nx\r\n")
    assert (closed, bench.errors) == (["closed"], [])


def test_an_unhappy_logger_gets_errors_where_nobody_else_does(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    def app(environ: Environ, _start_response: Start) -> list[bytes]:
        environ["wsgi.errors"].write("to stderr\n")
        raise LookupError("no price list")

    target: Any = WsgiService(app, "wsgi:alone").connect(request(), spawn, False)
    target.sendall(get("/shop"))
    assert to_end(target).startswith(b"HTTP/1.1 500 ")
    [record] = caplog.records
    assert (record.name, record.getMessage()) == ("nexusg.wsgi", "GET /shop failed")
    assert "no price list" in caplog.text
    assert "to stderr" in capfd.readouterr().err


def test_output_comes_in_texts(bench: Bench) -> None:
    def app(environ: Environ, start_response: Start) -> list[bytes]:
        errors = environ["wsgi.errors"]
        errors.write("one\ntwo\n")
        errors.writelines(["three ", "four\n"])
        errors.write("\n")
        return hello(environ, start_response)

    answer(bench.user(app, get()))
    assert bench.output == ["one\ntwo", "three four"]


# Users who leave ----------------------------------------------------------------------------------


def test_a_user_who_leaves_a_download_closes_the_iterator(bench: Bench) -> None:
    closed = Event()

    def app(_environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            while True:
                yield bytes(50_000)
        finally:
            closed.set()

    user = bench.user(app, get())
    assert user.recv(100)
    user.close()
    assert closed.wait(AMPLE_S)
    assert not bench.errors


def test_a_user_who_leaves_an_upload_is_no_error(bench: Bench) -> None:
    read: list[str] = []

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            read.append(str(error))
            raise
        return hello(environ, start_response)

    user = bench.user(app, post(b"12345")[:-2])
    user.close()
    turns()
    assert (len(read), bench.errors) == (1, [])


def test_an_oserror_of_the_applications_own_is_an_error(bench: Bench) -> None:
    def app(_environ: Environ, _start_response: Start) -> list[bytes]:
        raise FileNotFoundError(2, "no such price list")

    user = bench.user(app, get())
    user.shutdown_write()
    assert to_end(user).startswith(b"HTTP/1.1 500 ")
    assert len(bench.errors) == 1


# The end of the service ---------------------------------------------------------------------------


def test_a_connection_between_two_requests_ends_at_once(bench: Bench) -> None:
    service = bench.serve(hello)
    waiting, fresh = bench.user(service, get("/1")), bench.user(service)
    answer(waiting)
    turns()
    service.drain()
    assert waiting.recv(1) == b""
    fresh.sendall(get("/first") + get("/second"))
    data = to_end(fresh)
    assert data.endswith(b"\r\n\r\n/first"), "one request is answered, and no more"
    assert b"\r\nConnection: close\r\n" in data
    assert (service.idle, service.at_work) == (set(), set())


def test_a_request_in_flight_is_answered_and_the_last(bench: Bench) -> None:
    go = Event()

    def app(environ: Environ, start_response: Start) -> Iterator[bytes]:
        if environ["PATH_INFO"] == "/early":
            start_response("200 OK", [("Connection", "keep-alive")])
            yield b"so far, "
        go.wait()
        if environ["PATH_INFO"] == "/late":
            start_response("200 OK", [("Connection", "keep-alive")])
        yield b"and so on"

    service = bench.serve(app)
    early, late = (bench.user(service, get(path) + get("/never")) for path in ("/early", "/late"))
    turns()
    assert len(service.at_work) == 2
    service.drain()
    go.set()
    answers = [to_end(user) for user in (early, late)]
    assert all(data.endswith(b"and so on\r\n0\r\n\r\n") for data in answers)
    assert [b"Connection: close\r\n" in data for data in answers] == [False, True]
    assert b"keep-alive" not in answers[1]
    assert not service.at_work


def test_a_websocket_is_not_at_work(bench: Bench) -> None:
    """Or every stop would take all the time it may."""
    service = bench.serve(chat)
    user = connected(bench, service)
    assert not service.at_work
    service.drain()
    user.sendall(frame(b"hello"))
    assert user.recv(100) == b"\x81\x05hello"
    connected(bench, service).close()


# WebSockets ---------------------------------------------------------------------------------------

KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
UPGRADE = b"Upgrade: websocket\r\nConnection: Upgrade\r\n"


def chat(environ: Environ, start_response: Start) -> list[bytes]:
    """Echoes a WebSocket."""
    channel = environ.get("wsgi.websocket")
    if channel is None:
        return hello(environ, start_response)
    while (message := channel.receive()) is not None:
        channel.send(message)
    return []


def connected(bench: Bench, app: Any, **fields: Any) -> MemorySocket:
    user = bench.user(app, get("/ws", UPGRADE + KEY + b"Sec-WebSocket-Version: 13\r\n"), **fields)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += user.recv(1)
    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head  # RFC 6455 section 1.3
    return user


def frame(text: bytes, opcode: int = 1) -> bytes:
    """A short masked frame, with a mask of zeroes."""
    return bytes((0x80 | opcode, 0x80 | len(text), 0, 0, 0, 0)) + text


def test_a_websocket_echoes(bench: Bench) -> None:
    service = bench.serve(chat)
    users = [connected(bench, service) for _ in range(2)]
    for user in users:
        user.sendall(frame(b"hello"))
        assert user.recv(100) == b"\x81\x05hello"
    users[0].sendall(frame(b"\x03\xe8", 8))
    assert to_end(users[0]).startswith(b"\x88")
    users[1].close()
    turns()
    assert not bench.errors
    assert answer(bench.user(service, get("/page")))[1] == b"/page"


def test_users_without_an_address_do_not_get_in_each_others_way(bench: Bench) -> None:
    """gevent-websocket keeps its connections by the address of the user."""
    service = bench.serve(chat)
    for _ in range(2):
        connected(bench, service, client_ip="", client_port=0)
    for user in bench.users:
        user.close()
    turns()
    assert not bench.errors


def test_sending_to_a_user_who_left_is_no_error(bench: Bench) -> None:
    def app(environ: Environ, _start_response: Start) -> list[bytes]:
        channel = environ["wsgi.websocket"]
        while True:
            channel.send("news")

    user = connected(bench, app)
    user.close()
    turns()
    assert not bench.errors


def test_an_error_of_a_websocket_is_reported(bench: Bench) -> None:
    def app(_environ: Environ, _start_response: Start) -> list[bytes]:
        raise LookupError("no news")

    to_end(connected(bench, app))
    assert [line for line, _ in bench.errors] == ["GET /ws"]


def test_two_greenlets_may_send_on_one_websocket(bench: Bench) -> None:
    """Whole frames, even if the user is slow: what a chat does."""

    def app(environ: Environ, _start_response: Start) -> list[bytes]:
        channel = environ["wsgi.websocket"]
        texts = ("a" * 50_000, "b" * 50_000, "c" * 50_000)
        gevent.joinall([Greenlet.spawn(channel.send, text) for text in texts])
        return []

    user = connected(bench, app)
    turns()
    data = to_end(user)
    for letter in b"abc":
        piece = bytes((0x81, 126)) + (50_000).to_bytes(2, "big") + bytes([letter]) * 50_000
        assert piece in data


@pytest.mark.parametrize(
    ("more", "status"),
    [
        (UPGRADE + KEY, b"426"),
        (UPGRADE + KEY + b"Sec-WebSocket-Version: 99\r\n", b"400"),
        (UPGRADE + b"Sec-WebSocket-Version: 13\r\n", b"400"),
        (UPGRADE + b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: A\r\n", b"400"),
        (UPGRADE + b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAA\r\n", b"400"),
        (b"Upgrade: websocket\r\n", b"200"),
    ],
)
def test_upgrades_that_are_none(
    bench: Bench, capfd: pytest.CaptureFixture[str], more: bytes, status: bytes
) -> None:
    line, body = answer(bench.user(chat, get("/ws", more)))
    assert line.split()[1] == status
    assert body
    assert not bench.errors
    assert capfd.readouterr() == ("", "")


# The process --------------------------------------------------------------------------------------


def handlers() -> dict[str, list[logging.Handler]]:
    """Those of every logger there is."""
    known = logging.root.manager.loggerDict.items()
    return {name: list(one.handlers) for name, one in known if isinstance(one, logging.Logger)}


def test_nothing_of_logging_is_touched(bench: Bench) -> None:
    """gevent-websocket would make a logger of its own, with a handler."""
    before = handlers()
    connected(bench, chat)
    answer(bench.user(hello, get()))
    bench.user(hello, b"nonsense\r\n\r\n").recv(1)
    assert handlers() == before
