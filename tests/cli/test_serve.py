"""The command with a real application, agent and relay, in this process and in others."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import socket, ssl

from nexusg.cli import app
from nexusg.cli.example import HOSTNAME, agent_yaml
from nexusg.relay import certs
from nexusg.relay.server import DevRelay
from nexusg.relay.settings import RelayConfig
from tests.cli.conftest import SECRET, Done, start
from tests.support.relayed import AMPLE_S, http_get, read_to_end


if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Serve = Callable[..., "Serving"]

APP = """
import os

def app(environ, start_response):
    if environ["PATH_INFO"] == "/fail":
        raise LookupError("no price list")
    start_response("200 OK", [("Connection", "close")])
    text = f"{os.getpid()} {environ['wsgi.url_scheme']} {environ['REMOTE_ADDR']}"
    return [text.encode()]

def create_app():
    return app
"""


@pytest.fixture
def relay() -> Iterator[DevRelay]:
    config = RelayConfig(secret=SECRET, tls=False, on_log=lambda _event, _fields: None)
    with DevRelay(config) as relay:
        yield relay


@pytest.fixture
def folder(relay: DevRelay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory: an application, and a configuration without any target."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wsgi.py").write_text(APP, encoding="utf-8")
    (tmp_path / "secret").write_text(SECRET, encoding="utf-8")
    (tmp_path / "secret").chmod(0o600)
    configure(relay, tmp_path)
    yield tmp_path
    for name in set(sys.modules) & {"wsgi", "broken"} - before:
        del sys.modules[name]


def configure(relay: DevRelay, folder: Path, more: str = "", target: str = "") -> None:
    targets = {relay.public_ports[0]: target} if target else {}
    text = agent_yaml(relay.url, None, folder / "secret", targets)
    if not target:
        text = text.replace("    portMappings:\n", "")
    (folder / "config.yaml").write_text(text + more, encoding="utf-8")


class Serving:
    """The command in a greenlet of this process."""

    def __init__(self, capfd: pytest.CaptureFixture[str], *arguments: str) -> None:
        self._capfd = capfd
        self._greenlet = gevent.Greenlet.spawn(app.main, arguments)

    def end(self, *signals: int) -> Done:
        for number in signals:
            os.kill(os.getpid(), number)
        code = self._greenlet.get(timeout=10)
        return Done(code, *self._capfd.readouterr())


@pytest.fixture
def serve(capfd: pytest.CaptureFixture[str], folder: Path) -> Serve:
    return lambda *arguments: Serving(capfd, *arguments)


def get(relay: DevRelay, path: str = "/") -> bytes:
    """The answer to a request. Blocks."""
    with socket.create_connection(("127.0.0.1", relay.public_ports[0]), AMPLE_S) as user:
        user.sendall(http_get(HOSTNAME).replace(b" / ", f" {path} ".encode()))
        return read_to_end(user)


def body(answer: bytes) -> list[str]:
    assert answer.startswith(b"HTTP/1.1 200 OK"), answer
    return answer.rpartition(b"\r\n\r\n")[2].decode().split()


def events(done: Done) -> dict[str, dict[str, Any]]:
    return {line["event"]: line for line in map(json.loads, done.out.splitlines())}


@pytest.mark.parametrize("name", ["wsgi:app", "wsgi:create_app()"])
def test_it_serves_an_application_of_the_working_directory(
    serve: Serve, relay: DevRelay, name: str
) -> None:
    command = serve("serve", name)
    assert relay.wait_agents()
    assert body(get(relay)) == [str(os.getpid()), "http", "127.0.0.1"]
    assert get(relay, "/fail").startswith(b"HTTP/1.1 500 ")
    done = command.end(signal.SIGTERM)
    assert (done.code, done.err) == (0, "")
    seen = events(done)
    assert next(iter(seen)) == "agent.started"
    assert list(seen)[-1] == "agent.stopped"
    assert seen["stream.closed"]["target"] == f"wsgi:{name}"
    failed = seen["app.failed"]
    assert (failed["app"], failed["request"]) == (f"wsgi:{name}", "GET /fail")
    assert failed["error"] == "LookupError: no price list"


def test_run_serves_applications_that_are_targets(
    serve: Serve, relay: DevRelay, folder: Path
) -> None:
    configure(relay, folder, target="wsgi:wsgi:app")
    command = serve("run", "--config", "config.yaml")
    assert relay.wait_agents()
    assert body(get(relay))[1] == "http"
    assert command.end(signal.SIGTERM).code == 0


def test_mappings_do_not_matter(serve: Serve, relay: DevRelay, folder: Path) -> None:
    configure(relay, folder, target="127.0.0.1:9")
    command = serve("--config", "config.yaml", "serve", "wsgi:app")
    assert relay.wait_agents()
    assert body(get(relay))[1] == "http"
    assert command.end(signal.SIGTERM).code == 0


@pytest.mark.parametrize("split", [False, True])
def test_it_ends_the_tls_of_users(serve: Serve, relay: DevRelay, folder: Path, split: bool) -> None:
    ca_file, pem = certs.ensure(folder / "certs", [HOSTNAME])
    options = ["--cert", str(pem)]
    if split:
        (folder / "key.pem").write_bytes(pem.read_bytes())
        options += ["--key", "key.pem"]
    command = serve("serve", "wsgi:app", *options)
    assert relay.wait_agents()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca_file)
    plain = socket.create_connection(("127.0.0.1", relay.public_ports[0]), AMPLE_S)
    with context.wrap_socket(plain, server_hostname=HOSTNAME) as user:
        user.sendall(http_get(HOSTNAME))
        assert body(read_to_end(user))[1] == "https"
    assert body(get(relay))[1] == "http", "and who comes without is served as well"
    assert command.end(signal.SIGTERM).code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["wsgi:ap"], "wsgi:wsgi:ap: module 'wsgi' has no 'ap'; did you mean 'app'?"),
        (["nowhere:app"], "wsgi:nowhere:app: there is no module 'nowhere' here ("),
        (["broken:app"], "wsgi:broken:app: module 'broken' cannot be imported: ImportError: no"),
        (["wsgi:app", "--key", "x.pem"], "--key needs --cert"),
        (["wsgi:app", "--cert", "x.pem"], "--cert: "),
        (["wsgi:app", "--cert", "wsgi.py"], "--cert: "),
    ],
)
def test_what_cannot_be_served(
    nexusg: Callable[..., Done], folder: Path, arguments: list[str], said: str
) -> None:
    (folder / "broken.py").write_text("raise ImportError('no luck')", encoding="utf-8")
    done = nexusg("serve", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(said)
    assert len(done.err.splitlines()) == 1


def test_an_application_is_needed(nexusg: Callable[..., Done], folder: Path) -> None:
    done = nexusg("serve")
    assert done.code == 2
    assert "MODULE:APP" in done.err


def stop(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=10)
    return process.returncode, out, err


def test_each_worker_has_the_application_for_itself(relay: DevRelay, folder: Path) -> None:
    tell = 'import os\nos.write(1, f"{os.getpid()}\\n".encode())  # at once, or workers mix\n'
    (folder / "wsgi.py").write_text(tell + APP, encoding="utf-8")
    configure(relay, folder, "workers: 2\n")
    process = start("serve", "wsgi:app", cwd=folder)
    assert relay.wait_agents(2, AMPLE_S)
    pids = {body(get(relay))[0] for _ in range(4)}
    assert len(pids) == 2
    assert str(process.pid) not in pids
    code, out, err = stop(process)
    assert (code, err) == (0, b"")
    assert {line for line in out.decode().splitlines() if line.isdigit()} == pids


def test_workers_that_cannot_have_it_end_with_the_master(relay: DevRelay, folder: Path) -> None:
    configure(relay, folder, "workers: 2\n")
    process = start("serve", "nowhere:app", cwd=folder)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 2
    assert b"there is no module 'nowhere' here" in err
