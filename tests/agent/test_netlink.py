"""Netlink messages made by hand, by the kernel, and by chance."""

from __future__ import annotations

import socket as native
import struct
import sys
from typing import TYPE_CHECKING

import pytest
from gevent import socket
from hypothesis import given
from hypothesis import strategies as st

from nexusg.agent.netlink import (
    DEL_ADDRESS,
    DEL_LINK,
    DEL_ROUTE,
    NEW_ADDRESS,
    NEW_LINK,
    NEW_ROUTE,
    Notice,
    parse,
)
from tests.agent.netlinks import LOOPBACK, RUNNING, UP, address, link, message, route


if TYPE_CHECKING:
    from collections.abc import Iterator

LINK_SCOPE, HOST_SCOPE = 253, 254
TENTATIVE = 0x40


def summary(data: bytes) -> list[tuple[str, bool, int]]:
    return [(notice.kind, notice.there, notice.interface) for notice in parse(data)]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (link(), [("link", True, 7)]),
        (link(flags=UP), [("link", False, 7)]),
        (link(flags=RUNNING), [("link", False, 7)]),
        (link(kind=DEL_LINK), [("link", False, 7)]),
        (link(1, UP | RUNNING | LOOPBACK), []),
        (address(), [("address", True, 7)]),
        (address(host="2001:db8::1"), [("address", True, 7)]),
        (address(kind=DEL_ADDRESS), [("address", False, 7)]),
        (address(1), []),
        (address(host="fe80::1", scope=LINK_SCOPE), []),
        (address(host="127.0.0.2", scope=HOST_SCOPE), []),
        (address(host="2001:db8::1", flags=TENTATIVE), []),
        (address(host="2001:db8::1", flags=TENTATIVE, kind=DEL_ADDRESS), [("address", False, 7)]),
        (route(), [("default route", True, 7)]),
        (route(0), [("default route", True, 0)]),
        (route(kind=DEL_ROUTE), [("default route", False, 7)]),
        (route(length=24), []),
        (route(sort=7), []),
        (message(2, struct.pack("=i", -1)), []),
        (message(3, b""), []),
        (b"", []),
    ],
)
def test_parse(data: bytes, expected: list[tuple[str, bool, int]]) -> None:
    assert summary(data) == expected


def test_several_messages_in_one_datagram() -> None:
    data = message(99, b"odd") + link() + address() + message(NEW_LINK, b"short") + route()
    assert [notice.kind for notice in parse(data)] == ["link", "address", "default route"]


def test_the_same_thing_is_recognised() -> None:
    [there] = parse(address())
    [gone] = parse(address(kind=DEL_ADDRESS))
    [other] = parse(address(host="192.0.2.2"))
    assert there.what == gone.what != other.what


@pytest.mark.parametrize("cut", range(1, 44))
def test_cut_messages_are_passed_over(cut: int) -> None:
    assert list(parse(link() + address()[:-cut])) == list(parse(link()))


@pytest.mark.parametrize("length", [0, 1, 3, 15, 17, 33, 2**31, 2**32 - 1])
def test_lying_lengths_end_the_datagram(length: int) -> None:
    data = struct.pack("=I", length) + link()[4:]
    assert list(parse(data)) == []


@pytest.mark.parametrize("length", [0, 3, 2**16 - 1])
def test_lying_attribute_lengths_are_passed_over(length: int) -> None:
    data = bytearray(address())
    data[24:26] = struct.pack("=H", length)
    assert [notice.what[-1] for notice in parse(bytes(data))] == [None]


parts = st.one_of(
    st.binary(max_size=80),
    st.builds(link, st.integers(-(2**31), 2**31 - 1), st.integers(0, 2**32 - 1)),
    st.builds(address, st.integers(-(2**31), 2**31 - 1), flags=st.integers(0, 255)),
    st.builds(route, st.integers(-(2**31), 2**31 - 1), st.sampled_from([NEW_ROUTE, DEL_ROUTE])),
    st.builds(message, st.sampled_from([NEW_LINK, NEW_ADDRESS, NEW_ROUTE]), st.binary(max_size=99)),
)


@given(st.lists(parts, max_size=8).map(b"".join))
def test_any_bytes_are_taken(data: bytes) -> None:
    notices = list(parse(data))
    assert len(notices) <= len(data) / 16
    for notice in notices:
        assert -(2**31) <= notice.interface < 2**32
        hash(notice.what)


@pytest.mark.skipif(sys.platform != "linux", reason="netlink is Linux's")
@pytest.mark.parametrize("request_kind", [18, 22, 26], ids=["links", "addresses", "routes"])
def test_what_the_kernel_says_is_understood(request_kind: int) -> None:
    """Its answers to RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE look like its notices."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.bind((0, 0))
        sock.send(struct.pack("=IHHIIBxxx", 20, request_kind, 0x301, 1, 0, 0))
        data = b""
        while struct.pack("=H", 3) not in (data[offset : offset + 2] for offset in kinds(data)):
            data += sock.recv(65536)
    names = dict(native.if_nameindex())
    for notice in parse(data):
        assert names.get(notice.interface, "") != "lo"
        if notice.interface:
            assert notice.interface in names


def kinds(data: bytes) -> Iterator[int]:
    """Where the types of the messages in ``data`` are."""
    offset = 0
    while offset < len(data):
        yield offset + 4
        offset += (struct.unpack_from("=I", data, offset)[0] + 3) & ~3


def test_notices_are_plain_data() -> None:
    assert Notice("link", ("link", 7), True).interface == 7
