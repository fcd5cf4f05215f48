"""A real gunicorn with the plug-in, run by tests as a process of its own, and its users.

write_files(folder, relay, workers=2)
with Gunicorn(folder, relay) as server:
    server.wait("session.connected")
    with server.user() as user:
        assert user.get("/").json["REMOTE_ADDR"] == user.address
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from gevent import Greenlet, Timeout
from gevent.event import Event

from tests.support.relayed import HOST, SECRET
from tests.support.source import ROOT


if TYPE_CHECKING:
    from pathlib import Path

    from nexusg.relay.server import DevRelay

#: Long enough never to be reached by a passing test: gunicorn looks at some things once a second.
AMPLE_S = 15.0

#: Whence the users of these tests come: any address of 127/8 is this machine's.
ADDRESS = "127.0.0.77"

BOOTED = r"Booting worker with pid: (\d+)"
CONNECTED = r"\[(\d+)\] \[INFO\] nexusg: session.connected "

SETTINGS = {
    "wsgi_app": "tests.integrations.app:application",
    "worker_class": "gevent",
    "bind": "127.0.0.1:0",
    "accesslog": "-",
    "control_socket_disable": True,
    "graceful_timeout": 10,
}


class Gunicorn:
    """Starts in ``folder``, with what `write_files` has written there. Use as a context."""

    def __init__(self, folder: Path, relay: DevRelay, *arguments: str) -> None:
        self.folder = folder
        self.relay = relay
        self.lines: list[str] = []
        self._changed = Event()
        self.process = self.start(*arguments)
        self._reader = Greenlet.spawn(self._read)

    def start(self, *arguments: str) -> Any:
        """Run a gunicorn in the folder."""
        return subprocess.Popen(
            [sys.executable, "-m", "gunicorn", *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> Gunicorn:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._reader.join(AMPLE_S)
        self.process.stdout.close()
        self.process.wait()

    def found(self, pattern: str) -> list[str]:
        """What the group of ``pattern`` has matched so far, one for each line."""
        matches = (re.search(pattern, line) for line in self.lines)
        return [match[match.re.groups and 1] for match in matches if match]

    def wait(self, pattern: str, count: int = 1) -> list[str]:
        """The same, once there are ``count`` of them. Blocks."""
        try:
            with Timeout(AMPLE_S):
                while len(self.found(pattern)) < count:
                    assert not self._reader.ready(), f"it has ended without {pattern}\n{self}"
                    self._changed.clear()
                    self._changed.wait()
        except Timeout:
            raise AssertionError(f"there never were {count} lines with {pattern}\n{self}") from None
        return self.found(pattern)

    def signal(self, number: int, pid: int | str | None = None) -> None:
        """Send a signal to the master, or to ``pid``, one of its workers."""
        os.kill(int(pid or self.process.pid), number)

    def end(self) -> int:
        """Its exit status, once it has ended of itself and everything it said has been read."""
        self._reader.join(AMPLE_S)
        assert self._reader.ready(), f"it does not end\n{self}"
        return int(self.process.wait())

    def user(self, port: int | None = None, hostname: str = HOST) -> User:
        """Somebody who comes by way of the relay, or directly to a local ``port``."""
        return User(port or self.relay.public_ports[0], hostname)

    def __str__(self) -> str:
        return "".join(self.lines)

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line)
            self._changed.set()
        self._changed.set()


class Answer:
    """To a request: its status, and its body."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.body = response.read()

    @property
    def json(self) -> Any:
        """The body as the test app makes it."""
        return json.loads(self.body)


class User(http.client.HTTPConnection):
    """One connection, from `ADDRESS`."""

    def __init__(self, port: int, hostname: str) -> None:
        super().__init__("127.0.0.1", port, AMPLE_S, source_address=(ADDRESS, 0))
        self._hostname = hostname

    def __enter__(self) -> User:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def port_here(self) -> str:
        """The user's own port."""
        return str(self.sock.getsockname()[1])

    def ask(self, path: str) -> None:
        """Send a request, and leave its answer for later."""
        self.request("GET", path, headers={"Host": self._hostname})

    def answer(self) -> Answer:
        """The answer to what was asked. Blocks."""
        return Answer(self.getresponse())

    def get(self, path: str) -> Answer:
        """Both. Blocks."""
        self.ask(path)
        return self.answer()


def write_files(folder: Path, relay: DevRelay, *, serve: str = "", **settings: Any) -> None:
    """A configuration of the agent, and one of gunicorn with further arguments of ``serve()``."""
    (folder / "secret").write_text(SECRET)
    (folder / "secret").chmod(0o600)
    (folder / "nexusg.yaml").write_text(
        "backends:\n"
        "  - name: web\n"
        f"    hostnames: [{HOST}]\n"
        f"    nexusAddresses: ['{relay.url}']\n"
        "    attestation: {hmacSecretFile: secret}\n"
        f"    tls: {{caFile: {relay.ca_file}}}\n",
        encoding="utf-8",
    )
    lines = [
        "from nexusg.integrations.gunicorn import serve",
        f"pre_fork = serve('nexusg.yaml'{serve and ', '}{serve})",
        *(f"{name} = {value!r}" for name, value in {**SETTINGS, **settings}.items()),
    ]
    (folder / "gunicorn.conf.py").write_text("\n".join(lines), encoding="utf-8")
