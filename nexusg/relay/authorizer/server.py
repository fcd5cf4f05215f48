"""The development authorizer as a whole. It is for development and tests, and says so.

    with Authorizer(secret, "devices.example.com", nexus_endpoints=[relay.url]) as authorizer:
        ...  # attestation: {tpm: {authorizerUrl: <authorizer.url>}}

Devices enroll and get tokens as from namek, and a relay that shares ``secret`` takes the tokens.
It verifies all that namek does. It lacks accounts, vouchers, certificates, and authorities for EKs.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from gevent import GreenletExit, socket
from gevent.pywsgi import WSGIHandler, WSGIServer

from nexusg.errors import ConfigError
from nexusg.relay.authorizer import faults
from nexusg.relay.authorizer.limits import Limiter, Limits
from nexusg.relay.authorizer.nonces import Nonces
from nexusg.relay.authorizer.tokens import Policy
from nexusg.relay.sockets import BACKLOG
from nexusg.transport.connect import join_host_port
from nexusg.transport.failure import words


if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType

    from nexusg.relay.authorizer.faults import Behaviour

NOTICE = "for development and tests only: it trusts every TPM, and forgets them all at its end"

#: A guard against runaway tests; also what makes gevent keep account of the connections.
CONNECTIONS_MAX = 1000
REQUESTS_KEPT = 10_000

_LOG = logging.getLogger("nexusg.authorizer")


class Authorizer:
    """One authorizer, to be started once. It belongs to the process's main hub.

    Args:
        secret: what tokens are signed with, and the relay verifies them with.
        base_domain: host names of devices are labels below it.
        listen: host and port; port 0 is any free one.
        nexus_endpoints: where devices are told to connect.
        hostnames: of every device, beside its own.
        reauth_interval_s: whole seconds; so often a relay is to ask for another token.
        reauth_grace_s: whole seconds; so long it then waits.
        clock: unix seconds. Nonces expire and buckets fill by it.
        tls: a server's context; without it the authorizer speaks plain HTTP.
        limits: rates as namek has them; None is none, as suits a clock that stands still.
        on_log: told each event and its fields, instead of the logger ``nexusg.authorizer``.
    """

    def __init__(
        self,
        secret: str,
        base_domain: str,
        *,
        listen: tuple[str, int] = ("127.0.0.1", 0),
        nexus_endpoints: Sequence[str] = (),
        hostnames: Sequence[str] = (),
        reauth_interval_s: int = 300,
        reauth_grace_s: int = 30,
        clock: Callable[[], float] = time.time,
        tls: ssl.SSLContext | None = None,
        limits: Limits | None = Limits(),  # noqa: B008 - it is frozen
        on_log: Callable[[str, Mapping[str, object]], None] | None = None,
    ) -> None:
        #: What it decides; may be changed while it runs.
        self.policy = Policy(
            secret,
            tuple(hostnames),
            tuple(nexus_endpoints),
            reauth_interval_s,
            reauth_grace_s,
        )
        self._base_domain = base_domain
        self._listen = listen
        self._clock = clock
        self._tls = tls
        self._limits = limits
        self._on_log = on_log
        self._faults = faults.Faults()
        self._nonces = Nonces(clock)
        self._server: WSGIServer | None = None
        self._requests: deque[tuple[str, str]] = deque(maxlen=REQUESTS_KEPT)

    def start(self) -> None:
        """Serve in the background. Raises ConfigError when the port or the extra is missing."""
        try:
            from nexusg.relay.authorizer.api import Api
            from nexusg.relay.authorizer.devices import Registry
        except ImportError as error:
            raise ConfigError(
                ["the development authorizer needs an extra: pip install 'nexusg[relay]'"]
            ) from error
        self._registry = Registry(self._base_domain, self._clock)
        limiter = Limiter(self._limits, self._clock)
        self._api = Api(self.policy, self._registry, self._nonces, limiter, self._clock, self._log)
        tls: dict[str, Any] = {"ssl_context": self._tls} if self._tls else {}
        self._server = _Server(
            _listening(self._listen),
            self._answer,
            log=None,
            handler_class=_Handler,
            spawn=CONNECTIONS_MAX,
            **tls,
        )
        self._server.start()
        self.policy.status_uri = f"https://{self._where()}/health"
        self._log("authorizer.started", logging.WARNING, url=self.url, notice=NOTICE)

    def stop(self) -> None:
        """Accept nothing more, and end what goes on. Blocks."""
        if self._server is not None:
            self._server.stop(timeout=0)

    def __enter__(self) -> Authorizer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where devices find it."""
        return f"{'https' if self._tls else 'http'}://{self._where()}"

    @property
    def device_ids(self) -> tuple[str, ...]:
        """The devices that have enrolled, in their order."""
        return tuple(self._registry.devices)

    @property
    def requests(self) -> tuple[tuple[str, str], ...]:
        """Method and path of the requests so far, the newest last."""
        return tuple(self._requests)

    # What tests do to it --------------------------------------------------------------------

    def fail_next(
        self,
        path: str,
        status: int,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        times: int = 1,
    ) -> None:
        """Answer the next ``times`` requests for ``path`` with ``status``, and do nothing else."""
        self.behave_next(path, faults.reply(status, headers, body), times=times)

    def behave_next(self, path: str, behaviour: Behaviour, *, times: int = 1) -> None:
        """Let the next requests for ``path`` meet a behaviour, such as those of `faults`."""
        self._faults.add(path, behaviour, times)

    def work_again(self) -> None:
        """Forget the faults that nobody has met yet."""
        self._faults.clear()

    def suspend(self, device_id: str) -> None:
        """From now on it gets 403, and 409 when it enrolls."""
        self._registry.devices[device_id].status = "suspended"

    def revoke(self, device_id: str) -> None:
        """The same, for good."""
        self._registry.devices[device_id].status = "revoked"

    def forget_devices(self) -> None:
        """Lose the database: every device gets 401 until it has enrolled again."""
        self._registry.forget()

    def rotate_secret(self) -> str:
        """Behave as if restarted: a new secret, which is returned, and no nonce counts any more."""
        self.policy.secret = secrets.token_urlsafe(32)
        self._nonces.forget()
        self._registry.forget_pending()
        return self.policy.secret

    # ----------------------------------------------------------------------------------------

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        self._requests.append((environ["REQUEST_METHOD"], path))
        return (self._faults.take(path) or self._api)(environ, start)

    def _where(self) -> str:
        assert self._server is not None, "not started"
        return join_host_port(self._listen[0], self._server.server_port or 0)

    def _log(self, event: str, level: int = logging.INFO, **fields: object) -> None:
        if self._on_log is not None:
            self._on_log(event, fields)
        elif _LOG.isEnabledFor(level):
            text = "".join(f" {name}={value}" for name, value in fields.items())
            _LOG.log(level, "%s%s", event, text)


def _listening(address: tuple[str, int]) -> socket.socket:
    """A listening socket. Raises ConfigError."""
    host, port = address
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setblocking(False)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        where = join_host_port(host, port)
        raise ConfigError([f"cannot listen on {where}: {words(error)}"]) from error
    return sock


class _Handler(WSGIHandler):
    """Lets a fault have the connection as it is, and ends without a word when the server stops."""

    def get_environ(self) -> dict[str, Any]:
        environ: dict[str, Any] = super().get_environ()
        environ[faults.SOCKET] = self.socket
        return environ

    def handle_error(self, kind: Any, value: Any, trace: Any) -> None:
        if isinstance(value, GreenletExit):
            raise value
        super().handle_error(kind, value, trace)


class _Server(WSGIServer):
    """Quick, and without a traceback for every client that does not trust the certificate."""

    def handle(self, sock: Any, address: Any) -> None:
        # Or each reply waits 40 ms until the client has acknowledged the one before.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().handle(sock, address)

    def wrap_socket_and_handle(self, client_socket: Any, address: Any) -> None:
        try:
            super().wrap_socket_and_handle(client_socket, address)
        except OSError:
            client_socket.close()
