"""Host names take the form that the relay compares (PROTOCOL.md sections 10.4, 10.5)."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nexusg.config.hostnames import is_route_key, never_matches, normalize, normalize_pattern


ZWJ, ZWNJ = "\u200d", "\u200c"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        # verified with the relay
        ("Example.COM.", "example.com"),
        ("  spaced.test ", "spaced.test"),
        ("münchen.de", "xn--mnchen-3ya.de"),
        ("straße.de", "xn--strae-oqa.de"),
        ("foo_bar.x.com", "foo_bar.x.com"),
        ("r3---sn.x.com", "r3---sn.x.com"),
        ("-bad.x.com", "-bad.x.com"),
        ("ｅｘａｍｐｌｅ.org", "example.org"),
        ("例え。テスト", "xn--r8jz45g.xn--zckzah"),
        ("☃.net", "xn--n3h.net"),
        ("MÜNCHEN_x.de", "münchen_x.de"),
        ("a.b..", "a.b."),
        ("*.Wild.Test", "*.wild.test"),
        ("*.BÜCHER.test", "*.bücher.test"),  # the plain variant: * is no STD3 character
        (".", ""),
        ("", ""),
        (" \t ", ""),
        ("tcp:53", "tcp:53"),
        # symbols, empty and long labels are none of UTS-46's business
        ("😀.LA", "xn--e28h.la"),
        ("a..ü", "a..xn--tda"),
        ("ü" * 70, "xn--" + "td" + "a" * 70),
        # labels that are punycode already
        ("xn--mnchen-3ya.ü", "xn--mnchen-3ya.xn--tda"),
        ("XN--N3H.ü", "xn--n3h.xn--tda"),
        ("xn--.Ü", "xn--.ü"),
        ("xn--abc-.Ü", "xn--abc-.ü"),  # stands for plain ASCII
        ("xn--99999999.Ü", "xn--99999999.ü"),  # stands for nothing
        ("xn--wca.Ü", "xn--wca.ü"),  # stands for Ü, which the mapping would change
        ("XN--99999999.com", "xn--99999999.com"),  # plain ASCII is not looked into
        # hyphens, combining marks, joiners and directions
        ("ab--ü.De", "ab--ü.de"),
        ("ü-.De", "ü-.de"),
        ("\u0301ü.De", "\u0301ü.de"),
        (f"क्{ZWJ}.de", "xn--11b6iy14e.de"),
        (f"a{ZWJ}.De", f"a{ZWJ}.de"),
        (f"a{ZWNJ}b.ü.De", f"a{ZWNJ}b.ü.de"),
        ("אב.com", "xn--4dbc.com"),
        ("1.אב.De", "1.אב.de"),  # a label that begins with a digit in a right-to-left name
        ("..אב", "..xn--4dbc"),
        # disallowed
        ("\ud800.De", "\ud800.de"),
        ("a b.ü.De", "a b.ü.de"),
        ("Ü" * 2000, "ü" * 2000),
    ],
)
def test_normalize(host: str, expected: str) -> None:
    assert normalize(host) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.Bücher.test.", "*.xn--bcher-kva.test"),
        (" *.a.test ", "*.a.test"),
        ("A.test", "a.test"),
        ("*.", ""),
        ("*..", ""),
        (" ", ""),
        ("*", "*"),
        ("*.*.a.test", "*.*.a.test"),
        ("tcp:25", "tcp:25"),
    ],
)
def test_normalize_pattern(pattern: str, expected: str) -> None:
    assert normalize_pattern(pattern) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [("tcp:53", True), ("udp:53", True), ("tcp", False), ("tcp.test", False), ("", False)],
)
def test_is_route_key(host: str, expected: bool) -> None:
    assert is_route_key(host) is expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.test", False),
        ("*.a.test", False),
        ("*", True),
        ("*.com", True),
        ("*.*.a.test", True),
        ("a.*.test", True),
        ("*.a..test", True),
    ],
)
def test_never_matches(pattern: str, expected: bool) -> None:
    assert never_matches(pattern) is expected


hosts = st.one_of(
    st.text(max_size=40),
    st.text("aÄßxn-.*☃例אا١\u0301\u200d\u200c。ｅ _:", max_size=20),
    st.from_regex(r"\A(xn--[a-z0-9-]{0,9}\.){1,2}[üא]\Z"),
)


@given(hosts)
def test_normalize_takes_anything(host: str) -> None:
    form = normalize(host)
    assert form == form.lower()
    if host.isascii():
        assert form in (host.strip().lower(), host.strip().lower()[:-1])


@given(hosts)
def test_normalize_is_idempotent(host: str) -> None:
    form = normalize(host)
    assume(form == form.strip().removesuffix("."))  # only one dot is taken away each time
    assert normalize(form) == form


@given(hosts)
def test_pattern_and_name_differ_in_the_star_only(host: str) -> None:
    assume(not host.strip().startswith("*."))
    assert normalize_pattern(host) == normalize(host)
    assert normalize_pattern("*." + host) == ("*." + normalize(host) if normalize(host) else "")
