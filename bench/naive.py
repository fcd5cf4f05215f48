"""The naive agent: what the libraries give, put together in the obvious way. The baseline.

websocket-client for the frames, a `gevent.queue.Queue` for each stream and one in front of the
writer, two greenlets for each stream, a Timeout for each read. It takes the same configuration,
obeys the credits both ways and serves TCP; it does not reconnect, re-attest, check health or flush
before it disconnects. It is here to be slow in the usual places, not to be used.
"""

from __future__ import annotations

from gevent import monkey


if __name__ == "__main__":
    monkey.patch_all()

import sys
from typing import TYPE_CHECKING, Any

import websocket
from gevent import Greenlet, Timeout, socket
from gevent.event import Event
from gevent.queue import Queue

from nexusg.attest.base import Stage
from nexusg.attest.hmac import HmacProvider
from nexusg.attest.select import request_for
from nexusg.config.loader import load
from nexusg.protocol.credit import BATCH, WINDOW
from nexusg.protocol.messages import (
    CONTROL,
    DATA,
    DATA_HEADER_BYTES,
    Control,
    decode_challenge,
    decode_control,
    encode_control,
)
from nexusg.targets.router import Router


if TYPE_CHECKING:
    from nexusg.config.model import Backend

READ_BYTES = 16 * 1024
DIAL_S = 10.0
IDLE_S = 600.0
#: Frames that may wait for the writer; then the streams wait.
OUTBOX = 256


class Session:
    """One connection to the relay."""

    def __init__(self, backend: Backend, url: str) -> None:
        self.router = Router(backend.port_mappings)
        self.outbox: Queue[bytes] = Queue(OUTBOX)
        self.streams: dict[bytes, Stream] = {}
        self._backend = backend
        self._provider = HmacProvider.from_backend(backend)
        self._link: Any = websocket.create_connection(
            url,
            sockopt=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
            enable_multithread=True,
            suppress_origin=True,
        )

    def run(self) -> None:
        """Prove itself, then serve until the connection ends. Blocks."""
        self._link.send(self._token(Stage.HANDSHAKE, ""))
        nonce = decode_challenge(self._link.recv().encode()).nonce
        self._link.send(self._token(Stage.ATTEST, nonce))
        writer = Greenlet.spawn(self._write)
        try:
            self._read()
        finally:
            writer.kill()

    def send_control(self, event: str, client_id: bytes, **fields: Any) -> None:
        """Queue a control message. Blocks."""
        self.outbox.put(encode_control(Control(event, client_id, **fields)))

    def _token(self, stage: Stage, nonce: str) -> str:
        return self._provider.get_token(request_for(self._backend, stage, nonce), DIAL_S).value

    def _write(self) -> None:
        while True:
            self._link.send_binary(self.outbox.get())

    def _read(self) -> None:
        while True:
            opcode, data = self._link.recv_data()
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                raise SystemExit("the relay has closed the connection")
            if opcode != websocket.ABNF.OPCODE_BINARY:
                continue
            if data[0] == DATA:
                stream = self.streams.get(data[1:DATA_HEADER_BYTES])
                if stream is not None:
                    stream.inbox.put(data[DATA_HEADER_BYTES:])
            elif data[0] == CONTROL:
                self._control(decode_control(data[1:]))

    def _control(self, message: Control) -> None:
        stream = self.streams.get(message.client_id)
        if message.event == "connect":
            stream = self.streams[message.client_id] = Stream(self, message)
            Greenlet.spawn(stream.run)
        elif stream is None:
            return
        elif message.event == "resume_stream":
            stream.granted(message.credits)
        elif message.event == "disconnect":
            del self.streams[message.client_id]
            stream.inbox.put(b"")


class Stream:
    """One user: a greenlet for each direction."""

    def __init__(self, session: Session, connect: Control) -> None:
        self.inbox: Queue[bytes] = Queue()  # bounded by the credits given
        self._session = session
        self._connect = connect
        self._credits = connect.credits
        self._credit = Event()
        self._ended = False

    def granted(self, credits: int) -> None:
        """The relay takes more."""
        self._credits += credits
        self._credit.set()

    def run(self) -> None:
        """Dial, and carry both ways until either side ends. Blocks."""
        try:
            sock = self._dial()
        except OSError:
            self._disconnect("dial_failed")
            return
        forward = Greenlet.spawn(self._forward, sock)
        try:
            self._reverse(sock)
        except (OSError, Timeout):
            pass
        self._disconnect("normal")
        self.inbox.put(b"")
        forward.join()
        sock.close()

    def _dial(self) -> socket.socket:
        route = self._session.router.resolve(self._connect.conn_port, self._connect.hostname)
        if route is None:
            raise ConnectionRefusedError
        host, _, port = route.destination.targets[0].rpartition(":")
        sock = socket.create_connection((host, int(port)), DIAL_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(None)
        return sock

    def _reverse(self, sock: socket.socket) -> None:
        header = bytes([DATA]) + self._connect.client_id
        while True:
            with Timeout(IDLE_S):
                data = sock.recv(READ_BYTES)
            if not data:
                return
            while self._credits <= 0 and not self._ended:
                self._credit.clear()
                self._credit.wait()
            if self._ended:
                return
            self._credits -= 1
            self._session.outbox.put(header + data)

    def _forward(self, sock: socket.socket) -> None:
        client_id, taken = self._connect.client_id, 0
        try:
            while True:
                with Timeout(IDLE_S):
                    data = self.inbox.get()
                if not data:
                    break
                if not taken:  # now the relay knows the stream for sure (PROTOCOL.md section 5.4)
                    self._session.send_control("resume_stream", client_id, credits=WINDOW)
                sock.sendall(data)
                taken += 1
                if taken % BATCH == 0:
                    self._session.send_control("resume_stream", client_id, credits=BATCH)
            sock.shutdown(socket.SHUT_RDWR)  # the other direction is waiting
        except (OSError, Timeout):
            pass
        self._ended = True
        self._credit.set()

    def _disconnect(self, reason: str) -> None:
        """Tell the relay, unless it has said so itself."""
        client_id = self._connect.client_id
        if self._session.streams.pop(client_id, None) is not None:
            self._session.send_control("disconnect", client_id, reason=reason)


def main() -> None:
    """Serve the first backend of the configuration at its first relay, until the link breaks."""
    backend = load(sys.argv[1]).config.backends[0]
    Session(backend, backend.nexus_addresses[0]).run()


if __name__ == "__main__":
    main()
