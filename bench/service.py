"""The local service behind the agents, as a process: HTTP over TCP, echo over UDP.

It answers what `wire` describes, and checks every uploaded byte.
"""

from __future__ import annotations

import json
import sys

from gevent import Greenlet, socket
from gevent.fileobject import FileObject
from gevent.server import StreamServer

from bench import Failed, WrongBytes, wire


#: More than any scenario opens at once.
BACKLOG = 4096


def serve(sock: socket.socket, _address: object) -> None:
    """Answer one connection until it ends. Blocks."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    reader = wire.Reader(sock)
    try:
        while head := reader.head():
            line, _, fields = head.partition(b"\r\n")
            method, target, _ = line.decode().split(" ")
            _answer(sock, reader, method, target, wire.length(head))
            if b"connection: close" in fields.lower():
                return
    except (OSError, Failed):
        pass  # the load notices, too
    finally:
        sock.close()


def _answer(
    sock: socket.socket, reader: wire.Reader, method: str, target: str, body_bytes: int
) -> None:
    if target == "/small":
        sock.sendall(wire.answer(len(wire.SMALL)) + wire.SMALL)
    elif target.startswith("/down/"):
        size = int(target.removeprefix("/down/"))
        sock.sendall(wire.answer(size))
        wire.send_pattern(sock, size)
    elif target == "/up":
        try:
            reader.pattern(body_bytes)
        except WrongBytes as error:
            sock.sendall(wire.answer(0, f"400 {error}"))
            raise
        sock.sendall(wire.answer(0))
    else:
        sock.sendall(wire.answer(0, f"404 {method} {target}"))


def echo(sock: socket.socket) -> None:
    """Send each datagram back, for ever. Blocks."""
    while True:
        data, address = sock.recvfrom(65536)
        sock.sendto(data, address)


def main() -> None:
    """Serve until stdin ends."""
    http = StreamServer(("127.0.0.1", 0), serve, backlog=BACKLOG)
    http.start()
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", 0))
    Greenlet.spawn(echo, datagrams)
    ports = {"http": http.server_port, "udp": datagrams.getsockname()[1]}
    print(json.dumps(ports), flush=True)
    FileObject(sys.stdin.fileno(), "rb").read()


if __name__ == "__main__":
    main()
