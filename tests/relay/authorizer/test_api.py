from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexusg.relay.authorizer.limits import Limits, Rate
from tests.relay.authorizer.conftest import (
    ATTEST,
    ENROLL,
    ME,
    NONCE,
    SECRET,
    TOKEN,
    Client,
    Site,
    b64,
    b64url,
)
from tests.support.softtpm import ECC, SoftTpm, composite, tpm2b


if TYPE_CHECKING:
    from collections.abc import Callable

WRONG_BODY = (400, "invalid request body")


def claims(token: str) -> dict[str, Any]:
    return jwt.decode(token, SECRET, ["HS256"], audience="nexus", options={"verify_exp": False})


# Enrollment ----------------------------------------------------------------------------------


def test_enrollment(client: Client) -> None:
    begun = client.begin()
    assert begun.status == 200
    assert set(begun.body) == {"nonce", "enc_credential"}
    assert len(bytes.fromhex(begun.body["nonce"])) == 32
    done = client.complete(begun, os_version="Debian 12")
    assert done.status == 201
    assert set(done.body) == {
        "device_id",
        "hostname",
        "identity_class",
        "trust_level",
        "nexus_endpoints",
    }
    assert done.body["nexus_endpoints"] == ["wss://relay.example.com/connect"]
    assert done.body["hostname"].endswith(".devices.example.com")
    again = client.enroll()
    assert again.status == 200
    assert again.body == done.body | {"reenrolled": True}


def test_a_device_is_asked_to_come_again_when_there_is_no_relay(client: Client) -> None:
    client.site.policy.nexus_endpoints = ()
    body = client.enroll().body
    assert (body["nexus_endpoints"], body["retry_after_seconds"]) == ([], 5)


@pytest.mark.parametrize(
    ("changes", "status", "text"),
    [
        ({"ak_params": None}, *WRONG_BODY),
        ({"ak_params": ""}, *WRONG_BODY),
        ({"ak_params": 7}, *WRONG_BODY),
        ({"ek_pub": None}, 400, "either ek_cert or ek_pub is required"),
        ({"ek_pub": "?"}, 400, "invalid ek_pub encoding"),
        ({"ek_cert": "é"}, 400, "invalid ek_cert encoding"),
        ({"ak_params": "A"}, 400, "invalid ak_params encoding"),
        ({"ek_pub": b64(b"nonsense")}, 400, "invalid ek public key"),
        ({"ek_pub": b64(bytes(1025))}, 400, "ek_pub too large"),
        ({"ek_cert": b64(bytes(4097))}, 400, "ek_cert too large"),
        ({"ek_cert": b64(b"nonsense")}, 500, "internal server error"),
        ({"ak_params": b64(b"nonsense")}, 500, "internal server error"),
        ({"ak_params": b64(tpm2b(SoftTpm(ECC).ak_params))}, 500, "internal server error"),
    ],
)
def test_enrollments_that_are_refused(
    client: Client, changes: dict[str, object], status: int, text: str
) -> None:
    assert client.begin(**changes).refusal == (status, text)


@pytest.mark.parametrize(
    ("changes", "status", "text"),
    [
        ({"nonce": "00" * 32}, 400, "enrollment expired or not found"),
        ({"nonce": None}, *WRONG_BODY),
        ({"quote": ""}, *WRONG_BODY),
        ({"secret": "?"}, 400, "invalid secret encoding"),
        ({"secret": b64(bytes(32))}, 401, "credential verification failed"),
        ({"quote": "?"}, 401, "quote verification failed"),
        ({"os_version": 12}, *WRONG_BODY),
        ({"pcr_values": []}, *WRONG_BODY),
        ({"pcr_values": {"0": 7}}, *WRONG_BODY),
        ({"pcr_values": {"24": "00" * 32}}, 400, "invalid pcr_values key: must be 0-23"),
        ({"pcr_values": {"-1": "00" * 32}}, 400, "invalid pcr_values key: must be 0-23"),
        ({"pcr_values": {"0": "00" * 32}}, 401, "quote verification failed"),
        (
            {"pcr_values": {"0": "00" * 31}},
            400,
            "invalid pcr_values: each value must be 64 hex chars (32 bytes SHA-256)",
        ),
    ],
)
def test_second_steps_that_are_refused(
    client: Client, changes: dict[str, object], status: int, text: str
) -> None:
    assert client.complete(client.begin(), **changes).refusal == (status, text)


def test_an_enrollment_over_pcrs_with_their_values(client: Client) -> None:
    begun = client.begin()
    quote = client.tpm.quote(bytes.fromhex(begun.body["nonce"]), range(8))
    assert client.complete(begun, quote=quote).refusal == (401, "quote verification failed")
    assert client.site.why == "the quote was over PCR 0 which wasn't provided"
    begun = client.begin()
    quote = client.tpm.quote(bytes.fromhex(begun.body["nonce"]), range(8))
    values = composite({pcr: client.tpm.pcrs[pcr] for pcr in range(8)})
    assert client.complete(begun, quote=quote, pcr_values=values).status == 201


def test_who_is_suspended_does_not_enroll(enrolled: Client) -> None:
    enrolled.site.registry.devices[enrolled.device_id].status = "suspended"
    assert enrolled.begin().refusal == (409, "device already enrolled")
    assert enrolled.site.why == "device is suspended"


# Nonces and tokens ---------------------------------------------------------------------------


def test_a_nonce(site: Site) -> None:
    body = site.get(NONCE).body
    assert len(b64url(body["nonce"])) == 32
    assert body["expires_at"] == "2023-11-14T22:14:20.750000Z"
    assert dt.datetime.strptime(body["expires_at"], "%Y-%m-%dT%H:%M:%S.%fZ")


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_token(enrolled: Client, stage: int) -> None:
    reply = enrolled.token(stage, "a challenge")
    assert reply.status == 200
    assert set(reply.body) == {"token"}
    read = claims(reply.body["token"])
    assert (read["iat"], read["exp"]) == (1_700_000_000, 1_700_000_030)
    assert read["sub"] == enrolled.device_id
    assert read["session_nonce"] == ("a challenge" if stage else "")
    assert read["hostnames"][2:] == ["shop.example.org", "*.shop.example.org"]


def test_a_token_without_a_stage_is_for_the_handshake(enrolled: Client) -> None:
    reply = enrolled.site.post(TOKEN, {}, enrolled.headers())
    assert claims(reply.body["token"])["handshake_max_age_seconds"] == 60


@pytest.mark.parametrize(
    ("stage", "nonce", "text"),
    [
        (1, "", "session_nonce required for stage 1 and 2"),
        (2, None, "session_nonce required for stage 1 and 2"),
        (3, "n", "invalid request body"),
        (-1, "n", "invalid request body"),
        ("1", "n", "invalid request body"),
        (True, "n", "invalid request body"),
        (1, 7, "invalid request body"),
    ],
)
def test_tokens_that_are_refused(enrolled: Client, stage: object, nonce: object, text: str) -> None:
    assert enrolled.token(stage, nonce).refusal == (400, text)


@pytest.mark.parametrize("pcrs", [[0], range(8)])
def test_a_quote_over_pcrs_gets_no_token(enrolled: Client, pcrs: list[int]) -> None:
    reply = enrolled.site.post(TOKEN, {"stage": 0}, enrolled.headers(pcrs=pcrs))
    assert reply.refusal == (401, "tpm quote verification failed")
    assert enrolled.site.why == "the quote was over PCR 0 which wasn't provided"


def test_a_quote_without_a_selection_gets_no_token(enrolled: Client) -> None:
    reply = enrolled.site.post(TOKEN, {"stage": 0}, enrolled.headers(selections=bytes(4)))
    assert reply.refusal == (401, "tpm quote verification failed")


# The order of checks -------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["X-Device-ID", "X-Nonce", "X-TPM-Quote"])
def test_headers_come_first(enrolled: Client, missing: str) -> None:
    headers = enrolled.headers()
    lacking = {**headers, missing: ""}
    reply = enrolled.site.get(ME, lacking)
    assert reply.refusal == (401, "missing authentication headers")
    assert enrolled.site.get(ME, headers).status == 200, "the nonce is still good"


def test_then_the_device_id(enrolled: Client) -> None:
    headers = enrolled.headers()
    reply = enrolled.site.get(ME, {**headers, "X-Device-ID": "me"})
    assert reply.refusal == (401, "invalid device id")
    assert enrolled.site.get(ME, headers).status == 200, "the nonce is still good"


def test_then_the_nonce_is_used_up(enrolled: Client) -> None:
    headers = enrolled.headers()
    stranger = {**headers, "X-Device-ID": "00000000-0000-4000-8000-000000000000"}
    assert enrolled.site.get(ME, stranger).refusal == (401, "device not found")
    reply = enrolled.site.get(ME, headers)
    assert reply.refusal == (401, "invalid or expired nonce")


def test_a_nonce_is_good_for_a_minute(enrolled: Client) -> None:
    headers = enrolled.headers()
    enrolled.site.clock.advance(61)
    reply = enrolled.site.get(ME, headers)
    assert reply.refusal == (401, "invalid or expired nonce")


@pytest.mark.parametrize("status", ["suspended", "revoked"])
def test_the_status_comes_before_the_quote(enrolled: Client, status: str) -> None:
    enrolled.site.registry.devices[enrolled.device_id].status = status
    reply = enrolled.site.get(ME, {**enrolled.headers(), "X-TPM-Quote": "nonsense"})
    assert reply.refusal == (403, f"device is {status}")


def test_the_quote_comes_before_the_limiter() -> None:
    site = Site(Limits(device_read=Rate(0.2, 1)))
    client = Client(site, SoftTpm(ECC))
    client.enroll()
    assert site.get(ME, client.headers()).status == 200
    reply = site.get(ME, {**client.headers(), "X-TPM-Quote": "nonsense"})
    assert reply.refusal == (401, "tpm quote verification failed")
    headers = client.headers()
    limited = site.get(ME, headers)
    assert limited.refusal == (429, "rate limit exceeded")
    assert limited.headers["Retry-After"] == "5"
    assert site.get(ME, headers).refusal == (401, "invalid or expired nonce")


def test_the_limiter_comes_before_the_handler() -> None:
    site = Site(Limits(device_write=Rate(1, 0)))
    client = Client(site, SoftTpm(ECC))
    client.enroll()
    assert client.token("nonsense").refusal == (429, "rate limit exceeded")


@pytest.mark.parametrize(
    ("limits", "ask"),
    [
        (Limits(nonce_each=Rate(1, 0)), lambda site: site.get(NONCE)),
        (Limits(enrollment_each=Rate(1, 0)), lambda site: site.post(ENROLL, {})),
        (Limits(enrollment=Rate(1, 0)), lambda site: site.post(ATTEST, {})),
    ],
)
def test_limits_for_everybody(limits: Limits, ask: Callable[[Site], Any]) -> None:
    assert ask(Site(limits)).refusal == (429, "rate limit exceeded")


# The rest ------------------------------------------------------------------------------------


def test_me(enrolled: Client) -> None:
    body = enrolled.site.get(ME, enrolled.headers()).body
    assert body["device_id"] == enrolled.device_id
    assert body["status"] == "active"
    assert body["alias_domains"] == ["shop.example.org"]
    assert body["custom_hostname"] is None
    assert body["nexus_endpoints"] == ["wss://relay.example.com/connect"]


@pytest.mark.parametrize(("path", "status"), [("/health", "ok"), ("/ready", "ready")])
def test_health(site: Site, path: str, status: str) -> None:
    reply = site.get(path)
    assert (reply.status, reply.body) == (200, {"status": status})


def test_every_reply_has_an_id_and_a_type(site: Site) -> None:
    replies = [site.get("/health"), site.get(ME), site.get("/nowhere"), site.get(TOKEN)]
    assert [reply.status for reply in replies] == [200, 401, 404, 404]
    assert len({reply.headers["X-Request-ID"] for reply in replies}) == 4
    types = [reply.headers["Content-Type"].split(";")[0] for reply in replies]
    assert types == ["application/json"] * 2 + ["text/plain"] * 2


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"a": "' + b"x" * (1 << 20) + b'"}'],
)
def test_bodies_that_are_no_objects(site: Site, content: bytes) -> None:
    assert site.ask("POST", ENROLL, content).refusal == WRONG_BODY


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
NAMES = st.sampled_from(
    ["nonce", "secret", "quote", "ek_pub", "ek_cert", "ak_params", "pcr_values", "os_version"]
)


@settings(max_examples=20)
@given(st.sampled_from([ENROLL, ATTEST, TOKEN]), st.dictionaries(NAMES, JSON) | JSON)
def test_any_body_is_answered(path: str, body: object) -> None:
    assert Site().post(path, body).status in (400, 401, 500)


def test_nothing_secret_is_logged(enrolled: Client) -> None:
    token = enrolled.token().body["token"]
    shown = repr(enrolled.site.log)
    assert "authorizer.token_issued" in shown
    assert token not in shown
    assert SECRET not in shown
