"""The app behind the gunicorn under test. It says what it sees, and waits for the test's files.

gunicorn patches the process before it imports this, or, with --preload, after it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


PIECE = bytes(range(256)) * 256


def application(environ: dict[str, Any], start_response: Any) -> Any:
    """Answer one request."""
    path = environ["PATH_INFO"]
    if path == "/echo":
        return _echo(environ["wsgi.websocket"])
    if path == "/download":
        pieces = int(environ["QUERY_STRING"])
        start_response("200 OK", [("Content-Length", str(pieces * len(PIECE)))])
        return (PIECE for _ in range(pieces))
    if path == "/wait":
        print("waiting", file=sys.stderr, flush=True)
        while not Path(environ["QUERY_STRING"]).exists():
            time.sleep(0.01)  # noqa: TID251 - gunicorn has patched it
    names = ("REMOTE_ADDR", "REMOTE_PORT", "wsgi.url_scheme")
    said = {"pid": os.getpid(), **{name: environ.get(name) for name in names}}
    body = json.dumps(said).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def _echo(websocket: Any) -> list[bytes]:
    while (message := websocket.receive()) is not None:
        websocket.send(message)
    return []
