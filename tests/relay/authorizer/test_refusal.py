from __future__ import annotations

from nexusg.relay.authorizer.refusal import Refusal, internal


def test_the_device_is_told_less_than_the_log() -> None:
    refusal = Refusal(401, "no", reason="the signature is not the AK's")
    assert (refusal.status, refusal.text, str(refusal)) == (401, "no", "no")
    assert refusal.reason == "the signature is not the AK's"
    assert refusal.retry_after_s is None


def test_a_reason_is_there_in_any_case() -> None:
    assert Refusal(429, "rate limit exceeded", retry_after_s=3).reason == "rate limit exceeded"


def test_internal_errors_say_nothing() -> None:
    refusal = internal("unknown curve")
    assert (refusal.status, refusal.text) == (500, "internal server error")
    assert refusal.reason == "unknown curve"
