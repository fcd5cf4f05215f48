"""Finds and reaches the local service of a stream: connect handlers first, then the mappings."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeVar

from nexusg.agent.connect import connect_request
from nexusg.agent.pools import Pools
from nexusg.config.hostnames import normalize
from nexusg.errors import NexusgError, NoRoute, TargetError
from nexusg.protocol.states import StreamState
from nexusg.targets.dial import dial
from nexusg.targets.proxy_protocol import OFF
from nexusg.targets.router import Router
from nexusg.targets.terminate import terminate
from nexusg.targets.udp import dial_udp
from nexusg.targets.wrap import as_target, as_udp_target
from nexusg.transport.deadline import Deadline, limit


if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nexusg.agent.connect import ConnectHandler, ConnectRequest
    from nexusg.agent.context import Context
    from nexusg.config.model import Backend, Destination
    from nexusg.protocol.stream import Stream
    from nexusg.targets.base import Target
    from nexusg.targets.certificates import Certificates
    from nexusg.targets.pool import Member, Pool
    from nexusg.targets.udp import UdpTarget
    from nexusg.targets.wsgi import WsgiService

    _Wrap = Callable[[Any, str, bytearray], "T"]

T = TypeVar("T")


#: For handlers, name look-up and connection together (PROTOCOL.md section 6.2), and for several
#: targets together, unless one alone may take longer.
CONNECT_TIMEOUT_S = 10.0


class Connector:
    """Connects the streams of one backend. ``handlers`` are asked from the last to the first."""

    def __init__(
        self,
        context: Context,
        backend: Backend,
        handlers: Sequence[ConnectHandler],
        certificates: Certificates,
        services: Mapping[str, WsgiService],
    ) -> None:
        """``services`` are the applications of this process, by the target that names them."""
        self.pools = Pools(context, backend, certificates)
        self._context = context
        self._backend = backend
        self._handlers = handlers
        self._certificates = certificates
        self._services = services
        self._router = Router(backend.port_mappings)
        self._members: dict[Stream, Member] = {}  # of the streams whose connection is counted

    def connect(self, stream: Stream) -> Target:
        """A connected target. Blocks. Raises TargetError or NoRoute.

        `release` has to be called when the stream has ended.
        """
        started = self._context.clock()
        request, answer = self._ask_handlers(stream, as_target)
        if answer is not None:
            return answer
        destination = self._destination(stream)
        total_s = self._left_s(destination, started)
        reach = functools.partial(self._reach, stream, request, destination)
        pool = self.pools.of(destination)
        if pool is None:
            timeout_s = min(destination.connect_timeout_s, total_s)
            target = reach(destination.targets[0], timeout_s)
        else:
            target = self._balance(stream, pool, reach, destination.connect_timeout_s, total_s)
        if destination.tls_terminate:
            return terminate(target, destination.tls_terminate, self._certificates)
        return target

    def connect_flow(self, stream: Stream) -> UdpTarget:
        """The same for a UDP stream, which has one target. Blocks. Raises TargetError or NoRoute.

        Of several the first one it is: nothing tells which of them work.
        """
        started = self._context.clock()
        _, answer = self._ask_handlers(stream, as_udp_target)
        if answer is not None:
            return answer
        destination = self._destination(stream)
        timeout_s = min(destination.connect_timeout_s, self._left_s(destination, started))
        return dial_udp(destination.targets[0], self._context.buffer, timeout_s)

    def release(self, stream: Stream) -> None:
        """``stream`` has ended, connected or not. Never blocks."""
        member = self._members.pop(stream, None)
        if member is not None:
            member.release()

    # Handlers --------------------------------------------------------------------------------

    def _ask_handlers(
        self, stream: Stream, wrap: _Wrap[T]
    ) -> tuple[ConnectRequest | None, T | None]:
        """The request, if there was somebody to ask, and the answer, if there was one."""
        if not self._handlers:
            return None, None
        request = self._request(stream)
        late = TargetError(f"not connected within {CONNECT_TIMEOUT_S:g} s", "timeout")
        with limit(Deadline(CONNECT_TIMEOUT_S), late):
            for handler in reversed(self._handlers):
                connection = self._ask(handler, request)
                if connection is not None:
                    name = f"handler:{getattr(handler, '__name__', type(handler).__name__)}"
                    return request, wrap(connection, name, self._context.buffer)
        return request, None

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

    def _request(self, stream: Stream) -> ConnectRequest:
        return connect_request(self._backend.name, stream, normalize)

    # Mappings --------------------------------------------------------------------------------

    def _destination(self, stream: Stream) -> Destination:
        route = self._router.resolve(stream.conn_port, stream.hostname)
        if route is None:
            raise NoRoute(f"no mapping for port {stream.conn_port}, host {stream.hostname!r}")
        return route.destination

    def _left_s(self, destination: Destination, started: float) -> float:
        """What the handlers have left of the time for everything."""
        total_s = max(destination.connect_timeout_s, CONNECT_TIMEOUT_S)
        return max(total_s - (self._context.clock() - started), 0.0)

    def _balance(
        self,
        stream: Stream,
        pool: Pool,
        reach: Callable[[str, float], Target],
        timeout_s: float,
        total_s: float,
    ) -> Target:
        target, member = pool.connect(reach, timeout_s, total_s)
        if stream.state is StreamState.CLOSED:  # meanwhile, so that `release` has gone by
            member.release()
        else:
            self._members[stream] = member
        return target

    def _reach(
        self,
        stream: Stream,
        request: ConnectRequest | None,
        destination: Destination,
        target: str,
        timeout_s: float,
    ) -> Target:
        """Connect to one target. Blocks. Raises TargetError."""
        service = self._services.get(target)
        if request is None and (service is not None or destination.proxy_protocol != OFF):
            request = self._request(stream)
        if service is not None:
            assert request is not None
            tls = bool(destination.tls_terminate)
            return service.connect(request, self._context.tasks.spawn, tls)
        buffer = self._context.buffer
        return dial(target, destination, request, buffer, timeout_s, self._certificates)
