from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusg.relay.sniff import (
    MAX_PRELUDE_BYTES,
    MAX_TLS_PRELUDE_BYTES,
    Sniffer,
    TooLong,
    Verdict,
)


def client_hello(name: str | None) -> bytes:
    """A ClientHello as OpenSSL writes it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    out = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


def vector(size: int, content: bytes) -> bytes:
    return len(content).to_bytes(size, "big") + content


def record(fragment: bytes, kind: int = 22, version: bytes = b"\x03\x01") -> bytes:
    return bytes([kind]) + version + vector(2, fragment)


def hello_message(*extensions: bytes, body: bytes | None = None) -> bytes:
    """A handshake message with a hand-made ClientHello."""
    if body is None:
        start = b"\x03\x03" + bytes(32) + vector(1, b"") + vector(2, b"\x13\x01") + vector(1, b"\0")
        body = start + vector(2, b"".join(extensions))
    return b"\x01" + vector(3, body)


def server_name(*names: tuple[int, bytes]) -> bytes:
    entries = b"".join(bytes([kind]) + vector(2, name) for kind, name in names)
    return b"\0\0" + vector(2, vector(2, entries))


def sniff(data: bytes) -> Verdict | None:
    sniffer = Sniffer()
    verdict = sniffer.feed(data)
    assert sniffer.prelude == data
    return verdict


ECH = b"\xfe\x0d" + vector(2, bytes(200))
TLS = [
    (client_hello("App.Example.com"), "App.Example.com"),
    (client_hello(None), ""),
    (record(hello_message(ECH, server_name((0, b"public.example")))), "public.example"),
    (record(hello_message(server_name((7, b"?"), (0, b"a.b")))), "a.b"),
    (record(hello_message(server_name((7, b"?")))), ""),
    (record(hello_message(body=b"\x03\x00" + bytes(32) + b"\0" + b"\0\x02\0\x2f" + b"\x01\0")), ""),
    (record(hello_message(server_name((0, b"\xff.example")))), "\ufffd.example"),
]
HTTP = [
    (b"GET / HTTP/1.1\r\nHost: app.example.com\r\n\r\n", "app.example.com"),
    (b"GET / HTTP/1.0\nhost:app.example.com:8080\n\nbody", "app.example.com"),
    (b"POST /x HTTP/1.1\r\nA: b\r\nHOST:\t[2001:db8::1]:80 \r\n\r\n{}", "2001:db8::1"),
    (b"PRI-X http://x/ HTTP/1.1\r\nHost: x:\r\n\r\n", "x"),
    (b"GET / HTTP/1.1\r\nHost: m\xc3\xbcnchen.de\r\n\r\n", "münchen.de"),
    (b"GET / HTTP/1.1\r\nAccept: */*\r\n\r\n", ""),
]
OTHER = [
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /\r\n",
    b"\n",
    b"\x16\x02\x00\x00\n",
    b"\x16\x03\x01\x00\x00\n",  # an empty record
    b"\x16\x03\x01\x40\x01\n",  # a record larger than there can be
    record(b"\x02\x00\x00\x01\n"),  # a ServerHello
    record(hello_message(body=b"too short\n")),
    record(hello_message(b"\0\0" + vector(2, b"\xff\xff\n"))),
    record(b"\x01", 22) + record(b"\x00\n", 23),
]


@pytest.mark.parametrize(("data", "host"), TLS)
def test_tls(data: bytes, host: str) -> None:
    assert sniff(data) == Verdict(host, is_tls=True)


@pytest.mark.parametrize(("data", "host"), HTTP)
def test_http(data: bytes, host: str) -> None:
    assert sniff(data) == Verdict(host)


@pytest.mark.parametrize("data", OTHER)
def test_other(data: bytes) -> None:
    assert sniff(data) == Verdict()


@pytest.mark.parametrize("data", [data for data, _ in TLS + HTTP] + OTHER)
def test_trickle(data: bytes) -> None:
    """Byte by byte, the verdict is the same, and comes no later."""
    sniffer = Sniffer()
    for at in range(len(data)):
        verdict = sniffer.feed(data[at : at + 1])
        if verdict is not None:
            break
    assert verdict == sniff(data)
    assert sniffer.prelude == data[: at + 1]


def test_a_hello_over_several_records() -> None:
    message = hello_message(server_name((0, b"app.example.com")))
    pieces = b"".join(record(message[at : at + 3]) for at in range(0, len(message), 3))
    assert sniff(pieces) == Verdict("app.example.com", is_tls=True)
    assert sniff(pieces[:-1]) is None


def test_bytes_behind_the_head_are_kept() -> None:
    data = TLS[0][0] + b"early data"
    assert sniff(data) == Verdict("App.Example.com", is_tls=True)


def fill(sniffer: Sniffer, filler: bytes) -> None:
    while sniffer.room:
        assert sniffer.feed(filler[: sniffer.room]) is None


@pytest.mark.parametrize(
    ("start", "filler", "limit"),
    [
        (b"\xff" * 4, b"\0" * 1000, MAX_PRELUDE_BYTES),
        (b"GET / HTTP/1.1\r\nX: ", b"x" * 1000, MAX_PRELUDE_BYTES),
        (record(b"\x01\x00\xff\xff"), record(b"\0" * 1000), MAX_TLS_PRELUDE_BYTES),
    ],
)
def test_no_more_is_kept_than_fits_a_message(start: bytes, filler: bytes, limit: int) -> None:
    sniffer = Sniffer()
    assert sniffer.feed(start) is None
    with pytest.raises(TooLong):
        fill(sniffer, filler)
    assert len(sniffer.prelude) == limit
    assert sniffer.room == 0


def test_the_largest_request_that_fits() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\nX: "
    data = head + b"x" * (MAX_PRELUDE_BYTES - len(head) - 4) + b"\r\n\r\n"
    assert sniff(data) == Verdict("a")


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_have_a_verdict_or_none_yet(data: bytes, as_tls: bool) -> None:
    verdict = sniff(record(hello_message(body=data)) if as_tls else data)
    assert verdict is None or isinstance(verdict, Verdict)


@given(st.data())
def test_a_damaged_hello_is_harmless(data: st.DataObject) -> None:
    hello = bytearray(TLS[0][0])
    at = data.draw(st.integers(0, len(hello) - 1))
    hello[at] ^= data.draw(st.integers(1, 255))
    verdict = sniff(bytes(hello))
    assert verdict is None or isinstance(verdict, Verdict)
