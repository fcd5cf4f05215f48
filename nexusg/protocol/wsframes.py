"""RFC 6455 frames: an incremental parser and an encoder, for both roles.

The parser owns its receive buffer, so that bytes are copied from the kernel once and then handed
on as views. It must not know what the messages mean.

Limits hold before anything is buffered: a frame's length is checked as soon as its header is
there, and a fragmented message is counted over all its fragments.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

# The C function where the wheel has one, else the same in Python: the import there decides.
from websockets.frames import apply_mask  # type: ignore[attr-defined]

from nexusg.errors import RemoteProtocolError


if TYPE_CHECKING:
    from collections.abc import Iterator


CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

FIN = 0x80
MASKED = 0x80

#: Close codes of RFC 6455 section 7.4.1 that this project sends or names.
NORMAL, GOING_AWAY, PROTOCOL_ERROR, UNSUPPORTED, NO_STATUS = 1000, 1001, 1002, 1003, 1005
INVALID_DATA, POLICY_VIOLATION, TOO_BIG, INTERNAL_ERROR = 1007, 1008, 1009, 1011

#: A control frame carries at most this (RFC 6455 section 5.5); a close reason two bytes less.
MAX_CONTROL_BYTES = 125
MAX_REASON_BYTES = MAX_CONTROL_BYTES - 2

#: Four of the largest ordinary messages: SSL_read gives at most 16 KiB, more room buys nothing.
BUFFER_BYTES = 128 * 1024
#: Below this much free space the unread rest moves to the front: one message must always fit.
MIN_FREE_BYTES = 40 * 1024
#: What a relay may legally send is 65,553 bytes (PROTOCOL.md section 1.2); this leaves room.
MAX_MESSAGE_BYTES = 1024 * 1024

_LENGTH_16 = struct.Struct(">H")
_LENGTH_64 = struct.Struct(">Q")
_HEADER_SHORT = struct.Struct(">BB")
_HEADER_16 = struct.Struct(">BBH")
_HEADER_64 = struct.Struct(">BBQ")

#: A complete message or control frame: its opcode, and a view that is valid until ``buffer()``.
Message = tuple[int, "memoryview | bytes"]


class FrameParser:
    """Bytes in, whole messages out.

    Call ``buffer()`` and fill it, then iterate over ``receive(count)`` to the end. A payload that
    is a view must be used or copied before the next ``buffer()``.
    """

    __slots__ = (
        "_buffer",
        "_end",
        "_failed",
        "_fragments",
        "_masked",
        "_max",
        "_need",
        "_opcode",
        "_start",
        "_view",
    )

    def __init__(self, *, masked: bool, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        """``masked``: whether the peer must mask its frames, as clients must (section 5.1)."""
        self._masked = masked
        self._max = max_message_bytes
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._need = 0  # bytes of the frame at _start once its header is known, else 0
        self._opcode = 0  # of the fragmented message under way, else 0
        self._fragments = bytearray()
        self._failed = False

    def buffer(self) -> memoryview:
        """Writable space for the next bytes; never empty."""
        start, end = self._start, self._end
        if start == end:
            self._start = self._end = end = 0
            if len(self._buffer) > BUFFER_BYTES:
                self._replace(BUFFER_BYTES)
        elif self._need > len(self._buffer):
            self._replace(self._need)
            end = self._end
        elif len(self._buffer) - end < MIN_FREE_BYTES and start:
            size = end - start
            self._buffer[:size] = self._buffer[start:end]  # a slice copy: the two may overlap
            self._start, self._end = 0, size
            end = size
        return self._view[end:]

    def receive(self, count: int) -> Iterator[Message]:
        """Parse ``count`` bytes written to ``buffer()``; yield what they complete.

        Raises RemoteProtocolError with the close code to answer with; whatever comes after that
        is dropped, as it must be (section 7.1.7).
        """
        if self._failed:
            return
        self._end += count
        while True:
            if not (self._masked or self._opcode):
                yield from self._usual_frames()
            try:
                frame = self._next_frame()
            except RemoteProtocolError:
                self._failed = True
                self._start = self._end = self._need = 0
                raise
            if frame is None:
                return
            first, payload = frame
            if first & 0x08:
                yield first & 0x0F, payload
            else:
                message = self._data_frame(first, payload)
                if message is not None:
                    yield message

    def feed(self, data: bytes | memoryview) -> Iterator[Message]:
        """Copy ``data`` in and parse it, for bytes that arrived some other way."""
        view = memoryview(data)
        while len(view):
            room = self.buffer()
            count = min(len(room), len(view))
            room[:count] = view[:count]
            view = view[count:]
            yield from self.receive(count)

    @property
    def in_message(self) -> bool:
        """True in the middle of a frame or of a fragmented message."""
        return self._start != self._end or bool(self._opcode)

    def _replace(self, size: int) -> None:
        # A new object, since views of the old one may still be alive.
        rest = self._view[self._start : self._end]
        buffer = bytearray(size)
        buffer[: len(rest)] = rest
        self._buffer, self._view = buffer, memoryview(buffer)
        self._start, self._end = 0, len(rest)

    def _usual_frames(self) -> Iterator[Message]:
        """Take the frames off the buffer that a relay sends nearly always, in a loop of their own.

        That is whole, unmasked binary messages of less than 64 KiB; it stops at anything else.
        """
        buffer, view, end, most = self._buffer, self._view, self._end, self._max
        start = self._start
        while end - start >= 4 and buffer[start] == FIN | BINARY:
            body, length = start + 2, buffer[start + 1]
            if length == 126:
                body, length = start + 4, buffer[start + 2] << 8 | buffer[start + 3]
                if length < 126:
                    return
            elif length > 126:
                return
            stop = body + length
            if stop > end or length > most:
                return
            self._start, self._need = stop, 0
            yield BINARY, view[body:stop]
            start = stop

    def _next_frame(self) -> tuple[int, memoryview | bytes] | None:
        """Take one frame off the buffer: its first byte and its unmasked payload."""
        start = self._start
        available = self._end - start
        if available < self._need or available < 2:
            return None
        buffer = self._buffer
        first, second = buffer[start], buffer[start + 1]
        length = second & 0x7F
        header = 2
        if length >= 126:
            header = 4 if length == 126 else 10
            if available < header:
                return None
            length = self._extended_length(start + 2, length)
        if not self._need:
            self._check_header(first, second, length)
        body = start + header + (4 if self._masked else 0)
        self._need = body - start + length
        if available < self._need:
            return None
        end = body + length
        self._start, self._need = end, 0
        payload = self._view[body:end]
        if self._masked:
            return first, apply_mask(payload, buffer[body - 4 : body])
        return first, payload

    def _extended_length(self, at: int, marker: int) -> int:
        length: int
        if marker == 126:
            (length,) = _LENGTH_16.unpack_from(self._buffer, at)
            minimum = 126
        else:
            (length,) = _LENGTH_64.unpack_from(self._buffer, at)
            minimum = 0x10000
        if length < minimum:
            raise RemoteProtocolError("frame length is not in its shortest form (RFC 6455 5.2)")
        return length

    def _check_header(self, first: int, second: int, length: int) -> None:
        opcode = first & 0x0F
        if first & 0x70:
            raise RemoteProtocolError("reserved bits are set without an extension (RFC 6455 5.2)")
        if bool(second & MASKED) != self._masked:
            wanted = "unmasked" if self._masked else "masked"
            raise RemoteProtocolError(f"the peer sent a frame {wanted} (RFC 6455 5.1)")
        if opcode >= CLOSE:
            if opcode > PONG:
                raise RemoteProtocolError(f"unknown opcode {opcode:#x} (RFC 6455 5.2)")
            if length > MAX_CONTROL_BYTES or not first & FIN:
                raise RemoteProtocolError("control frame is fragmented or too long (RFC 6455 5.5)")
        elif opcode > BINARY:
            raise RemoteProtocolError(f"unknown opcode {opcode:#x} (RFC 6455 5.2)")
        elif bool(opcode) == bool(self._opcode):
            fault = "new message inside a fragmented one" if opcode else "continuation of nothing"
            raise RemoteProtocolError(f"{fault} (RFC 6455 5.4)")
        elif length + len(self._fragments) > self._max:
            raise RemoteProtocolError(f"message larger than {self._max} bytes", TOO_BIG)

    def _data_frame(self, first: int, payload: memoryview | bytes) -> Message | None:
        opcode = first & 0x0F
        if first & FIN and not self._opcode:
            return opcode, payload
        self._opcode = opcode or self._opcode
        self._fragments += payload
        if not first & FIN:
            return None
        message = self._opcode, bytes(self._fragments)
        self._opcode = 0
        self._fragments = bytearray()
        return message


def encode_header(opcode: int, length: int, *, masked: bool, fin: bool = True) -> bytes:
    """The header of a frame up to, but without, the masking key (RFC 6455 section 5.2)."""
    first = (FIN if fin else 0) | opcode
    mask_bit = MASKED if masked else 0
    if length < 126:
        return _HEADER_SHORT.pack(first, mask_bit | length)
    if length < 0x10000:
        return _HEADER_16.pack(first, mask_bit | 126, length)
    return _HEADER_64.pack(first, mask_bit | 127, length)


def encode_frame(
    opcode: int, payload: bytes | memoryview, key: bytes | None = None, *, fin: bool = True
) -> bytes:
    """One frame; with a four-byte ``key`` it is masked."""
    header = encode_header(opcode, len(payload), masked=key is not None, fin=fin)
    if key is None:
        return header + payload
    return header + key + apply_mask(payload, key)


def encode_close(code: int, reason: str = "") -> bytes:
    """The payload of a close frame; a long reason is cut at a character (RFC 6455 5.5.1)."""
    text = reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore").encode()
    return _LENGTH_16.pack(code) + text


def decode_close(payload: bytes | memoryview) -> tuple[int, str]:
    """Code and reason of a close frame; 1005 without one. Raises RemoteProtocolError.

    A reason that is not UTF-8 is shown as far as it can be: the connection ends anyway, and the
    text helps whoever reads the log.
    """
    if len(payload) == 0:
        return NO_STATUS, ""
    if len(payload) == 1:
        raise RemoteProtocolError("close frame with one byte (RFC 6455 5.5.1)")
    (code,) = _LENGTH_16.unpack_from(payload)
    if not (1000 <= code <= 1014 and code not in (1004, 1005, 1006)) and not 3000 <= code <= 4999:
        raise RemoteProtocolError(f"close code {code} must not be sent (RFC 6455 7.4)")
    return code, bytes(payload[2:]).decode(errors="replace")
