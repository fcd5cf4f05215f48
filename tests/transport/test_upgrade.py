"""The HTTP upgrade: what is asked, and every way in which it can be answered."""

from __future__ import annotations

import base64
import http.cookies
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import gevent
import pytest
import websocket
import websocket._handshake
from gevent import Greenlet
from hypothesis import given
from hypothesis import strategies as st

from nexusg.errors import DialFailed, Retry, UpgradeRefused
from nexusg.transport.address import parse_address
from nexusg.transport.connect import connect_tcp
from nexusg.transport.deadline import Deadline, limit
from nexusg.transport.upgrade import (
    MAX_HEAD_BYTES,
    MAX_RETRY_AFTER_S,
    HandshakeSock,
    retry_after_s,
    upgrade,
)
from nexusg.version import __version__
from tests.transport.servers import (
    Server,
    accepting,
    answering,
    hanging,
    headers_of,
    serving,
    switching,
)


if TYPE_CHECKING:
    from collections.abc import Callable

    Handler = Callable[[Server, Any], object]

pytestmark = pytest.mark.usefixtures("no_socket_left")

ACCEPTED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"


def ask(server: Server, url: str | None = None) -> bytes:
    """One upgrade at a server, the socket closed after it; return what came behind the answer."""
    with connect_tcp(server.host, server.port, 5) as sock:
        leftover = upgrade(sock, parse_address(url or server.url()))
        assert sock.fileno() >= 0, "the library does not close what is the caller's"
        return leftover


def refused(handler: Handler) -> UpgradeRefused:
    with serving(handler) as server, pytest.raises(UpgradeRefused) as caught:
        ask(server)
    return caught.value


def failed(handler: Handler) -> str:
    with serving(handler) as server, pytest.raises(DialFailed) as caught:
        ask(server)
    assert caught.value.code == "upgrade"
    assert str(caught.value).startswith(server.place) or server.place in str(caught.value)
    return str(caught.value)


# --- The request -----------------------------------------------------------------------------


def test_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """PROTOCOL.md section 1.1: exactly /connect, and nothing that tells who we are."""
    with serving(accepting()) as server:
        assert ask(server) == b""
    [request] = server.requests
    headers = headers_of(request)
    key = headers.pop("sec-websocket-key")
    assert len(base64.b64decode(key, validate=True)) == 16
    assert request.startswith(b"GET /connect HTTP/1.1\r\n")
    assert headers == {
        "host": server.place,
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-version": "13",
        "user-agent": f"nexusg/{__version__}",
    }


def test_every_key_is_another() -> None:
    with serving(accepting()) as server:
        ask(server)
        ask(server)
    keys = {headers_of(request)["sec-websocket-key"] for request in server.requests}
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("url", "line", "host"),
    [
        ("wss://a.test/connect", b"GET /connect HTTP/1.1", "a.test"),
        ("wss://a.test:80/connect", b"GET /connect HTTP/1.1", "a.test:80"),
        ("ws://a.test:443/connect", b"GET /connect HTTP/1.1", "a.test:443"),
        ("wss://[::1]:8443/connect?a=b", b"GET /connect?a=b HTTP/1.1", "[::1]:8443"),
        ("wss://a.test", b"GET / HTTP/1.1", "a.test"),
        ("wss://a.test//x//y", b"GET //x//y HTTP/1.1", "a.test"),
        ("wss://a.test/%2F?%23", b"GET /%2F?%23 HTTP/1.1", "a.test"),
    ],
)
def test_request_lines_and_hosts(url: str, line: bytes, host: str) -> None:
    with serving(accepting()) as server:
        ask(server, url)
    [request] = server.requests
    assert request.split(b"\r\n")[0] == line
    assert headers_of(request)["host"] == host


@pytest.mark.parametrize(
    "header",
    [
        b"Set-Cookie: a=b; Domain=relay.invalid\r\n",
        b"set-cookie: a=b; Domain=127.0.0.1\r\n",
        b" \x1c\x85Set-Cookie: a=b; Domain=invalid\r\n",
    ],
)
def test_cookies_are_not_kept(header: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    jar = websocket._handshake.CookieJar
    monkeypatch.setattr(jar, "jar", {})
    with serving(accepting(headers=header)) as server:
        ask(server)
        ask(server)
    assert jar.jar == {}
    assert all(b"ookie" not in request for request in server.requests)


def test_cookies_of_the_host_program_are_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user of the library in this process has been at the same host."""
    cookie = http.cookies.SimpleCookie("session=hunter2")
    monkeypatch.setattr(websocket._handshake.CookieJar, "jar", {".127.0.0.1": cookie})
    with serving(accepting()) as server:
        ask(server)
    assert b"hunter2" not in server.requests[0]


# --- Accepted --------------------------------------------------------------------------------


def test_frames_right_behind_the_answer_are_kept() -> None:
    frame = b"\x81\x05early"
    with serving(accepting(frame)) as server:
        assert ask(server) == frame


def test_no_byte_is_lost_between_leftover_and_socket() -> None:
    sent = bytes(range(256)) * 100

    def handler(server: Server, sock: Any) -> None:
        accepting(sent)(server, sock)
        sock.shutdown(1)

    with serving(handler) as server, connect_tcp(server.host, server.port, 5) as sock:
        received = upgrade(sock, parse_address(server.url()))
        while chunk := sock.recv(65536):
            received += chunk
    assert received == sent


def test_an_answer_in_small_pieces() -> None:
    def dripping(server: Server, sock: Any) -> None:
        for byte in switching(server.read_request(sock)) + b"\x81\x00":
            sock.sendall(bytes([byte]))
            gevent.sleep(0)

    with serving(dripping) as server:
        assert b"\x81\x00".startswith(ask(server))


def test_headers_in_any_case_and_lists() -> None:
    def handler(server: Server, sock: Any) -> None:
        answer = switching(server.read_request(sock))
        answer = answer.replace(b"Connection: Upgrade", b"CONNECTION:keep-alive , UPGRADE")
        sock.sendall(answer.replace(b"\r\n", b"\n"))

    with serving(handler) as server:
        ask(server)


# --- Refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "HTTP status 400 (Bad Request); if it speaks TLS, dial it with wss://"),
        (401, "HTTP status 401 (Unauthorized); something in front of the relay wants credentials"),
        (403, "HTTP status 403 (Forbidden); something in front of the relay does not let"),
        (404, "HTTP status 404 (Not Found); the path of a relay is /connect"),
        (429, "HTTP status 429 (Too Many Requests); something in front of the relay limits"),
        (502, "HTTP status 502 (Bad Gateway); something in front of the relay cannot reach it"),
        (503, "HTTP status 503 (Service Unavailable)"),
        (200, "HTTP status 200 (OK)"),
        (100, "HTTP status 100 (Continue)"),
        (599, "HTTP status 599 (not a known status)"),
    ],
)
def test_statuses(status: int, words: str) -> None:
    error = refused(answering(b"HTTP/1.1 %d hunter2\r\nContent-Length: 0\r\n\r\n" % status))
    assert error.status == status
    assert words in str(error)
    assert "hunter2" not in str(error), "not the peer's text"
    assert error.retry_after_s is None
    assert error.__cause__ is None


def test_a_bad_request_over_tls_has_no_such_hint() -> None:
    handler = answering(b"HTTP/1.1 400 x\r\n\r\n")
    with serving(handler) as server, pytest.raises(UpgradeRefused) as caught:
        ask(server, f"wss://{server.place}/connect")
    assert str(caught.value).endswith("HTTP status 400 (Bad Request)")


def test_statuses_have_their_retry_class() -> None:
    assert refused(answering(b"HTTP/1.1 429 x\r\n\r\n")).retry is Retry.RATE_LIMITED
    assert refused(answering(b"HTTP/1.1 403 x\r\n\r\n")).retry is Retry.REJECTED
    assert refused(answering(b"HTTP/1.1 503 x\r\n\r\n")).retry is Retry.BACKOFF


@pytest.mark.parametrize("status", [301, 302, 303, 304, 307, 308])
def test_redirects_are_not_followed(status: int) -> None:
    with serving(accepting()) as elsewhere:
        location = elsewhere.url().encode()
        error = refused(answering(b"HTTP/1.1 %d x\r\nLocation: %s\r\n\r\n" % (status, location)))
        assert error.status == status
        assert "redirects are not followed" in str(error)
        assert elsewhere.requests == []


def test_retry_after() -> None:
    error = refused(answering(b"HTTP/1.1 503 x\r\nretry-after:  17 \r\n\r\n"))
    assert error.retry_after_s == 17
    date = formatdate(time.time() + 100, usegmt=True).encode()
    error = refused(answering(b"HTTP/1.1 429 x\r\nRetry-After: " + date + b"\r\n\r\n"))
    assert error.retry_after_s == pytest.approx(100, abs=3)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("", None),
        (" ", None),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("٣", None),
        ("0", 0),
        ("120", 120),
        ("9" * 5000, MAX_RETRY_AFTER_S),
        ("Wed, 21 Oct 2015 07:28:10 GMT", 10),
        ("Wed, 21 Oct 2015 07:28:10 -0000", 10),
        ("Wed, 21 Oct 2015 07:27:00 GMT", 0),
        ("Wed, 21 Oct 2099 07:28:00 GMT", MAX_RETRY_AFTER_S),
        ("Wed, 99 Oct 2015 07:28:00 GMT", None),
        ("Wed, 21 Oct 99999999999999999999 07:28:00 GMT", None),
        ("Mon, 01 Jan 0001 00:00:00 +2300", 0),
    ],
)
def test_retry_after_values(value: str, seconds: float | None) -> None:
    assert retry_after_s(value, 1445412480.0) == seconds


@given(st.text() | st.text(alphabet="0123456789 :,+-JanWedGMT"))
def test_retry_after_takes_anything(value: str) -> None:
    seconds = retry_after_s(value, 1445412480.0)
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER_S


def test_the_body_of_an_error_is_not_read() -> None:
    sent = 0

    def handler(server: Server, sock: Any) -> None:
        nonlocal sent
        server.read_request(sock)
        sock.sendall(b"HTTP/1.1 503 x\r\nContent-Length: 1000000000000\r\n\r\n")
        while True:
            sent += sock.send(b"x" * 65536)

    assert refused(handler).status == 503
    assert sent < 100_000_000


def test_a_body_that_never_comes_is_not_waited_for() -> None:
    error = refused(answering(b"HTTP/1.1 503 x\r\nContent-Length: 5\r\n\r\n"))
    assert error.status == 503


# --- Not an upgrade at all -------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        ACCEPTED + b"Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n",
        ACCEPTED + b"Sec-WebSocket-Accept:\r\n\r\n",
        ACCEPTED + b"\r\n",
        b"HTTP/1.1 101 x\r\n\r\n",
        b"HTTP/1.1 101 x\r\nno colon\r\n\r\n",
        ACCEPTED + b"\xff\xfe: \xff\r\n\r\n",
        b"HTTP/1.1 101 x\r\n" + b"no colon" * 5000 + b"\r\n\r\n",
    ],
)
def test_answers_that_are_no_upgrade(answer: bytes) -> None:
    text = failed(answering(answer))
    assert "does not answer as a WebSocket server: " in text
    assert len(text) < 300


@pytest.mark.parametrize("missing", [b"Upgrade: websocket\r\n", b"Connection: Upgrade\r\n"])
def test_missing_headers(missing: bytes) -> None:
    def handler(server: Server, sock: Any) -> None:
        sock.sendall(switching(server.read_request(sock)).replace(missing, b""))

    assert "does not answer as a WebSocket server" in failed(handler)


@pytest.mark.parametrize("name", ["Sec-WebSocket-Extensions", "Sec-WebSocket-Protocol"])
def test_choices_that_were_not_offered(name: str) -> None:
    """RFC 6455 section 4.1: the client must fail the connection."""
    handler = accepting(headers=f"{name}: permessage-deflate\r\n".encode())
    assert f"it chose a {name.lower()} that was not offered" in failed(handler)


def test_something_that_is_not_http() -> None:
    assert "b'SSH-2.0-OpenSSH" in failed(answering(b"SSH-2.0-OpenSSH_9.9\r\n"))


def test_the_end_without_an_answer() -> None:
    def closing(server: Server, sock: Any) -> None:
        server.read_request(sock)
        sock.close()

    assert "closed the connection without an answer" in failed(closing)


def test_a_reset() -> None:
    def resetting(server: Server, sock: Any) -> None:
        server.read_request(sock)
        sock.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER with no time
        sock.close()

    text = failed(resetting)
    assert text.startswith("the connection to 127.0.0.1:")
    assert text.endswith("broke: Connection reset by peer")


def test_a_head_that_is_too_long() -> None:
    answer = b"HTTP/1.1 101 x\r\nX: " + b"x" * MAX_HEAD_BYTES
    assert "sent more than 65536 bytes of header" in failed(answering(answer))


def test_a_long_head_leaves_turns_to_others() -> None:
    turns = 0

    def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            gevent.sleep(0)

    ticking = Greenlet.spawn(others)
    header = b"X: " + b"x" * (MAX_HEAD_BYTES - 1000) + b"\r\n"
    with serving(accepting(headers=header)) as server:
        ask(server)
    ticking.kill()
    assert turns > 30


@pytest.mark.parametrize("handler", [hanging, answering(b"HTTP/1.1 101 x\r\nX: "), "endless"])
def test_a_time_limit_ends_it(handler: Any) -> None:
    """Also one that sends all the time: one byte of a header, again and again."""

    def endless(server: Server, sock: Any) -> None:
        sock.sendall(b"HTTP/1.1 101 x\r\nX: ")
        while True:
            sock.sendall(b"x")
            gevent.sleep(0.001)

    handler = endless if handler == "endless" else handler
    late = DialFailed("late")
    limited = limit(Deadline(0.02), late)
    with serving(handler) as server, pytest.raises(DialFailed) as caught, limited:
        ask(server)
    assert caught.value is late


# --- The shim --------------------------------------------------------------------------------


def test_the_shim_gives_the_head_and_nothing_behind_it() -> None:
    class Sock:
        def recv(self, _: int) -> bytes:
            return b"HTTP/1.1 101 x\r\nSet-Cookie: a\r\nA: b\r\n\r\nbehind"

    shim = HandshakeSock(Sock(), parse_address("ws://a.test/"))  # type: ignore[arg-type]
    given = b"".join(shim.recv(1) for _ in range(100))
    assert given == b"HTTP/1.1 101 x\r\nA: b\r\n\r\n"
    assert shim.recv(5) == b""
    assert shim.leftover == b"behind"
