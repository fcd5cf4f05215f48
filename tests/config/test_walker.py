"""Nodes become dataclasses, and every mistake on the way is reported with its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from nexusg.config import nodes
from nexusg.config.model import Backend, Config, Destination, PortMapping
from nexusg.config.report import Report
from nexusg.config.secret import Secret
from nexusg.config.walker import Walker


if TYPE_CHECKING:
    from collections.abc import Mapping

    from nexusg.config.validate import Path

GOOD = """\
backends:
  - name: app
    hostnames: [app.test]
    nexusAddresses: ["wss://relay.test/connect"]
    attestation: {hmacSecret: 0123456789abcdef0123456789abcdef}
    portMappings: {443: {default: "127.0.0.1:80"}}
"""


def walk(text: str, folds: Mapping[Any, Any] | None = None) -> tuple[Any, Report]:
    report = Report("f")
    walker = Walker(report, {"NAME": "value"}, folds or {})
    return walker.block(Config, nodes.compose(text), ()), report


def problems(text: str) -> list[str]:
    return walk(text)[1].problems()


def backend(more: str = "", good: str = GOOD) -> Any:
    config, report = walk(good + more)
    assert report.problems() == []
    return config.backends[0]


def test_values_of_every_kind() -> None:
    made = backend(
        """\
    weight: 3
    tcpPorts: [22, 0x19]
    udpRoutes: [{port: 53}, {port: 54, flowIdleTimeoutSeconds: 0}]
    healthChecks: {enabled: no, inactivityTimeout: 1.5}
""",
        GOOD.replace("hmacSecret: ", "env: {A: 1, B: true, C: ~, D: '${NAME}'}, hmacSecret: "),
    )
    assert (made.weight, made.tcp_ports) == (3, (22, 25))
    assert [route.flow_idle_timeout_s for route in made.udp_routes] == [None, 0]
    assert (made.health_checks.enabled, made.health_checks.inactivity_timeout_s) == (False, 1.5)
    assert dict(made.attestation.env) == {"A": "1", "B": "true", "C": "", "D": "value"}
    assert made.attestation.hmac_secret == Secret("0123456789abcdef" * 2)
    assert made.port_mappings[443].default == Destination(("127.0.0.1:80",))


def test_null_is_the_same_as_nothing() -> None:
    made = backend("    weight: ~\n    healthChecks:\n    tcpPorts:\n    socks5ListenAddr: null\n")
    plain = backend()
    assert made == plain


def test_null_has_no_meaning_in_a_list() -> None:
    text = GOOD + "    tcpPorts: [~]\n    udpRoutes: [~]\n"
    assert problems(text.replace("[app.test]", "[app.test, ~]")) == [
        'f:3:27: backends[0] "app": hostnames[1]: is a blank host name',
        'f:7:16: backends[0] "app": tcpPorts[0]: must be a whole number',
        'f:8:17: backends[0] "app": udpRoutes[0].port: is required',
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a", "f:1:1: must be a map (backends, shutdown, logging, …), not a list"),
        ("a", "f:1:1: must be a map (backends, shutdown, logging, …), not a single value"),
        ("{}", "f:1:1: backends: is required"),
        ("backends: []", "f:1:11: backends: must not be empty"),
        ("backends: {a: 1}", "f:1:11: backends: must be a list, not a map"),
        ("backends: [a]", "f:1:12: backends[0]: must be a map (name, hostnames, hostname, …), not"),
        ("[a]: 1\nbackends: ~", "f:1:1: a key must be a single value, not a list"),
    ],
)
def test_shapes(text: str, said: str) -> None:
    assert problems(text)[0].startswith(said)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("weight: heavy", "7:13: {}weight: must be a whole number"),
        ("weight: '5'", "7:13: {}weight: must be a whole number: remove the quotes"),
        ("tcpPorts: 22", "7:15: {}tcpPorts: must be a list, not a single value"),
        ("tcpPorts: [0]", "7:16: {}tcpPorts[0]: 0 is not a port (1 to 65535)"),
        ("udpRoutes: [{}]", "7:17: {}udpRoutes[0].port: is required"),
        ("tls: [a]", "7:10: {}tls: must be a map (caFile, certFile, keyFile, …), not a list"),
        ("tls: {caFile: '${UNSET}'}", "7:19: {}tls.caFile: UNSET is not set in the environment;"),
        ("udpRoutes: [{port: 1}, {port: 1}]", "7:35: {}udpRoutes[1].port: port 1 is listed twice"),
        ("weight: 1\n    weight: 2", "8:5: {}weight: this key is already in line 7"),
        ("flowControl: {maxBuffer: 40}", "7:18: {}flowControl: lowWaterMark (16) < highWater"),
        ("1: 2", "7:5: {}unknown key, not shown because it may be a value"),
        ("surprise: 1", "7:5: {}surprise: unknown key"),
        ("Weight: 1", "7:5: {}Weight: unknown key; did you mean weight?"),
        ("tcp_ports: [1]", "7:5: {}tcp_ports: unknown key; did you mean tcpPorts?"),
        ("weigth: 1", "7:5: {}weigth: unknown key; did you mean weight?"),
        ("tcpPorts2: [1]", "7:5: {}tcpPorts2: unknown key; did you mean tcpPorts?"),
        ("command: x", "7:5: {}command: unknown key; it belongs in backends.attestation"),
        ("logging: x", "7:5: {}logging: unknown key; it belongs at the top of the file"),
        (
            "flowControl: {port: 1}",
            "7:19: {}flowControl.port: unknown key; it belongs in backends.",
        ),
        ("{name}: 1", "7:5: {}a key must be a single value, not a map"),
    ],
)
def test_one_problem(line: str, said: str) -> None:
    [problem] = problems(GOOD + f"    {line}\n")
    assert problem.startswith("f:" + said.format('backends[0] "app": '))


def test_everything_is_found_in_one_run() -> None:
    text = """\
backends:
  - hostnames: [" "]
    attestation: {timeoutSecs: 3, tokenTTLSeconds: -1}
    portMappings:
      "443": {default: "a:1"}
      80: "a:1"
      25: {}
      26: {hosts: {"*.": "a:1", a.test: "a"}}
  - name: two
    tcpPorts: [x]
loging: {level: debug}
limits: {messageBytes: 5}
"""
    assert problems(text) == [
        "f:2:5: backends[0].name: is required",
        "f:2:5: backends[0].nexusAddresses: is required",
        "f:2:17: backends[0].hostnames[0]: is a blank host name",
        "f:3:18: backends[0].attestation: a command, an hmacSecret, an hmacSecretFile"
        " or a tpm block is required",
        "f:3:19: backends[0].attestation.timeoutSecs: unknown key; did you mean timeoutSeconds?",
        "f:3:52: backends[0].attestation.tokenTTLSeconds: must not be negative",
        "f:5:7: backends[0].portMappings: a key must be a whole number: remove the quotes",
        "f:6:11: backends[0].portMappings[80]: must be a map (default, hosts), not a single value",
        "f:7:11: backends[0].portMappings[25]: a default target or hosts with targets are required",
        "f:8:20: backends[0].portMappings[26].hosts: a key is a blank host name or pattern",
        'f:8:41: backends[0].portMappings[26].hosts["a.test"]: "a" has no port: write "a:80"',
        'f:9:5: backends[1] "two": attestation: a command, an hmacSecret, an hmacSecretFile'
        " or a tpm block is required",
        'f:9:5: backends[1] "two": portMappings: is required',
        'f:9:5: backends[1] "two": nexusAddresses: is required',
        'f:10:16: backends[1] "two": tcpPorts[0]: must be a whole number',
        "f:11:1: loging: unknown key; did you mean logging?",
        "f:12:24: limits.messageBytes: must be at least 65553",
    ]


@pytest.mark.parametrize(
    ("key", "misspelt"),
    [("nexusAddresses", "nexusAdresses"), ("hmacSecret", "hmacsecret"), ("hostnames", "hostNames")],
)
def test_what_is_misspelt_is_not_missing_too(key: str, misspelt: str) -> None:
    [problem] = problems(GOOD.replace(f"{key}:", f"{misspelt}:"))
    assert problem.endswith(f"{misspelt}: unknown key; did you mean {key}?")


def test_a_misspelt_key_beside_the_right_one() -> None:
    assert len(problems(GOOD + "    Weight: 1\n    weight: x\n")) == 2


def test_warnings() -> None:
    config, report = walk(GOOD + "    socks5ListenAddr: nowhere\n    tcpPorts: [9999]\n")
    assert isinstance(config, Config)
    assert report.problems() == []
    assert report.warnings() == [
        'f:7:23: backends[0] "app": socks5ListenAddr: is not "host:port": the listener will stay'
        " off",
        'f:8:15: backends[0] "app": tcpPorts: port 9999 has no entry in portMappings: its streams'
        " are refused",
    ]


def test_names_that_are_the_same() -> None:
    text = GOOD.replace('{default: "127.0.0.1:80"}', "{hosts: {a.test: 'a:1', A.test.: 'b:1'}}")
    config, report = walk(text)
    assert config.backends[0].port_mappings[443] == PortMapping(hosts={"a.test": "a:1"})
    assert [line.partition("hosts")[2] for line in report.warnings()] == [
        '["A.test."]: is the same as the key in line 6, which is used'
    ]


class TestAliases:
    """Anchors, aliases and merge keys (yaml.v3 has them)."""

    def test_an_alias_is_a_copy(self) -> None:
        made = backend(good=GOOD.replace("name: app", "name: &n app").replace("[app.test]", "[*n]"))
        assert made.hostnames == ("app",)

    def test_a_merge_gives_way_to_the_map(self) -> None:
        text = GOOD.replace("- name", "- &base\n    name")
        config, report = walk(text + "  - <<: *base\n    name: two\n    weight: 2\n")
        assert report.problems() == []
        one, two = config.backends
        assert (two.name, two.weight) == ("two", 2)
        assert (two.hostnames, two.attestation) == (one.hostnames, one.attestation)

    def test_the_first_of_several_merges_counts(self) -> None:
        text = GOOD.replace(
            "{hmacSecret:", "{<<: [{command: a, args: [x]}, {command: b}], hmacSecret:"
        )
        attestation = backend(good=text).attestation
        assert (attestation.command, attestation.args) == ("a", ("x",))

    def test_merges_into_maps_with_free_keys(self) -> None:
        text = GOOD.replace("{443:", "{<<: {443: {default: 'a:1'}, 80: {default: 'a:2'}}, 443:")
        mapped = dict(backend(good=text).port_mappings)
        assert mapped == {443: PortMapping("127.0.0.1:80"), 80: PortMapping("a:2")}

    def test_what_is_merged_is_strict_too(self) -> None:
        [problem] = problems(GOOD + "    <<: {surprise: 1}\n")
        assert problem == 'f:7:10: backends[0] "app": surprise: unknown key'

    @pytest.mark.parametrize("value", ["1", "[1]", "[[{}]]"])
    def test_only_maps_are_merged(self, value: str) -> None:
        assert problems(GOOD + f"    <<: {value}\n")[0].endswith(": << must name other maps")

    def test_a_quoted_merge_key_is_a_key(self) -> None:
        assert "unknown key, not shown" in problems(GOOD + "    '<<': {}\n")[0]

    @pytest.mark.parametrize("text", ["&a {<<: *a}", "&a {<<: {<<: *a}}", "backends: &a [*a]"])
    def test_a_map_within_itself(self, text: str) -> None:
        assert problems(text)

    def test_laughs_are_counted(self) -> None:
        laughs = [f"- &l{n} {{<<: [{', '.join([f'*l{n - 1}'] * 9)}]}}" for n in range(1, 9)]
        text = "\n".join(["a:", "- &l0 {b: c}", *laughs, "<<: *l8"])
        with pytest.raises(nodes.Broken, match="stand for more than 100000 values"):
            walk(text)


class TestTextOrBlock:
    """A destination is a plain text, as in the Go client's files, or a block."""

    def port(self, mapping: str) -> Any:
        return backend(good=GOOD.replace('{default: "127.0.0.1:80"}', mapping)).port_mappings[443]

    def test_a_text(self) -> None:
        assert self.port("{default: a:1, hosts: {a.test: b:1}}") == PortMapping(
            "a:1", {"a.test": "b:1"}
        )

    def test_a_block(self) -> None:
        wanted = Destination(("a:1", "b:1"), "v2")
        block = "{targets: [a:1, b:1], proxyProtocol: v2}"
        assert self.port(f"{{default: {block}, hosts: {{a.test: {block}}}}}") == PortMapping(
            wanted, {"a.test": wanted}
        )

    @pytest.mark.parametrize("nothing", ["", "~", '""'])
    def test_nothing_is_nothing_unless_in_a_map(self, nothing: str) -> None:
        text = f"{{hosts: {{a.test: a:1}}, default: {nothing}}}"
        assert self.port(text) == PortMapping(hosts={"a.test": "a:1"})
        bad = GOOD.replace('{default: "127.0.0.1:80"}', f"{{hosts: {{a.test: {nothing}}}}}")
        [problem] = problems(bad)
        assert problem.endswith('hosts["a.test"]: is a blank target: write "host:port"')

    @pytest.mark.parametrize(
        ("default", "said"),
        [
            ("[a:1]", "35: {}: must be a single value or a map, not a list"),
            ("a", '35: {}: "a" has no port: write "a:80"'),
            ("!x a:1", "35: {}: has a tag, which means nothing here; quote a value that begins"),
            ("{targets: [a]}", '46: {}.targets[0]: "a" has no port: write "a:80"'),
            ("{targets: a:1}", "45: {}.targets: must be a list, not a single value"),
            ("{tragets: [a:1]}", "36: {}.tragets: unknown key; did you mean targets?"),
        ],
    )
    def test_problems_have_their_place(self, default: str, said: str) -> None:
        [problem] = problems(GOOD.replace('"127.0.0.1:80"', default))
        place = 'backends[0] "app": portMappings[443].default'
        assert problem.startswith("f:6:" + said.format(place))


def test_a_key_that_several_blocks_have_is_sent_to_the_nearest() -> None:
    [problem] = problems(GOOD + "caFile: x\n")
    assert problem == "f:7:1: caFile: unknown key; it belongs in backends.tls"


def test_a_bad_value_leaves_the_rest_of_its_block() -> None:
    """A rule over two blocks is not misled by what is wrong elsewhere in one of them."""
    text = GOOD.replace("{hmacSecret: 0123456789abcdef0123456789abcdef}", "{%s}").replace(
        '    nexusAddresses: ["wss://relay.test/connect"]\n', ""
    )
    good, bad = "tpm: {authorizerUrl: https://a}", "tpm: {authorizerUrl: http://a}"
    assert problems(text.replace("%s", good)) == []
    for attestation in (f"{good}, timeoutSeconds: -1", bad):
        assert len(problems(text.replace("%s", attestation))) == 1


@pytest.mark.parametrize(
    "attestation",
    [
        "{hmacSecert: %s}",
        "{hmacSecret: [%s]}",
        "{hmacSecret: {%s: 1}}",
        "{hmacSecret: !%s x}",
        "{hmacSecret: !!binary %s}",
        "{hmacSecret:%s}",
        "{hmacSecret:%s, hmacSecret:%s}",
        "{hmacSecret=%s}",
        "{hmacSecret, %s}",
        "%s",
        "[%s]",
        "{hmacSecret: '${%s'}",
        "{hmacSecret: '%s${UNSET}'}",
        "{hmacSecret: x, env: {A: [%s]}}",
        "{hmacSecret: x, env: {TOKEN:%s}}",
        "{hmacSecret: x, env: {TOKEN=%s, TOKEN=%s}}",
        "{hmacSecret: x, env: {TOKEN:%s, TOKEN:%s}}",
        "{hmacSecret: x, env: %s}",
        "{hmacSecret: x, env: {A: '${ %s}'}}",
        "{hmacSecret: x, args: %s}",
        "{hmacSecret: x, args: [[%s]]}",
        "{hmacSecret: x, command: [%s]}",
        "{hmacSecret: x, timeoutSeconds: %s}",
        "{hmacSecret: x, tokenTTLSeconds: %s}",
        "{hmacSecret: x, outboundAllowed: %s}",
        "{hmacSecret: x, allowedOutboundPorts: [%s]}",
        "{hmacSecret: x, authorizerStatusUri: [%s]}",
    ],
)
def test_no_message_shows_a_secret(attestation: str) -> None:
    text = GOOD.replace("{hmacSecret: 0123456789abcdef0123456789abcdef}", attestation)
    for secret in ("hunter2-is-a-secret", "huntertwo"):
        said = problems(text.replace("%s", secret))
        assert said
        assert "hunter" not in "\n".join(said)


def test_a_forgotten_space_is_recognised() -> None:
    [problem] = problems(GOOD.replace("{hmacSecret: ", "{hmacSecret:"))
    assert problem.endswith("attestation.hmacSecret: needs a space after the colon")


def test_a_key_that_is_no_word_is_not_shown() -> None:
    for line in ("a" * 41 + ": 1", "x123: 1", "a b: 1", "weight4711: 1", "hunter: ~"):
        [problem] = problems(GOOD + f"    {line}\n")
        assert problem.endswith("unknown key, not shown because it may be a value")


def test_folds_change_the_values_of_their_class() -> None:
    seen = []

    def fold(walker: Walker, values: dict[str, Any], found: Mapping[str, Any], path: Path) -> None:
        seen.append((path, values["weight"], found["weight"].value))
        values["weight"] = 7
        walker.say((*path, "weight"), "was folded", fatal=False)

    config, report = walk(GOOD + "    weight: 0x2\n", {Backend: fold})
    assert seen == [(("backends", 0), 2, "0x2")]
    assert config.backends[0].weight == 7
    assert report.warnings() == ['f:7:13: backends[0] "app": weight: was folded']


def test_folds_can_ask_what_is_misspelt() -> None:
    seen: list[bool] = []

    def fold(walker: Walker, _values: object, _nodes: object, path: Path) -> None:
        seen.extend(walker.is_misspelt((*path, key)) for key in ("weight", "tcpPorts"))

    walk(GOOD + "    weigth: 2\n", {Backend: fold})
    assert seen == [True, False]


def test_a_name_that_is_none() -> None:
    assert problems(GOOD.replace("name: app", "name: [app]")) == [
        "f:2:11: backends[0].name: must be a single value, not a list"
    ]
