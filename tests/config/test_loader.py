"""A file becomes a Config, or a list of everything that is wrong with it (PROTOCOL.md 10)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nexusg.config import model
from nexusg.config.loader import MAX_FILE_BYTES, MAX_SECRET_BYTES, Loaded, load, loads
from nexusg.config.model import Destination, PortMapping, TargetTls, TlsTerminate, Tpm
from nexusg.config.secret import Secret
from nexusg.config.setting import settings_of
from nexusg.config.socks5 import Socks5Auth
from nexusg.errors import ConfigError


if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nexusg.config.model import Config

SECRET = "hunter2-hunter2-hunter2-hunter2-"
CONF = Path(__file__).parents[2] / "conf"


def backend(**overrides: Any) -> dict[str, Any]:
    """A backend block; ``overrides`` replace keys, and ``None`` removes one."""
    block = {
        "name": "app",
        "hostnames": ["app.test"],
        "nexusAddresses": ["ws://127.0.0.1:1/connect"],
        "attestation": {"hmacSecret": SECRET},
        "portMappings": {443: {"default": "127.0.0.1:9"}},
    } | overrides
    return {key: value for key, value in block.items() if value is not None}


def document(**overrides: Any) -> str:
    return yaml.safe_dump({"backends": [backend(**overrides)]}, allow_unicode=True)


def attestation(**overrides: Any) -> str:
    return document(attestation={"hmacSecret": SECRET} | overrides)


def problems(text: str, environ: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        loads(text, "x.yaml", environ or {})
    said = str(caught.value)
    assert "hunter2" not in said
    assert said.splitlines() == list(caught.value.problems)
    return said


def loaded(text: str, environ: Mapping[str, str] | None = None) -> Loaded:
    found = loads(text, "x.yaml", environ or {})
    assert "hunter2" not in repr(found)
    return found


def mapped(default: object, **more: Any) -> str:
    return document(portMappings={443: {"default": default, **more}})


def tpm(**overrides: Any) -> str:
    block = {"authorizerUrl": "https://namek.test"} | overrides
    return document(attestation={"tpm": block}, nexusAddresses=None, hostnames=None)


GOOD = document()
FATAL: dict[str, tuple[str, str]] = {  # name: (document, what the message must mention)
    "empty-file": ("", "x.yaml:1:1: the file is empty: backends are required"),
    "null-document": ("~", "the file is empty"),
    "not-yaml": ("backends: [", "YAML syntax"),
    "no-backends": ("{}", "backends: is required"),
    "empty-backends": ("backends: []", "backends: must not be empty"),
    "backends-is-a-map": ("backends: {a: 1}", "backends: must be a list"),
    "a-list": ("- a", "must be a map (backends, shutdown"),
    "unknown-top-key": (GOOD + "surprise: 1\n", "surprise"),
    "unknown-backend-key": (document(surprise=1), "surprise"),
    "unknown-attestation-key": (attestation(surprise=1), "attestation.surprise"),
    "unknown-mapping-key": (document(portMappings={443: {"default": "a:1", "b": 1}}), "[443].b"),
    "unknown-health-key": (document(healthChecks={"surprise": 1}), "healthChecks.surprise"),
    "unknown-flow-key": (document(flowControl={"surprise": 1}), "flowControl.surprise"),
    "unknown-udp-key": (document(udpRoutes=[{"port": 53, "surprise": 1}]), "[0].surprise"),
    "wrong-case-key": (document(Weight=1), "Weight: unknown key; did you mean weight?"),
    "duplicate-top-key": (GOOD + "backends: []\n", "backends: this key is already in line 1"),
    "duplicate-key": (GOOD.replace("  name: app", "  name: app\n  name: b"), "already in line 6"),
    "weight-is-text": (document(weight="heavy"), "weight: must be a whole number"),
    "name-is-a-list": (document(name=["a"]), "name: must be a single value"),
    "port-is-text": (document(tcpPorts=["ssh"]), "tcpPorts[0]: must be a whole number"),
    "missing-name": (document(name=None), "name: is required"),
    "empty-name": (document(name=""), "name: must not be blank"),
    "nothing-claimed": (document(hostnames=None), "one of hostnames, tcpPorts and udpRoutes"),
    "blank-hostname": (document(hostnames=["a.test", " "]), "hostnames[1]: is a blank host name"),
    "dot-hostname": (document(hostnames=["."]), "hostnames[0]"),
    "blank-single-hostname": (document(hostnames=None, hostname=" "), "hostname: is a blank"),
    "reserved-tcp-name": (document(hostnames=["tcp:53"]), "use tcpPorts or udpRoutes"),
    "reserved-single-name": (document(hostnames=None, hostname="udp:53"), "hostname: "),
    "reserved-name-in-capitals": (document(hostnames=["UDP:53"]), '"udp:53" is reserved'),
    "tcp-port-0": (document(tcpPorts=[0]), "tcpPorts[0]: 0 is not a port"),
    "tcp-port-65536": (document(tcpPorts=[65536]), "tcpPorts[0]: 65536 is not a port"),
    "udp-port-0": (document(udpRoutes=[{"port": 0}]), "udpRoutes[0].port: 0 is not a port"),
    "udp-port-65536": (document(udpRoutes=[{"port": 65536}]), "udpRoutes[0].port"),
    "udp-port-twice": (document(udpRoutes=[{"port": 53}, {"port": 53}]), "listed twice"),
    "udp-timeout-negative": (
        document(udpRoutes=[{"port": 53, "flowIdleTimeoutSeconds": -1}]),
        "flowIdleTimeoutSeconds: must not be negative",
    ),
    "no-addresses": (document(nexusAddresses=[]), "nexusAddresses: is required"),
    "missing-addresses": (document(nexusAddresses=None), "nexusAddresses: is required"),
    "no-attestation": (document(attestation=None), "attestation: a command, an hmacSecret"),
    "empty-attestation": (document(attestation={}), "attestation: a command, an hmacSecret"),
    "blank-command": (document(attestation={"command": "  "}), "attestation: a command"),
    "blank-secret": (document(attestation={"hmacSecret": "  "}), "attestation: a command"),
    "no-mappings": (document(portMappings=None), "portMappings: is required"),
    "empty-mappings": (document(portMappings={}), "portMappings: must not be empty"),
    "scalar-mapping": (document(portMappings={993: "localhost:993"}), "[993]: must be a map"),
    "empty-mapping": (document(portMappings={443: {}}), "[443]: a default target or hosts"),
    "quoted-port": (document(portMappings={"443": {"default": "a:1"}}), "remove the quotes"),
    "target-without-port": (document(portMappings={443: {"default": "a"}}), 'write "a:80"'),
    "blank-host-target": (document(portMappings={443: {"hosts": {"app.test": " "}}}), "app.test"),
    "blank-pattern": (document(portMappings={443: {"hosts": {"*.": "a:1"}}}), "hosts: a key is a"),
    "url-target": (mapped("https://a.test/"), 'write "tls://host:port"'),
    "list-target": (mapped(["a:1"]), "default: must be a single value or a map, not a list"),
    "no-target": (mapped({}), "[443].default: a target or targets are required"),
    "empty-targets": (mapped({"targets": []}), "default: a target or targets are required"),
    "empty-target": (mapped({"target": ""}), "default.target: is a blank target"),
    "bad-targets": (mapped({"targets": ["a:1", "a"]}), 'default.targets[1]: "a" has no port'),
    "two-kinds": (mapped({"targets": ["a:1"], "target": "b:1"}), "default.target: stands beside"),
    "unknown-destination-key": (mapped({"target": "a:1", "x": 1}), "default.x"),
    "bad-host-block": (
        mapped("a:1", hosts={"a.test": {"target": "a"}}),
        'portMappings[443].hosts["a.test"].target: "a" has no port',
    ),
    "bad-header": (mapped({"target": "a:1", "proxyProtocol": "v3"}), "one of off, v1, v2"),
    "terminated-with-a-key": (
        mapped({"target": "a:1", "tlsTerminate": {"keyFile": "k"}}),
        "tlsTerminate.keyFile: needs a certFile",
    ),
    "terminated-with-nothing": (
        mapped({"target": "a:1", "tlsTerminate": {"minVersion": 1.3}}),
        "tlsTerminate: needs a certFile",
    ),
    "target-key": (mapped({"target": "tls://a:1", "tls": {"keyFile": "k"}}), "needs a certFile"),
    "bad-path": (mapped({"target": "a:1", "health": {"path": "ok"}}), 'must begin with "/"'),
    "endless-check": (
        mapped({"target": "a:1", "health": {"timeoutSeconds": 6}}),
        "health.timeoutSeconds: must not be above intervalSeconds (5)",
    ),
    "no-pace": (mapped({"target": "a:1", "health": {"intervalSeconds": 0}}), "0.05 to 3600"),
    "no-failures": (mapped({"target": "a:1", "health": {"failures": 0}}), "must be 1 to 100"),
    "tpm-without-authorizer": (tpm(authorizerUrl=None), "tpm.authorizerUrl: is required"),
    "misspelt-authorizer": (
        document(
            attestation={"tpm": {"authorizerUrI": "https://a", "ak": "rsa2048"}},
            nexusAddresses=None,
        ),
        "did you mean authorizerUrl?",
    ),
    "tpm-of-defaults": (
        attestation(tpm={"tcti": "device:/dev/tpmrm0"}),
        "tpm.authorizerUrl: is required",
    ),
    "tpm-without-https": (tpm(authorizerUrl="http://a"), "tpm.authorizerUrl: must begin with"),
    "tpm-and-secret": (attestation(tpm={"authorizerUrl": "https://a"}), "beside a secret"),
    "tpm-and-command": (
        document(attestation={"command": "run", "tpm": {"authorizerUrl": "https://a"}}),
        "attestation.tpm: cannot stand beside a command",
    ),
    "tpm-in-a-bad-block": (
        document(
            attestation={"tpm": {"authorizerUrl": "https://a"}, "timeoutSeconds": -1},
            nexusAddresses=None,
        ),
        "timeoutSeconds: must not be negative",
    ),
    "tpm-relative": (tpm(stateDir="tpm"), 'tpm.stateDir: must begin with "/"'),
    "tpm-pcr": (tpm(enrollPcrs=[0, 24]), "tpm.enrollPcrs[1]: must be 0 to 23"),
    "tpm-key": (tpm(ak="rsa"), "tpm.ak: must be one of rsa2048, ecc-p256"),
    "negative-timeout": (attestation(timeoutSeconds=-1), "timeoutSeconds"),
    "negative-cache": (attestation(cacheHandshakeSeconds=-1), "cacheHandshakeSeconds"),
    "negative-ttl": (attestation(tokenTTLSeconds=-1), "tokenTTLSeconds"),
    "negative-max-age": (attestation(handshakeMaxAgeSeconds=-1), "handshakeMaxAgeSeconds"),
    "negative-interval": (attestation(reauthIntervalSeconds=-1), "reauthIntervalSeconds"),
    "negative-grace": (attestation(reauthGraceSeconds=-1), "reauthGraceSeconds"),
    "negative-cap": (attestation(maintenanceGraceCapSeconds=-1), "maintenanceGraceCapSeconds"),
    "fractional-ttl": (attestation(tokenTTLSeconds=1.5), "tokenTTLSeconds: must be a whole"),
    "only-max-buffer": (document(flowControl={"maxBuffer": 40}), "maxBuffer (40) must hold"),
    "low-above-high": (
        document(flowControl={"lowWaterMark": 50, "highWaterMark": 40}),
        "lowWaterMark (50) < highWaterMark (40)",
    ),
    "high-equals-low": (document(flowControl={"lowWaterMark": 48}), "lowWaterMark (48)"),
    "missing-secret-file": (
        document(attestation={"hmacSecretFile": "/no/such/file"}),
        'hmacSecretFile: cannot read "/no/such/file": no such file or directory',
    ),
    "empty-secret-file": (
        document(attestation={"hmacSecretFile": "/dev/null"}),
        'hmacSecretFile: "/dev/null" is empty',
    ),
    "unset-variable": (attestation(hmacSecret="${UNSET}"), "hmacSecret: UNSET is not set"),
    "half-a-variable": (attestation(hmacSecret="hunter2${"), 'a literal one is written "$${"'),
    "key-without-certificate": (document(tls={"keyFile": "k.pem"}), "keyFile: needs a certFile"),
    "unknown-level": (GOOD + "logging: {level: loud}\n", "level: must be one of debug, info"),
    "tiny-messages": (GOOD + "limits: {messageBytes: 1000}\n", "messageBytes: must be at least"),
    "no-flows": (GOOD + "limits: {udpFlows: 0}\n", "limits.udpFlows: must be at least 1"),
    "empty-datagrams": (GOOD + "limits: {udpDatagramBytes: 0}\n", "must be 1 to 32768"),
    "datagrams-too-large": (GOOD + "limits: {udpDatagramBytes: 32769}\n", "udpDatagramBytes"),
    "end-before-pause": (
        GOOD + "limits: {streamBufferMaxBytes: 1000000}\n",
        "limits.streamBufferBytes: must not be above streamBufferMaxBytes",
    ),
    "negative-grace-period": (GOOD + "shutdown: {graceSeconds: -1}\n", "graceSeconds"),
}


@pytest.mark.parametrize("case", FATAL)
def test_fatal(case: str) -> None:
    text, mention = FATAL[case]
    said = problems(text)
    assert mention in said
    assert "\n" not in said, "one mistake, one line"
    assert said.startswith("x.yaml:")


ACCEPTED: dict[str, tuple[str, Callable[[Config], object], object]] = {
    "second-document": (GOOD + "---\nnonsense: [\n", lambda c: len(c.backends), 1),
    "yaml-1.1-boolean": (
        GOOD.replace("  name: app", "  name: app\n  healthChecks: {enabled: no}"),
        lambda c: c.backends[0].health_checks.enabled,
        False,
    ),
    "health-checks-are-on": (GOOD, lambda c: c.backends[0].health_checks.enabled, True),
    "health-block-is-on": (
        document(healthChecks={"pongTimeout": 9}),
        lambda c: c.backends[0].health_checks.enabled,
        True,
    ),
    "health-values-zero": (
        document(healthChecks={"enabled": True, "inactivityTimeout": 0, "pongTimeout": -1}),
        lambda c: c.backends[0].health_checks.inactivity_timeout_s,
        60.0,
    ),
    "number-as-text": (document(name=42), lambda c: c.backends[0].name, "42"),
    "env-values": (
        attestation(env={"A": 1, "B": True}),
        lambda c: dict(c.backends[0].attestation.env),
        {"A": "1", "B": "true"},
    ),
    "udp-timeout-zero": (
        document(udpRoutes=[{"port": 53, "flowIdleTimeoutSeconds": 0}, {"port": 54}]),
        lambda c: [route.flow_idle_timeout_s for route in c.backends[0].udp_routes],
        [0, None],
    ),
    "zero-means-default": (
        attestation(timeoutSeconds=0, tokenTTLSeconds=0),
        lambda c: (c.backends[0].attestation.timeout_s, c.backends[0].attestation.token_ttl_s),
        (15.0, 30),
    ),
    "flow-zero-means-default": (
        document(flowControl={"maxBuffer": 0, "lowWaterMark": -1}),
        lambda c: c.backends[0].flow_control.max_buffer,
        64,
    ),
    "ports-only": (
        document(hostnames=None, tcpPorts=[443]),
        lambda c: c.backends[0].hostnames,
        (),
    ),
    "duplicates": (
        document(hostnames=["b.test", "A.test", "B.TEST."], tcpPorts=[25, 22, 25]),
        lambda c: (c.backends[0].hostnames, c.backends[0].tcp_ports),
        (("b.test", "a.test"), (25, 22)),
    ),
    "single-hostname": (
        document(hostnames=None, hostname="One.test"),
        lambda c: c.backends[0].hostnames,
        ("one.test",),
    ),
    "hostnames-win": (
        document(hostnames=["list.test"], hostname="udp:1"),
        lambda c: c.backends[0].hostnames,
        ("list.test",),
    ),
    "weight-zero": (document(weight=0), lambda c: c.backends[0].weight, 1),
    "unix-target": (
        document(portMappings={443: {"default": "unix:@web"}}),
        lambda c: c.backends[0].port_mappings[443],
        PortMapping("unix:@web"),
    ),
    "route-key-under-hosts": (
        document(portMappings={443: {"hosts": {"tcp:25": "a:1", "*.BÜCHER.test": "b:1"}}}),
        lambda c: c.backends[0].port_mappings[443],
        PortMapping(hosts={"tcp:25": "a:1", "*.xn--bcher-kva.test": "b:1"}),
    ),
    "empty-default": (
        mapped("", hosts={"a.test": "a:1"}),
        lambda c: c.backends[0].port_mappings[443],
        PortMapping(hosts={"a.test": "a:1"}),
    ),
    "null-default": (
        mapped(None, hosts={"a.test": "a:1"}),
        lambda c: c.backends[0].port_mappings[443].default,
        None,
    ),
    "long-form": (
        mapped({"target": "a:1"}, hosts={"a.test": {"targets": ["a:1", "b:1"]}}),
        lambda c: c.backends[0].port_mappings[443],
        PortMapping("a:1", {"a.test": Destination(("a:1", "b:1"))}),
    ),
    "tpm": (
        tpm(),
        lambda c: (c.backends[0].attestation.tpm, c.backends[0].nexus_addresses),
        (Tpm("https://namek.test"), ()),
    ),
    "empty-tpm": (attestation(tpm={}), lambda c: c.backends[0].attestation.tpm, Tpm()),
    "dollars": (
        attestation(hmacSecret="pa$$word$A$${B} 0123456789abcdef"),
        lambda c: c.backends[0].attestation.hmac_secret,
        Secret("pa$$word$A${B} 0123456789abcdef"),
    ),
    "crlf-and-mark": ("\ufeff" + GOOD.replace("\n", "\r\n"), lambda c: c.backends[0].name, "app"),
    "anchors": (
        "# hello\n" + GOOD.replace("name: app", "name: &n app"),
        lambda c: c.backends[0].name,
        "app",
    ),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(case: str) -> None:
    text, get, expected = ACCEPTED[case]
    found = loaded(text)
    assert get(found.config) == expected


WARNED: dict[str, tuple[str, str]] = {
    "claimed-port-without-mapping": (document(tcpPorts=[9999]), "port 9999 has no entry"),
    "bad-socks-address": (document(socks5ListenAddr="nowhere"), "socks5ListenAddr: is not"),
    "blank-address": (document(nexusAddresses=[" "]), "nexusAddresses[0]: cannot be dialled"),
    "http-address": (document(nexusAddresses=["http://a/"]), 'its scheme is "http"; write wss'),
    "short-secret": (document(attestation={"hmacSecret": "hunter2"}), "shorter than 32 bytes"),
    "command-and-secret": (attestation(command="run"), "hmacSecret: is not used"),
    "no-wildcard": (document(hostnames=["*.com"]), 'hostnames[0]: "*.com" matches no name'),
    "single-no-wildcard": (document(hostnames=None, hostname="*"), 'hostname: "*" matches no'),
    "outbound-ports": (attestation(allowedOutboundPorts=[25]), "outboundAllowed is false"),
    "outbound-port-0": (
        attestation(outboundAllowed=True, allowedOutboundPorts=[0]),
        "allowedOutboundPorts[0]: 0 is not a port",
    ),
    "status-uri": (attestation(authorizerStatusUri="http://a/"), "must begin with https://"),
    "missing-ca": (document(tls={"caFile": "no/ca.pem"}), 'tls.caFile: "no/ca.pem" does not exist'),
    "target-twice": (mapped({"targets": ["a:1", "b:1", "a:1"]}), "targets[2]: is listed twice"),
    "header-for-an-application": (
        mapped({"target": "wsgi:a", "proxyProtocol": "v2"}),
        "default.proxyProtocol: has no use with wsgi:",
    ),
    "idle-tls": (mapped({"target": "a:1", "tls": {"serverName": "a"}}), "default.tls: is not used"),
    "unverified": (
        mapped({"target": "tls://a:1", "tls": {"verify": False}}),
        "default.tls.verify: is off",
    ),
    "missing-target-ca": (
        mapped({"target": "tls://a:1", "tls": {"caFile": "no/ca.pem"}}),
        'default.tls.caFile: "no/ca.pem" does not exist',
    ),
    "missing-certificate": (
        mapped({"target": "a:1", "tlsTerminate": {"certFile": "no.pem"}}),
        'default.tlsTerminate.certFile: "no.pem" does not exist',
    ),
    "tpm-without-manager": (tpm(tcti="device:/dev/tpm0"), "tpm.tcti: shuts out"),
    "missing-authorizer-ca": (tpm(caFile="no.pem"), 'tpm.caFile: "no.pem" does not exist'),
    "mapped-port-0": (document(portMappings={0: {"default": "a:1"}}), "portMappings[0]: no stream"),
}


@pytest.mark.parametrize("case", WARNED)
def test_warned(case: str) -> None:
    text, mention = WARNED[case]
    [warning] = loaded(text).warnings
    assert mention in warning
    assert warning.startswith("x.yaml:")
    assert 'backends[0] "app": ' in warning


def test_nothing_to_say() -> None:
    assert loaded(GOOD).warnings == ()


def test_two_names_for_one_backend() -> None:
    text = yaml.safe_dump({"backends": [backend(), backend()]})
    assert len(loaded(text).warnings) == 2


def test_two_backends_on_one_tpm() -> None:
    url = "https://namek.test"
    backends = [backend(name=n, attestation={"tpm": {"authorizerUrl": url}}) for n in "ab"]
    [warning] = loaded(yaml.safe_dump({"backends": backends})).warnings
    assert warning.startswith('x.yaml:15:7: backends[1] "b": attestation.tpm: another backend is')


def test_a_program_that_finds_the_targets_needs_no_mappings(tmp_path: Path) -> None:
    text = document(portMappings=None, tcpPorts=[22])
    loaded = loads(text, mapped=True)
    assert loaded.config.backends[0].port_mappings == {}
    assert loaded.warnings == ()
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "config.yaml").chmod(0o600)
    assert load(tmp_path / "config.yaml", mapped=True) == loaded
    assert "portMappings: is required" in problems(text)


def test_mappings_that_are_not_needed_must_be_right_all_the_same() -> None:
    text = document(portMappings={443: {"default": "127.0.0.1"}})
    with pytest.raises(ConfigError, match="has no port"):
        loads(text, mapped=True)
    assert loads(document(), mapped=True).config.backends[0].port_mappings


def test_the_backend_is_named() -> None:
    text = yaml.safe_dump({"backends": [backend(), backend(name="broken", tcpPorts=[70000])]})
    assert problems(text) == (
        'x.yaml:23:5: backends[1] "broken": tcpPorts[0]: 70000 is not a port (1 to 65535)'
    )


class TestEnvironment:
    """``${NAME}`` works where it is allowed, and nowhere else."""

    def test_where_it_is_allowed(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text(SECRET)
        os.chmod(tmp_path / "secret", 0o600)
        text = document(
            attestation={"hmacSecretFile": "${FOLDER}/secret", "env": {"A": "<${WORD:-none}>"}},
            tls={"caFile": "${FOLDER}/secret", "certFile": "${FOLDER}/secret"},
        )
        found = loaded(text, {"FOLDER": str(tmp_path)})
        assert found.warnings == ()
        [made] = found.config.backends
        assert made.attestation.hmac_secret == Secret(SECRET)
        assert made.attestation.env["A"] == "<none>"
        assert made.tls.ca_file == str(tmp_path / "secret")

    def test_in_a_destination_and_a_tpm(self) -> None:
        files = {"certFile": "${F}", "keyFile": "${F}"}
        block = {"target": "tls://a:1", "tls": {**files, "caFile": "${F}"}, "tlsTerminate": files}
        text = document(
            portMappings={443: {"default": block}},
            attestation={"tpm": {"authorizerUrl": "https://a", "stateDir": "${S}/tpm"}},
        )
        [made] = loaded(text, {"F": "/dev/null", "S": "/state"}).config.backends
        assert made.port_mappings[443].default == Destination(
            ("tls://a:1",),
            tls=TargetTls("/dev/null", "/dev/null", "/dev/null"),
            tls_terminate=TlsTerminate("/dev/null", "/dev/null"),
        )
        assert made.attestation.tpm.state_dir == "/state/tpm"

    def test_where_it_is_not(self) -> None:
        text = document(name="${NAME}", attestation={"command": "${NAME}", "args": ["${NAME}"]})
        [made] = loaded(text, {"NAME": "x"}).config.backends
        assert (made.name, made.attestation.command) == ("${NAME}", "${NAME}")
        assert made.attestation.args == ("${NAME}",)

    def test_a_secret_from_the_environment(self) -> None:
        text = attestation(hmacSecret="${KEY}")
        made = loaded(text, {"KEY": f"{SECRET}\n"}).config.backends[0]
        assert made.attestation.hmac_secret == Secret(SECRET)

    def test_an_empty_variable_is_no_secret(self) -> None:
        assert "a command, an hmacSecret" in problems(attestation(hmacSecret="${K}"), {"K": " "})

    def test_the_process_environment_by_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NEXUSG_TEST_KEY", SECRET)
        [made] = loads(attestation(hmacSecret="${NEXUSG_TEST_KEY}")).config.backends
        assert made.attestation.hmac_secret == Secret(SECRET)


class TestSecretFile:
    """hmacSecretFile is read once, at the start."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "secret"
        path.write_text(f"  {SECRET}\n\n")
        path.chmod(0o600)
        return path

    def document(self, file: Path, **more: Any) -> str:
        return document(attestation={"hmacSecretFile": str(file), **more})

    def test_it_wins_and_is_trimmed(self, file: Path) -> None:
        found = loaded(self.document(file, hmacSecret="not this one"))
        assert found.config.backends[0].attestation.hmac_secret == Secret(SECRET)
        assert found.warnings == ()

    def test_others_can_read_it(self, file: Path) -> None:
        file.chmod(0o640)
        [warning] = loaded(self.document(file)).warnings
        assert f'hmacSecretFile: others can read "{str(file)[:20]}' in warning
        assert warning.endswith("chmod 600 it")

    def test_a_command_makes_it_idle(self) -> None:
        found = loaded(self.document(Path("/no/such/file"), command="run"))
        assert found.config.backends[0].attestation.hmac_secret is None
        assert found.warnings == ()

    def test_a_blank_command_does_not(self, file: Path) -> None:
        found = loaded(self.document(file, command=" "))
        assert found.config.backends[0].attestation.hmac_secret == Secret(SECRET)

    def test_blank(self, file: Path) -> None:
        file.write_text(" \n")
        assert problems(self.document(file)).endswith(" is empty")

    def test_binary(self, file: Path) -> None:
        file.write_bytes(b"hunter2\xff")
        assert problems(self.document(file)).endswith("encode a binary secret as base64")

    def test_too_large(self, file: Path) -> None:
        file.write_bytes(b"x" * (MAX_SECRET_BYTES + 1))
        assert problems(self.document(file)).endswith("is larger than 65536 bytes")

    def test_the_secret_in_the_place_of_the_file(self) -> None:
        said = problems(self.document(Path(SECRET)))
        assert said.endswith("hmacSecretFile: cannot read the file: no such file or directory")

    def test_a_relative_path(self) -> None:
        assert 'cannot read "./nowhere"' in problems(
            document(attestation={"hmacSecretFile": "./nowhere"})
        )

    def test_a_folder(self, tmp_path: Path) -> None:
        assert problems(self.document(tmp_path)).endswith("is a directory")


class TestPassword:
    """socks5Auth.password, read like the other secret."""

    def document(self, **auth: Any) -> str:
        attestation = {"hmacSecret": SECRET, "outboundAllowed": True}
        return document(attestation=attestation, socks5ListenAddr=":1080", socks5Auth=auth)

    def auth(self, text: str, environ: dict[str, str] | None = None) -> Socks5Auth:
        found = loaded(text, environ)
        assert found.warnings == ()
        return found.config.backends[0].socks5_auth

    def test_from_the_environment(self) -> None:
        text = self.document(username="${U:-me}", password="${PW}")
        assert self.auth(text, {"PW": "hunter2"}) == Socks5Auth("me", Secret("hunter2"))

    def test_from_a_file(self, tmp_path: Path) -> None:
        file = tmp_path / "password"
        file.write_text("hunter2\n")
        file.chmod(0o600)
        text = self.document(username="me", passwordFile=str(file), password="another")
        assert self.auth(text) == Socks5Auth("me", Secret("hunter2"))

    def test_a_file_that_is_not_there(self) -> None:
        said = problems(self.document(username="me", passwordFile="/no/such/file"))
        assert 'socks5Auth.passwordFile: cannot read "/no/such/file"' in said

    def test_in_a_file_that_others_can_read(self, tmp_path: Path) -> None:
        path = tmp_path / "x.yaml"
        path.write_text(self.document(username="me", password="hunter2"))
        path.chmod(0o644)
        said = [line for line in load(path).warnings if "socks5Auth" in line]
        assert [line.partition("password: ")[2] for line in said] == [
            "stands in a file that others can read; use passwordFile, or chmod 600 this file"
        ]


class TestLoad:
    """Reading the file itself."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "x.yaml"
        path.write_text(GOOD)
        path.chmod(0o600)
        return path

    def problem(self, path: Path | str) -> str:
        with pytest.raises(ConfigError) as caught:
            load(path)
        [problem] = caught.value.problems
        assert problem.startswith(str(path))
        return problem.removeprefix(str(path))

    def test_good(self, path: Path) -> None:
        found = load(path)
        assert found == load(str(path))
        assert found.config == loads(GOOD).config
        assert found.warnings == ()

    def test_problems_name_the_path(self, path: Path) -> None:
        path.write_text("backends: []")
        assert self.problem(path) == ":1:11: backends: must not be empty"

    @pytest.mark.parametrize("mode", [0o640, 0o604])
    def test_a_secret_that_others_can_read(self, path: Path, mode: int) -> None:
        path.chmod(mode)
        [warning] = load(path).warnings
        assert 'backends[0] "app": attestation.hmacSecret: stands in a file that others' in warning

    @pytest.mark.parametrize(
        "attestation", [{"hmacSecret": "${KEY}"}, {"command": "run"}, {"hmacSecret": "${A:-}"}]
    )
    def test_no_secret_that_others_could_read(
        self, path: Path, attestation: dict[str, str]
    ) -> None:
        path.write_text(document(attestation=attestation))
        path.chmod(0o644)
        assert load(path, {"KEY": SECRET, "A": SECRET}).warnings == ()

    def test_missing(self, tmp_path: Path) -> None:
        assert self.problem(tmp_path / "nowhere.yaml") == ": no such file or directory"

    def test_a_folder(self, tmp_path: Path) -> None:
        assert self.problem(tmp_path) == ": is a directory"

    def test_an_impossible_path(self) -> None:
        assert self.problem("a\0b") == ": embedded null byte"

    def test_too_large(self, path: Path) -> None:
        path.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
        assert self.problem(path) == f": is larger than {MAX_FILE_BYTES} bytes"

    def test_no_text(self, path: Path) -> None:
        path.write_bytes(b"a: 1\nhunter2: \xff\n")
        assert self.problem(path) == ":2:1: is not UTF-8 text"

    def test_a_pipe(self) -> None:
        reader, writer = os.pipe()
        with open(writer, "w", encoding="utf-8") as file:
            file.write(GOOD)
        with open(reader, "rb"):
            assert load(f"/dev/fd/{reader}").warnings == ()


class TestShippedFiles:
    """What conf/ holds can be used as it is."""

    def test_there_are_no_others(self) -> None:
        names = {path.name for path in CONF.glob("*.yaml")}
        assert names == {"config.yaml", "minimal.yaml", "reference.yaml"}

    def test_config(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "nexusg-dev").mkdir()
        secret = tmp_path / "nexusg-dev" / "secret"  # as nexusg relay makes it
        secret.write_text(SECRET)
        secret.chmod(0o600)
        found = load(CONF / "config.yaml", {})
        [warning] = found.warnings
        assert warning.endswith('tls.caFile: "nexusg-dev/ca.pem" does not exist')
        [made] = found.config.backends
        assert (made.name, made.hostnames) == ("demo", ("demo.localhost",))
        assert made.nexus_addresses == ("wss://127.0.0.1:9443/connect",)
        assert made.attestation.hmac_secret == Secret(SECRET)
        mapping = PortMapping("127.0.0.1:8000")
        assert made.port_mappings == {8080: mapping, 8443: mapping}

    def test_minimal(self) -> None:
        found = load(CONF / "minimal.yaml", {"NEXUS_HMAC_SECRET": SECRET})
        assert found.warnings == ()
        assert len(found.config.backends) == 1

    def test_minimal_without_its_secret(self) -> None:
        with pytest.raises(ConfigError, match="NEXUS_HMAC_SECRET is not set"):
            load(CONF / "minimal.yaml", {})


BLOCKS = [getattr(model, name) for name in model.__all__]
KEYS = sorted({setting.key for block in BLOCKS for setting in settings_of(block)} | {"<<", "x"})

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 70000),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["a.test", "a:1", "wss://a/", "${A}", "$${", "${", "debug", "*.", "tcp:1"]),
)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6)
        | st.dictionaries(scalars, inner, max_size=2)
    ),
    max_leaves=20,
)


def load_or_refuse(text: str) -> None:
    try:
        lines = loads(text, "x.yaml", {"A": "b"}).warnings
    except ConfigError as error:
        lines = error.problems
    assert all(line.startswith("x.yaml:") and "\n" not in line for line in lines)


@given(trees)
def test_any_tree_is_loaded_or_refused(tree: object) -> None:
    load_or_refuse(yaml.safe_dump(tree, allow_unicode=True))


@given(st.dictionaries(st.sampled_from(KEYS), trees, max_size=4))
def test_any_backend_is_loaded_or_refused(overrides: dict[str, Any]) -> None:
    load_or_refuse(yaml.safe_dump({"backends": [backend() | overrides]}))


@given(st.text("abk-: \n[]{}&*!|>'\"#%@,?<\t~0${}\ud800", max_size=60))
def test_any_text_is_loaded_or_refused(text: str) -> None:
    load_or_refuse(text)
    load_or_refuse(GOOD + text)


@given(st.integers(0, len(GOOD)), st.integers(0, 30), st.text(":- \n[]{}&*!'\"#\x00é", max_size=3))
def test_any_damage_is_loaded_or_refused(start: int, length: int, put: str) -> None:
    load_or_refuse(GOOD[:start] + put + GOOD[start + length :])
