"""A certificate out of an NV index, which may hold anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from nexusg.attest.tpm.certificate import matching, trimmed
from tests.support.certs import Authority


if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("value", "padded"),
    [
        (b"\x30\x00", b"\x30\x00\xff\xff"),
        (b"\x30\x03abc", b"\x30\x03abc\0\0\0"),
        (b"\x30\x81\x80" + b"a" * 128, b"\x30\x81\x80" + b"a" * 130),
        (b"\x30\x82\x01\x00" + b"b" * 256, b"\x30\x82\x01\x00" + b"b" * 256),
    ],
)
def test_the_padding_goes(value: bytes, padded: bytes) -> None:
    assert trimmed(padded) == value


@pytest.mark.parametrize(
    "data", [b"", b"\x30", b"\xff" * 64, b"\x31\x00", b"\x30\x05abc", b"\x30\x82\x01"]
)
def test_what_is_no_der_is_none(data: bytes) -> None:
    assert trimmed(data) is None
    assert matching(data, b"") == (None, "it is not DER")


@given(st.binary(max_size=300) | st.binary(max_size=300).map(b"\x30".__add__))
def test_any_bytes_are_trimmed_to_what_they_begin_with(data: bytes) -> None:
    value = trimmed(data)
    assert value is None or data.startswith(value)


def der(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_it_belongs_to_the_key_or_it_does_not_count(tmp_path: Path) -> None:
    certificate = x509.load_pem_x509_certificate(Authority(tmp_path).issue().read_bytes())
    data = certificate.public_bytes(Encoding.DER)
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert matching(data + b"\0" * 100, der(key)) == (data, "")
    other = der(ec.generate_private_key(ec.SECP256R1()).public_key())
    assert matching(data, other) == (None, "it belongs to another key")


def test_a_certificate_that_cannot_be_read_does_not_count() -> None:
    found, problem = matching(b"\x30\x03\x02\x01\x05", b"")
    assert found is None
    assert problem.startswith("it cannot be read (")
