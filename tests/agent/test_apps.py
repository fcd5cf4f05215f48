"""Which application a stream goes to, and what an agent makes of what it does."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
from gevent import ssl

from nexusg.agent.agent import Agent
from nexusg.agent.apps import Apps, Served
from nexusg.agent.budget import Budget
from nexusg.agent.context import Context
from nexusg.agent.lifecycle import AppFailed, AppStderr
from nexusg.agent.tasks import Tasks
from nexusg.config.model import Config, PortMapping, TlsTerminate
from nexusg.errors import ConfigError, TargetError
from nexusg.relay import certs
from nexusg.targets.certificates import Certificates
from nexusg.targets.request import ConnectRequest
from tests.support.relayed import AMPLE_S, HOST, read_to_end
from tests.support.running import make_config


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nexusg.agent.lifecycle import LifecycleEvent
    from tests.support.running import Running

GET = f"GET /a?token=b HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode()


def saying(text: str) -> Any:
    """An application that answers with a text, and how it was reached."""

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [])
        return [f"{text} by {environ['wsgi.url_scheme']}".encode()]

    return app


def failing(environ: dict[str, Any], _: object) -> list[bytes]:
    environ["wsgi.errors"].write("about to fail\n")
    raise LookupError("no price list")


def request(hostname: str, **fields: Any) -> ConnectRequest:
    usual: dict[str, Any] = {
        "backend": "web",
        "client_id": "the stream",
        "hostname": hostname,
        "original_hostname": hostname,
        "port": 443,
        "client_ip": "192.0.2.7",
        "client_port": 50000,
        "is_tls": False,
        "transport": "tcp",
    }
    return ConnectRequest(**{**usual, **fields})


class Bench:
    """`Apps` with a context of their own."""

    def __init__(self) -> None:
        self.events: list[LifecycleEvent] = []
        self.failures: list[tuple[str, BaseException]] = []
        self.tasks = Tasks("streams", lambda *failure: self.failures.append(failure))
        self.context = Context(
            config=Config(),
            budget=Budget(1 << 20),
            tasks=self.tasks,
            emit=self.events.append,
            task_failed=lambda *failure: self.failures.append(failure),
        )

    def apps(self, wsgi: Any) -> Apps:
        apps = Apps(Config(), wsgi)
        assert apps.attach(self.context, Certificates()) == {}
        return apps

    def ask(self, apps: Apps, hostname: str, **fields: Any) -> bytes | None:
        """What the application that is chosen says. Blocks."""
        target: Any = apps(request(hostname, **fields))
        if target is None:
            return None
        target.sendall(GET)
        return read_to_end(target).rpartition(b"\r\n\r\n")[2]


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    assert bench.tasks.kill(AMPLE_S)
    assert not bench.failures


# Which one ----------------------------------------------------------------------------------------


def test_one_application_serves_every_name(bench: Bench) -> None:
    apps = bench.apps(saying("all"))
    assert bench.ask(apps, "app.example.com") == b"all by http"
    assert bench.ask(apps, "tcp:8443") == b"all by http"


def test_hosts_are_found_as_in_the_mappings(bench: Bench) -> None:
    apps = bench.apps(
        {
            "App.Example.com.": saying("exact"),
            "*.example.com": Served(saying("wildcard")),
            "tcp:8443": saying("port"),
            "default": saying("rest"),
        }
    )
    expected = {
        "app.example.com": b"exact by http",
        "other.example.com": b"wildcard by http",
        "two.labels.example.com": b"rest by http",
        "tcp:8443": b"port by http",
        "": b"rest by http",
    }
    assert {name: bench.ask(apps, name) for name in expected} == expected


def test_what_nobody_serves_is_left_to_the_mappings(bench: Bench) -> None:
    apps = bench.apps({"app.example.com": saying("exact")})
    assert bench.ask(apps, "other.example.com") is None
    assert bench.ask(apps, "app.example.com", transport="udp") is None
    assert bench.ask(bench.apps(None), "app.example.com") is None


def test_tls_needs_a_certificate(bench: Bench) -> None:
    apps = bench.apps(saying("all"))
    with pytest.raises(TargetError, match=r"wsgi:.*app: the user speaks TLS, and there is no"):
        apps(request("app.example.com", is_tls=True))


def test_a_certificate_that_cannot_be_loaded(bench: Bench) -> None:
    how = TlsTerminate(cert_file="nowhere.pem")
    apps = bench.apps(Served(saying("all"), how))
    with pytest.raises(TargetError, match=r"nowhere\.pem"):
        apps(request("app.example.com", is_tls=True))
    assert bench.ask(apps, "app.example.com") == b"all by http", "who comes without TLS"


@pytest.mark.parametrize(
    ("wsgi", "said"),
    [
        (42, "wsgi: is of type int, and a WSGI application is something to call"),
        (
            {"a.test": 42},
            'wsgi["a.test"]: is of type int, and a WSGI',
        ),
        ({"": saying("x")}, 'wsgi[""]: is a blank host name or pattern'),
        ({"*.": saying("x")}, 'wsgi["*."]: is a blank host name or pattern'),
        (
            {"a.test": saying("x"), "A.test.": saying("y")},
            'wsgi["A.test."]: the name stands here twice',
        ),
        (Served(None), "wsgi: is of type NoneType, and"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_served(wsgi: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Apps(Config(), wsgi)
    assert str(caught.value).startswith(said)


# Names, errors, output ----------------------------------------------------------------------------


class Shop:
    """An application that is an object."""

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        return saying("shop")(environ, start_response)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("app", "name"),
    [
        (failing, f"wsgi:{__name__}:failing"),
        (Shop(), f"wsgi:{__name__}:Shop"),
        (Served(Shop(), name="the shop"), "the shop"),
    ],
)
def test_applications_have_names(bench: Bench, app: Any, name: str) -> None:
    target = bench.apps(app)(request("app.example.com"))
    assert target is not None
    assert target.name == name
    target.close()


def test_what_goes_wrong_is_an_event(bench: Bench) -> None:
    assert bench.ask(bench.apps(failing), "app.example.com") == b"Internal Server Error"
    said, failed = bench.events
    assert isinstance(said, AppStderr)
    assert isinstance(failed, AppFailed)
    name = f"wsgi:{__name__}:failing"
    assert (said.name(), said.app, said.text) == ("app.stderr", name, "about to fail")
    assert (failed.name(), failed.app, failed.stream) == ("app.failed", name, "the stream")
    assert (failed.request, failed.error) == ("GET /a", "LookupError: no price list")
    assert failed.traceback.endswith("LookupError: no price list\n")
    assert "in failing" in failed.traceback


# With an agent ------------------------------------------------------------------------------------


def test_applications_that_targets_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "named_app.py").write_text(
        "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'named']"
    )
    mappings = {
        1: PortMapping("wsgi:named_app:app", {"a.test": "127.0.0.1:1"}),
        2: PortMapping(hosts={"b.test": "wsgi:named_app:app"}),
    }
    apps = Apps(make_config((), backend={"port_mappings": mappings}), None)
    bench = Bench()
    services = apps.attach(bench.context, Certificates())
    assert list(services) == ["wsgi:named_app:app"]
    target: Any = services["wsgi:named_app:app"].connect(
        request("app.example.com"), bench.tasks.spawn, False
    )
    target.sendall(GET)
    assert read_to_end(target).endswith(b"named")
    assert bench.tasks.join(AMPLE_S)
    del sys.modules["named_app"]


def test_a_target_that_names_none_is_an_error_of_the_configuration() -> None:
    backend = {
        "nexus_addresses": ("ws://127.0.0.1:9/",),
        "port_mappings": {443: PortMapping("wsgi:nowhere:app")},
    }
    with pytest.raises(ConfigError, match="wsgi:nowhere:app: there is no module 'nowhere'"):
        Agent(make_config((), backend=backend))


def test_an_agent_needs_no_mappings_for_them(running: Running) -> None:
    relay = running.relay()
    agent = running.connected(relay, wsgi=saying("all"), backend={"port_mappings": {}})
    user = running.raw_user(relay, GET)
    assert read_to_end(user).endswith(b"all by http")
    assert agent.wait("stream.closed").target == f"wsgi:{__name__}:saying.<locals>.app"


def test_handlers_come_before_and_mappings_after_them(running: Running) -> None:
    relay = running.relay()
    asked: list[str] = []

    def handler(request: ConnectRequest) -> None:
        asked.append(request.hostname)

    agent = running.connected(
        relay, wsgi={"other.test": saying("all")}, connect_handler=handler, target="127.0.0.1:9"
    )
    running.raw_user(relay, GET)
    closed = agent.wait("stream.closed")
    assert (asked, closed.reason) == ([HOST], "dial_failed")
    agent.add_connect_handler(saying)
    assert agent._handlers[0] is agent._apps


def test_tls_is_ended_in_the_process(running: Running, tmp_path: Path) -> None:
    ca_file, certificate = certs.ensure(tmp_path, [HOST])
    how = TlsTerminate(cert_file=str(certificate))
    relay = running.relay()
    running.connected(relay, wsgi={HOST: Served(saying("mine"), how)}, target="127.0.0.1:9")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca_file)
    with context.wrap_socket(running.raw_user(relay), server_hostname=HOST) as user:
        user.sendall(GET)
        assert read_to_end(user).endswith(b"mine by https")


def test_tls_without_a_certificate_says_so_in_the_log(running: Running) -> None:
    relay = running.relay()
    agent = running.connected(relay, wsgi=saying("all"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with pytest.raises(OSError, match=r"."):
        context.wrap_socket(running.raw_user(relay), server_hostname=HOST)
    closed = agent.wait("stream.closed")
    assert (closed.reason, closed.is_tls) == ("dial_failed", True)
    assert "the user speaks TLS, and there is no certificate" in closed.error


def test_it_serves_again_after_a_restart(running: Running) -> None:
    relay = running.relay()
    agent = running.connected(relay, wsgi=failing)
    for count in (1, 2):
        assert b" 500 " in read_to_end(running.raw_user(relay, GET))
        agent.wait("app.failed", count)
        agent.stop()
        agent.start()
        agent.wait("session.connected", count + 1)
