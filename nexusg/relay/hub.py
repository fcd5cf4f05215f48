"""Where agents connect: TLS, the HTTP upgrade, and then a `Link`."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import gevent
from gevent.ssl import SSLContext  # the standard library's would block in an unpatched process

from nexusg.relay import upgrade
from nexusg.relay.link import Link
from nexusg.relay.sockets import Listener, linger


if TYPE_CHECKING:
    from pathlib import Path

    from gevent import socket

    from nexusg.relay.shared import Shared


#: For TLS and the request head together.
UPGRADE_TIMEOUT_S = 10.0


class Hub:
    """The hub's port. Without a ``context`` it is plain ws."""

    def __init__(
        self, shared: Shared, address: tuple[str, int], context: ssl.SSLContext | None
    ) -> None:
        self._shared = shared
        self._context = context
        self.listener = Listener(shared.tasks, "agent", address, self._serve)

    def _serve(self, raw: socket.socket, peer: str) -> None:
        sock = raw
        try:
            with gevent.Timeout(UPGRADE_TIMEOUT_S, TimeoutError("no upgrade in time")):
                if self._context is not None:
                    sock = self._context.wrap_socket(raw, server_side=True)
                early = _upgraded(sock)
            if early is None:
                linger(sock)
            else:
                Link(self._shared, sock, peer).run(early)
        except OSError as error:
            self._shared.log("agent.failed", agent=peer, error=error)
        finally:
            sock.close()


def server_context(certificate_file: Path) -> ssl.SSLContext:
    """A context for the hub. Like the real relay it offers h2 as well (PROTOCOL.md section 1.1).

    Raises OSError when the file cannot be used.
    """
    context = SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate_file)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def _upgraded(sock: socket.socket) -> bytes | None:
    """Answer the request; what came behind it, or None if it was refused. Blocks."""
    head = bytearray()
    while upgrade.END_OF_HEAD not in head:
        if len(head) >= upgrade.MAX_HEAD_BYTES:
            sock.sendall(upgrade.refusal(431))
            return None
        data = sock.recv(upgrade.MAX_HEAD_BYTES - len(head))
        if not data:
            return None
        head += data
    end = head.index(upgrade.END_OF_HEAD) + len(upgrade.END_OF_HEAD)
    upgraded, response = upgrade.answer(bytes(head[:end]))
    sock.sendall(response)
    return bytes(head[end:]) if upgraded else None
