"""Host names in the one form that relay and agent compare (PROTOCOL.md sections 10.4, 10.5).

The mapping is UTS-46, non-transitional, with STD3 rules, hyphen, joiner and bidi checks: the
"lookup" profile of Go's x/net/idna, which the relay uses. The tables are those of the idna package.
Its codec is not used: it follows IDNA 2008 alone, which refuses symbols such as ☃, empty labels and
long ones, and those the relay accepts. Python's own codec is IDNA 2003 and maps ß to ss.
"""

from __future__ import annotations

import unicodedata

import idna


ROUTE_KEYS = ("tcp:", "udp:")  #: what begins like this names a port claim, not a host (10.6)
WILDCARD = "*."

# RFC 1035 ends at 253; a Host header on a relay may hold more. Longer names are not worth mapping.
_MAX_CHARS = 1024
_JOINERS = "\u200c\u200d"
_ACE = "xn--"


class _Invalid(ValueError):
    """The name is not an internationalised one: it is compared as it stands, in lower case."""


def normalize(host: str) -> str:
    """The form of ``host`` that is compared and claimed (PROTOCOL.md section 10.4).

    Never fails: a name that has no ASCII form comes back in lower case, and a blank one as "".
    """
    host = host.strip().removesuffix(".")
    if host.isascii() or len(host) > _MAX_CHARS:
        return host.lower()
    try:
        return _to_ascii(host)
    except ValueError:  # ours, and UnicodeError of the idna package and of the punycode codec
        return host.lower()


def normalize_pattern(pattern: str) -> str:
    """``normalize`` for a name that may begin with ``*.``, which is kept (section 10.5).

    A wildcard with nothing behind the ``*.`` is as blank as an empty name: both give "".
    """
    pattern = pattern.strip()
    if not pattern.startswith(WILDCARD):
        return normalize(pattern)
    rest = normalize(pattern[len(WILDCARD) :])
    return WILDCARD + rest if rest else ""


def is_route_key(host: str) -> bool:
    """True if a normalised ``host`` is a route key such as ``tcp:53``, and no name at all."""
    return host.startswith(ROUTE_KEYS)


def never_matches(pattern: str) -> bool:
    """True if a normalised ``pattern`` looks like a wildcard but is none to the relay (10.5)."""
    if "*" not in pattern:
        return False
    rest = pattern.removeprefix(WILDCARD)
    return rest == pattern or "*" in rest or "." not in rest or "" in rest.split(".")


def _to_ascii(host: str) -> str:
    """UTS-46 ToASCII, without its limits on length, which the relay does not apply either."""
    labels = [_decoded(label) for label in idna.uts46_remap(host, std3_rules=True).split(".")]
    for label in labels:
        _check_label(label)
    if any(_is_rtl(label) for label in labels):  # RFC 5893: then the rule binds every label
        for label in filter(None, labels):
            idna.check_bidi(label, check_ltr=True)
    return ".".join(map(_encoded, labels))


def _decoded(label: str) -> str:
    """``label``, or what its punycode stands for, provided that UTS-46 would leave that alone."""
    if not label.startswith(_ACE):
        return label
    decoded = label[len(_ACE) :].encode().decode("punycode")
    if decoded.isascii() or idna.uts46_remap(decoded, std3_rules=True) != decoded:
        raise _Invalid("not the punycode of a mapped label")
    return decoded


def _encoded(label: str) -> str:
    return label if label.isascii() else _ACE + label.encode("punycode").decode()


def _check_label(label: str) -> None:
    """The validity criteria of UTS-46 section 4.1 that the mapping has not settled."""
    if not label:
        return
    idna.check_hyphen_ok(label)
    idna.check_initial_combiner(label)
    for position, char in enumerate(label):
        if char in _JOINERS and not idna.valid_contextj(label, position):
            raise _Invalid("a joiner out of place")


def _is_rtl(label: str) -> bool:
    return any(unicodedata.bidirectional(char) in ("R", "AL", "AN") for char in label)
