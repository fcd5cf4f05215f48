"""Each check finds what is wrong with one value, and only that."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusg.config import checks


@pytest.mark.parametrize("value", [1, 443, 65535])
def test_port(value: int) -> None:
    assert checks.port(value) is None
    assert checks.outbound_port(value) is None


@pytest.mark.parametrize("value", [-1, 0, 65536])
def test_no_port(value: int) -> None:
    assert checks.port(value) == f"{value} is not a port (1 to 65535)"
    assert str(checks.outbound_port(value)).endswith(": the relay will reject the token")


def test_durations() -> None:
    assert [checks.duration(value) for value in (0, 0.5, 1e9)] == [None] * 3
    assert checks.duration(-1) == "must not be negative"
    assert checks.duration(1e10) == checks.seconds(1e10) == "must be at most 1000000000 seconds"
    assert checks.seconds(-1) is None
    assert checks.duration(float("inf")) is not None


def test_pace() -> None:
    assert [checks.pace(value) for value in (0.05, 3600)] == [None, None]
    said = "must be 0.05 to 3600 seconds"
    assert [checks.pace(value) for value in (0, float("nan"), 3601)] == [said] * 3


def test_at_least() -> None:
    assert checks.at_least(3)(3) is None
    assert checks.at_least(3)(2) == "must be at least 3"


def test_between() -> None:
    assert [checks.between(1, 3)(value) for value in (1, 3)] == [None, None]
    assert [checks.between(1, 3)(value) for value in (0, 4)] == ["must be 1 to 3"] * 2


@pytest.mark.parametrize("value", [1, 512, "auto"])
def test_workers(value: int | str) -> None:
    assert checks.workers(value) is None


@pytest.mark.parametrize("value", [0, 513, "4", ""])
def test_no_workers(value: int | str) -> None:
    assert checks.workers(value) == "must be 1 to 512, or auto"


def test_not_blank() -> None:
    assert checks.not_blank("a") is None
    assert checks.not_blank(" ") == "must not be blank"


@pytest.mark.parametrize("value", ["a.test", "*.a.test", "tcp", "*"])
def test_hostname(value: str) -> None:
    assert checks.hostname(value) is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (" ", "blank"),
        (".", "blank"),
        ("*.", "blank"),
        ("tcp:53", "use tcpPorts or udpRoutes"),
        ("UDP:53", '"udp:53" is reserved'),
    ],
)
def test_no_hostname(value: str, said: str) -> None:
    assert said in str(checks.hostname(value))


def test_pattern() -> None:
    assert checks.pattern("tcp:25") is None
    assert checks.pattern("*.") == "is a blank host name or pattern"


def test_wildcard() -> None:
    assert checks.wildcard("*.a.test") is None
    assert str(checks.wildcard("*.COM")).startswith('"*.COM" matches no name')


def test_variable() -> None:
    assert checks.variable("NEXUS_A.b") is None
    for value in ("", "A=b", "TOKEN:hunter2", "A B"):
        said = checks.variable(value)
        assert said is not None
        assert "hunter2" not in said


@pytest.mark.parametrize(
    "value",
    [
        "127.0.0.1:80",
        "localhost:http",
        ":8080",
        "[::1]:80",
        "[fe80::1%eth0]:80",
        "bücher.test:1",
        "unix:/run/web.sock",
        "unix:@abstract",
        "tls://service.test:8443",
        "tls://[::1]:https",
        "wsgi:shop",
        "wsgi:shop.wsgi:app",
        "wsgi:shop.wsgi:Shop.app",
    ],
)
def test_target(value: str) -> None:
    assert checks.target(value) is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "blank"),
        (" ", "blank"),
        ("localhost", 'write "localhost:80"'),
        ("[::1]", 'write "[::1]:80"'),
        ("::1:80", 'write an IPv6 address as "[::1]:80"'),
        ("[::1:80", "too many colons"),
        ("localhost:", "no valid port"),
        ("localhost:80 ", "no valid port"),
        ("localhost:123456", "no valid port"),
        ("localhost:0", "0 is not a port"),
        ("localhost:65536", "65536 is not a port"),
        ("http://user:hunter2@localhost:80", "without a scheme"),
        ("https://user:hunter2@a.test", 'write "tls://host:port", without a path'),
        ("TLS://a:1", 'write "tls://host:port", without a path'),
        ("tls://a:1/hunter2", 'write "tls://host:port", without a path'),
        ("tls://a.test", '"tls://a.test" has no port: write "tls://a.test:443"'),
        ("tls://::1:1", 'write an IPv6 address as "tls://[::1]:80"'),
        ("tls://a:0", "0 is not a port"),
        ("tls://a:", 'write "tls://host:port"'),
        ("wsgi:", "names no application"),
        ("wsgi:shop:", "names no application"),
        ("wsgi:shop.:app", "names no application"),
        ("wsgi:shop:make(app)", "names no application"),
        ("wsgi:shop/wsgi.py:app", "names no application"),
        ("unix:", "absolute path"),
        ("unix:/", "absolute path"),
        ("unix:@", "absolute path"),
        ("unix:run/web.sock", "absolute path"),
        ("unix:/" + "ü" * 60, "longer than the 107 bytes"),
    ],
)
def test_no_target(value: str, said: str) -> None:
    found = str(checks.target(value))
    assert said in found
    assert "hunter2" not in found


@pytest.mark.parametrize(
    "value",
    [
        "wss://relay.test",
        "wss://relay.test:8443/connect?x=1",
        "WSS://[::1]:8443/",
        "ws://127.0.0.1:1/connect",
        "ws://[::1]/",
        "ws://localhost:1/",
        "ws://demo.localhost:1/",
    ],
)
def test_relay_address(value: str) -> None:
    assert checks.relay_address(value) is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "cannot be dialled: write"),
        ("relay.test", "cannot be dialled: write"),
        ("wss://", "cannot be dialled: write"),
        ("wss://a:0/", "cannot be dialled: write"),
        ("wss://a:99999/", "cannot be dialled: write"),
        ("wss://[::1/", "cannot be dialled: write"),
        ("http://a/?hunter2", 'its scheme is "http"; write wss'),
        ("wss://user:hunter2@a/", "user or password"),
        ("ws://relay.test/", "without encryption"),
        ("ws://10.0.0.1/", "without encryption"),
    ],
)
def test_doubtful_relay_address(value: str, said: str) -> None:
    found = str(checks.relay_address(value))
    assert said in found
    assert "hunter2" not in found


@pytest.mark.parametrize(
    "value", ["127.0.0.1:1080", ":1080", "localhost:0", "[::1]:1", "unix:/run/a", " unix:@a "]
)
def test_listen_address(value: str) -> None:
    assert checks.listen_address(value) is None


@pytest.mark.parametrize("value", ["not an address", "1080", "a:b", "a:99999", "http://a:1"])
def test_doubtful_listen_address(value: str) -> None:
    assert checks.listen_address(value) == 'is not "host:port": the listener will stay off'


@pytest.mark.parametrize("value", ["unix:", "unix:a.sock", "unix:/" + "a" * 107])
def test_doubtful_unix_listener(value: str) -> None:
    assert str(checks.listen_address(value)).endswith(": the listener will stay off")


@pytest.mark.parametrize(
    ("value", "local"),
    [
        ("127.0.0.1:1080", True),
        (" 127.9.9.9:1", True),
        ("localhost:1080", True),
        ("a.localhost:1080", True),
        ("[::1]:1080", True),
        ("unix:/run/a", True),
        (":1080", False),
        ("0.0.0.0:1080", False),
        ("[::]:1080", False),
        ("192.0.2.7:1080", False),
        ("example.test:1080", False),
        ("", False),
    ],
)
def test_listens_locally(value: str, local: bool) -> None:
    assert checks.listens_locally(value) is local


def test_https() -> None:
    assert checks.https("") is None
    assert checks.https("HTTPS://a/") is None
    for value in ("http://a/", "https://", "https:///a"):
        assert "https://" in str(checks.https(value))


def test_url_path() -> None:
    assert checks.url_path("/health?full=1") is None
    assert checks.url_path("health") == 'must begin with "/"'
    assert checks.url_path("/a b") == checks.header("a\r\nb") == "must be ASCII without spaces"
    assert checks.header("a.test:80") is None


def test_absolute_path() -> None:
    assert [checks.absolute_path(value) for value in ("/a", " ")] == [None, None]
    assert checks.absolute_path("a") == 'must begin with "/"'


@pytest.mark.parametrize(
    "value",
    ["https://namek.test", " https://namek.test:8443/base/ ", "http://127.0.0.1:1", "HTTP://[::1]"],
)
def test_authorizer_url(value: str) -> None:
    assert checks.authorizer_url(value) is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "is no address"),
        ("namek.test", "is no address"),
        ("https://", "is no address"),
        ("https://[::1", "is no address"),
        ("https://a:0", "is no address"),
        ("wss://a", "is no address"),
        ("https://user:hunter2@a", "no user"),
        ("https://a?hunter2", "no user"),
        ("https://a#hunter2", "no user"),
        ("http://namek.test", "must begin with https://"),
    ],
)
def test_no_authorizer_url(value: str, said: str) -> None:
    found = str(checks.authorizer_url(value))
    assert said in found
    assert "hunter2" not in found


def test_tcti() -> None:
    assert checks.tcti("device:/dev/tpmrm0") is None
    assert str(checks.tcti("device:/dev/tpm0")).endswith("use device:/dev/tpmrm0")


def test_quoted() -> None:
    assert checks.quoted("bücher") == '"bücher"'
    assert checks.quoted('a"b') == '"a\\"b"'
    assert checks.quoted("a\nb\x1b\u2028") == '"a\\nb\\u001b\\u2028"'
    assert checks.quoted("a" * 61) == '"' + "a" * 59 + '…"'


@given(
    st.builds("{}{}".format, st.sampled_from(["", "tls://", "wsgi:", "https://"]), st.text()),
    st.sampled_from(
        [checks.target, checks.relay_address, checks.listen_address, checks.authorizer_url]
    ),
)
def test_checks_of_addresses_take_anything(value: str, check: object) -> None:
    assert callable(check)
    said = check(value)
    assert said is None or said.isprintable()
