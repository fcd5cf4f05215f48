"""What can go wrong between a device and its authorizer, one request at a time, for tests."""

from __future__ import annotations

import errno
import json
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event


if TYPE_CHECKING:
    from collections.abc import Mapping

#: A WSGI application. It runs instead of the endpoint, so no nonce is consumed.
Behaviour = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

#: Where the server puts the client's socket, for those who do not want to speak HTTP.
SOCKET = "nexusg.socket"

FLOOD_BYTES, CHUNK_BYTES = 10_000_000, 65536


class Faults:
    """What the next requests get instead of an answer, by path."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Behaviour]] = {}

    def add(self, path: str, behaviour: Behaviour, times: int = 1) -> None:
        """Let the next ``times`` requests for ``path`` meet ``behaviour``, after those before."""
        self._waiting.setdefault(path, deque()).extend([behaviour] * times)

    def take(self, path: str) -> Behaviour | None:
        """What a request for ``path`` meets, if anything."""
        waiting = self._waiting.get(path)
        return waiting.popleft() if waiting else None

    def clear(self) -> None:
        """Everything works again."""
        self._waiting.clear()


def reply(
    status: int, headers: Mapping[str, str] | None = None, body: bytes | None = None
) -> Behaviour:
    """An HTTP reply; without a ``body``, the JSON of an error with the status's own phrase."""
    phrase = HTTPStatus(status).phrase
    content = json.dumps({"error": phrase.lower()}).encode() if body is None else body
    usual = {"Content-Type": "application/json"}

    def behave(_environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        given = {"X-Request-ID": str(uuid.uuid4()), **usual, **(headers or {})}
        start(f"{status} {phrase}", list(given.items()))
        return [content]

    return behave


def silent(_environ: dict[str, Any], _start: Callable[..., Any]) -> Iterator[bytes]:
    """Say nothing, and keep the connection until the authorizer stops. Blocks."""
    yield b"" * Event().wait()


def hang_up(environ: dict[str, Any], _start: Callable[..., Any]) -> Iterable[bytes]:
    """Close the connection without an answer."""
    return _raw(environ, b"")


def garbage(environ: dict[str, Any], _start: Callable[..., Any]) -> Iterable[bytes]:
    """Answer with something that is not HTTP, and close the connection."""
    return _raw(environ, b"\x16\x03\x01 this is not HTTP\xff\r\n\r\n")


def flood(_environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    """A reply of 10 MB."""
    start("200 OK", [("Content-Type", "application/json")])
    return (b" " * CHUNK_BYTES for _ in range(-(-FLOOD_BYTES // CHUNK_BYTES)))


def drip(interval_s: float = 0.05) -> Behaviour:
    """A reply that never ends, one byte every ``interval_s``."""

    def behave(_environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        start("200 OK", [("Content-Type", "application/json")])
        return drops()

    def drops() -> Iterator[bytes]:
        yield b"{"
        while True:
            gevent.sleep(interval_s)
            yield b" "

    return behave


def _raw(environ: dict[str, Any], data: bytes) -> Iterable[bytes]:
    environ[SOCKET].sendall(data)
    raise BrokenPipeError(errno.EPIPE, "the fault of this request")  # ends it without a word
