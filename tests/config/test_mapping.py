"""The destinations of a port in their one form, and the rules over them (PROTOCOL.md 10.6)."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest

from nexusg.config.destination import Destination
from nexusg.config.mapping import PortMapping


A, B, C = (Destination((f"{name}:1",)) for name in "abc")


def test_a_text_is_a_destination() -> None:
    mapping = PortMapping("a:1", {"b.test": "b:1", "c.test": C})
    assert mapping.default == A
    assert dict(mapping.hosts) == {"b.test": B, "c.test": C}
    assert mapping == PortMapping(A, {"b.test": B, "c.test": "c:1"})
    assert list(mapping.findings()) == []


def test_names_have_one_form_and_the_first_counts() -> None:
    mapping = PortMapping(hosts={"A.test": "a:1", "a.test.": "b:1", "*.Ü.test": "c:1"})
    assert dict(mapping.hosts) == {"a.test": A, "*.xn--tda.test": C}


def test_an_empty_default_is_none() -> None:
    assert PortMapping(default="").default is None


def test_something_is_needed() -> None:
    [finding] = PortMapping().findings()
    assert finding.text == "a default target or hosts with targets are required"
    assert finding.fatal
    assert list(PortMapping(default="a:1").findings()) == []
    assert list(PortMapping(hosts={"a.test": "a:1"}).findings()) == []


def test_it_is_copied_and_frozen() -> None:
    hosts = {"a.test": "a:1"}
    mapping = PortMapping(hosts=hosts)
    hosts.clear()
    assert list(mapping.hosts) == ["a.test"]
    with pytest.raises(TypeError):
        del mapping.hosts["a.test"]  # type: ignore[attr-defined]
    with pytest.raises(FrozenInstanceError):
        mapping.default = A  # type: ignore[misc]
    assert replace(mapping, default=B).hosts == mapping.hosts
