"""PROXY protocol headers as real servers read them: nginx and gunicorn say whom they see."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from gevent import sleep, socket

from nexusg.config.destination import Destination, TargetTls, TlsTerminate
from nexusg.errors import TargetError
from nexusg.targets.certificates import Certificates
from nexusg.targets.dial import dial
from nexusg.targets.terminate import terminate
from tests.conftest import MS
from tests.targets.conformance import BUFFER, read, send_all
from tests.targets.test_terminate import client
from tests.targets.users import TlsUser, user


if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nexusg.targets.base import Target
    from nexusg.targets.request import ConnectRequest
    from tests.support.certs import Authority

STARTUP_S = 10.0
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
NGINX_CONF = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2;
    fastcgi_temp_path {folder}/t3; uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
    server {{
        listen 127.0.0.1:{port} proxy_protocol;
        listen 127.0.0.1:{tls_port} ssl proxy_protocol;
        listen unix:{folder}/s proxy_protocol;
        ssl_certificate {pem}; ssl_certificate_key {pem};
        set_real_ip_from 127.0.0.1; set_real_ip_from unix:;
        real_ip_header proxy_protocol;
        location / {{
            add_header Seen "$remote_addr $remote_port";
            add_header Destination "$proxy_protocol_server_addr $proxy_protocol_server_port";
            return 204;
        }}
    }}
}}
"""
APP = """
def app(environ, start_response):
    seen = "%s %s" % (environ["REMOTE_ADDR"], environ["REMOTE_PORT"])
    start_response("200 OK", [("Seen", seen), ("Content-Length", "0")])
    return [b""]
"""

#: What the relay may tell of users, and what a server should see.
USERS = {
    "ipv4": (user(), "192.0.2.7 50000"),
    "ipv6": (user(client_ip="2001:db8::7"), "2001:db8::7 50000"),
    "mapped": (user(client_ip="::ffff:192.0.2.7"), "192.0.2.7 50000"),
}
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
each_version = pytest.mark.parametrize("version", ["v1", "v2"])
each_user = pytest.mark.parametrize("who", USERS)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, for servers that cannot be told to choose."""
    sockets = [socket.socket() for _ in range(count)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def up(process: subprocess.Popen[str], *addresses: Any) -> None:
    """Wait until somebody listens at each of the addresses. Blocks."""
    waited_s = 0.0
    for address in addresses:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        while True:
            with socket.socket(family) as sock:
                if sock.connect_ex(address) == 0:
                    break
            assert process.poll() is None, process.communicate()
            assert waited_s < STARTUP_S, "the server does not come up"
            sleep(10 * MS)
            waited_s += 10 * MS


def stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.communicate(timeout=STARTUP_S)


def get(target: Target) -> Answer:
    """The answer to a request; the target is closed. Blocks."""
    assert send_all(target, b"GET / HTTP/1.1\r\nHost: app.example.com\r\n\r\n") is None
    found = b""
    while b"\r\n\r\n" not in found:
        data = read(target)
        assert data, found
        found += data
    target.close()
    lines = found.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:] if line)
    return Answer(int(lines[0].split()[1]), headers)


def ask(
    target: str, version: str, request: ConnectRequest | None, tls: TargetTls | None = None
) -> Answer:
    how = Destination(proxy_protocol=version, tls=tls or TargetTls())
    return get(dial(target, how, request, BUFFER))


# --- nginx -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nginx(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority
) -> Iterator[dict[str, str]]:
    """The targets it is reached at."""
    assert NGINX is not None
    folder = tmp_path_factory.mktemp("nginx")
    port, tls_port = free_ports(2)
    conf = folder / "nginx.conf"
    conf.write_text(
        NGINX_CONF.format(folder=folder, port=port, tls_port=tls_port, pem=authority.issue())
    )
    process = subprocess.Popen(
        [NGINX, "-p", str(folder), "-e", "stderr", "-c", str(conf)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        up(process, ("127.0.0.1", port), ("127.0.0.1", tls_port), f"{folder}/s")
        yield {
            "tcp": f"127.0.0.1:{port}",
            "unix": f"unix:{folder}/s",
            "tls": f"tls://127.0.0.1:{tls_port}",
        }
    finally:
        stop(process)


def nginx_version() -> tuple[int, ...]:
    assert NGINX is not None
    said = subprocess.run([NGINX, "-v"], capture_output=True, text=True).stderr
    found = re.search(r"nginx/([\d.]+)", said)
    assert found, said
    return tuple(map(int, found[1].split(".")))


@needs_nginx
@pytest.mark.parametrize("kind", ["tcp", "unix", "tls"])
@each_version
@each_user
def test_nginx_sees_the_user(
    nginx: dict[str, str], authority: Authority, kind: str, version: str, who: str
) -> None:
    request, seen = USERS[who]
    answer = ask(nginx[kind], version, request, TargetTls(ca_file=str(authority.ca_file)))
    placeholder = "::1" if who == "ipv6" else "127.0.0.1"
    assert answer.status == 204
    assert answer.headers["Seen"] == seen
    assert answer.headers["Destination"] == f"{placeholder} 443"


@needs_nginx
@each_version
def test_nginx_takes_a_user_without_an_address(nginx: dict[str, str], version: str) -> None:
    for request in (user(client_ip=""), None):
        answer = ask(nginx["tcp"], version, request)
        assert answer.status == 204
        assert answer.headers["Seen"].startswith("127.0.0.1 ")


@needs_nginx
@pytest.mark.parametrize("kind", ["tcp", "tls"])
def test_how_long_a_header_nginx_takes(
    nginx: dict[str, str], authority: Authority, kind: str
) -> None:
    """Where it speaks TLS itself: 107 bytes before 1.23.3, as docs/targets.md says."""
    tls = TargetTls(ca_file=str(authority.ca_file))
    request = user(client_ip="2001:db8::7", original_hostname="x" * 255)
    if kind == "tls" and nginx_version() < (1, 23, 3):
        with pytest.raises(TargetError):
            ask(nginx[kind], "v2", request, tls)
        assert ask(nginx[kind], "v1", request, tls).status == 204
    else:
        assert ask(nginx[kind], "v2", request, tls).status == 204


@needs_nginx
@each_version
def test_an_encrypted_user_of_a_plain_nginx(
    nginx: dict[str, str], authority: Authority, version: str
) -> None:
    """TLS ends at the agent, and the header still goes first."""
    request, seen = USERS["ipv4"]
    target = dial(nginx["unix"], Destination(proxy_protocol=version), request, BUFFER)
    target = terminate(target, TlsTerminate(str(authority.issue())), Certificates())
    answer = get(TlsUser(target, client(authority)).shake_hands())
    assert answer.headers["Seen"] == seen


# --- gunicorn --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gunicorn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The targets it is reached at."""
    pytest.importorskip("gunicorn", "24.1", "gunicorn 24.1 reads version 2")
    folder: Path = tmp_path_factory.mktemp("gunicorn")
    (folder / "serving.py").write_text(APP)
    # It inherits the listeners, so that no port has to be guessed.
    listeners = [socket.socket(), socket.socket(socket.AF_UNIX)]
    for listener, address in zip(listeners, (("127.0.0.1", 0), f"{folder}/s"), strict=True):
        listener.bind(address)
        listener.listen(16)
    targets = {"tcp": f"127.0.0.1:{listeners[0].getsockname()[1]}", "unix": f"unix:{folder}/s"}
    numbers = [listener.fileno() for listener in listeners]
    command = [sys.executable, "-m", "gunicorn", "--proxy-protocol", "--chdir", str(folder)]
    command += [f"--bind=fd://{number}" for number in numbers]
    command += ["--log-level=warning", "--no-control-socket", "serving:app"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, pass_fds=numbers
    )
    for listener in listeners:
        listener.close()
    try:
        yield targets
    finally:
        stop(process)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@each_version
@each_user
def test_gunicorn_sees_the_user(
    gunicorn: dict[str, str], kind: str, version: str, who: str
) -> None:
    request, seen = USERS[who]
    answer = ask(gunicorn[kind], version, request)
    assert (answer.status, answer.headers["Seen"]) == (200, seen)


@each_version
def test_gunicorn_and_a_user_without_an_address(gunicorn: dict[str, str], version: str) -> None:
    """It refuses UNKNOWN, and takes LOCAL."""
    answer = ask(gunicorn["tcp"], version, user(client_ip=""))
    assert answer.status == (400 if version == "v1" else 200)


@each_version
def test_gunicorn_takes_a_health_check(gunicorn: dict[str, str], version: str) -> None:
    assert ask(gunicorn["tcp"], version, None).status == 200
