"""RFC 6455 frames, against the RFC's own examples and against wsproto in both roles."""

from __future__ import annotations

import itertools
import struct
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import events as theirs
from wsproto.connection import Connection, ConnectionType

from nexusg.errors import RemoteProtocolError
from nexusg.protocol import wsframes
from nexusg.protocol.wsframes import (
    BINARY,
    BUFFER_BYTES,
    CLOSE,
    CONTINUATION,
    MAX_MESSAGE_BYTES,
    PING,
    PONG,
    TEXT,
    FrameParser,
    decode_close,
    encode_close,
    encode_frame,
    encode_header,
)
from tests.support.vectors import INVALID, VALID, Vector


if TYPE_CHECKING:
    from collections.abc import Iterable

KEY = b"\x37\xfa\x21\x3d"  # of the RFC's examples
Frames = list[tuple[int, bytes]]


def parse(pieces: Iterable[bytes], parser: FrameParser | None = None) -> Frames:
    """All messages that come out of ``pieces``, each fed alone."""
    parser = parser or FrameParser(masked=False)
    return [(opcode, bytes(payload)) for piece in pieces for opcode, payload in parser.feed(piece)]


def refused(data: bytes, **settings: int) -> RemoteProtocolError:
    """The error that ``data`` ends in."""
    with pytest.raises(RemoteProtocolError) as caught:
        parse([data], FrameParser(masked=False, max_message_bytes=settings.get("limit", 1 << 20)))
    return caught.value


def cut(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """``data`` in pieces."""
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


# Golden vectors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VALID, ids=str)
def test_valid_vectors(vector: Vector) -> None:
    parser = FrameParser(masked=vector.masked)
    assert parse([vector.data], parser) == vector.messages
    assert parser.in_message is False


@pytest.mark.parametrize("vector", VALID, ids=str)
def test_valid_vectors_byte_by_byte(vector: Vector) -> None:
    pieces = cut(vector.data, range(len(vector.data)))
    assert parse(pieces, FrameParser(masked=vector.masked)) == vector.messages


@pytest.mark.parametrize("vector", VALID, ids=str)
def test_valid_vectors_split_once_at_every_byte(vector: Vector) -> None:
    for at in range(len(vector.data)):
        parser = FrameParser(masked=vector.masked)
        assert parse([vector.data[:at], vector.data[at:]], parser) == vector.messages


@pytest.mark.parametrize("vector", INVALID, ids=str)
def test_invalid_vectors(vector: Vector) -> None:
    for pieces in ([vector.data], cut(vector.data, range(len(vector.data)))):
        with pytest.raises(RemoteProtocolError) as caught:
            parse(pieces, FrameParser(masked=vector.masked))
        assert caught.value.close_code == vector.close_code
        assert vector.error in str(caught.value)


# Parsing -----------------------------------------------------------------------------------------


def test_two_frames_in_one_read() -> None:
    data = encode_frame(BINARY, b"one") + encode_frame(BINARY, b"two") + encode_frame(PING, b"!")
    assert parse([data]) == [(BINARY, b"one"), (BINARY, b"two"), (PING, b"!")]


def test_a_frame_and_a_half() -> None:
    parser = FrameParser(masked=False)
    data = encode_frame(TEXT, b"one") + encode_frame(TEXT, b"two")
    assert parse([data[:-1]], parser) == [(TEXT, b"one")]
    assert parser.in_message
    assert parse([data[-1:]], parser) == [(TEXT, b"two")]


def test_payloads_are_views_of_the_buffer() -> None:
    """Without masking and fragments nothing is copied."""
    parser = FrameParser(masked=False)
    frame = encode_frame(BINARY, b"payload")
    parser.buffer()[: len(frame)] = frame
    [(_, payload)] = parser.receive(len(frame))
    assert isinstance(payload, memoryview)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 65_553, MAX_MESSAGE_BYTES])
@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "masked"])
def test_sizes(size: int, key: bytes | None) -> None:
    payload = bytes(size)
    parser = FrameParser(masked=key is not None)
    frame = encode_frame(BINARY, payload, key)
    assert parse([frame, frame], parser) == [(BINARY, payload)] * 2


@pytest.mark.parametrize("size", [65_553, MAX_MESSAGE_BYTES])
def test_the_buffer_shrinks_again(size: int) -> None:
    parser = FrameParser(masked=False)
    assert parse([encode_frame(BINARY, bytes(size))], parser) == [(BINARY, bytes(size))]
    assert len(parser.buffer()) == BUFFER_BYTES


def test_a_view_survives_the_growth_of_the_buffer() -> None:
    """The growth makes a new buffer; what was yielded before is not moved."""
    parser = FrameParser(masked=False)
    start = encode_frame(BINARY, b"kept") + encode_frame(BINARY, bytes(BUFFER_BYTES * 2))[:50]
    parser.buffer()[: len(start)] = start
    [(_, payload)] = parser.receive(len(start))
    assert len(parser.buffer()) > BUFFER_BYTES
    assert payload == b"kept"


@pytest.mark.parametrize("length", [MAX_MESSAGE_BYTES + 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1])
def test_too_long_is_refused_before_it_is_buffered(length: int) -> None:
    tracemalloc.start()
    try:
        error = refused(struct.pack(">BBQ", 0x82, 127, length))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert error.close_code == wsframes.TOO_BIG
    assert peak < 2 * BUFFER_BYTES, "memory for a message that will be refused"


def test_the_limit_is_exact() -> None:
    parser = FrameParser(masked=False, max_message_bytes=10)
    assert parse([encode_frame(TEXT, bytes(10))], parser) == [(TEXT, bytes(10))]
    assert refused(encode_frame(TEXT, bytes(11)), limit=10).close_code == wsframes.TOO_BIG


def test_fragments_are_counted_together() -> None:
    data = encode_frame(BINARY, bytes(6), fin=False) + encode_frame(CONTINUATION, bytes(4))
    parser = FrameParser(masked=False, max_message_bytes=10)
    assert parse([data, data], parser) == [(BINARY, bytes(10))] * 2
    assert refused(data, limit=9).close_code == wsframes.TOO_BIG


def test_fragments_with_pings_between() -> None:
    parser = FrameParser(masked=False)
    data = [
        encode_frame(TEXT, b"", fin=False),
        encode_frame(PING, b"1"),
        encode_frame(CONTINUATION, b"one ", fin=False),
        encode_frame(PONG, b"2"),
    ]
    assert parse(data, parser) == [(PING, b"1"), (PONG, b"2")]
    assert parser.in_message, "within a fragmented message"
    assert parse([encode_frame(CONTINUATION, b"two")], parser) == [(TEXT, b"one two")]
    assert not parser.in_message


def test_what_follows_an_error_is_dropped() -> None:
    """Section 7.1.7; and the buffer never runs full of it."""
    parser = FrameParser(masked=False)
    bad = b"\xf2\x00" + bytes(BUFFER_BYTES - 2)
    parser.buffer()[:] = bad
    with pytest.raises(RemoteProtocolError):
        list(parser.receive(len(bad)))
    for _ in range(3):
        assert parse([encode_frame(BINARY, bytes(BUFFER_BYTES))], parser) == []
    assert len(parser.buffer()) == BUFFER_BYTES
    assert not parser.in_message


def test_the_buffer_is_never_empty() -> None:
    """Whatever is read at once, a full buffer would look like the end of the connection."""
    parser = FrameParser(masked=False)
    data = encode_frame(BINARY, bytes(100_000)) * 7
    taken, count = 0, 0
    while taken < len(data):
        room = parser.buffer()
        assert room
        piece = data[taken : taken + len(room)]
        room[: len(piece)] = piece
        taken += len(piece)
        count += len(list(parser.receive(len(piece))))
    assert count == 7


@given(
    messages=st.lists(
        st.tuples(st.sampled_from([TEXT, BINARY, PING, PONG]), st.binary(max_size=125)), max_size=8
    ),
    key=st.none() | st.binary(min_size=4, max_size=4),
    cuts=st.lists(st.integers(0, 2000)),
)
def test_any_split(messages: Frames, key: bytes | None, cuts: list[int]) -> None:
    data = b"".join(encode_frame(opcode, payload, key) for opcode, payload in messages)
    assert parse(cut(data, cuts), FrameParser(masked=key is not None)) == messages


@given(
    sizes=st.lists(st.integers(0, 70_000), min_size=1, max_size=5),
    reads=st.lists(st.integers(900, 50_000), min_size=1),
)
def test_any_sizes_of_messages_and_reads(sizes: list[int], reads: list[int]) -> None:
    """The buffer is compacted, replaced and shrunk in every order."""
    messages = [(BINARY, bytes([n]) * size) for n, size in enumerate(sizes)]
    data = b"".join(encode_frame(*message) for message in messages)
    pieces, at = [], 0
    for size in itertools.cycle(reads):
        if at >= len(data):
            break
        pieces.append(data[at : at + size])
        at += size
    assert parse(pieces) == messages


@given(data=st.binary(max_size=400), masked=st.booleans(), cuts=st.lists(st.integers(0, 400)))
def test_garbage_is_a_message_or_an_error(data: bytes, masked: bool, cuts: list[int]) -> None:
    """The same one however it is cut."""
    outcomes = []
    for pieces in ([data], cut(data, cuts)):
        parser = FrameParser(masked=masked, max_message_bytes=1000)
        found: list[object] = []
        try:
            for piece in pieces:
                found += [(opcode, bytes(payload)) for opcode, payload in parser.feed(piece)]
        except RemoteProtocolError as error:
            found.append(str(error))
        outcomes.append(found)
    assert outcomes[0] == outcomes[1]


# Against wsproto ---------------------------------------------------------------------------------


def hear(peer: Connection) -> Frames:
    """What wsproto makes of the bytes it was given, fragments joined."""
    heard: Frames = []
    parts: list[bytes] = []
    for event in peer.events():
        if isinstance(event, theirs.Message):
            data = event.data.encode() if isinstance(event.data, str) else bytes(event.data)
            parts.append(data)
            if event.message_finished:
                opcode = TEXT if isinstance(event, theirs.TextMessage) else BINARY
                heard.append((opcode, b"".join(parts)))
                parts.clear()
        elif isinstance(event, theirs.Ping):
            heard.append((PING, bytes(event.payload)))
        elif isinstance(event, theirs.Pong):
            heard.append((PONG, bytes(event.payload)))
        else:
            assert isinstance(event, theirs.CloseConnection)
            heard.append((CLOSE, encode_close(int(event.code), event.reason or "")))
    return heard


CONVERSATION = st.lists(
    st.one_of(
        st.tuples(st.just(TEXT), st.text(max_size=300).map(str.encode)),
        st.tuples(st.just(BINARY), st.binary(max_size=300)),
        st.tuples(st.sampled_from([PING, PONG]), st.binary(max_size=125)),
    ),
    max_size=10,
)
ENDING = st.tuples(st.sampled_from([1000, 1001, 1008, 1009, 3000, 4999]), st.text(max_size=20))


@pytest.mark.parametrize("masked", [False, True], ids=["from a server", "from a client"])
@given(messages=CONVERSATION, ending=ENDING, pieces=st.integers(1, 4))
def test_wsproto_understands_our_frames(
    masked: bool, messages: Frames, ending: tuple[int, str], pieces: int
) -> None:
    peer = Connection(ConnectionType.SERVER if masked else ConnectionType.CLIENT)
    keys = itertools.cycle([b"\x00\x00\x00\x00", KEY, b"\xff\x80\x01\x00"])
    expected = [*messages, (CLOSE, encode_close(*ending))]
    for opcode, payload in expected:
        parts = [payload] if opcode >= CLOSE else cut(payload, range(pieces))
        for number, part in enumerate(parts):
            frame = encode_frame(
                CONTINUATION if number else opcode,
                part,
                next(keys) if masked else None,
                fin=number == len(parts) - 1,
            )
            peer.receive_data(frame)
    assert hear(peer) == expected


@pytest.mark.parametrize("masked", [False, True], ids=["as a client", "as a server"])
@given(messages=CONVERSATION, ending=ENDING, cuts=st.lists(st.integers(0, 4000), max_size=9))
def test_we_understand_wsprotos_frames(
    masked: bool, messages: Frames, ending: tuple[int, str], cuts: list[int]
) -> None:
    peer = Connection(ConnectionType.CLIENT if masked else ConnectionType.SERVER)
    data = b""
    for opcode, payload in messages:
        if opcode == TEXT:
            half, rest = payload.decode()[:5], payload.decode()[5:]
            data += peer.send(theirs.TextMessage(half, message_finished=False))
            data += peer.send(theirs.TextMessage(rest))
        elif opcode == BINARY:
            data += peer.send(theirs.BytesMessage(payload))
        else:
            data += peer.send({PING: theirs.Ping, PONG: theirs.Pong}[opcode](payload))
    data += peer.send(theirs.CloseConnection(*ending))
    expected = [*messages, (CLOSE, encode_close(*ending))]
    assert parse(cut(data, cuts), FrameParser(masked=masked)) == expected


# Encoding ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "header"),
    [
        (0, "8200"),
        (125, "827d"),
        (126, "827e007e"),
        (65_535, "827effff"),
        (65_536, "827f0000000000010000"),
    ],
)
def test_headers_are_the_shortest(length: int, header: str) -> None:
    assert encode_header(BINARY, length, masked=False).hex() == header
    masked = bytearray.fromhex(header)
    masked[1] |= 0x80
    assert encode_header(BINARY, length, masked=True) == masked


def test_a_frame_of_a_view() -> None:
    assert encode_frame(TEXT, memoryview(b"Hello")) == encode_frame(TEXT, b"Hello")
    assert encode_frame(TEXT, memoryview(b"Hello"), KEY) == encode_frame(TEXT, b"Hello", KEY)


# Close frames ------------------------------------------------------------------------------------


def test_close_without_a_code() -> None:
    assert decode_close(b"") == (wsframes.NO_STATUS, "")


@pytest.mark.parametrize("payload", [b"x", struct.pack(">H", 1005), struct.pack(">H", 0)])
def test_bad_close_payloads(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_close(payload)
    assert caught.value.close_code == wsframes.PROTOCOL_ERROR


def test_close_codes() -> None:
    """RFC 6455 section 7.4, with what was registered later."""
    allowed = [code for code in range(0x10000) if decodes(code)]
    registered = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014]
    assert allowed == [*registered, *range(3000, 5000)]


def decodes(code: int) -> bool:
    try:
        return decode_close(struct.pack(">H", code)) == (code, "")
    except RemoteProtocolError:
        return False


def test_close_reasons() -> None:
    assert decode_close(encode_close(1008, "token is expired")) == (1008, "token is expired")
    assert decode_close(memoryview(encode_close(1008, "née"))) == (1008, "née")
    assert decode_close(b"\x03\xe8caf\xc3") == (1000, "caf\ufffd")


@given(st.text())
def test_long_reasons_are_cut_at_a_character(reason: str) -> None:
    payload = encode_close(1000, reason)
    assert len(payload) <= wsframes.MAX_CONTROL_BYTES
    found = decode_close(payload)[1]
    assert reason.startswith(found)
    assert found == reason or len(payload) > wsframes.MAX_CONTROL_BYTES - 4
