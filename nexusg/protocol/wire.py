"""One end of a WebSocket: the parser, the output, pings and the closing handshake.

Bytes to send pile up in order until the shell takes them with `take_output`. Nothing is ever put
ahead of what is there: the shell keeps the pile small, which bounds how long a control message
waits.
"""

from __future__ import annotations

import collections
import struct
from typing import TYPE_CHECKING

from websockets.frames import apply_mask  # type: ignore[attr-defined]

from nexusg.errors import LocalProtocolError
from nexusg.protocol.wsframes import (
    BINARY,
    CLOSE,
    FIN,
    MASKED,
    MAX_MESSAGE_BYTES,
    NO_STATUS,
    NORMAL,
    PING,
    PONG,
    TEXT,
    FrameParser,
    decode_close,
    encode_close,
    encode_frame,
    encode_header,
)


if TYPE_CHECKING:
    from collections.abc import Callable


#: Six full records of TLS. Larger batches are somewhat cheaper, but a control message waits behind
#: the one under way.
WRITE_BYTES = 96 * 1024
#: A peer that talks without reading gets no more answers beyond this much unsent output.
ANSWER_LIMIT_BYTES = 1024 * 1024
#: Up to here it is cheaper to copy a payload behind its header than to mask and queue it apart.
_JOINED_BYTES = 2048
#: Masking keys are cut from a pool: one draw for a thousand frames.
_POOL_BYTES = 4096

_SHORT = struct.Struct(">BB")
_LONG = struct.Struct(">BBH")
_DATA_PREFIX = b"\x01"


class Wire:
    """Frames in and out for one role. ``entropy(n)`` gives n random bytes for masking keys."""

    __slots__ = (
        "_entropy",
        "_output",
        "_pool",
        "_pool_at",
        "close_received",
        "close_sent",
        "is_client",
        "messages_out",
        "parser",
        "pending_bytes",
    )

    def __init__(
        self,
        *,
        is_client: bool,
        entropy: Callable[[int], bytes],
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self.is_client = is_client
        self.parser = FrameParser(masked=not is_client, max_message_bytes=max_message_bytes)
        self.pending_bytes = 0  #: output not yet taken
        self.messages_out = 0  #: text and binary messages committed so far
        self.close_sent = False
        self.close_received = False
        self._entropy = entropy
        self._pool = b""
        self._pool_at = 0
        self._output: collections.deque[bytes | memoryview] = collections.deque()

    @property
    def may_answer(self) -> bool:
        """Whether to answer what the peer can send without end, or to be silent."""
        return self.pending_bytes < ANSWER_LIMIT_BYTES and not self.close_sent

    def send_text(self, text: str) -> None:
        """Commit one text message."""
        self.messages_out += 1
        self._frame(TEXT, text.encode())

    def send_binary(self, message: bytes) -> None:
        """Commit one binary message."""
        self.messages_out += 1
        self._frame(BINARY, message)

    def send_data(self, client_id: bytes, payload: bytes | memoryview) -> None:
        """Commit one data message (PROTOCOL.md 4.1); a large payload is copied only once."""
        if self.close_sent:
            raise LocalProtocolError("nothing may follow the close frame")
        self.messages_out += 1
        length = 17 + len(payload)
        bit = MASKED if self.is_client else 0
        if length < 126:
            header = _SHORT.pack(FIN | BINARY, bit | length)
        elif length < 0x10000:
            header = _LONG.pack(FIN | BINARY, bit | 126, length)
        else:  # the relay's largest prelude (PROTOCOL.md section 1.2)
            header = encode_header(BINARY, length, masked=self.is_client)
        prefix = _DATA_PREFIX + client_id
        if bit:
            key = self._key()
            header += key
        self.pending_bytes += len(header) + length
        if length <= _JOINED_BYTES:
            message = prefix + payload
            self._output.append(header + (apply_mask(message, key) if bit else message))
        elif bit:
            self._output.append(header + apply_mask(prefix, key))
            # 17 bytes of prefix turn the key by one.
            self._output.append(apply_mask(payload, key[1:] + key[:1]))
        else:
            self._output.append(header + prefix)
            self._output.append(bytes(payload))

    def send_ping(self, payload: bytes = b"") -> None:
        """Commit a ping."""
        self._frame(PING, payload)

    def send_close(self, code: int, reason: str = "") -> None:
        """Commit the close frame, once; nothing can be sent after it."""
        if not self.close_sent:
            self._frame(CLOSE, encode_close(code, reason) if code != NO_STATUS else b"")
            self.close_sent = True

    def take_output(self, limit: int = WRITE_BYTES) -> bytes:
        """The next bytes to write, ``limit`` at most and empty when there are none.

        Every byte taken must be written, in this order, before the next call.
        """
        output = self._output
        if self.pending_bytes <= limit:
            data = b"".join(output)
            output.clear()
        else:
            left, parts = limit, []
            while left:
                part = output.popleft()
                if len(part) > left:  # cut, so that TLS makes full records of what is written
                    view = memoryview(part)
                    output.appendleft(view[left:])
                    part = view[:left]
                left -= len(part)
                parts.append(part)
            data = b"".join(parts)
        self.pending_bytes -= len(data)
        return data

    def receive_control(self, opcode: int, payload: bytes | memoryview) -> tuple[int, str] | None:
        """Answer a control frame; code and reason if it is a close. Raises RemoteProtocolError."""
        if opcode == PING:
            if self.may_answer:
                self._frame(PONG, bytes(payload))
            return None
        if opcode != CLOSE:
            return None
        code, reason = decode_close(payload)
        self.close_received = True
        self.send_close(NORMAL if code == NO_STATUS else code)
        return code, reason

    def _frame(self, opcode: int, payload: bytes) -> None:
        if self.close_sent:
            raise LocalProtocolError("nothing may follow the close frame")
        frame = encode_frame(opcode, payload, self._key() if self.is_client else None)
        self._output.append(frame)
        self.pending_bytes += len(frame)

    def _key(self) -> bytes:
        at = self._pool_at
        if at == len(self._pool):
            self._pool = self._entropy(_POOL_BYTES)
            at = 0
        self._pool_at = at + 4
        return self._pool[at : at + 4]
