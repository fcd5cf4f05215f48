"""A real Flask application in this process, for real users of a real relay, and WebSockets."""

from __future__ import annotations

import hashlib
import http.client
import logging
import random
from typing import TYPE_CHECKING, Any

import flask
import gevent
import pytest
import websocket
from flask.logging import default_handler, wsgi_errors_stream
from gevent import Greenlet, socket, ssl
from gevent.event import Event

from nexusg.agent.apps import Served
from nexusg.config.model import Shutdown, TlsTerminate
from nexusg.relay import certs
from tests.conftest import MS
from tests.support.relayed import AMPLE_S, HOST, http_get, read_to_end


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nexusg.relay.server import DevRelay
    from tests.support.running import Running, WatchedAgent

MIB = 1024 * 1024
UPLOAD = random.Random(7).randbytes(8 * MIB)


class Shop:
    """The application, and what its requests wait for."""

    def __init__(self) -> None:
        self.app = flask.Flask("shop")
        self.go = Event()
        self.waiting = Event()
        self.closed = Event()
        self.app.add_url_rule("/", view_func=self.index)
        self.app.add_url_rule("/hello/<name>", view_func=self.hello)
        self.app.add_url_rule("/stream", view_func=self.stream)
        self.app.add_url_rule("/endless", view_func=self.endless)
        self.app.add_url_rule("/slow", view_func=self.slow)
        self.app.add_url_rule("/fail", view_func=self.fail)
        self.app.add_url_rule("/upload", view_func=self.upload, methods=["POST"])

    def index(self) -> dict[str, Any]:
        request = flask.request
        return {
            "remote": request.remote_addr,
            "port": request.environ["REMOTE_PORT"],
            "scheme": request.scheme,
            "url": request.url,
            "server": request.server,
        }

    def hello(self, name: str) -> str:
        return f"hello {name}, by {flask.request.args.get('by', 'nobody')}"

    def stream(self) -> flask.Response:
        def lines() -> Iterator[str]:
            yield "first\n"
            self.go.wait()
            yield "second\n"

        return flask.Response(lines(), mimetype="text/plain")

    def endless(self) -> flask.Response:
        def pieces() -> Iterator[bytes]:
            try:
                while True:
                    yield bytes(20_000)
            finally:
                self.closed.set()

        return flask.Response(pieces())

    def slow(self) -> str:
        self.waiting.set()
        try:
            self.go.wait()
        finally:
            self.closed.set()
        return "at last"

    def fail(self) -> str:
        raise LookupError("no price list")

    def upload(self) -> str:
        found, pieces = hashlib.sha256(), 0
        while data := flask.request.stream.read(65536):
            found.update(data)
            pieces += 1
        return f"{found.hexdigest()} in {pieces}"


@pytest.fixture
def shop() -> Iterator[Shop]:
    shop = Shop()
    yield shop
    shop.go.set()
    for handler in shop.app.logger.handlers[:]:
        shop.app.logger.removeHandler(handler)


@pytest.fixture
def relay(running: Running) -> DevRelay:
    return running.relay()


@pytest.fixture
def agent(running: Running, relay: DevRelay, shop: Shop) -> WatchedAgent:
    return running.connected(relay, wsgi=shop.app, backend={"port_mappings": {}})


class User(http.client.HTTPConnection):
    """A keep-alive connection through the relay."""

    def __init__(self, relay: DevRelay) -> None:
        super().__init__("127.0.0.1", relay.public_ports[0], timeout=AMPLE_S)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
        """Status and body. Blocks."""
        self.request(method, path, body, {"Host": HOST, **headers})
        answer = self.getresponse()
        return answer.status, answer.read()


@pytest.fixture
def user(relay: DevRelay, agent: WatchedAgent) -> Iterator[User]:
    user = User(relay)
    yield user
    user.close()


def test_a_page_knows_its_user(user: User, relay: DevRelay) -> None:
    status, body = user.ask("GET", "/")
    seen = flask.json.loads(body)
    assert (status, seen["remote"], seen["scheme"]) == (200, "127.0.0.1", "http")
    assert seen["port"] == str(user.sock.getsockname()[1])
    assert seen["url"] == f"http://{HOST}/"
    assert seen["server"] == [HOST, relay.public_ports[0]]


def test_one_connection_many_requests(user: User, agent: WatchedAgent) -> None:
    for name in ("ann", "bob", "cy"):
        assert user.ask("GET", f"/hello/{name}?by=me") == (200, f"hello {name}, by me".encode())
    assert user.ask("GET", "/nothing")[0] == 404
    assert user.ask("PUT", "/", b"unread")[0] == 405
    assert user.ask("GET", "/hello/dee") == (200, b"hello dee, by nobody")
    assert len(agent.named("stream.connected")) == 1


def test_an_answer_comes_as_it_is_made(user: User, shop: Shop) -> None:
    user.request("GET", "/stream", headers={"Host": HOST})
    answer = user.getresponse()
    assert answer.readline() == b"first\n"
    shop.go.set()
    assert answer.read() == b"second\n"


@pytest.mark.parametrize("chunked", [False, True])
def test_an_upload_of_eight_mebibytes(user: User, agent: WatchedAgent, chunked: bool) -> None:
    body: Any = (UPLOAD[at : at + 100_000] for at in range(0, len(UPLOAD), 100_000))
    status, answer = user.ask("POST", "/upload", body if chunked else UPLOAD)
    digest, _, pieces = answer.decode().partition(" in ")
    assert (status, digest) == (200, hashlib.sha256(UPLOAD).hexdigest())
    assert int(pieces) >= len(UPLOAD) // 65536
    assert not agent.named("app.failed")


def test_a_user_who_leaves_a_download(user: User, shop: Shop, agent: WatchedAgent) -> None:
    user.request("GET", "/endless", headers={"Host": HOST})
    user.getresponse().read(100_000)
    user.close()
    assert shop.closed.wait(AMPLE_S)
    agent.wait("stream.closed")
    assert not agent.named("app.failed")


def test_an_upload_that_breaks_off(relay: DevRelay, agent: WatchedAgent, running: Running) -> None:
    head = f"POST /upload HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 99\r\n\r\nhalf"
    running.raw_user(relay, head.encode()).close()
    agent.wait("stream.closed")
    assert not agent.named("app.failed")


def test_what_flask_says_about_an_error_is_in_the_agents_log(
    user: User, shop: Shop, agent: WatchedAgent, capfd: pytest.CaptureFixture[str]
) -> None:
    shop.app.logger.addHandler(default_handler)  # Flask does so if nobody else listens
    assert user.ask("GET", "/fail")[0] == 500
    said = agent.wait("app.stderr")
    assert said.app == "wsgi:flask.app:Flask"
    assert "Exception on /fail [GET]" in said.text
    assert said.text.endswith("LookupError: no price list")
    assert capfd.readouterr().err == ""


def test_a_root_logger_that_writes_to_flasks_errors(user: User, agent: WatchedAgent) -> None:
    """As Flask's manual has it. Were the text logged by ``logging``, it would go round for ever."""
    logging.getLogger().addHandler(logging.StreamHandler(wsgi_errors_stream))  # type: ignore[arg-type]
    assert user.ask("GET", "/fail")[0] == 500
    agent.wait("app.stderr")
    assert user.ask("GET", "/hello/ann")[0] == 200


# TLS and WebSockets -------------------------------------------------------------------------------


def chat(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """A WebSocket that sends everything back."""
    channel = environ["wsgi.websocket"]
    channel.send(f"{environ['REMOTE_ADDR']} by {environ['wsgi.url_scheme']}")
    while (message := channel.receive()) is not None:
        channel.send(message)
    return []


def test_a_websocket_echoes(running: Running, relay: DevRelay, tmp_path: Path) -> None:
    ca_file, pem = certs.ensure(tmp_path, [HOST])
    how = TlsTerminate(cert_file=str(pem))
    agent = running.connected(relay, wsgi={HOST: Served(chat, how)}, backend={"port_mappings": {}})
    for scheme, secure in (("ws", "http"), ("wss", "https")):
        channel = websocket.create_connection(
            f"{scheme}://{HOST}/chat",
            timeout=AMPLE_S,
            socket=connection(relay, ca_file if scheme == "wss" else None),
        )
        assert channel.recv() == f"127.0.0.1 by {secure}"
        for message in ("hello", "ü" * 1000, "x" * 100_000):
            channel.send(message)
            assert channel.recv() == message
        channel.send_binary(bytes(range(256)))
        assert channel.recv() == bytes(range(256))
        channel.ping(b"still there?")
        channel.send("yes")
        assert channel.recv() == "yes"
        channel.close(timeout=AMPLE_S)
    agent.wait("stream.closed", 2)
    assert not agent.named("app.failed")


def connection(relay: DevRelay, ca_file: Path | None) -> Any:
    """A user's connection, over TLS if there is something to trust. Blocks."""
    plain = socket.create_connection(("127.0.0.1", relay.public_ports[0]), AMPLE_S)
    if ca_file is None:
        return plain
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca_file)
    return context.wrap_socket(plain, server_hostname=HOST)


def test_an_upload_and_a_page_by_tls(
    running: Running, relay: DevRelay, shop: Shop, tmp_path: Path
) -> None:
    ca_file, pem = certs.ensure(tmp_path, [HOST])
    running.connected(relay, wsgi=Served(shop.app, TlsTerminate(cert_file=str(pem))))
    user = User(relay)
    user.sock = connection(relay, ca_file)
    assert user.ask("POST", "/upload", UPLOAD)[1].startswith(
        hashlib.sha256(UPLOAD).hexdigest().encode()
    )
    assert flask.json.loads(user.ask("GET", "/")[1])["url"] == f"https://{HOST}/"
    user.close()


# The end ------------------------------------------------------------------------------------------


def test_a_request_in_flight_may_finish(running: Running, relay: DevRelay, shop: Shop) -> None:
    """Longer than an idle stream may, and the kept-alive connections do not hold the stop."""
    settings = {"shutdown": Shutdown(grace_s=AMPLE_S, idle_s=20 * MS)}
    agent = running.connected(relay, wsgi=shop.app, settings=settings)
    user, other = User(relay), User(relay)
    assert other.ask("GET", "/hello/ann")[0] == 200
    asking = Greenlet.spawn(user.ask, "GET", "/slow")
    assert shop.waiting.wait(AMPLE_S)
    stopping = Greenlet.spawn(agent.stop)
    agent.wait("agent.stopping")
    gevent.sleep(60 * MS)
    assert not asking.ready()
    shop.go.set()
    assert asking.get() == (200, b"at last")
    stopping.get()
    assert agent.wait("agent.stopped").cut == 0
    for one in (user, other):
        one.close()


def test_a_request_that_takes_longer_than_the_grace(
    running: Running, relay: DevRelay, shop: Shop
) -> None:
    agent = running.connected(relay, wsgi=shop.app, settings={"shutdown": Shutdown(grace_s=0)})
    user = running.raw_user(relay, http_get().replace(b" / ", b" /slow "))
    assert shop.waiting.wait(AMPLE_S)
    agent.stop()
    assert shop.closed.is_set(), "its greenlet has ended, too"
    assert read_to_end(user) == b""
    assert agent.wait("agent.stopped").cut == 1
    assert not agent.named("app.failed")
    assert not agent.named("task.failed")
