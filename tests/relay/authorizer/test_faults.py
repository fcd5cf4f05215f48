from __future__ import annotations

from typing import Any

import gevent
import pytest

from nexusg.relay.authorizer import faults


class Started(list[Any]):
    """A WSGI ``start_response`` that remembers."""

    def __call__(self, status: str, headers: list[tuple[str, str]]) -> None:
        self[:] = [status, dict(headers)]


def test_faults_are_met_in_their_order() -> None:
    book = faults.Faults()
    first, second = faults.reply(500), faults.reply(503)
    book.add("/a", first, 2)
    book.add("/a", second)
    met = [book.take("/a") for _ in range(4)]
    assert met == [first, first, second, None]
    assert book.take("/b") is None


def test_faults_can_be_taken_back() -> None:
    book = faults.Faults()
    book.add("/a", faults.silent)
    book.clear()
    assert book.take("/a") is None


def test_a_reply() -> None:
    started = Started()
    assert list(faults.reply(429, {"Retry-After": "7"})({}, started)) == [
        b'{"error": "too many requests"}'
    ]
    assert started[0] == "429 Too Many Requests"
    assert started[1].pop("X-Request-ID")
    assert started[1] == {"Content-Type": "application/json", "Retry-After": "7"}


def test_a_reply_with_a_body() -> None:
    started = Started()
    answer = faults.reply(200, {"Content-Type": "text/html"}, b"<html>")({}, started)
    assert (list(answer), started[0]) == ([b"<html>"], "200 OK")
    assert started[1]["Content-Type"] == "text/html"


def test_a_flood() -> None:
    sizes = [len(chunk) for chunk in faults.flood({}, Started())]
    assert sum(sizes) >= 10_000_000
    assert max(sizes) == 65536


def test_a_drip() -> None:
    drops = iter(faults.drip(0.0001)({}, Started()))
    assert [next(drops) for _ in range(3)] == [b"{", b" ", b" "]


def test_silence() -> None:
    silence = gevent.Greenlet.spawn(list, faults.silent({}, Started()))
    gevent.idle()
    assert not silence.ready()
    silence.kill()


class Socket:
    """What has been sent to a client."""

    sent = b""

    def sendall(self, data: bytes) -> None:
        self.sent += data


@pytest.mark.parametrize(("fault", "size"), [(faults.garbage, 20), (faults.hang_up, 0)])
def test_what_is_no_http(fault: faults.Behaviour, size: int) -> None:
    sock = Socket()
    with pytest.raises(BrokenPipeError):
        fault({faults.SOCKET: sock}, Started())
    assert len(sock.sent) >= size
    assert not sock.sent.startswith(b"HTTP")
