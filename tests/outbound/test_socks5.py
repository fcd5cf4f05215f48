"""The SOCKS5 dialogue byte by byte (RFC 1928, RFC 1929; PROTOCOL.md section 11.2)."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusg.config.secret import Secret
from nexusg.outbound.socks5 import Credentials, Dialogue, Refused, Reply, Request, reply_for


if TYPE_CHECKING:
    from collections.abc import Iterable

GREETING = b"\x05\x01\x00"
KNOWN = Credentials("mé", Secret("hunter2"))
LOGIN = b"\x01\x03m\xc3\xa9\x07hunter2"


def ask(address: bytes, port: int = 443, command: int = 1) -> bytes:
    return bytes((5, command, 0)) + address + struct.pack(">H", port)


def name(host: bytes) -> bytes:
    return bytes((3, len(host))) + host


EXAMPLE = ask(name(b"example.test"))

GOOD: dict[str, tuple[bytes, Request]] = {
    "name": (EXAMPLE, Request("example.test", 443)),
    "mixed case": (ask(name(b"Mixed.Test"), 1), Request("Mixed.Test", 1)),
    "unicode": (ask(name("bücher.test".encode())), Request("bücher.test", 443)),
    "longest": (ask(name(b"a" * 255)), Request("a" * 255, 443)),
    "ipv4": (ask(b"\x01" + bytes([192, 0, 2, 7]), 65535), Request("192.0.2.7", 65535)),
    "ipv6": (
        ask(b"\x04" + socket.inet_pton(socket.AF_INET6, "2001:db8::7"), 0),
        Request("2001:db8::7", 0),
    ),
    "reserved byte": (b"\x05\x01\x99" + EXAMPLE[3:], Request("example.test", 443)),
}


def play(
    dialogue: Dialogue, said: bytes, ends: Iterable[int]
) -> tuple[bytes, str, Request | None, bytes]:
    """Say ``said`` in pieces up to ``ends``: answers, refusal, request, leftover."""
    answered, at = b"", 0
    try:
        for end in ends:
            answered += dialogue.receive(said[at:end])
            at = max(at, end)
    except Refused as error:
        return answered + error.answer, str(error), dialogue.request, b""
    return answered, "", dialogue.request, dialogue.leftover if dialogue.request else b""


@pytest.mark.parametrize("case", GOOD)
@pytest.mark.parametrize("size", [1, 2, 3, 1000])
@pytest.mark.parametrize("credentials", [None, KNOWN], ids=["open", "password"])
def test_in_pieces(case: str, size: int, credentials: Credentials | None) -> None:
    """Every state waits until there is enough, and takes no more than its own."""
    request, expected = GOOD[case]
    said, answers = GREETING + request, b"\x05\x00"
    if credentials:
        said, answers = b"\x05\x02\x00\x02" + LOGIN + request, b"\x05\x02\x01\x00"
    dialogue, answered = Dialogue(credentials), b""
    for at in range(0, len(said), size):
        assert dialogue.request is None
        answered += dialogue.receive(said[at : at + size])
    assert dialogue.request == expected
    assert answered == answers
    assert dialogue.leftover == b""


@pytest.mark.parametrize(
    ("request_", "target"),
    [
        (Request("example.test", 1), "example.test:1"),
        (Request("2001:db8::7", 443), "[2001:db8::7]:443"),
    ],
)
def test_target(request_: Request, target: str) -> None:
    assert request_.target == target


def test_what_comes_behind_the_request_is_kept() -> None:
    dialogue = Dialogue()
    assert dialogue.receive(GREETING + EXAMPLE + b"GET /") == b"\x05\x00"
    assert dialogue.leftover == b"GET /"
    assert dialogue.receive(b" HTTP") == b""
    assert dialogue.leftover == b"GET / HTTP"


def test_answers_come_when_they_are_due() -> None:
    dialogue = Dialogue(KNOWN)
    assert dialogue.receive(b"\x05\x01") == b""
    assert dialogue.receive(b"\x02") == b"\x05\x02"
    assert dialogue.receive(LOGIN[:-1]) == b""
    assert dialogue.receive(LOGIN[-1:]) == b"\x01\x00"


BAD: dict[str, tuple[bytes, bytes, str]] = {
    "socks4": (b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00", b"", "SOCKS4"),
    "http": (b"CONNECT example.test:443 HTTP/1.1\r\n\r\n", b"", "HTTP, not SOCKS5"),
    "tls": (b"\x16\x03\x01", b"", "TLS"),
    "lower": (b"get", b"", "something else"),
    "high": ("É".encode("latin-1"), b"", "something else"),
    "no methods": (b"\x05\x00", b"", "offers no method"),
    "password only": (b"\x05\x01\x02", b"\x05\xff", "does not offer no authentication"),
    "version": (GREETING + b"\x04", b"\x05\x00", "not one of SOCKS5"),
    "empty name": (GREETING + ask(name(b"")), b"\x05\x00", "empty"),
    "bytes": (GREETING + ask(name(b"\xff")), b"\x05\x00" + Reply.FAILURE.message, "not UTF-8"),
    "bind": (GREETING + b"\x05\x02\x00\x01", b"\x05\x00" + Reply.COMMAND.message, "command 2"),
    "udp": (GREETING + ask(name(b"a"), 1, 3), b"\x05\x00" + Reply.COMMAND.message, "command 3"),
    "address": (
        GREETING + b"\x05\x01\x00\x05",
        b"\x05\x00" + Reply.ADDRESS_TYPE.message,
        "address type 5",
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("size", [1, 1000])
def test_refused(case: str, size: int) -> None:
    said, answer, reason = BAD[case]
    answered, refused, request, _ = play(Dialogue(), said, range(size, len(said) + size, size))
    assert (answered, request) == (answer, None)
    assert reason in refused


LOCKED: dict[str, tuple[bytes, bytes, str]] = {
    "no-auth only": (b"\x05\x01\x00", b"\x05\xff", "does not offer a user and a password"),
    "version": (b"\x05\x01\x02\x05", b"\x05\x02", "RFC 1929"),
    "user": (b"\x05\x01\x02\x01\x01x\x07hunter2", b"\x05\x02\x01\x01", "wrong user or password"),
    "password": (b"\x05\x01\x02" + LOGIN[:-1] + b"3", b"\x05\x02\x01\x01", "wrong user"),
    "empty": (b"\x05\x01\x02\x01\x00\x00", b"\x05\x02\x01\x01", "wrong user"),
}


@pytest.mark.parametrize("case", LOCKED)
def test_without_the_password(case: str) -> None:
    said, answer, reason = LOCKED[case]
    dialogue = Dialogue(KNOWN)
    with pytest.raises(Refused, match=reason) as caught:
        dialogue.receive(said)
    assert caught.value.answer == answer


def test_the_password_is_not_shown() -> None:
    assert "hunter2" not in repr(KNOWN)


@pytest.mark.parametrize(
    ("user", "password", "right"),
    [
        ("mé", "hunter2", True),
        ("mé", "hunter3", False),
        ("me", "hunter2", False),
        ("", "", False),
        ("mé", "hunter22", False),
    ],
)
def test_credentials(user: str, password: str, right: bool) -> None:
    assert KNOWN.match(user.encode(), password.encode()) is right


@given(data=st.binary(max_size=600), cuts=st.lists(st.integers(0, 600)), locked=st.booleans())
def test_anything_in_any_pieces(data: bytes, cuts: list[int], locked: bool) -> None:
    """What is answered does not depend on the pieces, and nothing but Refused is raised."""
    credentials = KNOWN if locked else None
    whole = play(Dialogue(credentials), data, [len(data)])
    assert whole == play(Dialogue(credentials), data, [*sorted(cuts), len(data)])


@given(
    methods=st.binary(max_size=255).map(lambda more: b"\x00" + more[:254]),
    host=st.text(min_size=1).filter(lambda text: len(text.encode()) < 256),
    port=st.integers(0, 65535),
    early=st.binary(max_size=50),
    cuts=st.lists(st.integers(0, 800), max_size=8),
)
def test_any_good_dialogue(
    methods: bytes, host: str, port: int, early: bytes, cuts: list[int]
) -> None:
    said = bytes((5, len(methods))) + methods + ask(name(host.encode()), port) + early
    outcome = play(Dialogue(), said, [*sorted(cuts), len(said)])
    assert outcome == (b"\x05\x00", "", Request(host, port), early)


# Replies -----------------------------------------------------------------------------------------


def test_reply() -> None:
    assert Reply.REFUSED.message == b"\x05\x05\x00\x01\x00\x00\x00\x00\x00\x00"


@pytest.mark.parametrize(
    ("reason", "reply"),
    [
        ("outbound port 25 not allowed for this backend", Reply.NOT_ALLOWED),
        ("Outbound Not Allowed", Reply.NOT_ALLOWED),
        ("outbound connection limit exceeded", Reply.FAILURE),
        ("dial failed", Reply.REFUSED),
        ("dial failed: connection refused", Reply.REFUSED),
        ("dial failed: i/o timeout", Reply.TIMED_OUT),
        ("dial failed: connection timed out", Reply.TIMED_OUT),
        ("context deadline exceeded", Reply.TIMED_OUT),
        ("dial failed: network is unreachable", Reply.NETWORK_UNREACHABLE),
        ("dial failed: host is unreachable", Reply.HOST_UNREACHABLE),
        ("dial failed: no route to host", Reply.HOST_UNREACHABLE),
        ("lookup x: no such host", Reply.HOST_UNREACHABLE),
        ("invalid target port", Reply.FAILURE),
        ("", Reply.FAILURE),
    ],
)
def test_reasons(reason: str, reply: Reply) -> None:
    assert reply_for(reason) is reply
