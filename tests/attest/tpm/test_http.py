"""One request, over real sockets, to servers of all manners."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import gevent
import pytest

from nexusg.attest.tpm.http import MAX_BODY_BYTES, Answer, HttpClient
from nexusg.errors import AuthorizerError, ConfigError
from nexusg.version import __version__
from tests.attest.tpm.doubles import Server, head
from tests.conftest import MS
from tests.support.certs import Authority
from tests.support.services import Service


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Starts a service, and tells its URL."""
    services = []

    def start(server: Callable[[Any], object]) -> str:
        services.append(Service(server))
        return f"http://{services[-1].target}"

    yield start
    for service in services:
        service.stop()


def call(url: str, method: str = "GET", timeout_s: float = 5.0, **options: Any) -> Answer:
    client = HttpClient(url, options.pop("ca_file", None), options.pop("environ", {}))
    headers = options.pop("headers", {})
    return client.call(method, "/api/v1/nonce", headers=headers, timeout_s=timeout_s, **options)


class TestRequest:
    def test_get(self, serve: Any) -> None:
        server = Server(head("Content-Length: 0"))
        url = serve(server)
        call(url, headers={"X-Nonce": "abc"})
        lines = server.asked.decode().split("\r\n")
        assert lines == [
            "GET /api/v1/nonce HTTP/1.1",
            f"Host: {url[7:]}",
            f"User-Agent: nexusg/{__version__}",
            "Connection: close",
            "Accept: application/json",
            "X-Nonce: abc",
            "",
            "",
        ]

    def test_post(self, serve: Any) -> None:
        server = Server(head("Content-Length: 0"))
        call(serve(server) + "/below/", "POST", body=b"{}")
        assert server.asked.startswith(b"POST /below/api/v1/nonce HTTP/1.1\r\n")
        assert server.asked.endswith(
            b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
        )


class TestAnswer:
    def test_has_status_headers_and_body(self, serve: Any) -> None:
        reply = head("Retry-After: 7", "Content-Length: 3", status="429 Too Many Requests")
        answer = call(serve(Server(reply, b"{}\n", b"more", hold=True)))
        assert answer == Answer(429, {"retry-after": "7", "content-length": "3"}, b"{}\n")

    def test_has_no_body_in_its_repr(self) -> None:
        assert repr(Answer(200, {"a": "secret"}, b"secret")) == "Answer(status=200)"

    def test_ends_with_the_connection(self, serve: Any) -> None:
        assert call(serve(Server(head(), b"ab", b"cd"))).body == b"abcd"

    @pytest.mark.parametrize("size", [1, 3, 1000])
    def test_comes_in_chunks(self, serve: Any, size: int) -> None:
        reply = head("Transfer-Encoding: chunked")
        reply += b"3\r\nabc\r\n0a;why=this\r\n0123456789\r\n0\r\n\r\n"
        pieces = [reply[at : at + size] for at in range(0, len(reply), size)]
        assert call(serve(Server(*pieces))).body == b"abc0123456789"

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            (b"", "sent a chunk that is none"),
            (b"x\r\n", "sent a chunk that is none"),
            (b"3" * 5000, "sent a chunk that is none"),
            (b"3\r\nabcdef", "sent a chunk that is none"),
            (b"3\r\na", "in the middle of its answer"),
        ],
    )
    def test_comes_in_bad_chunks(self, serve: Any, body: bytes, words: str) -> None:
        with pytest.raises(AuthorizerError, match=words) as failure:
            call(serve(Server(head("Transfer-Encoding: chunked"), body)))
        assert failure.value.code == "authorizer_unreachable"

    @pytest.mark.parametrize(
        ("pieces", "words"),
        [
            ((), "without an answer"),
            ((b"HTTP/1.1 200",), "in the middle of its answer"),
            ((b"\x16\x03\x01 what",), "is not HTTP"),
            ((head("Content-Length: 9"), b"short"), "in the middle of its answer"),
            ((head("Content-Length: -1"),), "Content-Length that is no number"),
            ((b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 9000,), "bytes of header"),
        ],
    )
    def test_is_none(self, serve: Any, pieces: tuple[bytes, ...], words: str) -> None:
        with pytest.raises(AuthorizerError, match=words) as failure:
            call(serve(Server(*pieces)))
        assert failure.value.code == "authorizer_unreachable"
        assert "the authorizer 127.0.0.1:" in str(failure.value)

    @pytest.mark.parametrize(
        ("lines", "piece"),
        [
            (["Content-Length: 10000000"], b""),
            ([], b" " * 9000),
            (["Transfer-Encoding: chunked"], b"2000\r\n" + b" " * 0x2000 + b"\r\n"),
            (["Transfer-Encoding: chunked"], b"ffffffff\r\n"),
        ],
    )
    def test_is_too_large(self, serve: Any, lines: list[str], piece: bytes) -> None:
        def flood(sock: Any) -> None:
            sock.recv(4096)
            try:
                for part in itertools.chain([head(*lines)], itertools.repeat(piece, 2000)):
                    sock.sendall(part)
            except OSError:
                pass

        with pytest.raises(AuthorizerError, match=f"more than {MAX_BODY_BYTES} bytes") as failure:
            call(serve(flood))
        assert failure.value.code == "authorizer"


class TestTime:
    @pytest.mark.parametrize("pieces", [(), (head("Content-Length: 5"), b"abc")])
    def test_is_over_when_nothing_comes(self, serve: Any, pieces: tuple[bytes, ...]) -> None:
        url = serve(Server(*pieces, hold=True))
        with pytest.raises(AuthorizerError, match=r"did not answer within 0\.02 s") as failure:
            call(url, timeout_s=20 * MS)
        assert failure.value.code == "authorizer_unreachable"

    def test_is_over_when_hardly_anything_comes(self, serve: Any) -> None:
        def drip(sock: Any) -> None:
            sock.recv(4096)
            try:
                sock.sendall(head())
                while True:
                    sock.sendall(b" ")
                    gevent.sleep(MS)
            except OSError:
                pass

        with pytest.raises(AuthorizerError, match="did not answer within"):
            call(serve(drip), timeout_s=20 * MS)

    def test_can_be_none_at_all(self, serve: Any) -> None:
        with pytest.raises(AuthorizerError, match="did not answer within"):
            call(serve(Server(head())), timeout_s=-1)

    def test_is_not_what_a_refusal_takes(self) -> None:
        with Service(print) as service:
            url = f"http://{service.target}"
        with pytest.raises(AuthorizerError, match="refused") as failure:
            call(url)
        assert failure.value.code == "authorizer_unreachable"


class TestTls:
    def test_is_checked(self, serve: Any, tmp_path: Path) -> None:
        authority = Authority(tmp_path)
        server = Server(head("Content-Length: 2"), b"{}", context=authority.server_context())
        url = serve(server).replace("http", "https")
        assert call(url, ca_file=str(authority.ca_file)).body == b"{}"

    def test_fails_until_the_file_is_right(self, serve: Any, tmp_path: Path) -> None:
        """The authorities are read once, and again after a failure."""
        authority = Authority(tmp_path)
        answers = Server(head("Content-Length: 2"), b"{}", context=authority.server_context())

        def server(sock: Any) -> None:
            try:
                answers(sock)
            except OSError:  # the client did not like the certificate
                pass

        url = serve(server).replace("http", "https")
        ca_file = tmp_path / "trusted.pem"
        ca_file.write_bytes(Authority(tmp_path, "another").ca_file.read_bytes())
        client = HttpClient(url, str(ca_file), {})
        with pytest.raises(AuthorizerError, match=r"certificate .* is not accepted") as failure:
            client.call("GET", "/", headers={}, timeout_s=5)
        assert failure.value.code == "authorizer_unreachable"
        ca_file.write_bytes(authority.ca_file.read_bytes())
        for _ in range(2):
            assert client.call("GET", "/", headers={}, timeout_s=5).status == 200

    def test_is_not_spoken_by_everybody(self, serve: Any, tmp_path: Path) -> None:
        def server(sock: Any) -> None:
            sock.recv(4096)
            sock.sendall(head("Content-Length: 0", status="400 Bad Request"))

        url = serve(server).replace("http", "https")
        with pytest.raises(AuthorizerError, match="does not speak TLS: check its port, or write h"):
            call(url, ca_file=str(Authority(tmp_path).ca_file))


def test_goes_through_a_proxy() -> None:
    class Proxy(Server):
        def __call__(self, sock: Any) -> None:
            request = sock.recv(4096)
            assert request.startswith(b"CONNECT namek.test:80 HTTP/1.1\r\n")
            sock.sendall(head())
            super().__call__(sock)

    with Service(Proxy(head("Content-Length: 2"), b"{}")) as service:
        environ = {"HTTPS_PROXY": f"http://{service.target}"}
        client = HttpClient("http://localhost", environ=environ)
        client._address = type(client._address)("ws", "namek.test", 80, "/")
        client._environ = {"HTTP_PROXY": f"http://{service.target}"}
        assert client.call("GET", "/", headers={}, timeout_s=5).body == b"{}"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "namek.test",
        "https://",
        "https://namek.test:0",
        "https://namek.test:what",
        "https://user:secret@namek.test",
        "https://namek.test/path?secret",
        "https://namek.test/#secret",
        "https://namek.test/a b",
        "https://na\nmek.test",
        "ftp://namek.test",
        "http://namek.test",
        "http://10.0.0.1",
    ],
)
def test_urls_that_cannot_be_used(url: str) -> None:
    with pytest.raises(ConfigError, match="authorizer's URL") as failure:
        HttpClient(url)
    assert "secret" not in str(failure.value)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("https://namek.test", "namek.test:443"),
        ("https://namek.test:8443/", "namek.test:8443"),
        ("https://[2001:db8::1]/api", "[2001:db8::1]:443"),
        ("http://localhost:80", "localhost:80"),
    ],
)
def test_urls_that_can(url: str, place: str) -> None:
    assert HttpClient(url).place == f"the authorizer {place}"
