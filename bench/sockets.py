"""Small things about ports, for the process that runs the benchmark."""

from __future__ import annotations

import http.client
import socket
import threading
import time

from bench import Failed, wire


#: How often it is asked whether something has come up.
STEP_S = 0.01
LISTEN_S = 10.0
ANSWER_S = 5.0

#: A sleep; the benchmark's own process has no gevent in it.
pause = threading.Event().wait


def free_port() -> int:
    """A port of the loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_listening(port: int, timeout_s: float = LISTEN_S) -> None:
    """Return when something listens on ``port``. Raises Failed when it takes too long. Blocks."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise Failed(f"nothing listens on port {port} after {timeout_s:g} s") from None
        pause(STEP_S)


def answers(address: tuple[str, int], name: str) -> bool:
    """Whether ``GET /small`` of host ``name`` is answered as it should be. Blocks."""
    connection = http.client.HTTPConnection(*address, timeout=ANSWER_S)
    try:
        connection.request("GET", "/small", headers={"Host": name})
        response = connection.getresponse()
        return response.status == 200 and response.read() == wire.SMALL
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
