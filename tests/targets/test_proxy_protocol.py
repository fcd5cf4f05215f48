"""PROXY protocol headers, read by a receiver that is written after section 2 of the specification.

tests/targets/test_real_servers.py has real ones read them.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusg.targets.proxy_protocol import OFF, V1, V2, header
from tests.targets.users import USER, user


if TYPE_CHECKING:
    import uuid

SIGNATURE = bytes.fromhex("0D 0A 0D 0A 00 0D 0A 51 55 49 54 0A")


class Told(NamedTuple):
    """What a receiver learns; ``source`` is None when it is to look at the connection itself."""

    source: tuple[str, int] | None
    destination: tuple[str, int] | None = None
    values: tuple[tuple[int, bytes], ...] = ()


class Invalid(Exception):
    """The receiver drops the connection."""


def receive(data: bytes) -> tuple[Told, bytes]:
    """What the header at the beginning of ``data`` tells, and what comes behind it."""
    if data[:12] == SIGNATURE:
        return receive_v2(data)
    if data[:5] == b"PROXY":
        return receive_v1(data)
    raise Invalid("no header")


def receive_v1(data: bytes) -> tuple[Told, bytes]:
    end = data[:107].find(b"\r\n")
    if end < 0:
        raise Invalid("no CRLF in the first 107 bytes")
    line, rest = data[:end].decode("ascii"), data[end + 2 :]
    words = line.split(" ")
    if words[:2] == ["PROXY", "UNKNOWN"]:
        return Told(None), rest
    _, family, source, destination, source_port, destination_port = words
    kind = {"TCP4": ipaddress.IPv4Address, "TCP6": ipaddress.IPv6Address}[family]
    for address in (source, destination):
        assert str(kind(address)) == address, "not canonical"
        assert "%" not in address
    ports = []
    for port in (source_port, destination_port):
        assert port == str(int(port)), "leading zeroes"
        assert 0 <= int(port) <= 65535
        ports.append(int(port))
    return Told((source, ports[0]), (destination, ports[1])), rest


def receive_v2(data: bytes) -> tuple[Told, bytes]:
    version_command, family, length = struct.unpack_from("!BBH", data, 12)
    block, rest = data[16 : 16 + length], data[16 + length :]
    if len(block) < length:
        raise Invalid("incomplete")
    if version_command >> 4 != 2:
        raise Invalid("version")
    command = version_command & 15
    if command == 0:
        return Told(None), rest
    if command != 1 or family not in (0x11, 0x21):
        raise Invalid("command or family")
    size = 4 if family == 0x11 else 16
    source, destination = block[:size], block[size : 2 * size]
    ports = struct.unpack_from("!HH", block, 2 * size)
    values, at = [], 2 * size + 4
    while at < len(block):
        kind, high, low = block[at : at + 3]
        value = block[at + 3 : at + 3 + high * 256 + low]
        assert len(value) == high * 256 + low
        values.append((kind, value))
        at += 3 + len(value)
    return Told(
        (str(ipaddress.ip_address(source)), ports[0]),
        (str(ipaddress.ip_address(destination)), ports[1]),
        tuple(values),
    ), rest


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (
            b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
            Told(("192.168.0.1", 56324), ("192.168.0.11", 443)),
        ),
        (
            b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
            Told(("255.255.255.255", 65535), ("255.255.255.255", 65535)),
        ),
        (b"PROXY UNKNOWN\r\n", Told(None)),
        (b"PROXY UNKNOWN " + b":".join([b"ffff"] * 8) + b" ffff 65535 65535\r\n", Told(None)),
        (SIGNATURE + b"\x20\0\0\0", Told(None)),
        (SIGNATURE + b"\x20\x11\0\x0c" + bytes(12), Told(None)),
        (
            SIGNATURE + b"\x21\x11\0\x0f" + bytes([10, 1, 2, 3, 10, 0, 0, 1]) + b"\0\1\0\2\4\0\0",
            Told(("10.1.2.3", 1), ("10.0.0.1", 2), ((4, b""),)),
        ),
    ],
)
def test_the_receiver_reads_what_the_specification_shows(data: bytes, told: Told) -> None:
    assert receive(data + b"GET / HTTP/1.1\r\n") == (told, b"GET / HTTP/1.1\r\n")


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"PROXY TCP4 192.0.2.1",
        SIGNATURE + b"\x31\x11\0\0",
        SIGNATURE + b"\x21\x11\0\x0c",
        SIGNATURE + b"\x22\x11\0\0",
    ],
)
def test_the_receiver_refuses(data: bytes) -> None:
    with pytest.raises(Invalid):
        receive(data)


def test_version_1_byte_by_byte() -> None:
    assert header(V1, USER) == b"PROXY TCP4 192.0.2.7 127.0.0.1 50000 443\r\n"
    assert (
        header(V1, user(client_ip="2001:DB8:0:0::7", port=8443))
        == b"PROXY TCP6 2001:db8::7 ::1 50000 8443\r\n"
    )


def test_version_2_byte_by_byte() -> None:
    assert header(V2, USER) == bytes.fromhex(
        "0d0a0d0a000d0a515549540a"
        "21 11 0031"
        "c0000207 7f000001 c350 01bb"
        "05 0010 0123456789abcdef0011223344556677"
        "02 000f 6170702e6578616d706c652e636f6d"
    )
    assert header(V2, user(client_ip="2001:db8::7", original_hostname="")) == bytes.fromhex(
        "0d0a0d0a000d0a515549540a"
        "21 21 0037"
        "20010db8000000000000000000000007 00000000000000000000000000000001 c350 01bb"
        "05 0010 0123456789abcdef0011223344556677"
    )


@pytest.mark.parametrize("address", ["", "unix", "192.0.2.300", "192.0.2.07", "@", "1.2.3.4 5"])
def test_a_user_without_an_address(address: str) -> None:
    request = user(client_ip=address)
    assert header(V1, request) == b"PROXY UNKNOWN\r\n"
    assert header(V2, request) == SIGNATURE + b"\x20\0\0\0"


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::FFFF:c000:207", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::1"),
        ("::192.0.2.7", "::c000:207"),
    ],
)
@pytest.mark.parametrize("version", [V1, V2])
def test_other_forms_of_addresses(version: str, address: str, told: str) -> None:
    found, _ = receive(header(version, user(client_ip=address)))
    assert found.source == (told, 50000)
    assert found.destination == ("::1" if ":" in told else "127.0.0.1", 443)


@pytest.mark.parametrize("version", [V1, V2])
def test_ports_that_are_none(version: str) -> None:
    """Five digits of the relay may be too many."""
    found, _ = receive(header(version, user(client_port=99999, port=-1)))
    assert found.source == ("192.0.2.7", 0)
    assert found.destination == ("127.0.0.1", 0)


@pytest.mark.parametrize(
    ("name", "authority"),
    [
        ("App.Example.COM", b"App.Example.COM"),
        ("bücher.example", "bücher.example".encode()),
        ("x" * 255, b"x" * 255),
        ("x" * 256, None),
        ("", None),
        ("tcp:443", None),
        ("\udc80.example", b"?.example"),
    ],
)
def test_authority(name: str, authority: bytes | None) -> None:
    """As the user sent it, if it is a name; HAProxy takes 255 bytes."""
    found, _ = receive(header(V2, user(original_hostname=name)))
    assert dict(found.values).get(2) == authority


def test_a_header_fits_the_smallest_segment() -> None:
    """Section 2: 536 bytes, so that it arrives at once."""
    assert len(header(V2, user(client_ip="2001:db8::1", original_hostname="x" * 255))) <= 536


def test_a_connection_of_our_own() -> None:
    assert receive(header(V1, None)) == (Told(("127.0.0.1", 0), ("127.0.0.1", 0)), b"")
    assert header(V2, None) == SIGNATURE + b"\x20\0\0\0"


def test_there_is_no_header_that_says_nothing() -> None:
    with pytest.raises(KeyError):
        header(OFF, USER)


ports = st.integers(0, 65535)


@given(st.ip_addresses(), ports, ports, st.uuids(), st.text(max_size=300), st.binary(max_size=50))
def test_what_a_receiver_reads(
    address: Any, source_port: int, port: int, name: uuid.UUID, hostname: str, data: bytes
) -> None:
    request = user(
        client_ip=str(address),
        client_port=source_port,
        port=port,
        client_id=str(name),
        original_hostname=hostname,
    )
    expected = getattr(address, "ipv4_mapped", None) or address
    for version in (V1, V2):
        head = header(version, request)
        found, rest = receive(head + data)
        assert rest == data
        assert found.source == (str(expected), source_port)
        assert found.destination is not None
        assert ipaddress.ip_address(found.destination[0]).is_loopback
        assert found.destination[1] == port
        assert len(head) <= (107 if version == V1 else 536)
        if version == V2:
            assert dict(found.values)[5] == name.bytes
            assert dict(found.values).get(2, b"").decode() in ("", hostname)
