"""Tokens for one device: what is tried again, how often, and when it is given up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from gevent import Greenlet, joinall, sleep
from gevent.event import Event

from nexusg.attest.base import Stage, Token
from nexusg.attest.tpm import issuer as module
from nexusg.attest.tpm import notices
from nexusg.attest.tpm.enrolment import REFUSED_HOLD_S, REPEAT_S
from nexusg.attest.tpm.issuer import AT_ONCE, REFUSED_QUIET_S, TokenIssuer, checked
from nexusg.attest.tpm.namek import Device, NonceExpired, Proof
from nexusg.errors import AuthorizerError, TokenTimeout, TpmError
from tests.attest.doubles import jwt, request
from tests.attest.tpm.doubles import DEVICE_ID, NONCE
from tests.attest.tpm.test_enrolment import Bench as EnrolmentBench
from tests.conftest import MS


if TYPE_CHECKING:
    from pathlib import Path

UNREACHABLE = AuthorizerError("refused", "authorizer_unreachable")
UNAUTHORIZED = AuthorizerError("HTTP 401", status=401)
SUSPENDED = AuthorizerError("HTTP 403", "authorizer_refused", 403)
EXPIRED = NonceExpired("HTTP 401: invalid or expired nonce", status=401)
CLEARED = TpmError("cleared", "tpm_cleared")


class Bench(EnrolmentBench):
    """An issuer over an enroller over fakes."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        super().__init__(folder, **settings)
        tpm: Any = self.tpm
        namek: Any = self.namek
        self.issuer = TokenIssuer(self.enroller, tpm, namek, self.notices.append, self.time.timing)

    def enrolled(self) -> Bench:
        """Enrolled, which is over."""
        self.ensure()
        self.notices.clear()
        self.namek.calls.clear()
        return self

    def token(
        self, stage: Stage = Stage.ATTEST, nonce: str = "session", limit_s: float = 60.0
    ) -> Token:
        return self.issuer.get_token(request(stage, nonce), limit_s)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path).enrolled()


class TestToken:
    @pytest.mark.parametrize(
        ("stage", "nonce"),
        [(Stage.HANDSHAKE, ""), (Stage.ATTEST, "session"), (Stage.REAUTH, "session")],
    )
    def test_comes(self, bench: Bench, stage: Stage, nonce: str) -> None:
        bench.namek.claims["exp"] = bench.time.clock.now + 30
        token = bench.token(stage, nonce)
        assert token.expires_at == bench.time.clock.now + 30
        assert bench.namek.calls == ["nonce", "token"]
        assert bench.namek.seen["stage"] == stage.value
        assert bench.namek.seen["proof"] == Proof(DEVICE_ID, NONCE, "quote over [] of b'\\x00'")
        assert bench.notices == [notices.Issued(stage.value, 0.0, 0.0, 30.0)]

    def test_is_fresh_each_time(self, bench: Bench) -> None:
        assert bench.token() != bench.token()
        bench.issuer.invalidate()

    def test_has_the_device_enrolled_first(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path)
        bench.token(Stage.HANDSHAKE, "")
        assert bench.namek.calls == ["enroll_start", "enroll_attest", "nonce", "token"]

    def test_need_not_say_when_it_expires(self, bench: Bench) -> None:
        del bench.namek.claims["exp"]
        assert bench.token().expires_at is None
        assert bench.notices[0] == notices.Issued("attest", 0.0, 0.0, None)

    @pytest.mark.parametrize(
        ("stage", "given_s", "expected_s"),
        [
            (Stage.HANDSHAKE, 60.0, 15.0),
            (Stage.ATTEST, 9.0, 8.0),
            (Stage.REAUTH, 29.5, 25.0),
            (Stage.ATTEST, 3.0, 3.0),
        ],
    )
    def test_has_a_limit(
        self, bench: Bench, stage: Stage, given_s: float, expected_s: float
    ) -> None:
        bench.token(stage, "" if stage is Stage.HANDSHAKE else "session", given_s)
        assert bench.namek.seen["timeout_s"] == pytest.approx(expected_s, abs=0.1)

    @pytest.mark.parametrize("limit_s", [0.0, -1.0])
    def test_has_no_time_at_all(self, bench: Bench, limit_s: float) -> None:
        bench.token(limit_s=limit_s)
        assert bench.namek.seen["timeout_s"] == 0.0


class TestRetry:
    @pytest.mark.parametrize("where", ["nonce", "token"])
    @pytest.mark.parametrize(
        "error",
        [
            UNREACHABLE,
            AuthorizerError("HTTP 500", status=500),
            AuthorizerError("HTTP 503", status=503),
            AuthorizerError("HTTP 429", status=429),
        ],
    )
    def test_of_what_passes(self, bench: Bench, where: str, error: AuthorizerError) -> None:
        """With a nonce and a quote of its own each time."""
        bench.namek.fails[where] = [error] * 3
        bench.token()
        assert bench.time.slept == [0.5, 1.0, 2.0]
        assert bench.namek.count("nonce") == 4
        assert bench.tpm.calls.count("quote") == (1 if where == "nonce" else 4) + 1
        assert bench.issuer.figures().last_error == ""

    def test_ends_when_the_time_is_up(self, bench: Bench) -> None:
        bench.namek.fails["token"] = [UNREACHABLE] * 99
        with pytest.raises(AuthorizerError) as failure:
            bench.token()
        assert failure.value is UNREACHABLE
        assert sum(bench.time.slept) < 8.0
        assert bench.namek.count("token") == 5
        assert bench.issuer.figures().last_error == "refused"

    def test_comes_when_asked_to(self, bench: Bench) -> None:
        bench.namek.fails["token"] = [AuthorizerError("", status=429, retry_after_s=3.0)]
        bench.token()
        assert bench.time.slept == [3.0]

    def test_does_not_wait_in_vain(self, bench: Bench) -> None:
        bench.namek.fails["token"] = [AuthorizerError("", status=429, retry_after_s=60.0)]
        with pytest.raises(AuthorizerError):
            bench.token()
        assert bench.time.slept == []

    def test_of_an_expired_nonce_is_at_once(self, bench: Bench) -> None:
        bench.namek.fails["token"] = [EXPIRED] * 2
        bench.token()
        assert bench.time.slept == []
        assert bench.namek.count("nonce") == 3

    def test_of_an_expired_nonce_ends(self, bench: Bench) -> None:
        bench.namek.fails["token"] = [EXPIRED] * 3
        with pytest.raises(NonceExpired):
            bench.token()
        assert bench.namek.count("nonce") == 3
        assert bench.namek.count("enroll_start") == 0

    @pytest.mark.parametrize(
        "error", [AuthorizerError("HTTP 400", status=400), AuthorizerError("no usable token")]
    )
    def test_is_not_for_errors(self, bench: Bench, error: AuthorizerError) -> None:
        bench.namek.fails["token"] = [error]
        with pytest.raises(AuthorizerError) as failure:
            bench.token()
        assert failure.value is error
        assert bench.namek.count("token") == 1
        assert not bench.notices


class TestUnauthorized:
    def test_enrolls_again_once(self, bench: Bench) -> None:
        bench.namek.fails["token"] = [UNAUTHORIZED]
        bench.token()
        assert bench.namek.calls == [
            *("nonce", "token", "enroll_start", "enroll_attest", "nonce", "token")
        ]
        assert bench.issuer.figures().enrolments == 2

    def test_is_the_end_if_that_does_not_help(self, bench: Bench) -> None:
        bench.namek.fails["token"] = [UNAUTHORIZED] * 9
        for _ in range(3):
            with pytest.raises(AuthorizerError, match="401"):
                bench.token()
        assert bench.namek.count("enroll_start") == 1
        bench.time.clock.advance(REPEAT_S)
        with pytest.raises(AuthorizerError, match="401"):
            bench.token()
        assert bench.namek.count("enroll_start") == 2

    def test_enrolls_once_for_many(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        token = bench.namek.token

        def refuse(*args: Any) -> str:
            known = bench.enroller.count > 1
            sleep(0)
            if not known:
                raise UNAUTHORIZED
            return token(*args)

        monkeypatch.setattr(bench.namek, "token", refuse)
        callers = [Greenlet.spawn(bench.token) for _ in range(5)]
        joinall(callers)
        assert all(isinstance(caller.value, Token) for caller in callers)
        assert bench.namek.count("enroll_start") == 1


class TestRefusal:
    def test_is_told_once_and_holds(self, bench: Bench) -> None:
        bench.namek.fails["token"] = [SUSPENDED] * 2
        for _ in range(3):
            with pytest.raises(AuthorizerError, match="403") as failure:
                bench.token()
            assert failure.value.retry is SUSPENDED.retry
        assert bench.namek.count("token") == 1
        bench.time.clock.advance(REFUSED_QUIET_S)
        with pytest.raises(AuthorizerError, match="403"):
            bench.token()
        assert bench.namek.count("token") == 2
        assert bench.notices == [notices.Refused(403, "HTTP 403", REFUSED_HOLD_S)]

    def test_is_told_again_after_a_token(self, bench: Bench) -> None:
        for _ in range(2):
            bench.namek.fails["token"] = [SUSPENDED]
            with pytest.raises(AuthorizerError):
                bench.token()
            bench.time.clock.advance(REFUSED_QUIET_S)
            bench.token()
        assert [type(one) for one in bench.notices] == [notices.Refused, notices.Issued] * 2


class TestTpm:
    def test_that_was_cleared(self, bench: Bench) -> None:
        bench.tpm.known = {b"??occupied"}
        bench.token()
        assert bench.tpm.calls.count("create_ak") == 2
        assert bench.namek.count("enroll_attest") == 1

    def test_that_is_cleared_all_the_time(self, bench: Bench) -> None:
        bench.tpm.fails["quote"] = [CLEARED] * 9
        with pytest.raises(TpmError, match="cleared"):
            bench.token()
        assert bench.tpm.calls.count("create_ak") == 2

    def test_that_was_restarted(self, bench: Bench) -> None:
        bench.tpm.fails["quote"] = [TpmError("gone", "tpm_io")] * 2
        bench.token()
        assert bench.time.slept == [0.5, 1.0]

    @pytest.mark.parametrize("code", ["tpm", "tpm_missing", "tpm_timeout"])
    def test_that_is_no_use(self, bench: Bench, code: str) -> None:
        bench.tpm.fails["quote"] = [TpmError("broken", code)]
        with pytest.raises(TpmError, match="broken") as failure:
            bench.token()
        assert failure.value.code == code
        assert bench.issuer.figures().last_error == "broken"

    def test_that_hangs(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bench.tpm, "quote", lambda _: Event().wait())
        with pytest.raises(TokenTimeout, match=r"no attest token within 0\.02 s: the TPM is slow"):
            bench.token(limit_s=20 * MS)
        with pytest.raises(TokenTimeout):
            bench.token(limit_s=20 * MS)

    def test_that_hangs_while_it_enrolls(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench = Bench(tmp_path)
        monkeypatch.setattr(bench.tpm, "endorsement", lambda: Event().wait())
        with pytest.raises(TokenTimeout, match=r"the enrolment was not over within 0\.02 s"):
            bench.issuer.enroll(20 * MS)
        assert "not over" in bench.issuer.figures().last_error


class TestAtOnce:
    def test_only_so_many(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        running, most = 0, 0
        quote = bench.tpm.quote

        def slow(nonce: bytes) -> str:
            nonlocal running, most
            running += 1
            most = max(most, running)
            sleep(0)
            running -= 1
            return quote(nonce)

        monkeypatch.setattr(bench.tpm, "quote", slow)
        callers = [Greenlet.spawn(bench.token) for _ in range(200)]
        joinall(callers)
        assert len({caller.value.value for caller in callers}) == 200
        assert most == AT_ONCE

    def test_the_others_wait_for_some_time(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(bench.issuer, "_slots", module.Semaphore(0))
        with pytest.raises(TokenTimeout, match="for others that want a token"):
            bench.token(limit_s=0.06)


class TestMe:
    def test_is_remembered(self, bench: Bench) -> None:
        bench.namek.device = Device(DEVICE_ID, "new.test", "unverified", ())
        assert bench.issuer.me() is bench.namek.device
        assert bench.namek.calls == ["nonce", "me"]
        assert bench.issuer.figures().hostname == "new.test"

    def test_is_tried_again(self, bench: Bench) -> None:
        bench.namek.fails["me"] = [UNREACHABLE]
        bench.issuer.me()
        assert bench.time.slept == [0.5]


def test_enroll(bench: Bench) -> None:
    assert bench.issuer.enroll(5.0) is bench.enroller.current


def test_figures(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert bench.issuer.figures() == notices.Figures()
    bench.namek.claims["exp"] = bench.time.clock.now + 30
    bench.token()
    assert bench.issuer.figures() == notices.Figures(
        device_id=DEVICE_ID,
        hostname="slug.test",
        identity_class="verified",
        enrolments=1,
        tokens=1,
        token_expires_at=bench.time.clock.now + 30,
    )


class TestChecked:
    def test_is_a_token_for_the_session(self) -> None:
        text = jwt(session_nonce="session", exp=5)
        assert checked(f" {text}\n", "session") == Token(text, 5.0)

    @pytest.mark.parametrize("claims", [{}, {"session_nonce": None}, {"session_nonce": ""}])
    def test_needs_no_session_at_the_handshake(self, claims: dict[str, Any]) -> None:
        assert checked(jwt(exp=5, **claims), "").expires_at == 5.0

    @pytest.mark.parametrize("text", ["", "a.b.c", "word", jwt()])
    def test_is_no_token(self, text: str) -> None:
        with pytest.raises(AuthorizerError, match="as a token is none"):
            checked(text, "")

    @pytest.mark.parametrize("nonce", ["", "another", None, 5])
    def test_is_for_another_session(self, nonce: Any) -> None:
        with pytest.raises(AuthorizerError, match="another session") as failure:
            checked(jwt(session_nonce=nonce, exp=5), "session")
        assert "eyJ" not in str(failure.value)
