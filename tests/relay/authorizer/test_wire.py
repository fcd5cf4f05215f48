from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusg.relay.authorizer.wire import Malformed, Reader, from_base64, sized


def test_fields_come_one_after_the_other() -> None:
    reader = Reader(b"\x01\x02\x03\x00\x02abcd", "it")
    assert (reader.number(1), reader.number(2)) == (1, 0x0203)
    assert (reader.sized(), reader.take(1), reader.rest()) == (b"ab", b"c", b"d")
    reader.end()


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x00\x03ab"])
def test_what_ends_early(data: bytes) -> None:
    with pytest.raises(Malformed, match=f"^it ends after {len(data)} bytes$"):
        Reader(data, "it").sized()


def test_what_follows() -> None:
    with pytest.raises(Malformed, match=r"^3 bytes follow it$"):
        Reader(b"abc", "it").end()


@given(st.binary())
def test_sized_is_read_back(data: bytes) -> None:
    reader = Reader(sized(data), "it")
    assert reader.sized() == data
    reader.end()


@given(st.binary())
def test_base64_is_read_back(data: bytes) -> None:
    assert from_base64(base64.b64encode(data).decode()) == data


@pytest.mark.parametrize("text", ["YQ", "Y Q=", "YQ==x", "Y-_=", "é===", "=", "A==="])
def test_base64_is_strict(text: str) -> None:
    with pytest.raises(Malformed):
        from_base64(text)


@given(st.text())
def test_base64_of_anything(text: str) -> None:
    try:
        from_base64(text)
    except Malformed:
        pass
