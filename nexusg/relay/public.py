"""The public side: finds the backend of each user and hands the two to each other (PROTOCOL.md 14).

TCP only: UDP users are in ``udp.py``.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

from nexusg.config.hostnames import normalize
from nexusg.protocol.credit import WINDOW
from nexusg.protocol.messages import Control, Event, format_id
from nexusg.relay.sniff import Sniffer, TooLong, Verdict
from nexusg.relay.sockets import Listener
from nexusg.relay.user import User


if TYPE_CHECKING:
    from gevent import socket

    from nexusg.relay.shared import Shared


#: A user who has said something, but no whole line, waits for a third of the whole patience:
#: 10 of 30 s, as the real relay was measured (PROTOCOL.md section 14).
UNDECIDED_SHARE = 1 / 3


class PublicPort:
    """One public TCP port."""

    def __init__(self, shared: Shared, address: tuple[str, int]) -> None:
        self._shared = shared
        self.listener = Listener(shared.tasks, "user", address, self._serve)

    def _serve(self, sock: socket.socket, peer: str) -> None:
        sniffer = Sniffer()
        try:
            verdict = self._sniff(sock, sniffer)
        except (TooLong, OSError):
            verdict = None
        if verdict is None:
            return
        host = normalize(verdict.host)
        name = host or f"tcp:{self.listener.port}"
        link = self._shared.pools.pick(name)
        if link is None or not link.session.established:
            self._shared.log("user.no_backend", user=peer, name=name)
            return
        connect = Control(
            event=Event.CONNECT.value,
            client_id=uuid.uuid4().bytes,
            conn_port=self.listener.port,
            client_ip=peer,
            transport="tcp",
            hostname=name,
            is_tls=verdict.is_tls,
            credits=WINDOW,
        )
        half_close = verdict.is_tls and bool(host)
        stream = format_id(connect.client_id)
        self._shared.log("user.connected", user=peer, name=name, stream=stream, agent=link.peer)
        User(self._shared, link, sock, half_close=half_close).run(connect, bytes(sniffer.prelude))

    def _sniff(self, sock: socket.socket, sniffer: Sniffer) -> Verdict | None:
        """What the user wants; the port's claim when time is up; None if the user has gone."""
        patience_s = self._shared.config.sniff_timeout_s
        deadline = time.monotonic() + patience_s
        while True:
            sock.settimeout(max(deadline - time.monotonic(), 0.0001))
            try:
                data = sock.recv(sniffer.room)
            except TimeoutError:
                return Verdict()
            if not data:
                return None
            if not sniffer.prelude:
                deadline = min(deadline, time.monotonic() + patience_s * UNDECIDED_SHARE)
            if verdict := sniffer.feed(data):
                return verdict
