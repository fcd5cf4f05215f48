from __future__ import annotations

import dataclasses
import ssl
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import pywsgi, socket

from nexusg.config.model import Attestation, Backend, Config, PortMapping
from nexusg.config.secret import Secret
from nexusg.errors import TargetError
from nexusg.integrations import delivery
from nexusg.integrations.delivery import BoundSocket, Memory, target_of
from nexusg.targets.request import ConnectRequest
from tests.conftest import MS
from tests.integrations.doubles import FakeWorker, spawn
from tests.support.certs import Authority
from tests.support.relayed import AMPLE_S, HOST


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CONFIG = Config(
    backends=(
        Backend(
            name="web",
            hostnames=(HOST,),
            nexus_addresses=("ws://127.0.0.1:9/",),
            attestation=Attestation(hmac_secret=Secret("x" * 32)),
            port_mappings={8443: PortMapping(default="127.0.0.1:9")},
        ),
    )
)

REQUEST = ConnectRequest(
    backend="web",
    client_id="00000000-0000-4000-8000-000000000000",
    hostname=HOST,
    original_hostname=HOST,
    port=80,
    client_ip="192.0.2.7",
    client_port=4711,
    is_tls=False,
    transport="tcp",
)
ADDRESS = ("192.0.2.7", 4711)


def changed(**fields: Any) -> ConnectRequest:
    return dataclasses.replace(REQUEST, **fields)


@pytest.fixture
def loop() -> Iterator[Callable[[FakeWorker], Any]]:
    """Runs main loops, and ends them."""
    running: list[tuple[FakeWorker, Any]] = []

    def run(worker: FakeWorker) -> Any:
        running.append((worker, spawn(worker.run)))
        return running[-1][1]

    yield run
    for worker, greenlet in running:
        worker.alive = False
        worker.pool.kill()
        greenlet.join(AMPLE_S)


def talk(sock: Any, text: bytes = b"hello") -> None:
    """The other end echoes."""
    sock.sendall(text)
    assert sock.recv(len(text)) == text


def test_memory_is_as_if_the_user_had_connected(worker: FakeWorker, loop: Any) -> None:
    memory = Memory(worker, CONFIG)
    loop(worker)
    with memory(REQUEST) as user:
        talk(user)
        assert worker.addresses == [ADDRESS]
        assert worker.listeners == [worker.address]
        assert worker.pool.free_count() == worker.pool.size - 1
    with socket.create_connection(worker.address) as direct:
        talk(direct)
        assert worker.addresses[1] == direct.getsockname()
    assert memory.__name__ == "gunicorn"


def test_memory_after_the_server_has_been_closed(worker: FakeWorker, loop: Any) -> None:
    """The relay may still send a user to a worker that is on its way out."""
    memory = Memory(worker, CONFIG)
    loop(worker)
    with memory(REQUEST) as first:
        talk(first)
        worker.alive = False
        worker.closed.wait(AMPLE_S)
        with memory(REQUEST) as second:
            talk(second)
    assert worker.listeners == [worker.address] * 2


def test_memory_before_the_server_is_there(worker: FakeWorker, loop: Any) -> None:
    memory = Memory(worker, CONFIG)
    asked = spawn(memory, REQUEST)
    gevent.sleep(0)
    loop(worker)
    with asked.get(timeout=AMPLE_S) as user:
        talk(user)


def test_memory_with_a_worker_class_that_makes_no_server(
    worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "READY_S", 0)
    with pytest.raises(TargetError, match="use serve"):
        Memory(worker, CONFIG)(REQUEST)


def test_memory_while_the_worker_is_full(worker: FakeWorker, loop: Any) -> None:
    """As the sockets' users do, the relay's wait until there is room, or until their time is up."""
    worker.pool = gevent.pool.Pool(1)
    memory = Memory(worker, CONFIG)
    loop(worker)
    with memory(REQUEST) as first:
        talk(first)
        with pytest.raises(gevent.Timeout), gevent.Timeout(5 * MS):
            memory(REQUEST)
        waiting = spawn(memory, REQUEST)
        gevent.sleep(0)
        assert not waiting.ready()
    with waiting.get(timeout=AMPLE_S) as second:
        talk(second)


def test_memory_leaves_something_to_the_other_workers(
    make_worker: Callable[..., FakeWorker], loop: Any
) -> None:
    """As gunicorn's own servers do."""
    for workers, expected in ((1, 100), (2, 1)):
        worker = make_worker(workers=workers)
        memory = Memory(worker, CONFIG)
        loop(worker)
        memory(REQUEST).close()
        assert memory._server.max_accept == expected


def test_memory_with_a_server_class(worker: FakeWorker, loop: Any) -> None:
    """As geventwebsocket's worker has one."""
    environs: list[dict[str, Any]] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environs.append(environ)
        start_response("204 No Content", [])
        return []

    def make(listener: Any, **options: Any) -> Any:
        spawn = options["spawn"]
        return pywsgi.WSGIServer(listener, application=app, spawn=spawn, log=None)

    worker.server_class = make
    worker.sockets.append(socket.socket())
    worker.sockets[1].bind(("127.0.0.1", 0))
    worker.sockets[1].listen()
    memory = Memory(worker, CONFIG)
    loop(worker)
    with memory(REQUEST) as user:
        user.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert user.recv(4096).startswith(b"HTTP/1.1 204 ")
    [environ] = environs
    assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == ("192.0.2.7", "4711")
    assert environ["SERVER_PORT"] == str(worker.address[1]), "of the first socket"


def test_memory_with_gunicorns_certificate(
    make_worker: Callable[..., FakeWorker], loop: Any, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authority.issue([HOST]))
    worker = make_worker(is_ssl=True, ssl_context=context)
    memory = Memory(worker, CONFIG)
    loop(worker)
    trusting = ssl.create_default_context(cafile=authority.ca_file)
    with trusting.wrap_socket(memory(changed(is_tls=True)), server_hostname=HOST) as user:
        talk(user)
    assert worker.addresses == [ADDRESS]


def test_what_gunicorn_cannot_serve_is_left_to_the_mappings(
    make_worker: Callable[..., FakeWorker],
) -> None:
    for kind in (Memory, BoundSocket):
        plain, secure = kind(make_worker(), CONFIG), kind(make_worker(is_ssl=True), CONFIG)
        assert plain(changed(transport="udp")) is None
        assert plain(changed(is_tls=True, port=8443)) is None
        assert secure(changed(port=8443)) is None
        with pytest.raises(TargetError, match="certfile and a keyfile, or map port 443") as caught:
            plain(changed(is_tls=True, port=443))
        assert caught.value.code == "handler"
        with pytest.raises(TargetError, match="gunicorn speaks TLS and the user does not"):
            secure(REQUEST)


@pytest.mark.parametrize(
    ("address", "target"),
    [
        (("127.0.0.1", 80), "127.0.0.1:80"),
        (("0.0.0.0", 80), "127.0.0.1:80"),
        (("::", 80, 0, 0), "[::1]:80"),
        (("fe80::1", 80, 0, 0), "[fe80::1]:80"),
        ("/run/app.sock", "unix:/run/app.sock"),
        (b"\0app", "unix:@app"),
    ],
)
def test_targets_of_bound_sockets(address: Any, target: str) -> None:
    assert target_of(address) == target


def test_a_relative_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert target_of("app.sock") == f"unix:{tmp_path}/app.sock"


def test_to_the_socket(worker: FakeWorker) -> None:
    target = BoundSocket(worker, CONFIG)(REQUEST)
    accepted, _ = worker.sockets[0].accept()
    target.try_send(memoryview(b"hello"))
    assert accepted.recv(100) == b"hello"
    target.close()
    accepted.close()


@pytest.mark.parametrize(
    ("setting", "begins"),
    [
        ("v1", b"PROXY TCP4 192.0.2.7 "),
        ("v2", b"\r\n\r\n\0\r\nQUIT\n"),
        ("auto", b"\r\n\r\n\0\r\nQUIT\n"),
        (True, b"PROXY TCP4 192.0.2.7 "),
    ],
)
def test_to_the_socket_with_the_users_address(
    make_worker: Callable[..., FakeWorker], setting: Any, begins: bytes
) -> None:
    """If gunicorn is set to take it."""
    worker = make_worker(proxy_protocol=setting)
    target = BoundSocket(worker, CONFIG)(REQUEST)
    accepted, _ = worker.sockets[0].accept()
    assert accepted.recv(100).startswith(begins)
    target.close()
    accepted.close()


def test_gevents_server_would_not_take_it(make_worker: Callable[..., FakeWorker]) -> None:
    worker = make_worker(proxy_protocol="auto")
    worker.server_class = pywsgi.WSGIServer
    target = BoundSocket(worker, CONFIG)(REQUEST)
    target.close()
    accepted, _ = worker.sockets[0].accept()
    assert accepted.recv(100) == b""
    accepted.close()


def test_to_a_socket_that_is_gone(worker: FakeWorker) -> None:
    to_socket = BoundSocket(worker, CONFIG)
    worker.sockets[0].close()
    with pytest.raises(TargetError) as caught:
        to_socket(REQUEST)
    assert caught.value.code == "refused"
