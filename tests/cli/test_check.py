from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.cli.conftest import GOOD, SECRET


if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Done

SUMMARY = """\
backend web, hmac tokens
  relay   ws://127.0.0.1:1/connect
  claims  app.example.com
  claims  *.example.com
  claims  tcp:22
  claims  udp:53
  port 443  app.example.com -> 127.0.0.1:8081
  port 443  *.example.com -> unix:/run/web.sock
  port 443  default -> 127.0.0.1:8080
  port 22  default -> 127.0.0.1:22
  port 53  udp:53 -> 127.0.0.1:53

backend spare, command tokens
  relay   ws://127.0.0.1:1/connect
  claims  spare.example.com
  port 443  default -> 127.0.0.1:9000
"""

EXTENDED = GOOD.replace(
    'default: "127.0.0.1:9000"',
    'default: {targets: ["127.0.0.1:9000", "127.0.0.1:9001"], proxyProtocol: v2, '
    "tlsTerminate: {certFile: /dev/null}}",
)

BAD = f"""\
backends:
  - name: web
    hostnames: [app.example.com]
    nexusAddresses: ["ws://127.0.0.1:1/connect"]
    attestation: {{hmacSecret: "{SECRET}", nonsense: 1}}
    portMappings: {{443: {{}}}}
"""


def test_a_good_configuration_is_summed_up(nexusg: Callable[..., Done], good: str) -> None:
    done = nexusg("check", "--config", good)
    assert done.code == 0
    assert done.out == f"{good}: 2 backends, no warnings\n\n{SUMMARY}"
    assert done.err == ""


def test_warnings_are_not_fatal(nexusg: Callable[..., Done], write: Callable[[str], str]) -> None:
    path = write(GOOD.replace("tcpPorts: [22]", "tcpPorts: [22, 23]"))
    done = nexusg("check", "--config", path)
    assert done.code == 0
    assert "1 warning\n" in done.out
    assert done.err.startswith("warning: ")
    assert "port 23 has no entry in portMappings" in done.err


def test_every_problem_is_a_line(nexusg: Callable[..., Done], write: Callable[[str], str]) -> None:
    done = nexusg("check", "--config", write(BAD))
    assert (done.code, done.out) == (2, "")
    assert len(done.err.splitlines()) == 2
    assert "nonsense" in done.err
    assert ":5:" in done.err


def test_a_missing_file_is_named(nexusg: Callable[..., Done]) -> None:
    done = nexusg("check", "--config", "nowhere.yaml")
    assert (done.code, done.err) == (2, "nowhere.yaml: no such file or directory\n")


def test_json_of_a_good_configuration(nexusg: Callable[..., Done], good: str) -> None:
    done = nexusg("check", "--json", "-config", good)
    found = json.loads(done.out)
    assert (done.code, found["ok"], found["problems"], found["warnings"]) == (0, True, [], [])
    web = found["backends"][0]
    assert web["targets"]["443"]["default"] == "127.0.0.1:8080"
    assert (web["relays"], web["attestation"]) == (["ws://127.0.0.1:1/connect"], "hmac")


def test_destinations(nexusg: Callable[..., Done], write: Callable[[str], str]) -> None:
    path = write(EXTENDED)
    said = "127.0.0.1:9000, 127.0.0.1:9001 (PROXY protocol v2, TLS ended here, with /dev/null)"
    assert f"  port 443  default -> {said}\n" in nexusg("check", "--config", path).out
    spare = json.loads(nexusg("check", "--json", "--config", path).out)["backends"][1]
    assert spare["targets"]["443"]["default"] == "127.0.0.1:9000, 127.0.0.1:9001"
    assert spare["destinations"]["443"]["default"]["proxy_protocol"] == "v2"


def test_a_tpm(nexusg: Callable[..., Done], write: Callable[[str], str]) -> None:
    block = "{tpm: {authorizerUrl: https://namek.test/}}"
    path = write(GOOD.replace("{command: /usr/bin/token}", block))
    said = nexusg("check", "--config", path).out
    assert "backend spare, tpm tokens\n" in said
    assert "  tpm     https://namek.test\n" in said
    spare = json.loads(nexusg("check", "--json", "--config", path).out)["backends"][1]
    assert (spare["attestation"], spare["authorizer"]) == ("tpm", "https://namek.test")


def test_json_of_problems(nexusg: Callable[..., Done], write: Callable[[str], str]) -> None:
    done = nexusg("check", "--json", "--config", write(BAD))
    found = json.loads(done.out)
    assert (done.code, found["ok"], len(found["problems"]), done.err) == (2, False, 2, "")


def test_an_address_with_a_password_is_shown_without(
    nexusg: Callable[..., Done], write: Callable[[str], str]
) -> None:
    path = write(GOOD.replace("ws://127.0.0.1:1/connect?key=hidden", "wss://user:hunter2@r.test/c"))
    done = nexusg("check", "--config", path)
    assert "  relay   wss://r.test/c\n" in done.out
    assert "hunter2" not in done.out + done.err
