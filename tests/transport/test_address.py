"""What the URL of a relay may say."""

from __future__ import annotations

import pytest

from nexusg.errors import DialFailed
from nexusg.transport.address import RelayAddress, ascii_host, parse_address


@pytest.mark.parametrize(
    ("url", "host", "port", "resource", "header"),
    [
        ("wss://a.test:8443/connect", "a.test", 8443, "/connect", "a.test:8443"),
        ("wss://a.test/connect", "a.test", 443, "/connect", "a.test"),
        ("wss://a.test:443/connect", "a.test", 443, "/connect", "a.test"),
        ("ws://a.test/connect", "a.test", 80, "/connect", "a.test"),
        ("ws://a.test:443/connect", "a.test", 443, "/connect", "a.test:443"),
        ("wss://a.test:80/connect", "a.test", 80, "/connect", "a.test:80"),
        ("WSS://A.Test.:1/connect?x=1&y=%20", "a.test.", 1, "/connect?x=1&y=%20", "a.test.:1"),
        ("wss://a.test", "a.test", 443, "/", "a.test"),
        ("wss://a_b-c.test/a//b", "a_b-c.test", 443, "/a//b", "a_b-c.test"),
        ("wss://127.0.0.1:1/x", "127.0.0.1", 1, "/x", "127.0.0.1:1"),
        ("wss://[2001:DB8::0:1]/x", "2001:db8::1", 443, "/x", "[2001:db8::1]"),
        ("wss://[::1]:1/x", "::1", 1, "/x", "[::1]:1"),
        ("wss://[fe80::1%eth0]:1/x", "fe80::1%eth0", 1, "/x", "[fe80::1]:1"),
        ("wss://bücher.test/x", "xn--bcher-kva.test", 443, "/x", "xn--bcher-kva.test"),
    ],
)
def test_addresses(url: str, host: str, port: int, resource: str, header: str) -> None:
    address = parse_address(url)
    assert (address.host, address.port, address.resource) == (host, port, resource)
    assert address.host_header == header
    assert address.secure is url.lower().startswith("wss")


def test_places_have_brackets_where_needed() -> None:
    assert RelayAddress("wss", "a.test", 1, "/").place == "a.test:1"
    assert RelayAddress("wss", "::1", 1, "/").place == "[::1]:1"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "is empty; write wss://host:port/connect"),
        (" \n", "is empty"),
        ("https://a.test/connect", "write wss:// for https://"),
        ("http://a.test/connect", "write ws:// for http://"),
        ("ftp://a.test/connect", r"does not begin with wss:// \(or ws://\)$"),
        ("a.test:8443/connect", "does not begin with wss://"),
        ("/connect", "does not begin with wss://"),
        ("wss://a.test:port/connect", "cannot be used: Port"),
        ("wss://a.test:65536/connect", "cannot be used: Port"),
        ("wss://a.test:-1/connect", "cannot be used: Port"),
        ("wss://a.test:0/connect", "ports are 1 to 65535"),
        ("wss://[::1/connect", "cannot be used"),
        ("wss:///connect", "the host name is not valid"),
        ("wss:/connect", "the host name is not valid"),
        ("wss://a..test/connect", "the host name is not valid"),
        ("wss://a!b/connect", "the host name is not valid"),
        ("wss://bü cher.test/connect", "must be written as %XX"),
        ("wss://☃︎☃-.test/connect", "cannot be used"),
        ("wss://a.test/con nect", "must be written as %XX"),
        ("wss://a.test/con\r\nnect", "must be written as %XX"),
        ("wss://a.te\tst/connect", "must be written as %XX"),
        (" wss://a.test/connect", "must be written as %XX"),
        ("wss://a.test/connect;x", "must be written as %XX"),
        ("wss://a.test/connect#", "must be written as %XX"),
        ("wss://a.test/ü", "must be written as %XX"),
    ],
)
def test_what_is_refused(url: str, message: str) -> None:
    with pytest.raises(DialFailed, match=message) as caught:
        parse_address(url)
    assert caught.value.code == "address"


@pytest.mark.parametrize(
    "url",
    [
        "wss://hunter2@a.test/connect",
        "wss://me:hunter2@a.test/connect",
        "wss://me:hunter2/x@a.test/connect",
        "wss://me:hunter2?@a.test/connect",
        "https://a.test/connect?token=hunter2",
        "wss://a.test:0/connect?token=hunter2",
    ],
)
def test_secrets_are_not_shown(url: str) -> None:
    with pytest.raises(DialFailed) as caught:
        parse_address(url)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(parse_address("wss://a.test/connect?token=hunter2"))


@pytest.mark.parametrize("host", ["a.test\r\nX: y", "fe80::1%ü", "", "a..test"])
def test_ascii_host_refuses_what_would_break_a_header(host: str) -> None:
    with pytest.raises(ValueError, match=r"not valid|not allowed|Invalid|empty"):
        ascii_host(host)
