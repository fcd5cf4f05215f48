from __future__ import annotations

import base64
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusg.relay.authorizer.keys import AttestationKey
from nexusg.relay.authorizer.quote import Quote
from nexusg.relay.authorizer.wire import Malformed
from tests.support.softtpm import ECC, RSA, SoftTpm, tpm2b, wire


NONCE = bytes(range(32))
VALUES = {pcr: bytes([pcr]) * 32 for pcr in range(8)}


@pytest.fixture(params=[RSA, ECC])
def tpm(request: pytest.FixtureRequest) -> SoftTpm:
    return SoftTpm(request.param)


def verify(tpm: SoftTpm, text: str, **more: object) -> None:
    Quote.parse(text).verify(AttestationKey.parse(tpm.ak_params), NONCE, **more)  # type: ignore[arg-type]


def refused(tpm: SoftTpm, text: str, **more: object) -> str:
    with pytest.raises(Malformed) as caught:
        verify(tpm, text, **more)
    return str(caught.value)


def test_a_quote_of_no_pcr(tpm: SoftTpm) -> None:
    verify(tpm, tpm.quote(NONCE))
    verify(tpm, tpm.quote(NONCE), pcr_values={})


@pytest.mark.parametrize("kind", [RSA, ECC])
def test_the_hash_of_the_scheme_counts(kind: str) -> None:
    tpm = SoftTpm(kind, hash_id=0x000C)
    verify(tpm, tpm.quote(NONCE))


@pytest.mark.parametrize("pcrs", [[0], [0, 1, 2, 3, 4, 5, 6, 7], [7, 8], [23]])
def test_a_quote_of_pcrs_without_values_is_refused(tpm: SoftTpm, pcrs: list[int]) -> None:
    said = refused(tpm, tpm.quote(NONCE, pcrs))
    assert said == f"the quote was over PCR {pcrs[0]} which wasn't provided"


def test_no_selection_at_all_is_refused(tpm: SoftTpm) -> None:
    """What pytss makes of an empty selection (TPM.md B.5)."""
    said = refused(tpm, tpm.quote(NONCE, selections=bytes(4)))
    assert said == "the quote has 0 PCR selections, and must have one"


def test_a_quote_of_pcrs_with_values(tpm: SoftTpm) -> None:
    tpm.pcrs |= VALUES
    verify(tpm, tpm.quote(NONCE, range(8)), pcr_values=VALUES)
    other = {**VALUES, 3: bytes(32)}
    assert "digest" in refused(tpm, tpm.quote(NONCE, range(8)), pcr_values=other)
    more = {**VALUES, 9: bytes(32)}
    said = refused(tpm, tpm.quote(NONCE, range(8)), pcr_values=more)
    assert said == "PCR 9 was provided, but not quoted"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"magic": 0xFF544348}, "the quote was not made by a TPM: wrong magic"),
        ({"kind": 0x8017}, "this attests something else than PCRs"),
        ({"digest": bytes(32)}, "the quote's PCR digest is not that of the values"),
        (
            {"selections": struct.pack(">IHB3s", 1, 0x0099, 3, bytes(3))},
            "the quote selects PCRs of an unknown hash: 0x0099",
        ),
        (
            {"selections": struct.pack(">IHB3sHB3s", 2, 0xB, 3, bytes(3), 0xC, 3, bytes(3))},
            "the quote has 2 PCR selections, and must have one",
        ),
    ],
)
def test_what_is_no_quote(tpm: SoftTpm, changes: dict[str, object], said: str) -> None:
    assert refused(tpm, tpm.quote(NONCE, **changes)) == said


def test_values_are_those_of_the_sha256_bank(tpm: SoftTpm) -> None:
    selections = struct.pack(">IHB", 1, 0x000C, 3) + b"\x01\0\0"
    text = tpm.quote(NONCE, selections=selections)
    assert refused(tpm, text, pcr_values={0: bytes(32)}) == "the quote is not of the SHA-256 bank"


def test_another_nonce(tpm: SoftTpm) -> None:
    assert refused(tpm, tpm.quote(NONCE[::-1])) == "the quote is for another nonce"
    assert refused(tpm, tpm.quote(NONCE + b"\0")) == "the quote is for another nonce"
    assert refused(tpm, tpm.quote(b"")) == "the quote is for another nonce"


def test_another_key_of_the_same_kind() -> None:
    assert refused(SoftTpm(ECC), SoftTpm(ECC).quote(NONCE)) == "the signature is not the AK's"


def test_another_kind_of_key() -> None:
    said = "the signature is not of the AK's scheme"
    assert refused(SoftTpm(ECC), SoftTpm(RSA).quote(NONCE)) == said
    assert refused(SoftTpm(RSA), SoftTpm(RSA, hash_id=0x000C).quote(NONCE)) == said


def test_pss_is_read_and_refused() -> None:
    tpm = SoftTpm(RSA)
    key = AttestationKey.parse(tpm.ak_params[:12] + b"\x00\x16" + tpm.ak_params[14:])
    quote = Quote.parse(wire(tpm.attest(NONCE), b"\x00\x16\x00\x0b" + tpm2b(b"x")))
    with pytest.raises(Malformed, match=r"^the authorizer knows no RSAPSS signatures$"):
        quote.verify(key, NONCE)


def test_what_was_signed_is_what_counts(tpm: SoftTpm) -> None:
    signature = base64.b64decode(tpm.quote(NONCE))[4 + len(tpm.attest(NONCE)) :]
    said = refused(tpm, wire(tpm.attest(NONCE, digest=bytes(32)), signature))
    assert said == "the signature is not the AK's"


@pytest.mark.parametrize(
    ("signature", "said"),
    [
        (b"", "the TPMT_SIGNATURE ends after 0 bytes"),
        (b"\x00\x1a\x00\x0b", "the signature is of an unknown scheme: 0x001a"),
        (b"\x00\x14\x00\x0b\x00\x00x", "1 bytes follow the TPMT_SIGNATURE"),
    ],
)
def test_what_is_no_signature(tpm: SoftTpm, signature: bytes, said: str) -> None:
    assert refused(tpm, wire(tpm.attest(NONCE), signature)) == said


def test_sizes_are_bounded(tpm: SoftTpm) -> None:
    assert refused(tpm, "A" * 8193) == "a quote of 8193 characters is too large"
    assert refused(tpm, "A" * 5464) == "a quote of 4098 bytes is too large"


def test_what_follows_the_attestation(tpm: SoftTpm) -> None:
    text = tpm.sign(tpm.attest(NONCE) + b"xyz")
    assert refused(tpm, text) == "3 bytes follow the TPMS_ATTEST"


@given(st.binary(max_size=600))
def test_garbage(data: bytes) -> None:
    with pytest.raises(Malformed):
        Quote.parse(base64.b64encode(data).decode())


@given(st.text(max_size=100))
def test_any_text(text: str) -> None:
    with pytest.raises(Malformed):
        Quote.parse(text)


KEYS = {kind: SoftTpm(kind) for kind in (RSA, ECC)}
QUOTES = {kind: base64.b64decode(tpm.quote(NONCE)) for kind, tpm in KEYS.items()}


@given(st.sampled_from([RSA, ECC]), st.integers(0, 420), st.binary(min_size=1, max_size=4))
def test_damaged_quotes(kind: str, at: int, damage: bytes) -> None:
    whole = QUOTES[kind]
    data = whole[:at] + damage + whole[at + len(damage) :]
    key = AttestationKey.parse(KEYS[kind].ak_params)
    try:
        Quote.parse(base64.b64encode(data).decode()).verify(key, NONCE)
    except Malformed:
        return
    assert data == whole
