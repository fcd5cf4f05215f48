"""What WebSocket messages hold (PROTOCOL.md section 4)."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusg.protocol.messages import (
    HANDSHAKE_CHALLENGE,
    NIL_ID,
    REAUTH_CHALLENGE,
    Challenge,
    Control,
    Event,
    Malformed,
    Reason,
    decode_challenge,
    decode_control,
    encode_challenge,
    encode_control,
    encode_grant,
    format_id,
    parse_id,
)
from tests.support.vectors import VALID, Vector


ID = uuid.UUID("01234567-89ab-cdef-0123-456789abcdef")
CONTROLS = [vector for vector in VALID if vector.body]


def as_object(message: bytes) -> Any:
    """The JSON object in a control message."""
    assert message[:1] == b"\x02"
    return json.loads(message[1:])


def control(**fields: Any) -> bytes:
    """The JSON of a control object, without its kind byte."""
    return json.dumps({"event": "disconnect", "client_id": str(ID)} | fields).encode()


# Stream IDs --------------------------------------------------------------------------------------


@given(st.uuids())
def test_ids_are_canonical_uuids(client_id: uuid.UUID) -> None:
    assert format_id(client_id.bytes) == str(client_id)
    for text in (str(client_id), client_id.hex, str(client_id).upper(), client_id.hex.upper()):
        assert parse_id(text) == client_id.bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        str(ID)[:-1],
        str(ID) + "0",
        ID.hex + "00",
        ID.hex[:-2],
        str(ID).replace("-", "_"),
        str(ID).replace("-", "", 1),
        "-" + str(ID)[:-1],
        ID.hex[:-1] + "g",
        ID.hex[:-1] + "٣",  # a digit, but not of ASCII
        " " * 4 + ID.hex[:-4],
        "01 23 45 67 89 ab cd ef 01 23 45 67",
        f"{{{ID}}}",
    ],
)
def test_what_is_no_uuid(text: str) -> None:
    with pytest.raises(Malformed, match="client_id is not a UUID"):
        parse_id(text)


@given(st.text(alphabet="0123456789abcdefABCDEF- {}xyz", max_size=40))
def test_parsing_agrees_with_the_standard_library(text: str) -> None:
    try:
        found = parse_id(text)
    except Malformed:
        return
    assert found == uuid.UUID(text).bytes


# Control objects ---------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", CONTROLS, ids=str)
def test_golden_messages_both_ways(vector: Vector) -> None:
    assert vector.body is not None
    [(_, message)] = vector.messages
    fields: dict[str, Any] = dict(vector.body)
    expected = Control(**fields | {"client_id": bytes.fromhex(fields["client_id"])})
    assert decode_control(message[1:]) == expected
    assert decode_control(memoryview(message)[1:]) == expected
    assert encode_control(expected) == message


def test_every_control_field_is_in_a_golden_message() -> None:
    assert len(CONTROLS) == 3


CONTROL = st.builds(
    Control,
    event=st.sampled_from([event.value for event in Event]),
    client_id=st.binary(min_size=16, max_size=16),
    conn_port=st.integers(0, 65_535),
    client_ip=st.text(max_size=30),
    transport=st.sampled_from(["", "tcp", "udp"]),
    hostname=st.text(max_size=30),
    is_tls=st.booleans(),
    reason=st.text(max_size=30),
    target_addr=st.text(max_size=30),
    success=st.booleans(),
    credits=st.integers(-(2**63), 2**63 - 1),
)


@given(CONTROL)
def test_control_round_trip(message: Control) -> None:
    encoded = encode_control(message)
    assert decode_control(encoded[1:]) == message
    written = as_object(encoded)
    assert all(written[name] for name in written), "empty fields are omitted"


def test_enums_are_written_as_their_values() -> None:
    message = Control(Event.DISCONNECT, ID.bytes, reason=Reason.NORMAL)
    assert as_object(encode_control(message)) == {
        "event": "disconnect",
        "client_id": str(ID),
        "reason": "normal",
    }


def test_the_nil_id_is_written() -> None:
    assert as_object(encode_control(Control("x", NIL_ID)))["client_id"] == str(uuid.UUID(int=0))


@given(st.binary(min_size=16, max_size=16), st.integers(1, 2**20))
def test_a_grant_is_the_same_control_message(client_id: bytes, credits: int) -> None:
    assert encode_grant(client_id, credits) == encode_control(
        Control(Event.RESUME_STREAM, client_id, credits=credits)
    )


def test_unknown_fields_and_null_are_ignored() -> None:
    body = control(shiny={"new": [1, None, 1.5]}, credits=None, hostname=None, is_tls=None)
    assert decode_control(body) == Control("disconnect", ID.bytes)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("event", 1),
        ("event", ["connect"]),
        ("client_id", 7),
        ("client_id", None),
        ("client_id", ""),
        ("conn_port", "443"),
        ("conn_port", 8.0),
        ("conn_port", True),
        ("credits", 2**63),
        ("credits", -(2**63) - 1),
        ("credits", 1.5),
        ("hostname", 5),
        ("hostname", {}),
        ("client_ip", False),
        ("is_tls", 1),
        ("is_tls", "true"),
        ("success", 0),
        ("reason", ["x"]),
        ("reason", "\ud800"),
        ("hostname", "half \udc00 of a pair"),
    ],
)
def test_types_are_strict(field: str, value: object) -> None:
    with pytest.raises(Malformed, match=field):
        decode_control(control(**{field: value}))


def test_text_may_be_any_unicode() -> None:
    assert decode_control(control(reason="zu spät 🐌")).reason == "zu spät 🐌"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{not json",
        b"[]",
        b"null",
        b"1",
        b'"text"',
        b"{}",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"credits":NaN}',
        b'{"credits":-Infinity}',
        b'{"credits":' + b"9" * 10_000 + b"}",
        control()[:-1],
        control() + b"x",
    ],
)
def test_what_is_no_control_object(payload: bytes) -> None:
    with pytest.raises(Malformed):
        decode_control(payload)
    with pytest.raises(Malformed):
        decode_control(memoryview(payload))


@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:01ae', max_size=20).map(str.encode))
def test_garbage_is_malformed(payload: bytes) -> None:
    with pytest.raises(Malformed):
        decode_control(payload)
    with pytest.raises(Malformed):
        decode_challenge(payload)


JSON = st.sampled_from(
    [None, True, 0, 1, -5, 2**63 - 1, 2**63, 1.5, "", "text", "é", "\udfff", [], {}]
)


@given(field=st.sampled_from(sorted(Control.__dataclass_fields__)), value=JSON)
def test_any_json_is_a_control_or_malformed(field: str, value: object) -> None:
    """And what is decoded can be written again: nothing fails later."""
    try:
        message = decode_control(control(**{field: value}))
    except Malformed:
        pass
    else:
        assert decode_control(encode_control(message)[1:]) == message


def test_malformed_never_quotes_the_message() -> None:
    secret = "eyJhbGciOiJIUzI1NiJ9"
    for payload in (
        control(client_id=secret),
        control(credits=secret),
        secret.encode(),
        b'{"' + secret.encode(),
        json.dumps({"type": secret, "nonce": secret}).encode(),
    ):
        for decode in (decode_control, decode_challenge):
            with pytest.raises(Malformed) as caught:
                decode(payload)
            assert secret not in str(caught.value)


# Challenges --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [HANDSHAKE_CHALLENGE, REAUTH_CHALLENGE])
@pytest.mark.parametrize("nonce", ["n" * 43, 'quote" back\\slash é'])
def test_challenges(kind: str, nonce: str) -> None:
    challenge = Challenge(kind, nonce)
    assert decode_challenge(encode_challenge(challenge).encode()) == challenge
    assert decode_challenge(memoryview(encode_challenge(challenge).encode())) == challenge


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"type": HANDSHAKE_CHALLENGE},
        {"type": HANDSHAKE_CHALLENGE, "nonce": ""},
        {"type": HANDSHAKE_CHALLENGE, "nonce": None},
        {"type": HANDSHAKE_CHALLENGE, "nonce": 5},
        {"type": "news", "nonce": "abc"},
        {"nonce": "abc"},
        {"type": 1, "nonce": "abc"},
        {"type": REAUTH_CHALLENGE, "nonce": "a\0b"},
        {"type": REAUTH_CHALLENGE, "nonce": "a\nb"},
        {"type": REAUTH_CHALLENGE, "nonce": "\ud800"},
    ],
)
def test_what_is_no_challenge(body: object) -> None:
    with pytest.raises(Malformed):
        decode_challenge(json.dumps(body).encode())
