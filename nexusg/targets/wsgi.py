"""A WSGI application of this process as a local service, without a socket or a port.

Each stream is one HTTP connection, served by gevent.pywsgi at the other end of a pair in memory,
WebSockets included. It must not know which streams an application gets, nor who ends their TLS.
"""

from __future__ import annotations

import functools
import logging
from http.client import HTTPException
from typing import TYPE_CHECKING, Any

import gevent
from gevent.pywsgi import WSGIServer
from gevent.socket import SHUT_RD
from geventwebsocket.handler import WebSocketHandler
from geventwebsocket.websocket import MSG_ALREADY_CLOSED, MSG_SOCKET_DEAD

from nexusg.config.hostnames import is_route_key
from nexusg.errors import TargetError
from nexusg.targets.application import load as load
from nexusg.targets.memory import memory_pair
from nexusg.transport.deadline import Deadline, limit


if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    from nexusg.targets.application import Application
    from nexusg.targets.base import Target
    from nexusg.targets.memory import MemorySocket
    from nexusg.targets.request import ConnectRequest

    #: Is told of an error that the application let out, in the midst of which request of a stream.
    OnError = Callable[["ConnectRequest", str, BaseException], object]


#: Until the first line of a request, the next one's too: nginx's keepalive_timeout.
IDLE_TIMEOUT_S = 75.0
#: From there to the end of the head, however slowly it drips: nginx's client_header_timeout.
HEAD_TIMEOUT_S = 60.0

_LOGGER = logging.getLogger("nexusg.wsgi")


class WsgiService:
    """Serves ``app``, which logs call ``name``; one object for all its streams.

    ``on_error(request, line, error)`` is told of what the application raises, with method and path
    of the HTTP request; it must not raise. ``on_output(text)`` gets what it writes to
    ``wsgi.errors``. Without them errors go to the logger ``nexusg.wsgi``, and output to stderr.
    ``at_work`` is kept to be the IDs of the streams with a request in flight, WebSockets excepted.
    """

    def __init__(
        self,
        app: Application,
        name: str,
        *,
        on_error: OnError | None = None,
        on_output: Callable[[str], object] | None = None,
        at_work: set[str] | None = None,
    ) -> None:
        self.name = name
        self.draining = False
        self.on_error = on_error or _log_error
        self.at_work = set() if at_work is None else at_work
        self.idle: set[MemorySocket] = set()  #: between two requests
        self._app = app
        self._on_output = on_output

    def __repr__(self) -> str:
        return f"<WsgiService {self.name}>"

    def connect(self, request: ConnectRequest, spawn: Callable[..., object], tls: bool) -> Target:
        """A target at whose other end the application answers. Never blocks.

        ``spawn(name, function, *arguments)`` makes the greenlet, as `Tasks.spawn` does. ``tls``
        says that somebody ends TLS in front of the target. Raises TargetError with code ``tls``
        when nobody does, and the user speaks it.
        """
        if request.is_tls and not tls:
            text = f"target {self.name}: the user speaks TLS, and there is no certificate to end it"
            raise TargetError(text, "tls")
        ours, theirs = memory_pair()
        ours.name = theirs.name = self.name
        spawn("wsgi", self._serve, theirs, request, "https" if tls else "http")
        return ours

    def drain(self) -> None:
        """Take no more than one request of each connection, and none if it had one. Never blocks.

        The answers say so, with ``Connection: close``.
        """
        self.draining = True
        for sock in self.idle:
            sock.shutdown(SHUT_RD)

    @functools.cached_property
    def server(self) -> _Server:
        """For the handlers. Not made before there is a stream: it gives its process a hub."""
        return _Server(self._app, None if self._on_output is None else _Output(self._on_output))

    def _serve(self, sock: MemorySocket, request: ConnectRequest, scheme: str) -> None:
        try:
            _Handler(sock, self, request, scheme).handle()
        except OSError:  # the user left before a refusal could be written
            pass
        finally:
            sock.close()


class _Server(WSGIServer):
    """What the handler takes for its server: never started, so no socket is ever made.

    A real one, because the handler of the next gevent may ask it for more. Relied upon is that a
    server opens nothing before its start, that the handler reports to its ``loop``, and that
    gevent-websocket looks for ``clients`` and ``logger``.
    """

    def __init__(self, app: Application, output: _Output | None) -> None:
        log: dict[str, Any] = {} if output is None else {"error_log": output}
        super().__init__(("127.0.0.1", 0), app, log=None, **log)
        self.loop: Any = _Reported()
        self.clients: dict[Any, Any] = {}
        # Otherwise gevent-websocket would add a handler to a logger of its own.
        self.logger = _Quiet()


class _Handler(WebSocketHandler):  # type: ignore[misc]  # the package has no types
    """One connection, from its first request to its last."""

    #: Not the application's fault. A WebSocket whose user has left says so in words.
    ignored_socket_errors = (
        *WebSocketHandler.ignored_socket_errors,
        MSG_SOCKET_DEAD,
        MSG_ALREADY_CLOSED,
    )

    def __init__(
        self,
        sock: MemorySocket,
        service: WsgiService,
        request: ConnectRequest,
        scheme: str,
    ) -> None:
        # gevent-websocket knows its connections by their address, so that must be unique, and not
        # every relay tells one.
        address = (request.client_ip, request.client_port, request.client_id)
        super().__init__(sock, address, service.server)
        self._service = service
        self._request = request
        self._answered = False
        self._environ = {
            "SERVER_NAME": _server_name(request),
            "SERVER_PORT": str(request.port),
            "wsgi.url_scheme": scheme,
            "nexusg.request": request,
        }

    def get_environ(self) -> MutableMapping[str, Any]:
        """What the application is told of the connection and the request."""
        environ: MutableMapping[str, Any] = super().get_environ()
        environ.update(self._environ)
        return environ

    # Patience ------------------------------------------------------------------------------------

    def read_requestline(self) -> str:
        """Wait for a request. A TimeoutError ends the connection like any OSError. Blocks."""
        service, sock = self._service, self.socket
        if self._answered:
            if service.draining:
                return ""
            service.idle.add(sock)
        try:
            with limit(Deadline(IDLE_TIMEOUT_S), TimeoutError("no request")):
                return super().read_requestline()  # type: ignore[no-any-return]
        finally:
            service.idle.discard(sock)

    def read_request(self, raw_requestline: str) -> bool:
        """Read the head. Raises ValueError, which is answered with 400. Blocks."""
        try:
            with limit(Deadline(HEAD_TIMEOUT_S), TimeoutError("the head takes too long")):
                return super().read_request(raw_requestline)  # type: ignore[no-any-return]
        except (HTTPException, OSError) as error:  # of these pywsgi would print a traceback
            raise ValueError(str(error)) from error

    # Answers -------------------------------------------------------------------------------------

    def handle_one_response(self) -> None:
        """Let the application answer. Blocks."""
        self._answered = True
        self._service.at_work.add(self._request.client_id)
        try:
            super().handle_one_response()
        finally:
            self._service.at_work.discard(self._request.client_id)

    def finalize_headers(self) -> None:
        """Tell the user if this was the last request."""
        super().finalize_headers()
        if self._service.draining and not self.connection_upgraded:
            self.close_connection = True
            others = [pair for pair in self.response_headers if pair[0].lower() != b"connection"]
            self.response_headers[:] = [*others, (b"Connection", b"close")]

    def upgrade_websocket(self) -> list[bytes] | None:
        """Accept a WebSocket if the request asks for one; the text of a refusal, if it may not."""
        try:
            refusal = super().upgrade_websocket()
        except ValueError:  # a key that is no base64
            self.start_response("400 Bad Request", [])
            refusal = ["Invalid key"]
        if self.environ.get("wsgi.websocket"):
            self._service.at_work.discard(self._request.client_id)
        return refusal and [text.encode() for text in refusal]  # gevent-websocket forgets that

    # What goes wrong -----------------------------------------------------------------------------

    def handle_error(self, kind: Any, error: Any, trace: Any) -> None:
        """Tell of what the application raised, and answer with 500 if there is no answer yet."""
        if self._user_left(error):
            self.close_connection = True
            return
        if isinstance(error, KeyboardInterrupt):
            gevent.get_hub().handle_system_error(kind, error)  # it is meant for the program
        elif not isinstance(error, gevent.GreenletExit):
            path, _, _ = self.path.partition("?")
            self._service.on_error(self._request, f"{self.command} {path}", error)
        super().handle_error(kind, error, trace)

    def _user_left(self, error: BaseException) -> bool:
        """Whether this is how pywsgi says that a body has ended early: without an errno."""
        return type(error) is OSError and error.errno is None and self.socket.ended

    def log_error(self, msg: str, *args: object) -> None:
        """Mention a request that is none; the user has seen 400."""
        self.server.logger.debug(msg, *args)

    def log_request(self) -> None:
        """Do not: the end of the stream is logged, and an application may log its requests."""


class _Reported:
    """The loop that is told of errors which have been reported."""

    def handle_error(self, *_: object) -> None:
        pass


class _Output:
    """The file ``wsgi.errors``."""

    def __init__(self, on_output: Callable[[str], object]) -> None:
        self._on_output = on_output

    def write(self, text: str) -> int:
        if text.strip():
            self._on_output(text.rstrip())
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        pass


class _Quiet:
    """What users do wrong is worth a line at the level of debug, whatever others think."""

    def debug(self, message: str, *args: object) -> None:
        _LOGGER.debug(message, *args)

    info = warning = error = debug


def _server_name(request: ConnectRequest) -> str:
    """PEP 3333 wants one in any case, and a whole port has none."""
    name = request.hostname
    return "localhost" if not name or is_route_key(name) else name


def _log_error(_request: ConnectRequest, line: str, error: BaseException) -> None:
    _LOGGER.error("%s failed", line, exc_info=error)
