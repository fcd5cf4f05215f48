from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import GOOD


if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Done

EXTENDED = GOOD.replace(
    'default: "127.0.0.1:9000"',
    'default: {targets: ["127.0.0.1:9000", "127.0.0.1:9001"], proxyProtocol: v2, '
    "tlsTerminate: {certFile: /dev/null}}",
)

SPARE = """\
spare.example.com:443 -> 127.0.0.1:9000, 127.0.0.1:9001
  backend  spare
  rule     default
  claim    spare.example.com
  with     PROXY protocol v2
  with     TLS ended here, with /dev/null
  other    backend web: unix:/run/web.sock by *.example.com, claims *.example.com
"""

EXACT = """\
app.example.com:443 -> 127.0.0.1:8081
  backend  web
  rule     exact app.example.com
  claim    app.example.com
  passed   *.example.com -> unix:/run/web.sock
  passed   default -> 127.0.0.1:8080
  other    backend spare: 127.0.0.1:9000 by default, does not claim it
"""

CLAIMED_TWICE = """\
spare.example.com:443 -> 127.0.0.1:9000
  backend  spare
  rule     default
  claim    spare.example.com
  other    backend web: unix:/run/web.sock by *.example.com, claims *.example.com
"""

NO_ROUTE = """\
app.example.com:80 has no route
  other    backend web: no target, claims app.example.com
  other    backend spare: no target, does not claim it
"""


@pytest.fixture
def route(nexusg: Callable[..., Done], good: str) -> Callable[..., Done]:
    return lambda *arguments: nexusg("route", "--config", good, *arguments)


def found(done: Done) -> tuple[str, str, str, str]:
    """Backend, claim, rule and target of an answer in JSON."""
    answer = json.loads(done.out)["route"]
    return answer["backend"], answer["claim"], answer["rule"], answer["target"]


@pytest.mark.parametrize(
    ("address", "code", "text"),
    [
        ("app.example.com:443", 0, EXACT),
        ("APP.example.com.:443", 0, EXACT),
        ("spare.example.com:443", 0, CLAIMED_TWICE),
        ("app.example.com:80", 1, NO_ROUTE),
    ],
)
def test_for_people(route: Callable[..., Done], address: str, code: int, text: str) -> None:
    done = route(address)
    assert (done.code, done.out, done.err) == (code, text, "")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("app.example.com:443", ("web", "app.example.com", "exact", "127.0.0.1:8081")),
        ("x.example.com:443", ("web", "*.example.com", "wildcard", "unix:/run/web.sock")),
        ("a.b.example.com:443", ("web", "", "default", "127.0.0.1:8080")),
        ("anything:22", ("web", "tcp:22", "default", "127.0.0.1:22")),
        ("192.0.2.1:53", ("web", "udp:53", "exact", "127.0.0.1:53")),
        (":53", ("web", "udp:53", "exact", "127.0.0.1:53")),
        ("udp:53", ("web", "udp:53", "exact", "127.0.0.1:53")),
        ("UDP:53", ("web", "udp:53", "exact", "127.0.0.1:53")),
        ("udp:53:53", ("web", "udp:53", "exact", "127.0.0.1:53")),
        (":22", ("web", "tcp:22", "default", "127.0.0.1:22")),
        ("tcp:22", ("web", "tcp:22", "default", "127.0.0.1:22")),
        ("udp:22", ("web", "", "default", "127.0.0.1:22")),
        (":443", ("web", "", "default", "127.0.0.1:8080")),
        ("[2001:db8::1]:443", ("web", "", "default", "127.0.0.1:8080")),
    ],
)
def test_for_programs(
    route: Callable[..., Done], address: str, expected: tuple[str, str, str, str]
) -> None:
    done = route("--json", address)
    assert done.code == 0
    assert found(done) == expected


def test_how_the_target_is_reached(
    nexusg: Callable[..., Done], write: Callable[[str], str]
) -> None:
    path = write(EXTENDED)
    assert nexusg("route", "--config", path, "spare.example.com:443").out == SPARE
    answer = json.loads(nexusg("route", "--json", "--config", path, "spare.example.com:443").out)
    route = answer["route"]
    assert route["target"] == "127.0.0.1:9000, 127.0.0.1:9001"
    assert route["destination"]["targets"] == ["127.0.0.1:9000", "127.0.0.1:9001"]
    assert route["destination"]["proxy_protocol"] == "v2"
    assert route["destination"]["tls_terminate"]["cert_file"] == "/dev/null"
    assert answer["others"][0]["destination"]["targets"] == ["unix:/run/web.sock"]


def test_a_port_that_is_claimed_twice(
    nexusg: Callable[..., Done], write: Callable[[str], str]
) -> None:
    """TCP and UDP have keys of their own, so they may go to different places."""
    path = write(
        GOOD.replace("tcpPorts: [22]", "tcpPorts: [22, 53]").replace(
            '53: {hosts: {"udp:53"', '53: {default: "127.0.0.1:5353", hosts: {"udp:53"'
        )
    )
    for address in ("tcp:53", ":53", "192.0.2.1:53"):
        done = nexusg("route", "--config", path, address)
        assert "  claim    tcp:53\n" in done.out, done
    assert "tcp:53 -> 127.0.0.1:5353\n" in nexusg("route", "--config", path, ":53").out
    assert "udp:53 -> 127.0.0.1:53\n" in nexusg("route", "--config", path, "udp:53").out


def test_a_port_without_a_target(route: Callable[..., Done]) -> None:
    done = route("tcp:53")
    assert done.code == 1
    assert done.out.startswith("tcp:53 has no route\n")


def test_all_that_was_considered_is_in_the_json(route: Callable[..., Done]) -> None:
    answer = json.loads(route("--json", "spare.example.com:80").out)
    assert (answer["host"], answer["port"], answer["route"]) == ("spare.example.com", 80, None)
    assert [other["backend"] for other in answer["others"]] == ["web", "spare"]


def test_a_backend_that_claims_the_name_comes_first(
    nexusg: Callable[..., Done], write: Callable[[str], str]
) -> None:
    path = write(GOOD.replace('app.example.com, "*.example.com"', "app.example.com"))
    done = nexusg("route", "--json", "--config", path, "spare.example.com:443")
    assert found(done) == ("spare", "spare.example.com", "default", "127.0.0.1:9000")


def test_one_backend_can_be_asked(route: Callable[..., Done]) -> None:
    assert found(route("--json", "--backend", "spare", "app.example.com:443"))[0] == "spare"
    done = route("--backend", "none", "app.example.com:443")
    assert done.code == 2
    assert done.err == "nexusg route: there is no backend 'none', only web, spare\n"


def test_an_unclaimed_name_is_said(route: Callable[..., Done]) -> None:
    assert "  claim    none: " in route("elsewhere.test:443").out


def test_a_bad_address_is_a_usage_error(route: Callable[..., Done]) -> None:
    done = route("example.com")
    assert done.code == 2
    assert "'example.com' is not HOST:PORT, as in example.com:443" in done.err
