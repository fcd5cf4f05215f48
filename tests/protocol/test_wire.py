"""One end of a WebSocket: output in order, masking keys, pings, the closing handshake."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusg.errors import LocalProtocolError, RemoteProtocolError
from nexusg.protocol import wire as module
from nexusg.protocol.wire import ANSWER_LIMIT_BYTES, WRITE_BYTES, Wire
from nexusg.protocol.wsframes import (
    BINARY,
    CLOSE,
    NO_STATUS,
    NORMAL,
    PING,
    PONG,
    TEXT,
    FrameParser,
    encode_close,
    encode_frame,
)


if TYPE_CHECKING:
    from collections.abc import Iterator

ID = bytes(range(16))
ROLES = pytest.mark.parametrize("is_client", [True, False], ids=["client", "server"])


def make(is_client: bool = True) -> Wire:
    """A wire whose masking keys count up."""
    numbers = itertools.count(1)

    def entropy(size: int) -> bytes:
        return b"".join(next(numbers).to_bytes(4, "big") for _ in range(size // 4))

    return Wire(is_client=is_client, entropy=entropy)


def pieces(wire: Wire, limit: int = WRITE_BYTES) -> Iterator[bytes]:
    """What is taken until there is nothing more."""
    while data := wire.take_output(limit):
        yield data
    assert wire.pending_bytes == 0


def heard(wire: Wire, limit: int = WRITE_BYTES) -> list[tuple[int, bytes]]:
    """What the other end makes of the output."""
    parser = FrameParser(masked=wire.is_client)
    return [
        (opcode, bytes(payload))
        for piece in pieces(wire, limit)
        for opcode, payload in parser.feed(piece)
    ]


# Sending -----------------------------------------------------------------------------------------


@ROLES
def test_messages_go_out_in_order(is_client: bool) -> None:
    wire = make(is_client)
    wire.send_text("né")
    wire.send_data(ID, b"payload")
    wire.send_binary(b"\x02{}")
    wire.send_ping(b"?")
    assert wire.messages_out == 3
    wire.send_close(1001, "bye")
    assert heard(wire) == [
        (TEXT, "né".encode()),
        (BINARY, b"\x01" + ID + b"payload"),
        (BINARY, b"\x02{}"),
        (PING, b"?"),
        (CLOSE, encode_close(1001, "bye")),
    ]


@ROLES
@pytest.mark.parametrize("size", [0, 1, 108, 109, 32_768, 65_518, 65_519, 65_536])
def test_data_is_the_same_as_a_binary_message(is_client: bool, size: int) -> None:
    """Up to the largest prelude of a relay (section 1.2), with the same bytes and the same key."""
    payload = (bytes(range(251)) * (size // 251 + 1))[:size]
    split, whole = make(is_client), make(is_client)
    split.send_data(ID, memoryview(payload))
    whole.send_binary(b"\x01" + ID + payload)
    assert split.pending_bytes == whole.pending_bytes
    assert b"".join(pieces(split)) == b"".join(pieces(whole))


@given(payload=st.binary(max_size=300), key=st.binary(min_size=4, max_size=4))
def test_masking_in_two_parts(payload: bytes, key: bytes) -> None:
    """The 17 bytes of prefix turn the key by one."""
    wire = Wire(is_client=True, entropy=lambda size: key * (size // 4))
    wire.send_data(ID, payload)
    assert wire.take_output() == encode_frame(BINARY, b"\x01" + ID + payload, key)


def test_every_frame_has_a_key_of_its_own() -> None:
    wire = make()
    draws = []
    wire._entropy, entropy = (lambda size: draws.append(size) or entropy(size)), wire._entropy
    for _ in range(2000):
        wire.send_ping()
    output = b"".join(pieces(wire))
    keys = [output[at + 2 : at + 6] for at in range(0, len(output), 6)]
    assert len(set(keys)) == 2000
    assert draws == [4096, 4096], "one draw for a thousand frames"


def test_a_server_draws_nothing() -> None:
    wire = Wire(is_client=False, entropy=lambda _: pytest.fail("a server masks nothing"))
    wire.send_text("x")
    wire.send_data(ID, b"x")
    assert len(heard(wire)) == 2


def test_data_is_copied_when_it_is_committed() -> None:
    """The caller's buffer is free again at once, in both roles."""
    for is_client in (True, False):
        wire, buffer = make(is_client), bytearray(b"before")
        wire.send_data(ID, memoryview(buffer))
        buffer[:] = b"after!"
        assert heard(wire) == [(BINARY, b"\x01" + ID + b"before")]


# Output ------------------------------------------------------------------------------------------


def test_no_output() -> None:
    wire = make()
    assert (wire.take_output(), wire.pending_bytes) == (b"", 0)


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=20),
    limit=st.integers(1, 120),
)
def test_the_output_is_taken_in_pieces_of_any_size(sizes: list[int], limit: int) -> None:
    """Every piece but the last is as large as it may be: TLS makes full records of it."""
    wire = make(False)
    for size in sizes:
        wire.send_data(ID, bytes(size))
    expected = [(BINARY, b"\x01" + ID + bytes(size)) for size in sizes]
    total = wire.pending_bytes
    taken = list(pieces(wire, limit))
    assert sum(map(len, taken)) == total
    assert all(len(piece) == limit for piece in taken[:-1])
    assert not taken or 0 < len(taken[-1]) <= limit
    parser = FrameParser(masked=False)
    assert [(o, bytes(p)) for piece in taken for o, p in parser.feed(piece)] == expected


def test_one_write_takes_what_fits() -> None:
    wire = make()
    for _ in range(5):
        wire.send_data(ID, bytes(32_768))
    first, *rest = pieces(wire)
    assert len(first) <= WRITE_BYTES < len(first) + 32_768 + 25
    assert rest


# Answers -----------------------------------------------------------------------------------------


@ROLES
def test_pings_are_answered(is_client: bool) -> None:
    wire = make(is_client)
    assert wire.receive_control(PING, memoryview(b"payload")) is None
    assert wire.receive_control(PING, b"") is None
    assert wire.receive_control(PONG, b"unsolicited") is None
    assert heard(wire) == [(PONG, b"payload"), (PONG, b"")]


def test_pongs_are_bounded() -> None:
    """A peer that pings and never reads does not fill the memory."""
    wire = make()
    for _ in range(10 * ANSWER_LIMIT_BYTES // 125):
        wire.receive_control(PING, bytes(125))
    assert wire.pending_bytes < ANSWER_LIMIT_BYTES + 200
    assert not wire.may_answer
    list(pieces(wire))
    wire.receive_control(PING, b"")
    assert heard(wire) == [(PONG, b"")]


# Closing -----------------------------------------------------------------------------------------


@ROLES
def test_a_close_frame_is_echoed(is_client: bool) -> None:
    """With the code, without the reason, once."""
    wire = make(is_client)
    assert wire.receive_control(CLOSE, encode_close(1008, "no")) == (1008, "no")
    assert (wire.close_sent, wire.close_received) == (True, True)
    assert heard(wire) == [(CLOSE, encode_close(1008))]


def test_an_empty_close_frame_is_answered_with_normal() -> None:
    wire = make()
    assert wire.receive_control(CLOSE, b"") == (NO_STATUS, "")
    assert heard(wire) == [(CLOSE, encode_close(NORMAL))]


def test_the_answer_to_our_close_frame_is_not_answered() -> None:
    wire = make()
    wire.send_close(1000)
    assert wire.receive_control(CLOSE, encode_close(1000)) == (1000, "")
    assert heard(wire) == [(CLOSE, encode_close(1000))]


def test_a_close_frame_without_a_code() -> None:
    wire = make()
    wire.send_close(NO_STATUS)
    assert heard(wire) == [(CLOSE, b"")]


def test_a_bad_close_frame_is_not_echoed() -> None:
    wire = make()
    with pytest.raises(RemoteProtocolError):
        wire.receive_control(CLOSE, b"\x00")
    assert not wire.close_sent


def test_nothing_follows_the_close_frame() -> None:
    wire = make()
    wire.send_close(1000)
    wire.send_close(1001)
    wire.receive_control(PING, b"")
    for send in (
        lambda: wire.send_text(""),
        lambda: wire.send_binary(b""),
        lambda: wire.send_data(ID, b""),
        lambda: wire.send_ping(),
    ):
        with pytest.raises(LocalProtocolError, match="close frame"):
            send()
    assert heard(wire) == [(CLOSE, encode_close(1000))]


def test_the_limits_fit_each_other() -> None:
    assert module.WRITE_BYTES < module.ANSWER_LIMIT_BYTES
