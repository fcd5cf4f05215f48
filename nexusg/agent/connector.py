"""Finds and reaches the local service of a stream: connect handlers first, then the mappings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from nexusg.agent.connect import connect_request
from nexusg.config.hostnames import normalize
from nexusg.errors import NexusgError, NoRoute, TargetError
from nexusg.targets.dial import dial
from nexusg.targets.router import Router
from nexusg.targets.udp import dial_udp
from nexusg.targets.wrap import as_target, as_udp_target
from nexusg.transport.deadline import Deadline, limit


if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nexusg.agent.connect import ConnectHandler, ConnectRequest
    from nexusg.config.model import Backend
    from nexusg.protocol.stream import Stream
    from nexusg.targets.base import Target
    from nexusg.targets.udp import UdpTarget

    _Wrap = Callable[[Any, str, bytearray], "T"]
    _Dial = Callable[[str, bytearray, float], "T"]

T = TypeVar("T")


#: For handlers, name look-up and connection together (PROTOCOL.md section 6.2).
CONNECT_TIMEOUT_S = 10.0


class Connector:
    """Connects the streams of one backend. ``handlers`` are asked from the last to the first."""

    def __init__(
        self, backend: Backend, handlers: Sequence[ConnectHandler], buffer: bytearray
    ) -> None:
        self._backend = backend
        self._handlers = handlers
        self._buffer = buffer
        self._router = Router(backend.port_mappings)

    def connect(self, stream: Stream) -> Target:
        """A connected target. Blocks. Raises TargetError or NoRoute."""
        return self._connect(stream, as_target, dial)

    def connect_flow(self, stream: Stream) -> UdpTarget:
        """The same for a UDP stream. Blocks. Raises TargetError or NoRoute."""
        return self._connect(stream, as_udp_target, dial_udp)

    def _connect(self, stream: Stream, wrap: _Wrap[T], dial: _Dial[T]) -> T:
        late = TargetError(f"not connected within {CONNECT_TIMEOUT_S:g} s", "timeout")
        with limit(Deadline(CONNECT_TIMEOUT_S), late):
            target = self._ask_handlers(stream, wrap)
            return self._dial(stream, dial) if target is None else target

    def _ask_handlers(self, stream: Stream, wrap: _Wrap[T]) -> T | None:
        if not self._handlers:
            return None
        request = connect_request(self._backend.name, stream, normalize)
        for handler in reversed(self._handlers):
            connection = self._ask(handler, request)
            if connection is not None:
                name = f"handler:{getattr(handler, '__name__', type(handler).__name__)}"
                return wrap(connection, name, self._buffer)
        return None

    def _ask(self, handler: ConnectHandler, request: ConnectRequest) -> object | None:
        try:
            connection: object | None = handler(request)
        except NoRoute:
            return None
        except NexusgError:
            raise
        except Exception as error:  # the handler is the user's code: any failure is the target's
            text = f"the connect handler failed: {type(error).__name__}: {error}"
            raise TargetError(text, "handler") from error
        return connection

    def _dial(self, stream: Stream, dial: _Dial[T]) -> T:
        route = self._router.resolve(stream.conn_port, stream.hostname)
        if route is None:
            raise NoRoute(f"no mapping for port {stream.conn_port}, host {stream.hostname!r}")
        return dial(route.target, self._buffer, CONNECT_TIMEOUT_S)
