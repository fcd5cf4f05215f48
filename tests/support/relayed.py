"""An agent session on a real socket, and users, for tests of the development relay.

`RawAgent` is an `AgentSession` and nothing else: what it says beyond that, a test makes it say.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import jwt
from gevent import Greenlet, Timeout, joinall, killall, socket, ssl
from gevent.event import Event

from nexusg.protocol.events import ChallengeReceived, Closed, ReauthRequested
from nexusg.protocol.session import AgentSession
from tests.support.pair import Local


if TYPE_CHECKING:
    from collections.abc import Callable

    from nexusg.protocol import events
    from nexusg.protocol.stream import Stream
    from nexusg.relay.server import DevRelay

SECRET = "not a secret, but long enough for nobody to complain"
HOST = "app.example.com"

#: Long enough never to be reached by a passing test.
AMPLE_S = 5.0

UPGRADE = (
    b"GET /connect HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def make_token(secret: str = SECRET, **claims: Any) -> str:
    """A token that a relay accepts at stage 0; ``claims`` override, None removes one."""
    usual = {
        "iss": "authorizer",
        "aud": ["nexus"],
        "exp": int(time.time()) + 30,
        "hostnames": [HOST],
    }
    body = {name: value for name, value in {**usual, **claims}.items() if value is not None}
    return jwt.encode(body, secret, "HS256")


def dial(relay: DevRelay) -> Any:
    """A TCP or TLS connection to the relay's hub."""
    sock = socket.create_connection((relay.config.hub[0], relay.hub_port), AMPLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if relay.config.tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(relay.ca_file)
        context.set_alpn_protocols(["http/1.1"])
        sock = context.wrap_socket(sock, server_hostname="localhost")
    return sock


def upgraded(relay: DevRelay) -> Any:
    """A connection to the hub, after the HTTP upgrade."""
    sock = dial(relay)
    sock.sendall(UPGRADE)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    assert head.startswith(b"HTTP/1.1 101 "), head
    return sock


class RawAgent:
    """Connects, proves itself with ``claims``, and keeps what it is told. Use as a context."""

    def __init__(
        self,
        relay: DevRelay,
        *,
        make_local: Callable[[Stream], Local] = Local,
        forward_window: int = 64,
        **claims: Any,
    ) -> None:
        self.claims = claims
        self.reauth_claims = dict(claims)  #: for the tokens after the first two
        self.events: list[events.Event] = []
        self.locals: list[Local] = []
        self.sock = upgraded(relay)
        self.sock.settimeout(None)
        self.changed = Event()
        self.eof = False
        self.error: OSError | None = None
        self._make_local = make_local
        self.session = AgentSession(
            now=time.monotonic(),
            entropy=os.urandom,
            open_stream=self._open,
            forward_window=forward_window,
        )
        self.session.send_handshake_token(make_token(**claims), time.monotonic())
        self._wake = Event()
        self._wake.set()
        self._greenlets = [Greenlet.spawn(self._read), Greenlet.spawn(self._write)]

    def __enter__(self) -> RawAgent:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Vanish without a word."""
        killall(self._greenlets)
        self.sock.close()

    def wait(self, condition: Callable[[], object]) -> None:
        """Wait until ``condition()`` holds; it is asked after everything received."""
        with Timeout(AMPLE_S, AssertionError(f"never came true; events: {self.events}")):
            while not condition():
                self.changed.clear()
                self.changed.wait()

    def quiet(self, seconds: float) -> bool:
        """Whether nothing at all arrives for so long."""
        self.changed.clear()
        return not self.changed.wait(seconds)

    def wait_accepted(self) -> RawAgent:
        """Wait for the acceptance."""
        self.wait(lambda: self.session.accepted)
        return self

    def wait_local(self, number: int = 0) -> Local:
        """The listener of stream ``number``, once there is one."""
        self.wait(lambda: len(self.locals) > number)
        return self.locals[number]

    def wait_end(self) -> Closed | None:
        """Wait until the relay has ended the connection; its close frame, if there was one."""
        self.wait(lambda: self.eof)
        return next((event for event in self.events if isinstance(event, Closed)), None)

    def flush(self) -> None:
        """There is something to write."""
        self._wake.set()

    def join(self) -> None:
        """Wait until both directions have ended."""
        joinall(self._greenlets, timeout=AMPLE_S)

    def _open(self, stream: Stream) -> Local:
        local = self._make_local(stream)
        self.locals.append(local)
        return local

    def _read(self) -> None:
        session = self.session
        try:
            while count := self.sock.recv_into(session.buffer()):
                for event in session.receive(count, time.monotonic()):
                    self.events.append(event)
                    self._react(event)
                self._wake.set()
                self.changed.set()
        except OSError as error:
            self.error = error
        self.eof = True
        self.changed.set()

    def _react(self, event: events.Event) -> None:
        if isinstance(event, ChallengeReceived):
            token = make_token(**{"session_nonce": event.nonce, **self.claims})
            self.session.send_attest_token(token, time.monotonic())
        elif isinstance(event, ReauthRequested):
            token = make_token(**{"session_nonce": event.nonce, **self.reauth_claims})
            self.session.send_reauth_token(event.nonce, token)

    def _write(self) -> None:
        while not self.eof:
            while output := self.session.take_output():
                try:
                    self.sock.sendall(output)
                except OSError:
                    return
            self._wake.wait(max(self.session.next_deadline() - time.monotonic(), 0))
            self._wake.clear()
            self.events += self.session.tick(time.monotonic())


def http_get(host: str = HOST) -> bytes:
    """A request that is routed to ``host``."""
    return f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


def user(relay: DevRelay, first: bytes = b"") -> Any:
    """A user's connection to the relay's first public port, ``first`` already sent."""
    sock = socket.create_connection(("127.0.0.1", relay.public_ports[0]), AMPLE_S)
    sock.sendall(first)
    return sock


def slow_user(relay: DevRelay, first: bytes) -> Any:
    """A user whose kernel keeps little; give the relay few ``user_buffer_bytes`` as well."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", relay.public_ports[0]))
    sock.sendall(first)
    return sock


def read_to_end(sock: Any) -> bytes:
    """Everything until end of file or a reset."""
    data = b""
    try:
        while piece := sock.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    return data
