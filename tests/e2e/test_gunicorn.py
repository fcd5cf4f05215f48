"""A real gunicorn, whose app is reached by way of a relay."""

from __future__ import annotations

import os
import signal
import ssl
from typing import TYPE_CHECKING

import pytest
import websocket

from tests.integrations.app import PIECE
from tests.integrations.server import ADDRESS, BOOTED, CONNECTED, Gunicorn, write_files
from tests.support.certs import Authority
from tests.support.relayed import HOST, SECRET
from tests.support.source import ROOT


if TYPE_CHECKING:
    from pathlib import Path

    from nexusg.relay.server import DevRelay
    from tests.support.running import Running


pytest.importorskip("gunicorn")

CLOSED = r"\[(\d+)\] \[INFO\] nexusg: session.closed "


@pytest.fixture
def relay(running: Running) -> DevRelay:
    """A relay without agents."""
    return running.relay()


def test_every_worker_serves_the_relays_users(relay: DevRelay, tmp_path: Path) -> None:
    """In turn, each with sessions of its own, and as gunicorn serves its own users."""
    write_files(tmp_path, relay, workers=2)
    with Gunicorn(tmp_path, relay) as server:
        workers = set(server.wait(CONNECTED, 2))
        assert workers == set(server.found(BOOTED))
        served = set()
        for _ in workers:
            with server.user() as user:
                first = user.get("/").json
                assert first["REMOTE_ADDR"] == ADDRESS
                assert first["REMOTE_PORT"] == user.port_here
                port = user.port_here
                assert user.get("/").json == first, "not kept alive"
                assert user.port_here == port
                served.add(str(first["pid"]))
        assert served == workers
        server.wait(rf'^{ADDRESS} - - .* "GET / HTTP/1.1" 200', 4)
        with server.user() as slow:
            slow.ask(f"/wait?{tmp_path / 'go'}")
            server.wait("^waiting")
            server.signal(signal.SIGTERM)
            server.wait(r"nexusg: session.closed")  # of the worker that has nothing to do
            (tmp_path / "go").touch()
            assert slow.answer().status == 200
        assert server.end() == 0
        assert set(server.found(CLOSED)) == workers
        assert "Traceback" not in str(server)


@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
def test_a_reload_loses_nothing(relay: DevRelay, tmp_path: Path, preload: bool) -> None:
    """What is in flight ends with the old worker; the relay is never without one to turn to."""
    write_files(tmp_path, relay, preload_app=preload)
    with Gunicorn(tmp_path, relay) as server:
        [old] = server.wait(CONNECTED)
        pieces = 200  # 12 MiB, more than all buffers on the way
        with server.user() as slow, server.user() as download:
            slow.ask(f"/wait?{tmp_path / 'go'}")
            server.wait("^waiting")
            download.ask(f"/download?{pieces}")
            response = download.getresponse()
            half = response.read(pieces // 2 * len(PIECE))
            server.signal(signal.SIGHUP)
            [_, new] = server.wait(CONNECTED, 2)
            with server.user() as one, server.user() as other:
                assert {one.get("/").json["pid"], other.get("/").json["pid"]} == {
                    int(old),
                    int(new),
                }
            assert half + response.read() == pieces * PIECE
            assert not server.found(CLOSED)
            (tmp_path / "go").touch()
            assert slow.answer().json["pid"] == int(old)
        assert server.wait(CLOSED) == [old]
        server.wait(rf"Worker exiting \(pid: {old}\)")
        with server.user() as user:
            assert user.get("/").json["pid"] == int(new)
        assert "Traceback" not in str(server)


def test_users_who_come_during_a_reload(relay: DevRelay, tmp_path: Path) -> None:
    """The old worker keeps its session until the new one has its own, however long that boots.

    The relay may still send a user to a session whose close frame is on its way.
    """
    write_files(tmp_path, relay)
    with Gunicorn(tmp_path, relay) as server:
        server.wait(CONNECTED)
        server.signal(signal.SIGHUP)
        answered = lost = 0
        while not server.found(CLOSED):
            with server.user() as user:
                try:
                    assert user.get("/").status == 200
                    answered += 1
                except ConnectionError:
                    lost += 1
        assert answered
        assert lost <= 1
        assert len(server.found(CONNECTED)) == 2


def test_one_per_host_is_followed_by_another(relay: DevRelay, tmp_path: Path) -> None:
    """Through gunicorn's socket, so that all workers share the load of the one with the session."""
    serve = f"mode='one per host', lock='{tmp_path / 'lock'}', deliver='socket'"
    settings = {"workers": 2, "bind": f"unix:{tmp_path / 'socket'}", "proxy_protocol": True}
    write_files(tmp_path, relay, serve=serve, **settings)
    with Gunicorn(tmp_path, relay) as server:
        [leader] = server.wait(CONNECTED)
        [follower] = server.wait(r"\[(\d+)\] \[INFO\] nexusg: .* standing by")
        assert leader != follower
        with server.user() as user:
            said = user.get("/").json
            assert (said["REMOTE_ADDR"], said["REMOTE_PORT"]) == (ADDRESS, user.port_here)
        server.signal(signal.SIGKILL, leader)
        second = server.wait(CONNECTED, 2)[1]  # the one that stands by, or the one in its place
        assert second != leader
        with server.user() as user:
            assert user.get("/").status == 200
        server.signal(signal.SIGTERM, second)  # hands over before it goes
        third = server.wait(CONNECTED, 3)[2]
        assert third not in (leader, second)
        assert server.wait(CLOSED) == [second]
        with server.user() as user:
            assert user.get("/").status == 200


def test_websockets_through_geventwebsockets_worker(relay: DevRelay, tmp_path: Path) -> None:
    worker_class = "geventwebsocket.gunicorn.workers.GeventWebSocketWorker"
    write_files(tmp_path, relay, worker_class=worker_class)
    with Gunicorn(tmp_path, relay) as server:
        server.wait(CONNECTED)
        with server.user() as user:
            said = user.get("/").json
            assert (said["REMOTE_ADDR"], said["REMOTE_PORT"]) == (ADDRESS, user.port_here)
        with server.user() as user:
            user.connect()
            link = websocket.create_connection(f"ws://{HOST}/echo", socket=user.sock)
            for message in ("hello", "x" * 100_000):
                link.send(message)
                assert link.recv() == message
            link.close()
        server.signal(signal.SIGTERM)
        assert server.end() == 0
        assert server.found(CLOSED)


def test_gunicorns_own_certificate(relay: DevRelay, tmp_path: Path) -> None:
    """TLS ends in gunicorn, and the relay only looks at the name. Plain HTTP is not for it then."""
    authority = Authority(tmp_path)
    certificate = authority.issue([HOST])
    write_files(tmp_path, relay, certfile=str(certificate), keyfile=str(certificate))
    with Gunicorn(tmp_path, relay) as server:
        server.wait(CONNECTED)
        context = ssl.create_default_context(cafile=authority.ca_file)
        with server.user() as user:
            user.connect()
            user.sock = context.wrap_socket(user.sock, server_hostname=HOST)
            said = user.get("/").json
            assert (said["REMOTE_ADDR"], said["wsgi.url_scheme"]) == (ADDRESS, "https")
        with server.user() as user, pytest.raises(ConnectionError):
            user.get("/")
        server.wait("gunicorn speaks TLS and the user does not: map port")


def test_a_worker_that_has_served_enough(relay: DevRelay, tmp_path: Path) -> None:
    """gunicorn counts the relay's users, too, and what takes a worker's place has a session."""
    write_files(tmp_path, relay, max_requests=1)
    with Gunicorn(tmp_path, relay) as server:
        [old] = server.wait(CONNECTED)
        with server.user() as user:
            assert user.get("/").json["pid"] == int(old)
        assert server.wait(CLOSED) == [old]
        server.wait(CONNECTED, 2)


def test_a_worker_whose_source_has_changed(relay: DevRelay, tmp_path: Path) -> None:
    """Under --reload, which ends a worker from a thread."""
    watched = tmp_path / "watched"
    watched.touch()
    options = {"reload": True, "reload_engine": "poll", "reload_extra_files": [str(watched)]}
    write_files(tmp_path, relay, **options)
    with Gunicorn(tmp_path, relay) as server:
        [old] = server.wait(CONNECTED)
        os.utime(watched, (2**31, 2**31))
        assert server.wait(CLOSED) == [old]
        server.wait(CONNECTED, 2)


def test_what_does_not_end_within_the_graceful_timeout(relay: DevRelay, tmp_path: Path) -> None:
    write_files(tmp_path, relay, graceful_timeout=2)
    with Gunicorn(tmp_path, relay) as server:
        [pid] = server.wait(CONNECTED)
        with server.user() as slow:
            slow.ask("/wait?/never")
            server.wait("^waiting")
            server.signal(signal.SIGTERM)
            with pytest.raises(ConnectionError):
                slow.answer()
        assert server.end() == 0
        assert server.found(CLOSED) == [pid]
        assert server.found("nexusg: agent.stopped cut=1")


def test_a_quick_end(relay: DevRelay, tmp_path: Path) -> None:
    write_files(tmp_path, relay)
    with Gunicorn(tmp_path, relay) as server:
        [pid] = server.wait(CONNECTED)
        with server.user() as slow:
            slow.ask("/wait?/never")
            server.wait("^waiting")
            server.signal(signal.SIGQUIT)
            assert server.end() == 0
        assert server.found(CLOSED) == [pid]


def test_a_worker_that_knows_no_gevent(relay: DevRelay, tmp_path: Path) -> None:
    """The app is served all the same, but for the relay's users."""
    write_files(tmp_path, relay, worker_class="sync")
    with Gunicorn(tmp_path, relay) as server:
        server.wait(r"\[ERROR\] nexusg: no tunnel, .* run gunicorn with --worker-class gevent")
        [port] = server.wait(r"Listening at: http://127.0.0.1:(\d+)")
        with server.user(int(port)) as user:
            assert user.get("/").status == 200
        assert not server.found("session.connected")


def test_a_configuration_that_cannot_be_used(relay: DevRelay, tmp_path: Path) -> None:
    """Nothing starts with it; but a server that runs goes on with what it has."""
    write_files(tmp_path, relay)
    with Gunicorn(tmp_path, relay) as server:
        server.wait(CONNECTED)
        path = tmp_path / "nexusg.yaml"
        good = path.read_text()
        path.write_text(good.replace("nexusAddresses", "nexusAdresses"))
        server.signal(signal.SIGHUP)
        server.wait(r"\[ERROR\] nexusg: nexusg.yaml:4:5: .* did you mean nexusAddresses")
        server.wait(r"\[ERROR\] nexusg: nexusg.yaml cannot be used, so this worker does what it")
        server.wait(CONNECTED, 2)
        with server.start("-b", "127.0.0.1:0") as second:
            said = second.stdout.read()
            assert second.wait() == 1
        assert said.startswith("nexusg: no usable configuration:\nnexusg.yaml:4:5: ")
        assert said.endswith(": mend nexusg.yaml, and start it again\n")
        assert "Traceback" not in said


def test_the_example(relay: DevRelay, tmp_path: Path) -> None:
    """As it is but for its ports, and for where it finds the relay's files."""
    files = {path.name: path.read_text() for path in (ROOT / "examples" / "gunicorn").glob("*.*")}
    assert set(files) == {"gunicorn.conf.py", "app.py", "config.yaml"}
    (tmp_path / "secret").write_text(SECRET)
    for old, new in {
        "nexusg-dev/secret": "secret",
        "nexusg-dev/ca.pem": str(relay.ca_file),
        "wss://127.0.0.1:9443/connect": relay.url,
        'bind = "127.0.0.1:8000"': 'bind = "127.0.0.1:0"',
    }.items():
        assert any(old in text for text in files.values()), old
        files = {name: text.replace(old, new) for name, text in files.items()}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "secret").chmod(0o600)
    with Gunicorn(tmp_path, relay) as server:
        assert len(set(server.wait(CONNECTED, 2))) == 2
        with server.user(hostname="demo.localhost") as user:
            assert user.get("/").body.startswith(f"Hello {ADDRESS}, this is worker ".encode())
