"""Dialling local services over real sockets: every form of target, and what is said before."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, ClassVar

import gevent
import pytest
from gevent import Greenlet, socket, ssl

from nexusg.config.destination import Destination, TargetTls
from nexusg.errors import TargetError
from nexusg.targets import dial as dial_module
from nexusg.targets.certificates import Certificates
from nexusg.targets.dial import dial, split
from nexusg.targets.proxy_protocol import header
from nexusg.targets.sockets import SocketTarget, TlsSocketTarget
from tests.conftest import MS
from tests.targets.conformance import BUFFER, TargetContract, read, read_exactly, receive
from tests.targets.pairs import SMALL_BYTES
from tests.targets.users import USER


if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nexusg.targets.base import Target
    from tests.support.certs import Authority

PLAIN = Destination()


def place(listener: Any) -> str:
    return f"127.0.0.1:{listener.getsockname()[1]}"


def listen() -> Any:
    """A TCP listener whose connections clog early."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BYTES)
    listener.bind(("127.0.0.1", 0))
    listener.listen(5)
    return listener


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with listen() as sock:
        yield sock


class DialContract(TargetContract):
    """What holds for every form of target, the contract of targets included."""

    how: Destination = PLAIN

    @pytest.fixture(autouse=True)
    def listening(self, tmp_path: Path, authority: Authority) -> Iterator[None]:
        self.path, self.authority = str(tmp_path / "s"), authority
        self.listener = self.listen()
        yield
        self.listener.close()

    def listen(self) -> Any:
        return listen()

    @property
    def target(self) -> str:
        return place(self.listener)

    def accept(self, before: int = 0) -> tuple[bytes, Any]:
        """So many bytes that come first, and the service's end. Blocks."""
        peer, _ = self.listener.accept()
        return receive(peer, before), peer

    def connect(self) -> tuple[Target, Any]:
        accepting = Greenlet.spawn(self.accept)
        target = dial(self.target, self.how, None, BUFFER)
        target._sock.setsockopt(  # type: ignore[attr-defined]
            socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BYTES
        )
        return target, accepting.get()[1]

    def failure(self, timeout_s: float = 5.0) -> TargetError:
        with pytest.raises(TargetError) as caught:
            dial(self.target, self.how, None, BUFFER, timeout_s)
        assert str(caught.value).startswith(f"target {self.target}: ")
        return caught.value

    def test_it_is_called_what_it_is_called_in_the_configuration(self, ends: Any) -> None:
        assert ends[0].name == self.target

    @pytest.mark.parametrize("version", ["v1", "v2"])
    def test_the_user_comes_first(self, version: str) -> None:
        """Before TLS, and before what the user says."""
        expected = header(version, USER)
        how = Destination(proxy_protocol=version, tls=self.how.tls)
        accepting = Greenlet.spawn(self.accept, len(expected))
        target = dial(self.target, how, USER, BUFFER)
        found, peer = accepting.get()
        assert found == expected
        assert target.try_send(b"hello") == 5
        assert receive(peer, 5) == b"hello"
        target.close()
        peer.close()

    def test_a_service_that_speaks_at_once(self) -> None:
        def speak() -> Any:
            _, peer = self.accept()
            peer.sendall(b"220 ready")
            return peer

        speaking = Greenlet.spawn(speak)
        target = dial(self.target, self.how, None, BUFFER)
        assert read_exactly(target, 9) == b"220 ready"
        target.close()
        speaking.get().close()

    def test_refused(self) -> None:
        name = self.target
        self.listener.close()
        with pytest.raises(TargetError, match=f"target {name}: cannot connect to ") as caught:
            dial(name, self.how, None, BUFFER)
        assert caught.value.code == "refused"

    def test_timeout(self) -> None:
        """A full backlog: Linux drops what comes, or has unix sockets try again."""
        self.listener.listen(0)
        fillers = [socket.socket(self.listener.family) for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(self.listener.getsockname())
        gevent.sleep(0)
        error = self.failure(10 * MS)
        assert error.code == "timeout"
        assert "0.01 s" in str(error)
        for filler in fillers:
            filler.close()

    def test_an_interrupted_dial_leaves_no_socket(self) -> None:
        self.listener.listen(0)
        fillers = [socket.socket(self.listener.family) for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(self.listener.getsockname())
        before = len(os.listdir("/proc/self/fd"))
        late = TargetError("late", "timeout")
        with pytest.raises(TargetError) as caught, gevent.Timeout(5 * MS, late):
            dial(self.target, self.how, None, BUFFER)
        assert caught.value is late
        assert len(os.listdir("/proc/self/fd")) <= before
        for filler in fillers:
            filler.close()


class TestTcp(DialContract):
    def test_what_was_written_is_sent_at_once(self, ends: Any) -> None:
        target, _ = ends
        assert type(target) is SocketTarget
        assert target._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


class TestUnix(DialContract):
    def listen(self) -> Any:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen(5)
        return listener

    @property
    def target(self) -> str:
        return f"unix:{self.path}"

    def test_no_socket_there(self) -> None:
        os.unlink(self.path)
        error = self.failure()
        assert "No such file or directory" in str(error)
        assert error.code == "refused"


class TestAbstract(TestUnix):
    name: ClassVar[str] = f"nexusg-test-{os.getpid()}"

    def listen(self) -> Any:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"\0{self.name}")
        listener.listen(5)
        return listener

    @property
    def target(self) -> str:
        return f"unix:@{self.name}"

    def test_no_socket_there(self) -> None:
        self.listener.close()
        assert self.failure().code == "refused"


class TestTls(DialContract):
    half_closes = False

    def listen(self) -> Any:
        self.how = Destination(tls=TargetTls(ca_file=str(self.authority.ca_file)))
        self.context = self.authority.server_context()
        return listen()

    @property
    def target(self) -> str:
        return f"tls://{place(self.listener)}"

    def accept(self, before: int = 0) -> tuple[bytes, Any]:
        found, peer = super().accept(before)
        return found, self.context.wrap_socket(peer, server_side=True)

    def test_tls(self, ends: Any) -> None:
        target, peer = ends
        assert type(target) is TlsSocketTarget
        assert peer.version() == "TLSv1.3"
        assert peer.selected_alpn_protocol() is None

    def test_a_silent_service(self) -> None:
        error = self.failure(10 * MS)
        assert error.code == "timeout"
        assert str(error) == f"target {self.target}: not connected within 0.01 s"


# --- TCP and unix ----------------------------------------------------------------------------


def talk(target: Target, listener: Any) -> None:
    peer, _ = listener.accept()
    assert target.try_send(b"ping") == 4
    assert receive(peer, 4) == b"ping"
    peer.sendall(b"pong")
    assert read(target) == b"pong"
    target.close()
    peer.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", ""])
def test_tcp(listener: socket.socket, host: str) -> None:
    name = f"{host}:{listener.getsockname()[1]}"
    target = dial(name, PLAIN, None, BUFFER)
    assert target.name == name
    talk(target, listener)


def test_ipv6() -> None:
    with socket.socket(socket.AF_INET6) as listener:
        try:
            listener.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        listener.listen(1)
        talk(dial(f"[::1]:{listener.getsockname()[1]}", PLAIN, None, BUFFER), listener)


def test_no_such_name() -> None:
    """A label that is too long fails in the resolver without asking a name server."""
    with pytest.raises(TargetError, match=r"^target x+") as caught:
        dial(f"{'x' * 64}.invalid:80", PLAIN, None, BUFFER)
    assert caught.value.code == "dns"


def test_a_service_that_hangs_up_before_it_knows_for_whom(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    monkeypatch.setattr(dial_module, "connect_unix", lambda *_: ours)
    with pytest.raises(TargetError) as caught:
        dial("unix:/run/app.sock", Destination(proxy_protocol="v1"), USER, BUFFER)
    text = "target unix:/run/app.sock: the connection broke at once: Broken pipe"
    assert str(caught.value) == text
    assert caught.value.code == "io"
    assert ours.fileno() == -1


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:80", ("::1", 80)),
        ("app.internal:http", ("app.internal", 80)),
        (":8080", ("localhost", 8080)),
        ("tls://app.internal:8443", ("app.internal", 8443)),
        ("tls://[::1]:https", ("::1", 443)),
    ],
)
def test_split(target: str, expected: tuple[str, int]) -> None:
    assert split(target) == expected


def test_an_unknown_service_is_named() -> None:
    with pytest.raises(TargetError, match="knows no TCP service 'no-such-service'") as caught:
        dial("127.0.0.1:no-such-service", PLAIN, None, BUFFER)
    assert caught.value.code == "dns"


# --- TLS -------------------------------------------------------------------------------------


class Service:
    """Shakes hands with whoever comes, and says whom it was asked for and who it was shown."""

    def __init__(self, listener: Any, context: ssl.SSLContext) -> None:
        self.names: list[str | None] = []
        self.target = f"tls://{place(listener)}"
        self._context, self._listener = context, listener
        context.sni_callback = lambda _sock, name, _context: self.names.append(name)
        self._serving = Greenlet.spawn(self._serve)

    def stop(self) -> None:
        self._serving.kill()

    def _serve(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            try:
                with self._context.wrap_socket(sock, server_side=True) as wrapped:
                    shown = wrapped.getpeercert() or {}
                    wrapped.sendall(b"client" if shown else b"nobody")
            except OSError:
                sock.close()


@pytest.fixture
def serve(listener: Any) -> Iterator[Any]:
    services = []

    def start(context: ssl.SSLContext) -> Service:
        services.append(Service(listener, context))
        return services[0]

    yield start
    for service in services:
        service.stop()


def greeting(target: str, tls: TargetTls, **more: Any) -> bytes:
    connected = dial(target, Destination(tls=tls), None, BUFFER, **more)
    try:
        return read_exactly(connected, 6)
    finally:
        connected.close()


def refusal(target: str, tls: TargetTls) -> str:
    with pytest.raises(TargetError) as caught:
        greeting(target, tls)
    assert caught.value.code == "tls"
    return str(caught.value)


def test_an_address_is_verified_as_one(serve: Any, authority: Authority) -> None:
    service = serve(authority.server_context(["127.0.0.1"]))
    assert greeting(service.target, TargetTls(ca_file=str(authority.ca_file))) == b"nobody"
    assert service.names == [None]


def test_an_address_that_is_not_in_the_certificate(serve: Any, authority: Authority) -> None:
    service = serve(authority.server_context(["app.internal"]))
    text = refusal(service.target, TargetTls(ca_file=str(authority.ca_file)))
    assert text.startswith(f"target {service.target}: the certificate of {service.target[6:]} is ")
    assert text.endswith("dial a name that it holds, or set serverName to one")


def test_another_name(serve: Any, authority: Authority) -> None:
    service = serve(authority.server_context(["app.internal"]))
    tls = TargetTls(ca_file=str(authority.ca_file), server_name="app.internal")
    assert greeting(service.target, tls) == b"nobody"
    assert service.names == ["app.internal"]


def test_the_host_is_the_name_by_default(serve: Any, authority: Authority) -> None:
    service = serve(authority.server_context(["localhost"]))
    target = service.target.replace("127.0.0.1", "localhost")
    assert greeting(target, TargetTls(ca_file=str(authority.ca_file))) == b"nobody"
    assert service.names == ["localhost"]


def test_verification_is_on(serve: Any, authority: Authority, stranger: Authority) -> None:
    service = serve(authority.server_context())
    for tls in (TargetTls(), TargetTls(ca_file=str(stranger.ca_file))):
        assert "if its authority is to be trusted, name it with caFile" in refusal(
            service.target, tls
        )


@pytest.mark.parametrize("defect", ["expired", "name", "authority"])
def test_verification_off(serve: Any, stranger: Authority, defect: str) -> None:
    names = ["elsewhere.test"] if defect == "name" else ["127.0.0.1"]
    days = (-30, -10) if defect == "expired" else (-30, 10)
    service = serve(stranger.server_context(names, days=days))
    assert greeting(service.target, TargetTls(verify=False)) == b"nobody"


def test_the_trust_of_the_system(
    serve: Any, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_file))
    assert greeting(serve(authority.server_context()).target, TargetTls()) == b"nobody"


def test_a_client_certificate(serve: Any, authority: Authority) -> None:
    service = serve(authority.server_context(clients=authority))
    tls = TargetTls(ca_file=str(authority.ca_file), cert_file=str(authority.issue()))
    assert greeting(service.target, tls) == b"client"


def test_a_context_serves_many_connections(serve: Any, authority: Authority) -> None:
    service = serve(authority.server_context())
    tls = TargetTls(ca_file=str(authority.ca_file))
    certificates = Certificates()
    for _ in "123":
        assert greeting(service.target, tls, certificates=certificates) == b"nobody"
    assert len(certificates._kept) == 1


def test_no_connection_is_made_without_the_files(listener: Any, tmp_path: Path) -> None:
    target = f"tls://{place(listener)}"
    missing = str(tmp_path / "ca.pem")
    with pytest.raises(TargetError, match=f"target {target}: cannot read caFile {missing}"):
        greeting(target, TargetTls(ca_file=missing))
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
def test_a_service_without_tls(listener: Any, authority: Authority, answer: bytes) -> None:
    def serve() -> None:
        with listener.accept()[0] as sock:
            sock.recv(4096)
            sock.sendall(answer)

    serving = Greenlet.spawn(serve)
    text = refusal(f"tls://{place(listener)}", TargetTls(ca_file=str(authority.ca_file)))
    if answer:
        assert text.endswith(
            "does not speak TLS: check its port, or write the target without tls://"
        )
    else:
        assert f"TLS with {place(listener)} failed: " in text
    serving.get()


UNPATCHED = """
import sys
from gevent import Greenlet, monkey, socket, ssl
from nexusg.config.destination import Destination, TargetTls, TlsTerminate
from nexusg.targets.certificates import Certificates
from nexusg.targets.dial import dial
from nexusg.targets.request import ConnectRequest
from nexusg.targets.terminate import terminate

assert not monkey.is_module_patched("socket")
ca, pem = sys.argv[1:]
user = ConnectRequest("b", "0" * 32, "a.test", "a.test", 443, "192.0.2.7", 5, True, "tcp")
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(pem)
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen(1)

def serve():
    sock, _ = listener.accept()
    listener.close()
    head = b""
    while not head.endswith(b"\\r\\n"):
        head += sock.recv(1)
    with context.wrap_socket(sock, server_side=True) as sock:
        return head, sock.recv(100)

serving = Greenlet.spawn(serve)
how = Destination(proxy_protocol="v1", tls=TargetTls(ca_file=ca))
name = "tls://127.0.0.1:%d" % listener.getsockname()[1]
target = dial(name, how, user, bytearray(1024), 5.0)
target = terminate(target, TlsTerminate(pem), Certificates())

incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
tls.load_verify_locations(ca)
tls = tls.wrap_bio(incoming, outgoing, server_hostname="localhost")
while True:
    try:
        tls.do_handshake()
        break
    except ssl.SSLWantReadError:
        target.try_send(outgoing.read())
        target.wait_readable()
        incoming.write(target.try_read(65536))
tls.write(b"through two TLS connections")
target.try_send(outgoing.read())
print(*serving.get())
target.close()
"""


def test_in_an_unpatched_process(authority: Authority) -> None:
    command = [sys.executable, "-W", "error", "-c", UNPATCHED]
    command += [str(authority.ca_file), str(authority.issue())]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "b'PROXY TCP4 192.0.2.7 127.0.0.1 5 443\\r\\n' b'through two TLS connections'\n"
    )
