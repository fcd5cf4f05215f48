"""What WebSocket messages hold: data headers, control objects, challenges (PROTOCOL.md section 4).

Decoding is strict about types and lenient about unknown fields, as the relay is. A message that
cannot be decoded is `Malformed`: to be counted and ignored, never a reason to end a session.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from typing import TYPE_CHECKING, Any, Final, NoReturn


if TYPE_CHECKING:
    from collections.abc import Callable


#: First byte of a binary message.
DATA, CONTROL = 0x01, 0x02
ID_BYTES = 16
DATA_HEADER_BYTES = 1 + ID_BYTES

#: The relay closes the connection for one byte more (PROTOCOL.md section 1.2).
MAX_PAYLOAD_BYTES = 32 * 1024

NIL_ID = bytes(ID_BYTES)
_INT64 = range(-(2**63), 2**63)

HANDSHAKE_CHALLENGE = "handshake_challenge"
REAUTH_CHALLENGE = "reauth_challenge"


class Event(str, enum.Enum):
    """The control events of PROTOCOL.md section 4.3."""

    CONNECT = "connect"
    DISCONNECT = "disconnect"
    PING_CLIENT = "ping_client"
    PONG_CLIENT = "pong_client"
    PAUSE_STREAM = "pause_stream"
    RESUME_STREAM = "resume_stream"
    OUTBOUND_CONNECT = "outbound_connect"
    OUTBOUND_RESULT = "outbound_result"


class Reason(str, enum.Enum):
    """Why a stream ended (PROTOCOL.md section 4.3)."""

    NORMAL = "normal"
    BUFFER_FULL = "buffer_full"
    DIAL_FAILED = "dial_failed"
    TIMEOUT = "timeout"
    LOCAL_ERROR = "local_error"
    SHUTDOWN = "shutdown"
    SESSION_ENDED = "session_ended"
    UNKNOWN = "unknown"


class Malformed(ValueError):
    """A message that is to be counted and ignored. The text never quotes the message."""


@dataclasses.dataclass(frozen=True, slots=True)
class Control:
    """One control object. Empty fields are omitted on the wire (PROTOCOL.md section 4.2)."""

    event: str
    client_id: bytes
    conn_port: int = 0
    client_ip: str = ""
    transport: str = ""
    hostname: str = ""
    is_tls: bool = False
    reason: str = ""
    target_addr: str = ""
    success: bool = False
    credits: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Challenge:
    """A text message that asks for a token; ``kind`` is handshake_challenge or reauth_challenge."""

    kind: str
    nonce: str


def format_id(client_id: bytes) -> str:
    """The canonical text of a stream ID: lower case, with dashes."""
    text = client_id.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def parse_id(text: str) -> bytes:
    """The 16 bytes of a stream ID, with or without dashes, in either case. Raises Malformed."""
    compact = text
    if len(text) == 36 and text[8] == text[13] == text[18] == text[23] == "-":
        compact = text[:8] + text[9:13] + text[14:18] + text[19:23] + text[24:]
    try:
        client_id = bytes.fromhex(compact)
    except ValueError:
        raise Malformed("client_id is not a UUID") from None
    if len(client_id) != ID_BYTES or len(compact) != 2 * ID_BYTES:
        raise Malformed("client_id is not a UUID")
    return client_id


def encode_control(message: Control) -> bytes:
    """The whole binary message, kind byte included."""
    body: dict[str, Any] = {"event": message.event, "client_id": format_id(message.client_id)}
    for name in _OPTIONAL:
        value = getattr(message, name)
        if value:
            body[name] = value
    return b"\x02" + json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()


def encode_grant(client_id: bytes, credits: int) -> bytes:
    """A resume_stream with credits: the one control message of the hot path."""
    text = format_id(client_id)
    return b'\x02{"event":"resume_stream","client_id":"%b","credits":%d}' % (text.encode(), credits)


def decode_control(payload: bytes | memoryview) -> Control:
    """The control object in ``payload``, which is without the kind byte. Raises Malformed."""
    body = _decode_object(payload)
    fields = {name: check(name, body.get(name)) for name, check in _FIELDS.items()}
    return Control(client_id=parse_id(_text("client_id", body.get("client_id"))), **fields)


def encode_challenge(challenge: Challenge) -> str:
    """The text message of a challenge."""
    return json.dumps({"type": challenge.kind, "nonce": challenge.nonce})


def decode_challenge(payload: bytes | memoryview) -> Challenge:
    """The challenge in a text message, its nonce printable. Raises Malformed."""
    body = _decode_object(payload)
    kind, nonce = _text("type", body.get("type")), _text("nonce", body.get("nonce"))
    if kind not in (HANDSHAKE_CHALLENGE, REAUTH_CHALLENGE) or not nonce:
        raise Malformed("text message is not a challenge")
    if not nonce.isprintable():  # it goes into an environment variable
        raise Malformed("nonce is not printable")
    return Challenge(kind, nonce)


def _decode_object(payload: bytes | memoryview) -> dict[str, Any]:
    try:
        body = json.loads(str(payload, "utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        raise Malformed("JSON is nested too deeply") from None
    except ValueError:
        raise Malformed("not JSON in UTF-8") from None
    if not isinstance(body, dict):
        raise Malformed("not a JSON object")
    return body


def _refuse_constant(_: str) -> NoReturn:
    raise ValueError("JSON has no NaN and no Infinity")


# Each check takes a missing member and null alike for the empty value, as the relay does.


def _text(name: str, value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Malformed(f"{name} is not text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # half a surrogate pair, which could not be logged or sent
            raise Malformed(f"{name} is not text") from None
    return value


def _flag(name: str, value: object) -> bool:
    if value is None:
        return False
    if not isinstance(value, bool):
        raise Malformed(f"{name} is not a boolean")
    return value


def _int64(name: str, value: object) -> int:
    if value is None:
        return 0
    if type(value) is not int or value not in _INT64:
        raise Malformed(f"{name} is not an integer of 64 bits")
    return value


_FIELDS: Final[dict[str, Callable[[str, object], Any]]] = {
    "event": _text,
    "conn_port": _int64,
    "client_ip": _text,
    "transport": _text,
    "hostname": _text,
    "is_tls": _flag,
    "reason": _text,
    "target_addr": _text,
    "success": _flag,
    "credits": _int64,
}
_OPTIONAL = tuple(_FIELDS)[1:]
