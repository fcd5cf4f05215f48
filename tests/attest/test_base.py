from __future__ import annotations

import base64
import json

import gevent
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nexusg.attest import base
from nexusg.attest.base import Stage, Token, TokenRequest, as_provider, number, unverified_claims
from nexusg.errors import TokenError, TokenTimeout
from tests.attest.doubles import jwt, request


def test_stages_are_the_words_of_the_protocol() -> None:
    assert [stage.value for stage in Stage] == ["handshake", "attest", "reauth"]


class TestToken:
    def test_never_shows_its_value(self) -> None:
        token = Token("the-value", 12.0)
        assert repr(token) == "Token(expires_at=12.0)"
        assert "the-value" not in f"{token} {[token]}"

    def test_parse_trims(self) -> None:
        assert Token.parse(" opaque token\n") == Token("opaque token")

    @pytest.mark.parametrize("text", ["", " \r\n\t"])
    def test_parse_refuses_a_blank_one(self, text: str) -> None:
        with pytest.raises(TokenError, match="empty"):
            Token.parse(text)

    def test_parse_reads_exp(self) -> None:
        assert Token.parse(jwt(exp=1234)).expires_at == 1234.0

    def test_parse_keeps_the_expiry_it_is_given(self) -> None:
        assert Token.parse(jwt(exp=1234), 99.0).expires_at == 99.0


class TestUnverifiedClaims:
    def test_reads_the_payload(self) -> None:
        claims = {"exp": 1, "iat": 2, "reauth_grace_seconds": 20, "hostnames": ["ä.test"]}
        assert unverified_claims(jwt(**claims)) == claims

    @pytest.mark.parametrize(
        "value",
        [
            pytest.param("", id="empty"),
            pytest.param("opaque", id="opaque"),
            pytest.param("a.b", id="two-parts"),
            pytest.param("a.b.c.d.e", id="five-parts"),
            pytest.param("app.example.com", id="host-name"),
            pytest.param("a.A.c", id="bad-padding"),
            pytest.param("a.é.c", id="not-ascii"),
            pytest.param("a." + base64.urlsafe_b64encode(b"\xff\xfe").decode() + ".c", id="binary"),
            pytest.param("a." + base64.urlsafe_b64encode(b"[1]").decode() + ".c", id="array"),
            pytest.param("a." + base64.urlsafe_b64encode(b"[" * 99_999).decode() + ".c", id="deep"),
            pytest.param(
                "a." + base64.urlsafe_b64encode(b'{"exp":' + b"9" * 9999 + b"}").decode() + ".c",
                id="long-integer",
            ),
        ],
    )
    def test_has_nothing_for_what_is_not_a_jwt(self, value: str) -> None:
        claims = unverified_claims(value)
        assert number(claims, "exp") is None
        if value.isascii():
            assert Token.parse(value or "x").expires_at is None

    @given(st.text())
    @example("..")
    def test_never_raises(self, text: str) -> None:
        assert isinstance(unverified_claims(text), dict)
        assert isinstance(unverified_claims(f"a.{text}.c"), dict)

    @given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text()))
    def test_round_trip(self, claims: dict[str, object]) -> None:
        payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
        assert unverified_claims(f"e30.{payload}.") == claims


@pytest.mark.parametrize(
    ("value", "expected"),
    [(7, 7.0), (1.5, 1.5), (True, None), ("7", None), (None, None), (10**400, None)],
)
def test_number(value: object, expected: float | None) -> None:
    assert number({"n": value}, "n") == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_number_is_finite(value: float) -> None:
    assert number({"n": value}, "n") is None


def test_number_may_be_absent() -> None:
    assert number({}, "n") is None


class Provider:
    """A provider as the host program may write one."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.timeouts: list[float] = []
        self.invalidated = 0

    def get_token(self, request: TokenRequest, timeout_s: float) -> object:
        self.timeouts.append(timeout_s)
        return self.answer

    def invalidate(self) -> None:
        self.invalidated += 1


class TestAsProvider:
    @pytest.mark.parametrize("answer", [" value\n", Token(" value\n")], ids=["str", "token"])
    def test_takes_a_callable(self, answer: Token | str) -> None:
        asked: list[TokenRequest] = []

        def fetch(request: TokenRequest) -> Token | str:
            asked.append(request)
            return answer

        provider = as_provider(fetch)
        assert provider.get_token(request(), 1) == Token("value")
        assert asked == [request()]
        provider.invalidate()

    def test_takes_a_provider(self) -> None:
        own = Provider(Token("value", 5.0))
        provider = as_provider(own)
        assert provider.get_token(request(), 1.5) == Token("value", 5.0)
        assert own.timeouts == [1.5]
        provider.invalidate()
        assert own.invalidated == 1

    def test_guards_once(self) -> None:
        provider = as_provider(lambda _: "value")
        assert as_provider(provider) is provider

    @pytest.mark.parametrize("source", [None, "a token", object()])
    def test_refuses_anything_else(self, source: object) -> None:
        with pytest.raises(TypeError, match="get_token"):
            as_provider(source)

    @pytest.mark.parametrize("answer", [None, 7, b"bytes", object()])
    def test_refuses_what_is_not_a_token(self, answer: object) -> None:
        with pytest.raises(TokenError, match=f"returned {type(answer).__name__}, not a token"):
            as_provider(lambda _: answer).get_token(request(), 1)

    @pytest.mark.parametrize("answer", ["", " \n", Token(" ")])
    def test_refuses_an_empty_token(self, answer: Token | str) -> None:
        with pytest.raises(TokenError, match="empty token"):
            as_provider(lambda _: answer).get_token(request(), 1)

    def test_an_exception_is_a_token_error_without_its_text(self) -> None:
        def fail(request: TokenRequest) -> str:
            raise KeyError("the-secret")

        with pytest.raises(TokenError) as caught:
            as_provider(fail).get_token(request(), 1)
        assert "KeyError at test_base.py:" in str(caught.value)
        assert "the-secret" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__

    def test_its_own_token_error_says_more(self) -> None:
        error = TokenError("the vault is sealed")

        def fail(request: TokenRequest) -> str:
            raise error

        with pytest.raises(TokenError) as caught:
            as_provider(fail).get_token(request(), 1)
        assert caught.value is error

    @pytest.mark.parametrize("timeout_s", [0.001, 0, -1])
    def test_a_callable_is_cut_off(self, timeout_s: float) -> None:
        def hang(request: TokenRequest) -> str:
            gevent.sleep(60)
            raise AssertionError("not reached")

        with pytest.raises(TokenTimeout, match=r"longer than .* s \(attest\)"):
            as_provider(hang).get_token(request(Stage.ATTEST, "n"), timeout_s)

    def test_a_provider_is_cut_off_a_little_later(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(base, "GUARD_MARGIN_S", 0.001)

        class Hanging(Provider):
            def get_token(self, request: TokenRequest, timeout_s: float) -> Token:
                gevent.sleep(60)
                raise AssertionError("not reached")

        with pytest.raises(TokenTimeout, match="longer than 0 s"):
            as_provider(Hanging(None)).get_token(request(), 0)

    def test_its_own_timeout_comes_first(self) -> None:
        class Punctual(Provider):
            def get_token(self, request: TokenRequest, timeout_s: float) -> Token:
                with gevent.Timeout(timeout_s, TokenTimeout("the vault was slow")):
                    gevent.sleep(60)
                raise AssertionError("not reached")

        with pytest.raises(TokenTimeout, match="the vault was slow"):
            as_provider(Punctual(None)).get_token(request(), 0.001)

    def test_a_timeout_from_outside_passes(self) -> None:
        outer = gevent.Timeout(0.001)

        def hang(request: TokenRequest) -> str:
            gevent.sleep(60)
            raise AssertionError("not reached")

        with pytest.raises(gevent.Timeout) as caught, outer:
            as_provider(hang).get_token(request(), 60)
        assert caught.value is outer

    def test_a_kill_passes(self) -> None:
        started = gevent.event.Event()

        def hang(request: TokenRequest) -> str:
            started.set()
            gevent.sleep(60)
            raise AssertionError("not reached")

        greenlet = gevent.Greenlet.spawn(as_provider(hang).get_token, request(), 60)
        started.wait(5)
        greenlet.kill()
        assert isinstance(greenlet.value, gevent.GreenletExit)


@pytest.mark.parametrize("text", ["töken", "a.b.\ud800"])
def test_a_token_is_ascii(text: str) -> None:
    """Anything else could not even be sent (RFC 7515 section 3.1)."""
    with pytest.raises(TokenError, match="beyond ASCII"):
        Token.parse(text)
