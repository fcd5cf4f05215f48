"""Finds and reaches the local service of a stream: connect handlers first, then the mappings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gevent

from nexusg.agent.connect import connect_request
from nexusg.config.hostnames import normalize
from nexusg.errors import NexusgError, NoRoute, TargetError
from nexusg.targets.dial import dial
from nexusg.targets.router import Router
from nexusg.targets.wrap import as_target


if TYPE_CHECKING:
    from collections.abc import Sequence

    from nexusg.agent.connect import ConnectHandler, ConnectRequest
    from nexusg.config.model import Backend
    from nexusg.protocol.stream import Stream
    from nexusg.targets.base import Target


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
        late = TargetError(f"not connected within {CONNECT_TIMEOUT_S:g} s", "timeout")
        with gevent.Timeout(CONNECT_TIMEOUT_S, late):
            return self._ask_handlers(stream) or self._dial(stream)

    def _ask_handlers(self, stream: Stream) -> Target | None:
        if not self._handlers:
            return None
        request = connect_request(self._backend.name, stream, normalize)
        for handler in reversed(self._handlers):
            connection = self._ask(handler, request)
            if connection is not None:
                name = f"handler:{getattr(handler, '__name__', type(handler).__name__)}"
                return as_target(connection, name, self._buffer)
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

    def _dial(self, stream: Stream) -> Target:
        if stream.is_udp:
            raise NoRoute("UDP streams are not supported yet")
        route = self._router.resolve(stream.conn_port, stream.hostname)
        if route is None:
            raise NoRoute(f"no mapping for port {stream.conn_port}, host {stream.hostname!r}")
        return dial(route.target, self._buffer, CONNECT_TIMEOUT_S)
