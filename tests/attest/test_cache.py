from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import gevent
import pytest
from gevent.event import Event
from hypothesis import given
from hypothesis import strategies as st

from nexusg.attest.base import Stage, Token, TokenRequest
from nexusg.attest.cache import EXPIRY_MARGIN_S, HandshakeCache
from nexusg.errors import TokenError, TokenTimeout
from tests.attest.doubles import jwt, request
from tests.support.clock import FakeClock


if TYPE_CHECKING:
    from collections.abc import Callable


NOW = 1_000_000.0


class Source:
    """A provider that counts, and may be held."""

    def __init__(self, make: Callable[[int], Token] = lambda number: Token(f"t{number}")) -> None:
        self.make = make
        self.asked: list[tuple[TokenRequest, float]] = []
        self.invalidated = 0
        self.open = Event()
        self.open.set()
        self.error: Exception | None = None

    def get_token(self, request: TokenRequest, timeout_s: float) -> Token:
        self.asked.append((request, timeout_s))
        number = len(self.asked)
        self.open.wait()
        if self.error is not None:
            raise self.error
        return self.make(number)

    def invalidate(self) -> None:
        self.invalidated += 1


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NOW)


@pytest.fixture
def source() -> Source:
    return Source()


def values(cache: HandshakeCache, *requests: TokenRequest) -> list[str]:
    return [cache.get_token(each, 1).value for each in requests]


class TestWhatIsKept:
    def test_a_handshake_token(self, source: Source, clock: FakeClock) -> None:
        cache = HandshakeCache(source, 60, clock=clock)
        assert values(cache, request(), request()) == ["t1", "t1"]
        clock.advance(59.9)
        assert values(cache, request()) == ["t1"]
        clock.advance(0.1)
        assert values(cache, request(), request()) == ["t2", "t2"]

    @pytest.mark.parametrize("stage", [Stage.ATTEST, Stage.REAUTH])
    def test_no_other_token(self, source: Source, stage: Stage) -> None:
        cache = HandshakeCache(source, 60)
        asked = [request(), request(stage, "n"), request(stage, "n"), request()]
        assert values(cache, *asked) == ["t1", "t2", "t3", "t1"]

    @pytest.mark.parametrize("cache_s", [0, -1])
    def test_nothing_by_default(self, source: Source, cache_s: float) -> None:
        cache = HandshakeCache(source, cache_s)
        assert values(cache, request(), request()) == ["t1", "t2"]
        assert [timeout_s for _, timeout_s in source.asked] == [1, 1]

    def test_no_token_of_another_backend(self, source: Source) -> None:
        cache = HandshakeCache(source, 60)
        assert values(cache, request(), request(backend="web"), request()) == ["t1", "t2", "t3"]

    def test_no_failure(self, source: Source) -> None:
        cache = HandshakeCache(source, 60)
        source.error = TokenError("not now")
        with pytest.raises(TokenError, match="not now"):
            cache.get_token(request(), 1)
        source.error = None
        assert values(cache, request()) == ["t2"]

    def test_nothing_when_the_clock_was_set_back(self, source: Source, clock: FakeClock) -> None:
        cache = HandshakeCache(source, 60, clock=clock)
        values(cache, request())
        clock.now -= 1
        assert values(cache, request()) == ["t2"]


def lifetime(token: Token, clock: FakeClock, cache_s: float = 600, max_age_s: float = 0) -> float:
    """For how many whole seconds the token is used."""
    clock.now = NOW
    source = Source(lambda _: token)
    cache = HandshakeCache(source, cache_s, max_age_s, clock)
    cache.get_token(request(), 1)
    for second in range(int(cache_s) + 1):
        clock.now = NOW + second
        cache.get_token(request(), 1)
        if len(source.asked) > 1:
            return second
    raise AssertionError("never")


class TestLifetime:
    @pytest.mark.parametrize(
        ("token", "max_age_s", "seconds"),
        [
            pytest.param(Token("t"), 0, 600, id="configured"),
            pytest.param(Token("t", NOW + 100), 0, 95, id="known-expiry"),
            pytest.param(Token("t", NOW + 9999), 0, 600, id="late-expiry"),
            pytest.param(Token("t", NOW + 5), 0, 0, id="expiry-within-margin"),
            pytest.param(Token("t", NOW - 50), 0, 0, id="expired"),
            pytest.param(Token(jwt(exp=NOW + 100)), 0, 95, id="own-exp"),
            pytest.param(Token(jwt(exp=NOW + 50), NOW + 100), 0, 45, id="own-exp-earlier"),
            pytest.param(Token(jwt(exp=NOW + 100), NOW + 50), 0, 45, id="own-exp-later"),
            pytest.param(Token("t"), 60, 55, id="age-without-iat"),
            pytest.param(Token(jwt(iat=NOW - 20)), 60, 35, id="age-with-iat"),
            pytest.param(Token(jwt(iat=NOW - 20)), 0, 600, id="no-age"),
            pytest.param(Token(jwt(iat=NOW, handshake_max_age_seconds=30)), 60, 25, id="own-age"),
            pytest.param(Token(jwt(iat=NOW, handshake_max_age_seconds=-1)), 0, 600, id="odd-age"),
        ],
    )
    def test_is_the_shortest(
        self, clock: FakeClock, token: Token, max_age_s: float, seconds: float
    ) -> None:
        assert lifetime(token, clock, max_age_s=max_age_s) == seconds

    @given(st.none() | st.integers(-10, 60), st.none() | st.integers(-10, 60), st.integers(0, 30))
    def test_an_expired_token_is_never_used(
        self, expires: int | None, own: int | None, max_age_s: int
    ) -> None:
        claims = {"iat": NOW} | ({} if own is None else {"exp": NOW + own})
        token = Token(jwt(**claims), None if expires is None else NOW + expires)
        used = lifetime(token, FakeClock(), cache_s=60, max_age_s=max_age_s)
        limits = [limit for limit in (expires, own, max_age_s or None) if limit is not None]
        assert used == max(0, min([60, *(limit - EXPIRY_MARGIN_S for limit in limits)]))


class TestInvalidate:
    def test_drops_the_token(self, source: Source) -> None:
        cache = HandshakeCache(source, 60)
        values(cache, request())
        cache.invalidate()
        assert source.invalidated == 1
        assert values(cache, request(), request()) == ["t2", "t2"]

    def test_drops_the_one_under_way(self, source: Source) -> None:
        cache = HandshakeCache(source, 60)
        source.open.clear()
        fetch = gevent.Greenlet.spawn(cache.get_token, request(), 1)
        gevent.idle()
        cache.invalidate()
        source.open.set()
        assert fetch.get().value == "t1"
        assert values(cache, request(), request()) == ["t2", "t2"]


class TestSingleFlight:
    def test_callers_share_a_fetch(self, source: Source) -> None:
        cache = HandshakeCache(source, 60)
        source.open.clear()
        callers = [gevent.Greenlet.spawn(cache.get_token, request(), 5) for _ in range(5)]
        gevent.idle()
        source.open.set()
        assert [caller.get().value for caller in callers] == ["t1"] * 5

    def test_stages_that_are_not_kept_do_not_wait(self, source: Source) -> None:
        cache = HandshakeCache(source, 60)
        source.open.clear()
        callers = [
            gevent.Greenlet.spawn(cache.get_token, each, 5)
            for each in (request(), request(Stage.ATTEST, "n"))
        ]
        gevent.idle()
        assert len(source.asked) == 2
        source.open.set()
        gevent.joinall(callers, raise_error=True)

    def test_a_waiter_keeps_its_own_deadline(self, source: Source) -> None:
        cache = HandshakeCache(source, 60)
        source.open.clear()
        first = gevent.Greenlet.spawn(cache.get_token, request(), 5)
        gevent.idle()
        for timeout_s in (0.001, 0, -1):
            with pytest.raises(TokenTimeout, match="waited"):
                cache.get_token(request(), timeout_s)
        source.open.set()
        assert first.get().value == "t1"

    def test_the_next_waiter_tries_after_a_failure(self, source: Source) -> None:
        cache = HandshakeCache(source, 60)
        source.open.clear()
        source.error = TokenError("not now")
        first, second, third = (
            gevent.Greenlet.spawn(_value_or_error, cache, source) for _ in range(3)
        )
        gevent.idle()
        source.open.set()
        assert first.get() == "not now"
        assert (second.get(), third.get()) == ("t2", "t2")
        assert 0 < source.asked[1][1] <= 5, "what is left of its own time"

    def test_no_time_left_after_waiting(
        self, source: Source, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = FakeClock()
        monkeypatch.setattr("nexusg.attest.cache.time.monotonic", clock)
        cache = HandshakeCache(source, 60)
        source.open.clear()
        source.error = TokenError("not now")
        first = gevent.Greenlet.spawn(_value_or_error, cache, source)
        second = gevent.Greenlet.spawn(_value_or_error, cache, source)
        gevent.idle()
        clock.advance(5)
        source.open.set()
        assert first.get() == "not now"
        assert "waited 5 s" in second.get()
        assert len(source.asked) == 1

    def test_a_killed_fetch_lets_the_next_one_in(self, source: Source) -> None:
        cache = HandshakeCache(source, 60)
        source.open.clear()
        first = gevent.Greenlet.spawn(cache.get_token, request(), 5)
        gevent.idle()
        first.kill()
        source.open.set()
        assert values(cache, request()) == ["t2"]


def _value_or_error(cache: HandshakeCache, source: Source) -> str:
    """Ask; whoever fails also mends the source."""
    try:
        return cache.get_token(request(), 5).value
    except TokenError as error:
        source.error = None
        return str(error)


def test_the_request_is_handed_on(source: Source) -> None:
    asked = replace(request(), weight=9)
    HandshakeCache(source, 60).get_token(asked, 3)
    ((given_request, timeout_s),) = source.asked
    assert given_request == asked
    assert 2.9 < timeout_s <= 3
