from __future__ import annotations

import pytest

from nexusg.relay.authorizer.nonces import Nonces, raw
from nexusg.relay.authorizer.refusal import Refusal
from tests.support.clock import FakeClock


def refused(nonces: Nonces, nonce: str) -> bool:
    try:
        nonces.consume(nonce)
    except Refusal as refusal:
        return (refusal.status, refusal.text) == (401, "invalid or expired nonce")
    return False


def test_a_nonce_is_good_once() -> None:
    nonces = Nonces(FakeClock(1000))
    nonce, expires_at = nonces.issue()
    assert (len(nonce), expires_at, len(raw(nonce))) == (43, 1060, 32)
    assert not refused(nonces, nonce)
    assert refused(nonces, nonce)


def test_a_nonce_is_good_for_a_minute() -> None:
    clock = FakeClock()
    nonces = Nonces(clock)
    first, second = nonces.issue()[0], nonces.issue()[0]
    clock.advance(60)
    assert not refused(nonces, first)
    clock.advance(0.001)
    assert refused(nonces, second)


@pytest.mark.parametrize("nonce", ["", "nonsense", "é", "A" * 43])
def test_others_are_refused(nonce: str) -> None:
    assert refused(Nonces(FakeClock()), nonce)


def test_they_can_be_forgotten() -> None:
    nonces = Nonces(FakeClock())
    nonce, _ = nonces.issue()
    nonces.forget()
    assert refused(nonces, nonce)


def test_there_is_room_again_when_some_have_expired() -> None:
    clock = FakeClock()
    nonces = Nonces(clock, capacity=2)
    nonces.issue()
    clock.advance(50)
    nonces.issue()
    with pytest.raises(Refusal, match=r"^nonce store at capacity$") as caught:
        nonces.issue()
    assert (caught.value.status, caught.value.retry_after_s) == (503, None)
    clock.advance(20)
    nonces.issue()
