"""Resolving a connect (PROTOCOL.md section 10.6)."""

from __future__ import annotations

import dataclasses
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusg.config.hostnames import normalize
from nexusg.config.model import Destination, PortMapping
from nexusg.targets.router import Route, Router


# The vectors of the conformance suite.
HOSTS = {
    "exact.test": "exact",
    "*.wild.test": "wild",
    "*.deep.wild.test": "deep",
    "known.wild.test": "known",
    "UPPER.Test.": "upper",
    "münchen.test": "idn",
    "*.bücher.test": "idn-wild",
    "tcp:25": "literal",
}
ROUTES = [
    ("exact.test", "exact"),
    ("EXACT.Test", "exact"),
    ("exact.test.", "exact"),
    ("upper.test", "upper"),
    ("a.wild.test", "wild"),
    ("A.WILD.test.", "wild"),
    ("known.wild.test", "known"),
    ("a.deep.wild.test", "deep"),
    ("a.b.wild.test", "default"),
    ("wild.test", "default"),
    (".wild.test", "default"),
    ("a.b.deep.wild.test", "default"),
    ("xn--mnchen-3ya.test", "idn"),
    ("MÜNCHEN.test", "idn"),
    ("a.xn--bcher-kva.test", "idn-wild"),
    ("a.bücher.test", "idn-wild"),
    ("other.test", "default"),
    ("tcp:25", "literal"),
    ("tcp:443", "default"),
    ("", "default"),
]


def route(target: str, rule: Literal["exact", "wildcard", "default"], pattern: str) -> Route:
    return Route(Destination((target,)), rule, pattern)


def router(default: str | None = "default", hosts: dict[str, str] | None = None) -> Router:
    return Router({443: PortMapping(default=default, hosts=HOSTS if hosts is None else hosts)})


@pytest.mark.parametrize(("host", "target"), ROUTES)
def test_vectors(host: str, target: str) -> None:
    found = router().resolve(443, host)
    assert found is not None
    assert found.destination == Destination((target,))


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("Exact.test", route("exact", "exact", "exact.test")),
        ("a.deep.wild.test", route("deep", "wildcard", "*.deep.wild.test")),
        ("a.bücher.test", route("idn-wild", "wildcard", "*.xn--bcher-kva.test")),
        ("*.wild.test", route("wild", "wildcard", "*.wild.test")),
        ("nowhere", route("default", "default", "default")),
    ],
)
def test_a_route_names_the_rule_and_the_line(host: str, expected: Route) -> None:
    assert router().resolve(443, host) == expected


def test_without_a_default_there_may_be_no_route() -> None:
    hosts_only = router(default=None)
    assert hosts_only.resolve(443, "other.test") is None
    assert hosts_only.resolve(443, "exact.test") is not None


def test_the_port_decides_first() -> None:
    ports = Router({port: PortMapping(default=f"port {port}") for port in (25, 80)})
    assert ports.resolve(25, "x") == route("port 25", "default", "default")
    assert ports.resolve(80, "x") == route("port 80", "default", "default")
    assert ports.resolve(443, "x") is None


def test_no_mappings_no_routes() -> None:
    assert Router({}).resolve(443, "exact.test") is None


def test_routes_are_frozen() -> None:
    frozen = route("a:1", "default", "default")
    with pytest.raises(dataclasses.FrozenInstanceError):
        frozen.rule = "exact"  # type: ignore[misc]


def test_a_destination_is_passed_on_as_it_is() -> None:
    to = Destination(("a:1", "b:1"), "v2")
    found = Router({443: PortMapping(hosts={"a.test": to})}).resolve(443, "a.test")
    assert found is not None
    assert found.destination is to


labels = st.sampled_from(["", "a", "b", "*"])
names = st.lists(labels, min_size=1, max_size=4).map(".".join)


@given(st.sets(names), names)
def test_rules_in_their_order(patterns: set[str], host: str) -> None:
    """Against the rules read out literally, over all patterns."""
    found = router(hosts={pattern: pattern for pattern in patterns}).resolve(443, host)
    assert found is not None
    mapped = PortMapping(default="x", hosts={pattern: pattern for pattern in patterns}).hosts
    wanted = normalize(host)
    wild = [
        pattern
        for pattern in mapped
        if pattern.startswith("*.")
        and wanted.endswith(pattern[1:])
        and (label := wanted[: -len(pattern[1:])])
        and "." not in label
    ]
    if wanted in mapped and not wanted.startswith("*."):
        assert (found.rule, found.pattern) == ("exact", wanted)
    elif wild:
        assert (found.rule, found.pattern) == ("wildcard", max(wild, key=len))
    else:
        assert found.rule == "default"
