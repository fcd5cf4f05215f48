"""The agent proves itself and learns that it is accepted (cases 1 to 6 and 11 to 14)."""

from __future__ import annotations

import json

import pytest

from nexusg.errors import LocalProtocolError, RemoteProtocolError
from nexusg.protocol.events import Accepted, ChallengeReceived, Ignored, ReauthRequested
from nexusg.protocol.handshake import ACCEPTANCE_TIMEOUT_S, CHALLENGE_TIMEOUT_S, Handshake
from nexusg.protocol.messages import (
    HANDSHAKE_CHALLENGE,
    REAUTH_CHALLENGE,
    Challenge,
    encode_challenge,
)
from nexusg.protocol.states import SessionInput, SessionState
from nexusg.protocol.wire import Wire
from nexusg.protocol.wsframes import PING, TEXT, FrameParser


NOW = 50.0


class Played:
    """A handshake and what it sends."""

    def __init__(self) -> None:
        self.wire = Wire(is_client=True, entropy=bytes)  # keys of zeros will do
        self.shake = Handshake(self.wire)

    def sent(self) -> list[tuple[int, bytes]]:
        parser = FrameParser(masked=True)
        return [(opcode, bytes(data)) for opcode, data in parser.feed(self.wire.take_output())]

    def challenge(self, kind: str = HANDSHAKE_CHALLENGE, nonce: str = "n0") -> object:
        return self.shake.receive_text(encode_challenge(Challenge(kind, nonce)).encode())

    def until(self, state: SessionState) -> Played:
        """Go on until the session is in ``state``; forget what was sent."""
        for step in (
            lambda: self.shake.send_handshake_token("token-0", NOW),
            self.challenge,
            lambda: self.shake.send_attest_token("token-1", NOW),
            self.shake.receive_proof,
            lambda: self.shake.step(SessionInput.DRAIN),
        ):
            if self.shake.state is state:
                break
            step()
        assert self.shake.state is state
        self.sent()
        return self


S = SessionState
ESTABLISHED = pytest.mark.parametrize("state", [S.OPEN, S.DRAINING])


def test_the_whole_handshake() -> None:
    """Cases 1, 2 and 6."""
    played = Played()
    shake = played.shake
    assert (shake.deadline, shake.stage, shake.accepted) == (None, "", False)
    shake.send_handshake_token("token-0", NOW)
    assert played.sent() == [(TEXT, b"token-0")]
    assert shake.deadline == NOW + CHALLENGE_TIMEOUT_S
    assert shake.overdue == ("challenge", CHALLENGE_TIMEOUT_S)
    assert shake.stage == "handshake"

    assert played.challenge(nonce="n" * 43) == ChallengeReceived("n" * 43)
    assert shake.deadline is None, "the provider has its own"
    assert (played.sent(), shake.stage) == ([], "handshake")

    shake.send_attest_token("token-1", NOW)
    assert played.sent() == [(TEXT, b"token-1"), (PING, b"accepted?")]
    assert shake.deadline == NOW + ACCEPTANCE_TIMEOUT_S
    assert shake.overdue == ("acceptance", ACCEPTANCE_TIMEOUT_S)
    assert (shake.stage, shake.accepted, shake.established) == ("attest", False, False)

    assert shake.receive_proof() == Accepted()
    assert (shake.deadline, shake.accepted, shake.established) == (None, True, True)
    assert shake.receive_proof() is None, "it is said once"


@pytest.mark.parametrize(
    "text",
    [
        b"hello",
        b"",
        b"[]",
        b"\xff",
        b'{"type":"handshake_challenge","nonce":""}',
        b'{"type":"handshake_challenge"}',
        b'{"type":"news","nonce":"abc"}',
    ],
)
def test_a_bad_challenge(text: bytes) -> None:
    """Case 3: no second token, the session ends."""
    played = Played().until(S.IDENTIFIED)
    with pytest.raises(RemoteProtocolError, match="bad challenge"):
        played.shake.receive_text(text)
    assert played.sent() == []


def test_a_challenge_of_another_type() -> None:
    with pytest.raises(RemoteProtocolError, match="reauth_challenge while the session is identi"):
        Played().until(S.IDENTIFIED).challenge(REAUTH_CHALLENGE)


@pytest.mark.parametrize("state", [S.NEW, S.CHALLENGED, S.ATTESTED])
def test_a_challenge_at_the_wrong_time(state: SessionState) -> None:
    for kind in (HANDSHAKE_CHALLENGE, REAUTH_CHALLENGE):
        with pytest.raises(RemoteProtocolError, match=f"while the session is {state.value}"):
            Played().until(state).challenge(kind)


@pytest.mark.parametrize("state", [S.NEW, S.IDENTIFIED, S.CHALLENGED, S.OPEN, S.DRAINING])
def test_only_an_attested_session_is_accepted(state: SessionState) -> None:
    played = Played().until(state)
    assert played.shake.receive_proof() is None
    assert played.shake.state is state


def test_tokens_out_of_order() -> None:
    played = Played()
    with pytest.raises(LocalProtocolError):
        played.shake.send_attest_token("token", NOW)
    played.until(S.IDENTIFIED)
    with pytest.raises(LocalProtocolError):
        played.shake.send_handshake_token("token", NOW)
    assert played.sent() == []
    assert "token" not in str(played.shake)


# Re-attestation ----------------------------------------------------------------------------------


@ESTABLISHED
def test_a_reauth_is_answered_once(state: SessionState) -> None:
    """Case 11."""
    played = Played().until(state)
    assert played.challenge(REAUTH_CHALLENGE, "n1") == ReauthRequested("n1")
    assert played.shake.send_reauth_token("n1", "token-2") is True
    assert played.shake.send_reauth_token("n1", "token-2") is False
    assert played.sent() == [(TEXT, b"token-2")]
    assert played.shake.state is state
    assert played.shake.stage == "attest", "the stage of an end is about the handshake"


@ESTABLISHED
def test_only_the_newest_reauth_is_answered(state: SessionState) -> None:
    """Case 13."""
    played = Played().until(state)
    for nonce in ("n1", "n2", "n3"):
        assert played.challenge(REAUTH_CHALLENGE, nonce) == ReauthRequested(nonce)
    assert [played.shake.send_reauth_token(n, n) for n in ("n2", "n3", "n1")] == [
        False,
        True,
        False,
    ]
    assert played.sent() == [(TEXT, b"n3")]


@pytest.mark.parametrize("nonce", ["", "n0", "n9"])
def test_no_reauth_token_without_a_challenge(nonce: str) -> None:
    """The server would take it for the answer to the next one."""
    played = Played().until(S.OPEN)
    assert played.shake.send_reauth_token(nonce, "token") is False
    assert played.sent() == []


@pytest.mark.parametrize("end", [SessionInput.LOST, SessionInput.SEND_CLOSE])
def test_a_late_reauth_token_is_not_sent(end: SessionInput) -> None:
    """Case 14."""
    played = Played().until(S.OPEN)
    played.challenge(REAUTH_CHALLENGE, "n1")
    played.shake.step(end)
    assert played.shake.send_reauth_token("n1", "token") is False
    assert played.sent() == []
    assert (played.shake.accepted, played.shake.established) == (True, False)


@ESTABLISHED
@pytest.mark.parametrize("text", [b"hello", b"", b"[]", b'{"type":"news","nonce":"abc"}'])
def test_other_text_is_ignored_in_an_open_session(state: SessionState, text: bytes) -> None:
    played = Played().until(state)
    event = played.shake.receive_text(text)
    assert isinstance(event, Ignored)
    assert played.challenge(REAUTH_CHALLENGE, "n1") == ReauthRequested("n1")
    assert played.shake.send_reauth_token("n1", "token")


@ESTABLISHED
def test_a_handshake_challenge_in_an_open_session_is_ignored(state: SessionState) -> None:
    played = Played().until(state)
    assert isinstance(played.challenge(), Ignored)
    assert played.sent() == []


def test_errors_do_not_quote_the_relay() -> None:
    secret = "s3cret"
    body = json.dumps({"type": secret, "nonce": secret}).encode()
    with pytest.raises(RemoteProtocolError) as caught:
        Played().until(S.IDENTIFIED).shake.receive_text(body)
    assert secret not in str(caught.value)
