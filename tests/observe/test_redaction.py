from __future__ import annotations

import json
from typing import Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexusg.observe.redaction import REDACTED, redact_fields, redact_text, suspicious


TOKEN = jwt.encode({"sub": "web"}, "k" * 32)


def redact(**fields: Any) -> Any:
    return redact_fields(None, "", fields)


@pytest.mark.parametrize(
    "key",
    [
        "token",
        "access_token",
        "tokens",
        "secret",
        "hmacSecret",
        "HMAC_SECRET",
        "password",
        "db-password",
        "Authorization",
        "Proxy-Authorization",
        "cookie",
        "api_key",
        "apiKey",
        "private_key",
        "credentials",
        "jwt",
    ],
)
def test_what_is_named_like_a_secret_is_not_shown(key: str) -> None:
    assert redact(**{key: "hunter2"}) == {key: REDACTED}
    assert redact(**{key: ["a", "b"]}) == {key: REDACTED}


@pytest.mark.parametrize(
    "fields",
    [
        {"event": "session.rejected", "stage": "handshake"},
        {"token": None, "has_secret": True},
        {"token_ttl_s": 30, "secret_file": "/etc/nexusg/secret", "key": "web"},
        {"hostname": "customer-portal.production-west.examplecompany.com"},
        {"relay": "wss://eyjafjallajokull.relay-number-one.example.com/connect"},
        {"error": "the relay rejected the handshake token: expired"},
        {"error": "no token: the command ended with code 1"},
        {"took_s": 0.25, "is_tls": False, "port": 443, "ports": [1, 2]},
    ],
)
def test_what_is_not_secret_stays(fields: dict[str, Any]) -> None:
    assert redact(**fields) == fields


def test_a_token_is_found_at_any_depth_and_in_any_text() -> None:
    found = redact(
        error=f"sent {TOKEN} to the relay",
        headers={"x-note": (TOKEN,), "Authorization": "Bearer x"},
        seen={TOKEN},
        raw=TOKEN.encode(),
        shown=ValueError(TOKEN),
    )
    assert found == {
        "error": f"sent {REDACTED} to the relay",
        "headers": {"x-note": [REDACTED], "Authorization": REDACTED},
        "seen": [REDACTED],
        "raw": REDACTED,
        "shown": REDACTED,
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Authorization: Bearer abc.def", f"Authorization: Bearer {REDACTED}"),
        ("authorization=abc, next", f"authorization={REDACTED}, next"),
        ("GET /connect?token=abc123&x=1", f"GET /connect?token={REDACTED}&x=1"),
        ("--db-password=abc def", f"--db-password={REDACTED} def"),
        ("{'client_secret': 'a b'}", f"{{'client_secret': '{REDACTED}'}}"),
        ('{"token": "a", "n": 1}', f'{{"token": "{REDACTED}", "n": 1}}'),
        (f"cut {TOKEN[:50]}", f"cut {REDACTED}"),
        ("{ in base64: eyAiYWxnIjoi.eyAic3ViIjoi", f"{{ in base64: {REDACTED}"),
    ],
)
def test_what_is_assigned_to_a_secrets_name_is_not_shown(text: str, expected: str) -> None:
    assert redact_text(text) == expected


def test_depth_is_bounded() -> None:
    nested: dict[str, Any] = {}
    nested["nested"] = nested
    text = str(redact(nested=nested))
    assert text.count("nested") < 10
    assert "…" in text


ODD = st.text(max_size=20) | st.binary(max_size=20) | st.none() | st.complex_numbers()


@settings(max_examples=20)
@given(st.recursive(ODD, st.lists, max_leaves=5), st.text(max_size=20))
def test_nothing_is_too_odd_and_no_token_gets_through(value: Any, key: str) -> None:
    assert TOKEN not in str(redact(**{key: [value, f"{value} {TOKEN}"]}))


_PIECES = st.sampled_from(
    [
        *("token=", "Token: ", "password=", "'secret': 'x'", "Authorization: Bearer ", "passwd="),
        *("eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjF9.abcd", "ey", "app.example.com", " ", "x1"),
    ]
)
_NAMES = st.sampled_from(
    ["hmacSecret", "access_token", "apiKey", "cookies", "credential", "jwt", "passphrase", "host"]
)


@given(st.dictionaries(_NAMES, st.lists(_PIECES, max_size=4).map("".join)))
def test_nothing_is_redacted_in_a_line_without_a_hint(fields: dict[str, str]) -> None:
    """Lines that are not suspicious are not searched field by field, so a hint must never miss."""
    if redact_fields(None, "", fields) != fields:
        assert suspicious(json.dumps(fields, ensure_ascii=False))
