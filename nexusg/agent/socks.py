"""The SOCKS5 listener of one backend, and its choice of a session for each request.

Any session with any of the backend's relays will do, so that one relay may be down (PROTOCOL.md
section 11.4).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import gevent

from nexusg.agent.lifecycle import OutboundRefused, SocksFailed, SocksListening
from nexusg.agent.outbound import OutboundPump
from nexusg.config.checks import UNIX
from nexusg.outbound.listener import ListenError, parse_listen_address
from nexusg.outbound.server import Socks5Server
from nexusg.outbound.socks5 import Credentials, Reply


if TYPE_CHECKING:
    from collections.abc import Sequence

    from nexusg.agent.context import Context
    from nexusg.agent.session import Session
    from nexusg.agent.supervisor import Supervisor
    from nexusg.agent.tasks import Task, Tasks
    from nexusg.config.model import Backend
    from nexusg.outbound.server import Client


#: Until the next attempt to listen, from the first to the longest: a port in use may come free.
RETRY_S, MAX_RETRY_S = 1.0, 30.0

EXPOSED = (
    "it would be open to other hosts without a password: set socks5Auth, or socks5AllowOpen: true"
)


class SocksService:
    """Keeps a backend's listener open, from `start` to `stop`."""

    def __init__(
        self, context: Context, backend: Backend, slots: Sequence[Supervisor], tasks: Tasks
    ) -> None:
        """``slots`` are those of the backend; ``tasks`` holds the greenlet that opens."""
        self._context = context
        self._backend = backend
        self._slots = slots
        self._tasks = tasks
        self._server: Socks5Server | None = None
        self._opening: Task | None = None

    def start(self) -> None:
        """Begin to listen, and try again for as long as that is not possible. Never blocks.

        Several workers share a port; of a unix socket the first one is the owner.
        """
        address = self._backend.socks5_listen_addr or ""
        if self._context.worker and address.strip().startswith(UNIX):
            return
        self._opening = self._tasks.spawn("socks", self._open)

    def stop(self) -> None:
        """Listen no more; connections are not touched. Never blocks."""
        if self._opening is not None:
            self._opening.kill(block=False)
        if self._server is not None:
            self._server.stop()

    def disown(self) -> None:
        """In a child of fork: leave the listener to the parent."""
        if self._server is not None:
            self._server.disown()

    def _open(self) -> None:
        if self._backend.socks5_exposed:
            self._failed(EXPOSED, None)
            return
        delay_s, reported = RETRY_S, ""
        while True:
            try:
                place = self._listen()
            except ListenError as error:
                if error.final:
                    self._failed(str(error), None)
                    return
                if str(error) != reported:
                    reported = str(error)
                    self._failed(reported, delay_s)
                gevent.sleep(delay_s)
                delay_s = min(2 * delay_s, MAX_RETRY_S)
            else:
                self._context.emit(SocksListening(backend=self._backend.name, address=place))
                return

    def _listen(self) -> str:
        backend, auth = self._backend, self._backend.socks5_auth
        credentials = None
        if auth.username and auth.password:
            credentials = Credentials(auth.username, auth.password)
        self._server = Socks5Server(
            parse_listen_address(backend.socks5_listen_addr or ""),
            spawn=self._context.tasks.spawn,
            serve=self._serve,
            refused=self._refused,
            troubled=lambda error: self._failed(error, 0.0),
            credentials=credentials,
            shared=self._context.worker is not None,
        )
        return self._server.start()

    def _serve(self, client: Client) -> None:
        session = self._pick()
        if session is None:
            self._refused(client.name, "there is no session with a relay", client.request.target)
            client.refuse(Reply.FAILURE)
        else:
            open_stream = functools.partial(OutboundPump, session, client=client)
            session.connect_outbound(client.request.target, open_stream)

    def _pick(self) -> Session | None:
        """The session with the fewest streams."""
        sessions = [slot.session for slot in self._slots]
        ready = [one for one in sessions if one is not None and one.takes_outbound]
        return min(ready, key=lambda one: len(one.core.streams), default=None)

    def _refused(self, client: str, error: str, target: str = "") -> None:
        self._context.counters.outbound_refused += 1
        self._context.emit(
            OutboundRefused(
                backend=self._backend.name,
                relay="",
                session="",
                stream="",
                client=client,
                target=target,
                error=error,
            )
        )

    def _failed(self, error: str, retry_in_s: float | None) -> None:
        self._context.emit(
            SocksFailed(
                backend=self._backend.name,
                address=self._backend.socks5_listen_addr or "",
                error=error,
                retry_in_s=retry_in_s,
            )
        )
