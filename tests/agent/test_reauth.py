"""Re-attestation beside the traffic (PROTOCOL.md section 3, cases 11 to 14 of section 17)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import gevent
import pytest

from nexusg.agent import reauth
from nexusg.attest.base import Stage
from nexusg.config.model import Attestation, Backend
from nexusg.errors import TokenError
from nexusg.protocol.relay_events import Ignored, TokenReceived
from tests.conftest import MS
from tests.support.peer import Bench
from tests.support.relayed import make_token


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


FIRST, SECOND = "1" * 43, "2" * 43


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again after a moment."""
    monkeypatch.setattr(reauth, "RETRY_S", 5 * MS)


@pytest.fixture
def make_bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Bench]]:
    """A function that makes a bench with this configured grace."""
    benches = []

    def make(grace_s: int) -> Bench:
        attestation = Attestation(reauth_grace_s=grace_s)
        backend = Backend("web", hostnames=("app.example.com",), attestation=attestation)
        benches.append(Bench(monkeypatch, backend=backend))
        return benches[-1]

    yield make
    for bench in benches:
        bench.stop()


def grace_s(bench: Bench) -> float:
    """How long the newest request for a token may take, with the time it travels."""
    _, timeout_s = bench.provider.requests[-1]
    return round(timeout_s + reauth.TRAVEL_S, 1)


def tokens(bench: Bench) -> list[str]:
    """The tokens that the relay has taken as answers so far."""
    received = [event for event in bench.peer.events if isinstance(event, TokenReceived)]
    return [event.token for event in received if event.stage == "reauth"]


def test_the_relay_is_answered(bench: Bench) -> None:
    """Section 3.2: one text with the bare token."""
    bench.connect()
    bench.peer.reauth(FIRST)
    assert bench.peer.wait_token("reauth") == "reauth token"
    (request, _) = bench.provider.requests[-1]
    assert (request.stage, request.nonce) == (Stage.REAUTH, FIRST)
    completed = bench.wait("reauth.completed")
    assert (completed.session, completed.attempts) == ("s1", 1)
    assert len(bench.named("reauth.started")) == 1


def test_traffic_goes_on_meanwhile(bench: Bench) -> None:
    """Section 3.5: the reference stops reading for as long as its command runs."""
    bench.provider.gates[Stage.REAUTH].clear()
    bench.connect()
    bench.peer.reauth(FIRST)
    bench.wait("reauth.started")
    user, local = bench.open(b"hello")
    bench.wait("stream.connected")
    assert local.recv(100) == b"hello"
    local.send(b"hi")
    bench.peer.wait(lambda: user.data == b"hi")
    bench.provider.gates[Stage.REAUTH].set()
    assert bench.peer.wait_token("reauth")


def test_a_failure_is_not_the_end(bench: Bench) -> None:
    """Case 12: tried again while there is time."""
    bench.provider.errors[Stage.REAUTH].append(TokenError("try again"))
    bench.connect()
    bench.peer.reauth(FIRST)
    assert bench.peer.wait_token("reauth")
    failed = bench.wait("reauth.failed")
    assert (failed.error, failed.attempts, failed.final) == ("try again", 1, False)
    assert bench.wait("reauth.completed").attempts == 2
    assert bench.context.counters.token_failures == 1


def test_when_the_time_is_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay will end the session; the agent says why, and does not do so itself."""
    monkeypatch.setattr(reauth, "DEFAULT_GRACE_S", 15 * MS)
    monkeypatch.setattr(reauth, "TRAVEL_S", 0.0)
    bench.provider.errors[Stage.REAUTH] = [TokenError("no") for _ in range(9)]
    session = bench.connect()
    bench.peer.reauth(FIRST)
    with gevent.Timeout(5):
        while not (bench.named("reauth.failed") and bench.named("reauth.failed")[-1].final):
            bench.changed.clear()
            bench.changed.wait()
    assert session.established
    assert not tokens(bench)


def test_only_the_newest_challenge_is_answered(bench: Bench) -> None:
    """Case 13: the token for the older one is not even waited for."""
    gate = bench.provider.gates[Stage.REAUTH]
    gate.clear()
    session = bench.connect()
    bench.peer.reauth(FIRST)
    bench.wait("reauth.started")
    bench.peer.reauth(SECOND)
    bench.wait("reauth.started", 2)
    assert len(session.tasks) == 3, "writer, ticker, and one attempt"
    gate.set()
    bench.peer.wait_token("reauth")
    bench.wait("reauth.completed")
    gevent.sleep(2 * MS)
    assert tokens(bench) == ["reauth token"]
    assert not any(isinstance(event, Ignored) for event in bench.peer.events)
    assert [request.nonce for request, _ in bench.provider.requests[2:]] == [FIRST, SECOND]


def test_a_token_that_comes_too_late_is_dropped(bench: Bench) -> None:
    """Cases 13 and 14: the session is being closed, or has been asked again."""
    gate = bench.provider.gates[Stage.REAUTH]
    gate.clear()
    session = bench.connect()
    bench.peer.reauth(FIRST)
    bench.wait("reauth.started")
    session.core.close(1001)
    gate.set()
    gevent.sleep(2 * MS)
    assert not bench.named("reauth.completed")
    assert not tokens(bench)


def test_the_end_of_the_session_ends_the_attempt(bench: Bench) -> None:
    """Case 14: nothing of it is left for the next session."""
    bench.provider.gates[Stage.REAUTH].clear()
    session = bench.connect()
    bench.peer.reauth(FIRST)
    bench.wait("reauth.started")
    bench.peer.hang_up()
    bench.end()
    assert len(session.tasks) == 0


# The grace: it is not announced (section 3.1) --------------------------------------------------


def test_without_a_hint_the_grace_is_the_relays_default(bench: Bench) -> None:
    bench.connect()
    bench.peer.reauth(FIRST)
    bench.peer.wait_token("reauth")
    assert grace_s(bench) == 10


def test_the_grace_that_the_token_claims(bench: Bench) -> None:
    """Whoever signed it: the relay does what the token says."""
    bench.provider.tokens[Stage.ATTEST] = make_token(reauth_grace_seconds=60)
    bench.connect()
    bench.peer.reauth(FIRST)
    bench.peer.wait_token("reauth")
    assert grace_s(bench) == 60


def test_the_grace_that_is_configured_for_a_token_nobody_can_read(
    make_bench: Callable[[int], Bench],
) -> None:
    bench = make_bench(45)
    bench.connect()
    bench.peer.reauth(FIRST)
    bench.peer.wait_token("reauth")
    assert grace_s(bench) == 45


def test_what_the_token_claims_comes_first(make_bench: Callable[[int], Bench]) -> None:
    bench = make_bench(45)
    bench.provider.tokens[Stage.ATTEST] = make_token(reauth_grace_seconds=20)
    bench.connect()
    bench.peer.reauth(FIRST)
    bench.peer.wait_token("reauth")
    assert grace_s(bench) == 20


def test_the_grace_may_change_with_each_token(bench: Bench) -> None:
    """Section 3.3: from the next challenge on."""
    bench.provider.tokens[Stage.ATTEST] = make_token(reauth_grace_seconds=60)
    bench.provider.tokens[Stage.REAUTH] = make_token(reauth_grace_seconds=5)
    bench.connect()
    for nonce, expected in ((FIRST, 60), (SECOND, 5), ("3" * 43, 5)):
        bench.peer.reauth(nonce)
        bench.wait("reauth.completed", len(bench.named("reauth.completed")) + 1)
        assert grace_s(bench) == expected


def test_the_deadline_is_that_of_the_challenge(bench: Bench) -> None:
    """Each further attempt has only what is left."""
    bench.provider.errors[Stage.REAUTH].append(TokenError("try again"))
    bench.connect()
    before = time.monotonic()
    bench.peer.reauth(FIRST)
    bench.wait("reauth.completed")
    (_, first_s), (_, second_s) = bench.provider.requests[2:]
    assert second_s < first_s
    assert first_s - second_s == pytest.approx(time.monotonic() - before, abs=0.5)
