"""Answer users from inside the process: no local service, no port.

    nexusg relay                                       # in one terminal
    python examples/in_memory.py conf/config.yaml      # in another
    curl http://demo.localhost:8080/

A connect handler may return any connected socket, or one end of a pair in memory.
"""

from __future__ import annotations

import sys

from gevent import spawn

import nexusg


def answer(request: nexusg.ConnectRequest) -> nexusg.MemorySocket:
    """Take every plain HTTP stream; leave the others to the port mappings."""
    if request.is_tls or request.transport != "tcp":
        raise nexusg.NoRoute
    ours, theirs = nexusg.memory_pair()
    spawn(greet, theirs, request)
    return ours


def greet(user: nexusg.MemorySocket, request: nexusg.ConnectRequest) -> None:
    """Read one HTTP request and answer it."""
    head = b""
    while b"\r\n\r\n" not in head and len(head) < 65_536:
        data = user.recv(4096)
        if not data:
            break
        head += data
    body = f"Hello {request.client_ip}, this is {request.hostname}.\n".encode()
    user.sendall(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    user.close()


def main(path: str) -> None:
    """Serve until Ctrl-C. Blocks."""
    config = nexusg.load_config(path).config
    with nexusg.Agent(config, connect_handler=answer, on_event=print) as agent:
        agent.join()


if __name__ == "__main__":
    main(sys.argv[1])
