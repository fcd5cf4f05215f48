"""The server's half of the HTTP upgrade (RFC 6455 section 4.2): a request head in, an answer out.

It knows no sockets.
"""

from __future__ import annotations

import base64
import binascii
import hashlib


#: Far more than any agent sends, and little enough to keep for a stranger.
MAX_HEAD_BYTES = 16 * 1024
END_OF_HEAD = b"\r\n\r\n"

PATH = "/connect"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_PHRASES = {
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    426: "Upgrade Required",
    431: "Request Header Fields Too Large",
}


def answer(head: bytes) -> tuple[bool, bytes]:
    """Whether the request with this ``head`` is upgraded, and the whole response."""
    lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    request = lines[0].split(" ")
    if len(request) != 3 or not request[2].startswith("HTTP/1."):
        return False, refusal(400)
    method, target, _ = request
    if target.partition("?")[0] != PATH:
        return False, refusal(404)
    if method != "GET":
        return False, refusal(405, "Allow: GET\r\n")
    headers = _headers(lines[1:])
    if "websocket" not in _tokens(headers, "upgrade"):
        return False, refusal(426, "Upgrade: websocket\r\n")
    if headers.get("sec-websocket-version") != "13":
        return False, refusal(426, "Sec-WebSocket-Version: 13\r\n")
    key = headers.get("sec-websocket-key", "")
    if "upgrade" not in _tokens(headers, "connection") or not _is_key(key):
        return False, refusal(400)
    accept = base64.b64encode(hashlib.sha1(key.encode() + _GUID).digest())
    return True, (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + END_OF_HEAD
    )


def refusal(status: int, headers: str = "") -> bytes:
    """A whole response of ``status`` that ends the connection."""
    phrase = _PHRASES[status]
    return (
        f"HTTP/1.1 {status} {phrase}\r\n{headers}Content-Type: text/plain\r\n"
        f"Content-Length: {len(phrase) + 1}\r\nConnection: close\r\n\r\n{phrase}\n"
    ).encode()


def _headers(lines: list[str]) -> dict[str, str]:
    pairs = (line.partition(":") for line in lines)
    return {name.lower(): value.strip() for name, _, value in pairs}


def _tokens(headers: dict[str, str], name: str) -> set[str]:
    return {token.strip().lower() for token in headers.get(name, "").split(",")}


def _is_key(key: str) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        return False
