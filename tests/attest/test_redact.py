from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusg.attest.redact import REDACTED, redact
from tests.attest.doubles import jwt


def encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class TestTokens:
    def test_a_jwt_goes(self) -> None:
        token = jwt(sub="mail")
        assert redact(f"got {token}, sent") == f"got {REDACTED}, sent"

    @given(
        st.sampled_from([b'{"', b'{ "', b'{\n"', b'{\r\n "', b'{\t"']),
        st.binary(min_size=4),
        st.binary(min_size=1),
        st.binary(min_size=1),
        st.sampled_from(["", " ", "=", '"', "Bearer ", ":", "/", "."]),
    )
    def test_every_jwt_goes(
        self, start: bytes, header: bytes, payload: bytes, signature: bytes, around: str
    ) -> None:
        token = ".".join(map(encoded, (start + header, payload, signature)))
        text = redact(f"{around}{token}{around}")
        assert REDACTED in text
        assert token not in text
        assert not text.replace(REDACTED, "").strip(around + ".")

    @pytest.mark.parametrize(
        "token",
        [
            pytest.param("eyJhbGciOiJub25lIn0.eyJleHAiOjF9.", id="unsigned"),
            pytest.param("eyJhbGciOiJkaXIifQ..iv123456.text1234.tag12345", id="encrypted"),
            pytest.param("eyJhbGciOiJIUzI1NiJ9.eyJleHAiOj", id="cut-short"),
            pytest.param("abcdefgh.ijklmnop.qrstuvwx", id="other-header"),
        ],
    )
    def test_what_resembles_one_goes(self, token: str) -> None:
        assert redact(f"<{token}>") == f"<{REDACTED}>"

    @pytest.mark.parametrize(
        "text",
        [
            "cannot reach auth.example.com:443 in 1.5.0",
            "/usr/lib/python3.11/site-packages/a.b.py",
            "eyewitness.log keyring.conf",
            "",
        ],
    )
    def test_the_rest_stays(self, text: str) -> None:
        assert redact(text) == text

    @pytest.mark.parametrize("text", ["a" * 65536, "aaaaaaaa." * 7000, "eyJaaaaa." * 7000])
    @pytest.mark.timeout(5)
    def test_takes_linear_time(self, text: str) -> None:
        assert len(redact(text)) <= len(text)


class TestSecrets:
    def test_each_goes_everywhere(self) -> None:
        text = redact("hunter22: hunter22 or s3cr\net", ["hunter22", "s3cr\net"])
        assert text == f"{REDACTED}: {REDACTED} or {REDACTED}"

    @pytest.mark.parametrize("secrets", [["abcd", "abcdef"], ["abcdef", "abcd"]])
    def test_one_may_be_part_of_another(self, secrets: list[str]) -> None:
        assert redact("abcdef", secrets) == REDACTED

    def test_one_that_protects_nothing_stays(self) -> None:
        assert redact("1 of 1", ["1", ""]) == "1 of 1"
