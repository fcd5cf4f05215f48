"""A backend's share of a device: one token for all, and whose host names it is for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from nexusg.attest.base import Stage, Token
from nexusg.attest.tpm import notices
from nexusg.attest.tpm.provider import TpmTokenProvider, covered
from nexusg.errors import AuthorizerError
from tests.attest.doubles import jwt, request


if TYPE_CHECKING:
    from nexusg.attest.base import TokenRequest
    from nexusg.attest.tpm.notices import Notice

GRANTED = ["slug.test", "*.slug.test"]


class FakeIdentity:
    """Gives the claims that a test has set, and notes what it is asked."""

    def __init__(self) -> None:
        self.claims: dict[str, Any] = {"hostnames": GRANTED}
        self.requests: list[TokenRequest] = []
        self.users: list[object] = []
        self.invalidated = 0
        self.tokens = self
        self.enroller = SimpleNamespace(retry_after_s=5.0)
        self.issuer = SimpleNamespace(figures=lambda: "figures", enroll=self.requests.append)

    def get_token(self, request: TokenRequest, timeout_s: float) -> Token:
        self.requests.append(request)
        assert timeout_s == 7.0
        return Token.parse(jwt(**self.claims))

    def invalidate(self) -> None:
        self.invalidated += 1

    def endpoints(self, timeout_s: float) -> tuple[str, ...]:
        assert timeout_s == 7.0
        return ("wss://relay.test",)

    def join(self, notify: object) -> None:
        self.users.append(notify)

    def leave(self, notify: object) -> None:
        self.users.remove(notify)


@pytest.fixture
def identity() -> Any:
    return FakeIdentity()


@pytest.fixture
def told() -> list[Notice]:
    return []


@pytest.fixture
def provider(identity: Any, told: list[Notice]) -> TpmTokenProvider:
    return TpmTokenProvider(identity, told.append)


def ask(provider: TpmTokenProvider, *hostnames: str, **changes: Any) -> Token:
    return provider.get_token(request(hostnames=hostnames, **changes), 7.0)


def test_backends_ask_for_the_same(identity: Any, provider: TpmTokenProvider) -> None:
    ask(provider, "a.slug.test", backend="one")
    ask(provider, "b.slug.test", backend="two", weight=5, tcp_ports=(7,))
    first, second = identity.requests
    assert first == second


def test_stages_and_nonces_are_passed_on(identity: Any, provider: TpmTokenProvider) -> None:
    provider.get_token(request(Stage.REAUTH, "session"), 7.0)
    assert (identity.requests[0].stage, identity.requests[0].nonce) == (Stage.REAUTH, "session")


def test_the_rest_is_the_identity_s(identity: Any, provider: TpmTokenProvider) -> None:
    provider.invalidate()
    assert identity.invalidated == 1
    assert provider.endpoints(7.0) == ("wss://relay.test",)
    assert provider.retry_after_s == 5.0
    assert provider.figures() == "figures"  # type: ignore[comparison-overlap]
    provider.enroll(7.0)
    assert identity.requests == [7.0]


def test_close_is_once(identity: Any, provider: TpmTokenProvider) -> None:
    assert len(identity.users) == 1
    provider.close()
    provider.close()
    assert identity.users == []


class TestHostnames:
    def test_that_are_covered(self, provider: TpmTokenProvider, told: list[Notice]) -> None:
        ask(provider, "slug.test", "a.slug.test", "*.slug.test")
        ask(provider)
        assert told == []

    def test_that_are_missing_are_told_once(
        self, provider: TpmTokenProvider, told: list[Notice]
    ) -> None:
        for _ in range(3):
            ask(provider, "slug.test", "a.b.slug.test", "else.test")
        missing = ("a.b.slug.test", "else.test")
        assert told == [notices.HostnamesMissing(missing, tuple(GRANTED))]

    def test_are_told_again_when_they_change(
        self, identity: Any, provider: TpmTokenProvider, told: list[Notice]
    ) -> None:
        ask(provider, "else.test")
        identity.claims = {"hostnames": ["else.test"]}
        ask(provider, "else.test")
        identity.claims = {"hostnames": ["slug.test"]}
        ask(provider, "else.test")
        assert len(told) == 2

    @pytest.mark.parametrize("claimed", [None, "slug.test", 5, [5, None, "a\nb"]])
    def test_that_are_none(
        self, identity: Any, provider: TpmTokenProvider, told: list[Notice], claimed: object
    ) -> None:
        identity.claims = {"hostnames": claimed}
        ask(provider, "slug.test")
        assert told == [notices.HostnamesMissing(("slug.test",), ())]


@pytest.mark.parametrize(
    ("hostname", "granted", "expected"),
    [
        ("a.test", ("a.test",), True),
        ("a.test", ("A.Test",), True),
        ("a.test", ("b.test",), False),
        ("x.a.test", ("*.a.test",), True),
        ("y.x.a.test", ("*.a.test",), False),
        ("a.test", ("*.a.test",), False),
        ("*.a.test", ("*.a.test",), True),
        ("*.a.test", ("a.test",), False),
        ("a.test", (), False),
    ],
)
def test_covered(hostname: str, granted: tuple[str, ...], expected: bool) -> None:
    assert covered(hostname, granted) is expected


def test_errors_pass(identity: Any, provider: TpmTokenProvider) -> None:
    def fail(*_: object) -> Token:
        raise AuthorizerError("no")

    identity.get_token = fail
    with pytest.raises(AuthorizerError):
        ask(provider)
