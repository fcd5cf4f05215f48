"""Proxies: which one the environment means, and CONNECT through it."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest
from gevent import Greenlet, socket

from nexusg.errors import DialFailed
from nexusg.transport.address import parse_address
from nexusg.transport.deadline import Deadline
from nexusg.transport.proxy import MAX_HEAD_BYTES, Proxy, connect_through, proxy_for
from nexusg.version import __version__


if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("no_socket_left")

PROXY = Proxy("proxy.test", 3128)


def choose(url: str = "wss://relay.test/connect", **environ: str) -> Proxy | None:
    return proxy_for(parse_address(url), environ)


# --- Which proxy -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "environ", "host"),
    [
        ("wss", {}, None),
        ("wss", {"HTTPS_PROXY": "http://a:1"}, "a"),
        ("wss", {"https_proxy": "http://a:1"}, "a"),
        ("wss", {"HTTPS_PROXY": "http://a:1", "https_proxy": "http://b:1"}, "a"),
        ("wss", {"HTTPS_PROXY": "", "https_proxy": "http://b:1"}, "b"),
        ("wss", {"HTTP_PROXY": "http://a:1"}, None),
        ("ws", {"HTTP_PROXY": "http://a:1"}, "a"),
        ("ws", {"http_proxy": "http://a:1"}, "a"),
        ("ws", {"HTTPS_PROXY": "http://a:1"}, None),
        ("wss", {"ALL_PROXY": "http://a:1"}, "a"),
        ("ws", {"all_proxy": "http://a:1"}, "a"),
        ("wss", {"ALL_PROXY": "http://a:1", "https_proxy": "http://b:1"}, "b"),
    ],
)
def test_the_variable(scheme: str, environ: dict[str, str], host: str | None) -> None:
    proxy = choose(f"{scheme}://relay.test/connect", **environ)
    assert (proxy and proxy.host) == host


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("http://proxy.test:3128", Proxy("proxy.test", 3128)),
        ("proxy.test:3128", Proxy("proxy.test", 3128)),
        (" HTTP://Proxy.Test/ ", Proxy("proxy.test", 80)),
        ("http://[::1]:3128", Proxy("::1", 3128)),
        ("http://me:pass%20word%40@proxy.test", Proxy("proxy.test", 80, "me:pass word@")),
        ("http://me@proxy.test", Proxy("proxy.test", 80, "me:")),
        ("http://m%C3%BC:%0d%0a@proxy.test", Proxy("proxy.test", 80, "mü:\r\n")),
        ("me:secret@proxy.test:1", Proxy("proxy.test", 1, "me:secret")),
    ],
)
def test_the_value(value: str, expected: Proxy) -> None:
    assert choose(HTTPS_PROXY=value) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("https://me:hunter2@proxy.test", r"HTTPS_PROXY names .* \(TLS inside TLS is not possible"),
        ("socks5://me:hunter2@proxy.test", "a kind that is not supported; write http://host:port"),
        ("socks5h://proxy.test", "or put the relay into NO_PROXY"),
        ("http://", "HTTPS_PROXY holds no proxy address; write http://host:port"),
        ("http://me:hunter2@", "holds no proxy address"),
        ("http://me:hunter2/@proxy.test", "holds no proxy address"),
        ("http://proxy.test:hunter2", "holds no proxy address"),
        ("http://proxy.test:99999", "holds no proxy address"),
        ("http://pro xy.test", "holds no proxy address"),
        ("http://[::1", "holds no proxy address"),
    ],
)
def test_a_value_that_cannot_be_used(value: str, message: str) -> None:
    with pytest.raises(DialFailed, match=message) as caught:
        choose(HTTPS_PROXY=value)
    assert caught.value.code == "proxy"
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None, "its text might hold the password"


def test_the_password_is_not_shown() -> None:
    assert "hunter2" not in repr(choose(HTTPS_PROXY="http://me:hunter2@proxy.test"))


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST.", "127.0.0.1", "127.9.9.9", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_this_machine_is_never_proxied(host: str) -> None:
    assert choose(f"wss://{host}/connect", HTTPS_PROXY="http://proxy.test") is None


@pytest.mark.parametrize(
    ("entry", "direct", "proxied"),
    [
        ("*", ["a.test", "10.0.0.1", "[2001:db8::1]"], []),
        ("a.test", ["a.test", "A.Test", "a.test.", "b.a.test"], ["ba.test", "test", "a.testing"]),
        ("A.TEST", ["a.test"], ["b.test"]),
        (".a.test", ["b.a.test", "c.b.a.test"], ["a.test", "ba.test"]),
        ("*.a.test", ["b.a.test"], ["a.test", "ba.test"]),
        ("a.test:443", ["a.test", "a.test:443"], ["a.test:8443"]),
        (".a.test:8443", ["b.a.test:8443"], ["b.a.test", "a.test:8443"]),
        ("10.0.0.1", ["10.0.0.1", "[::ffff:10.0.0.1]"], ["10.0.0.2", "a.test"]),
        ("10.0.0.1:8443", ["10.0.0.1:8443"], ["10.0.0.1"]),
        ("10.0.0.0/8", ["10.1.2.3"], ["11.0.0.1", "a.test", "[2001:db8::1]"]),
        ("10.1.2.3/8", ["10.9.9.9"], ["11.0.0.1"]),
        ("2001:db8::/32", ["[2001:db8::1]"], ["[2001:db9::1]", "10.0.0.1"]),
        ("2001:db8::1", ["[2001:db8::1]", "[2001:DB8:0::1]:1"], ["[2001:db8::2]"]),
        ("[2001:db8::1]", ["[2001:db8::1]:1"], ["[2001:db8::2]"]),
        ("[2001:db8::1]:1", ["[2001:db8::1]:1"], ["[2001:db8::1]:2"]),
        ("0.0.1", [], ["10.0.0.1"]),
        ("10.0.0.0/99", [], ["10.0.0.1"]),
        ("/", [], ["a.test"]),
        (":443", [], ["a.test"]),
        ("[]", [], ["a.test"]),
        ("a.test:" + "4" * 5000, [], ["a.test"]),
        ("", [], ["a.test"]),
        (" x.test ,, a.test ", ["a.test", "x.test"], ["y.test"]),
        ("x.test,*", ["y.test"], []),
    ],
)
def test_no_proxy(entry: str, direct: list[str], proxied: list[str]) -> None:
    def goes_direct(place: str) -> bool:
        return choose(f"wss://{place}/connect", HTTPS_PROXY="http://p", NO_PROXY=entry) is None

    assert [place for place in direct if not goes_direct(place)] == []
    assert [place for place in proxied if goes_direct(place)] == []
    assert direct or proxied


def test_no_proxy_in_lower_case() -> None:
    assert choose(HTTPS_PROXY="http://p", no_proxy="relay.test") is None
    assert choose(HTTPS_PROXY="http://p", NO_PROXY="x.test", no_proxy="relay.test")


# --- CONNECT ---------------------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[tuple[Any, Any]]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


def dialogue(
    pair: tuple[Any, Any], answer: bytes, proxy: Proxy = PROXY, host: str = "relay.test"
) -> bytes:
    """Have the proxy answer; return the request."""
    ours, theirs = pair
    theirs.sendall(answer)
    connect_through(ours, proxy, host, 443, Deadline(5))
    return bytes(theirs.recv(4096))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 Connection established\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nVia: x\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200\r\n\r\n",
        b"HTTP/1.1 204 No Content\n\n",
    ],
)
def test_a_tunnel(pair: tuple[Any, Any], answer: bytes) -> None:
    request = dialogue(pair, answer)
    assert request == (
        b"CONNECT relay.test:443 HTTP/1.1\r\nHost: relay.test:443\r\n"
        b"User-Agent: nexusg/" + __version__.encode() + b"\r\n\r\n"
    )
    pair[1].sendall(b"through it")
    assert pair[0].recv(100) == b"through it"


def test_an_ipv6_relay_has_brackets(pair: tuple[Any, Any]) -> None:
    request = dialogue(pair, b"HTTP/1.1 200 OK\r\n\r\n", host="2001:db8::1")
    assert request.startswith(b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n")


def test_credentials(pair: tuple[Any, Any]) -> None:
    proxy = Proxy("proxy.test", 3128, "mü:pass\r\n\udcffword" + "x" * 100)
    request = dialogue(pair, b"HTTP/1.1 200 OK\r\n\r\n", proxy)
    [line] = [line for line in request.split(b"\r\n") if line.startswith(b"Proxy-Authorization")]
    encoded = line.removeprefix(b"Proxy-Authorization: Basic ")
    assert base64.b64decode(encoded).decode(errors="surrogateescape") == proxy.credentials


@pytest.mark.parametrize(
    ("status", "credentials", "hint"),
    [
        (407, None, ": it wants credentials, as in http://user:password@host:port"),
        (407, "me:hunter2", ": it wants other credentials"),
        (403, "me:hunter2", ": it does not allow this destination"),
        (502, None, ""),
        (301, None, ""),
        (100, None, ""),
    ],
)
def test_a_refusal(pair: tuple[Any, Any], status: int, credentials: str | None, hint: str) -> None:
    proxy = Proxy("proxy.test", 3128, credentials)
    with pytest.raises(DialFailed) as caught:
        dialogue(pair, b"HTTP/1.1 %d hunter2\r\nX: hunter2\r\n\r\nhunter2" % status, proxy)
    assert caught.value.code == "proxy"
    assert str(caught.value) == (
        f"the proxy proxy.test:3128 refused a tunnel to relay.test:443 with status {status}{hint}"
    )


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n\x16\x03", "sent 2 bytes before the tunnel was used"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "which is not HTTP"),
        (b"HTTP/1.1 OK\r\n\r\n", "which is not HTTP"),
        (b"SSH-2.0-x\r\n", "which is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_HEAD_BYTES, "sent more than 16384 bytes of header"),
    ],
)
def test_an_answer_that_is_none(pair: tuple[Any, Any], answer: bytes, message: str) -> None:
    with pytest.raises(DialFailed, match=message) as caught:
        dialogue(pair, answer)
    assert caught.value.code == "proxy"
    assert str(caught.value).startswith("the proxy proxy.test:3128 ")


def test_a_head_in_pieces_and_not_one_byte_more(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    tunnel = Greenlet.spawn(connect_through, ours, PROXY, "relay.test", 443, Deadline(5))
    for byte in b"HTTP/1.1 200 OK\r\n\r\n":
        theirs.sendall(bytes([byte]))
        tunnel.join(timeout=0)
    tunnel.get(timeout=5)


def test_a_proxy_that_hangs_up(pair: tuple[Any, Any]) -> None:
    pair[1].close()
    with pytest.raises(
        DialFailed, match=r"the proxy proxy\.test:3128 broke: Broken pipe"
    ) as caught:
        connect_through(pair[0], PROXY, "relay.test", 443, Deadline(5))
    assert caught.value.code == "proxy"


def test_a_silent_proxy(pair: tuple[Any, Any]) -> None:
    with pytest.raises(DialFailed) as caught:
        connect_through(pair[0], PROXY, "relay.test", 443, Deadline(0.01))
    assert caught.value.code == "timeout"
    assert str(caught.value) == (
        "the proxy proxy.test:3128 did not open a tunnel to relay.test:443 in time"
    )
