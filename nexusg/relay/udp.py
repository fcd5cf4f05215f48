"""One public UDP port: its one reader, and the flows of its users (PROTOCOL.md sections 5.7, 6.7).

A flow belongs to one user's address and stays with one backend. The rules are those that the real
relay was measured to have.
"""

from __future__ import annotations

import functools
import time
import uuid
from typing import TYPE_CHECKING, Any

import gevent
from gevent import socket

from nexusg.errors import ConfigError
from nexusg.protocol.credit import WINDOW
from nexusg.protocol.messages import Control, Event, format_id
from nexusg.relay.claims import UDP_IDLE_S
from nexusg.relay.flow import Flow
from nexusg.relay.sockets import peer_name
from nexusg.transport.connect import join_host_port
from nexusg.transport.failure import words


if TYPE_CHECKING:
    from nexusg.agent.tasks import Task
    from nexusg.relay.shared import Shared


#: How often idle flows are looked for.
REAP_EVERY_S = 5.0
#: Reads in a row before other greenlets have a turn: a socket with data never waits.
READS_PER_TURN = 32
#: More than any datagram holds.
READ_BYTES = 64 * 1024

_READ = 1


class UdpPort:
    """One public UDP port. Like a `Listener` it is started, and stopped in two steps."""

    def __init__(self, shared: Shared, address: tuple[str, int]) -> None:
        self.flows: dict[Any, Flow] = {}  #: by the user's address
        self.port = address[1]  #: the one it is bound to, once started
        self._shared = shared
        self._address = address
        self._sock: socket.socket | None = None
        self._tasks: list[Task] = []

    def start(self) -> None:
        """Bind, and read from the next loop turn on. Raises ConfigError."""
        host, port = self._address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = self._sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.bind(self._address)
        except OSError as error:
            where = join_host_port(host, port)
            raise ConfigError([f"cannot listen on UDP {where}: {words(error)}"]) from error
        sock.setblocking(False)
        self.port = sock.getsockname()[1]
        spawn = self._shared.tasks.spawn
        self._tasks = [spawn("udp reader", self._read, sock), spawn("udp reaper", self._reap)]

    def stop(self) -> None:
        """Take no more datagrams. Flows go on until their sessions end."""
        gevent.killall(self._tasks, block=False)

    def close_rest(self) -> None:
        """Close the socket."""
        if self._sock is not None:
            self._sock.close()

    def reap(self, now: float) -> None:
        """End the flows whose users have been silent for too long at ``now``; answers don't count.

        The longest idle time that any backend claims for the port is that of all.
        """
        claimed = (route for link in self._shared.links for route in link.claims.udp_routes)
        idle_s = max((idle_s for port, idle_s in claimed if port == self.port), default=UDP_IDLE_S)
        for address, flow in list(self.flows.items()):
            if now - flow.used_at >= idle_s:
                del self.flows[address]
                flow.end()

    def _read(self, sock: socket.socket) -> None:
        readable, reads = gevent.get_hub().loop.io(sock.fileno(), _READ), 0
        largest = self._shared.config.udp_max_datagram_bytes
        try:
            while True:
                try:
                    datagram, address = sock.recvfrom(READ_BYTES)
                except BlockingIOError:
                    socket.wait(readable)
                else:
                    if len(datagram) <= largest:
                        self._receive(datagram, address)
                reads += 1
                if reads % READS_PER_TURN == 0:
                    gevent.sleep(0)
        finally:
            readable.close()

    def _receive(self, datagram: bytes, address: Any) -> None:
        flow = self.flows.get(address)
        if flow is None:
            flow = self._open(address)
        elif flow.over:
            del self.flows[address]
            return
        if flow is not None:
            flow.used_at = time.monotonic()
            flow.forward(datagram)

    def _open(self, address: Any) -> Flow | None:
        shared, user, name = self._shared, peer_name(address), f"udp:{self.port}"
        link = shared.pools.pick(name)
        if link is None or not link.session.established:
            shared.log("user.no_backend", user=user, name=name)
            return None
        connect = Control(
            event=Event.CONNECT.value,
            client_id=uuid.uuid4().bytes,
            conn_port=self.port,
            client_ip=user,
            transport="udp",
            hostname=name,
            credits=WINDOW,
        )
        flow = Flow(shared, link, functools.partial(self._answer, address))
        if not flow.open(connect):
            return None
        self.flows[address] = flow
        stream = format_id(connect.client_id)
        shared.log("user.connected", user=user, name=name, stream=stream, agent=link.peer)
        return flow

    def _answer(self, address: Any, datagram: memoryview) -> None:
        assert self._sock is not None
        self._sock.sendto(datagram, address)

    def _reap(self) -> None:
        while True:
            gevent.sleep(REAP_EVERY_S)
            self.reap(time.monotonic())
