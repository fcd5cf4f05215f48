"""A device with a real software TPM against the development authorizer, and what goes wrong.

Waits are those of a clock that only they move; each fault ends in a token or in one clear error.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from gevent import Greenlet, joinall

from nexusg.attest.base import Stage, Token, unverified_claims
from nexusg.attest.tpm import notices, shared
from nexusg.attest.tpm.state import TpmState
from nexusg.config.tpm import Tpm
from nexusg.errors import AuthorizerError, TokenError, TokenTimeout, TpmError
from nexusg.relay.authorizer import faults
from nexusg.relay.authorizer.server import Authorizer
from tests.attest.doubles import outcome, request
from tests.attest.tpm.doubles import FakeTime
from tests.conftest import MS
from tests.support.certs import Authority


if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nexusg.attest.tpm.notices import Notice
    from nexusg.attest.tpm.provider import TpmTokenProvider
    from tests.support.swtpm import Swtpm

SECRET = "a secret of the authorizer and the relay"
ENROLL, ATTEST = "/api/v1/devices/enroll", "/api/v1/devices/enroll/attest"
NONCE, TOKEN, ME = "/api/v1/nonce", "/api/v1/tokens/nexus", "/api/v1/devices/me"


class World:
    """One authorizer, one software TPM, and devices that use both."""

    def __init__(self, folder: Path, swtpm: Swtpm) -> None:
        self.folder = folder
        self.swtpm = swtpm
        self.time = FakeTime()
        self.told: list[Notice] = []
        self.authorizer = self.start()
        self.url = self.authorizer.url
        self._devices: list[TpmTokenProvider] = []

    def start(self, port: int = 0, **options: Any) -> Authorizer:
        authorizer = Authorizer(
            SECRET,
            "devices.test",
            listen=("127.0.0.1", port),
            clock=time.time,
            limits=None,
            on_log=lambda *_: None,
            **options,
        )
        authorizer.start()
        return authorizer

    def device(self, **settings: Any) -> TpmTokenProvider:
        """A device, as a process of its own would have it."""
        usual = {"authorizer_url": self.url, "tcti": self.swtpm.tcti, "ak": "ecc-p256"}
        made = Tpm(**{**usual, "state_dir": str(self.folder / "state"), **settings})
        identity = shared.Identity(made, timing=self.time.timing)
        device = shared.TpmTokenProvider(identity, self.told.append)
        self._devices.append(device)
        return device

    def enrolled(self, **settings: Any) -> TpmTokenProvider:
        """One that is enrolled, which is over."""
        device = self.device(**settings)
        device.enroll(10.0)
        self.told.clear()
        return device

    def named(self, kind: type) -> list[Any]:
        return [notice for notice in self.told if isinstance(notice, kind)]

    def asked(self, path: str) -> int:
        """How many requests for ``path`` there were."""
        return sum(one == path for _, one in self.authorizer.requests)

    def stop(self) -> None:
        for device in self._devices:
            device.close()
        self.authorizer.stop()


@pytest.fixture
def world(tmp_path: Path, swtpm: Swtpm, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr("nexusg.attest.tpm.namek.CALL_TIMEOUT_S", 100 * MS)
    world = World(tmp_path, swtpm)
    yield world
    world.stop()


def attest(device: TpmTokenProvider, nonce: str = "session", limit_s: float = 9.0) -> Token:
    return device.get_token(request(Stage.ATTEST, nonce, hostnames=()), limit_s)


def reauth(device: TpmTokenProvider) -> Token:
    return device.get_token(request(Stage.REAUTH, "session", hostnames=()), 29.0)


# The whole story -------------------------------------------------------------------------------


@pytest.mark.parametrize("ak", ["rsa2048", "ecc-p256"])
@pytest.mark.parametrize("pcrs", [(), (0, 7)])
def test_tokens_of_every_stage(world: World, ak: str, pcrs: tuple[int, ...]) -> None:
    device = world.device(ak=ak, enroll_pcrs=pcrs)
    tokens = [
        device.get_token(request(hostnames=()), 15.0),
        attest(device),
        reauth(device),
    ]
    nonces = [unverified_claims(token.value).get("session_nonce") for token in tokens]
    assert nonces == ["", "session", "session"]
    assert [type(one) for one in world.told] == [notices.Enrolled, *[notices.Issued] * 3]
    (device_id,) = world.authorizer.device_ids
    assert device.figures().device_id == device_id


def test_a_restart_of_the_agent_needs_no_enrolment(world: World) -> None:
    first = world.enrolled()
    first.close()
    assert attest(world.device())
    assert world.asked(ENROLL) == 1


def test_with_a_certificate(tmp_path: Path, swtpm_with_certificate: Swtpm) -> None:
    world = World(tmp_path, swtpm_with_certificate)
    try:
        attest(world.device())
        attest(world.device(ek_cert="never", state_dir=str(tmp_path / "other")))
        assert len(world.authorizer.device_ids) == 1, "the same key, and so the same device"
    finally:
        world.stop()


def test_over_tls(tmp_path: Path, swtpm: Swtpm) -> None:
    authority = Authority(tmp_path)
    world = World(tmp_path, swtpm)
    secure = world.start(tls=authority.server_context())
    try:
        settings = {"authorizer_url": secure.url, "ca_file": str(authority.ca_file)}
        attest(world.device(**settings))
        assert len(secure.device_ids) == 1
    finally:
        world.stop()
        secure.stop()


# The authorizer --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [NONCE, TOKEN])
@pytest.mark.parametrize(
    "fault",
    [
        faults.reply(500),
        faults.reply(503),
        faults.reply(502, body=b"<html>bad gateway</html>"),
        faults.reply(429, {"Retry-After": "3"}),
        faults.hang_up,
        faults.garbage,
        faults.silent,
        faults.drip(MS),
    ],
)
def test_what_passes(world: World, path: str, fault: Any) -> None:
    device = world.enrolled()
    world.authorizer.behave_next(path, fault, times=2)
    assert attest(device)
    assert world.asked(TOKEN) == (1 if path == NONCE else 3)
    assert [type(one) for one in world.told] == [notices.Issued]
    assert len(world.time.slept) == 2


@pytest.mark.parametrize(
    ("fault", "words", "code"),
    [
        (faults.silent, r"did not answer within 0\.1 s", "authorizer_unreachable"),
        (faults.drip(MS), r"did not answer within 0\.1 s", "authorizer_unreachable"),
        (faults.hang_up, "closed the connection without an answer", "authorizer_unreachable"),
        (faults.garbage, "which is not HTTP", "authorizer_unreachable"),
        (faults.reply(503), "status 503: service unavailable", "authorizer"),
        (faults.reply(429, {"Retry-After": "60"}), "status 429: too many requests", "authorizer"),
        (faults.flood, "sent more than 65536 bytes", "authorizer"),
        (faults.reply(400), "status 400: bad request", "authorizer"),
        (faults.reply(200, body=b"[]"), "without JSON", "authorizer"),
        (faults.reply(302, {"Location": "/elsewhere"}), "which is not followed", "authorizer"),
        (faults.reply(403), "status 403", "authorizer_refused"),
    ],
)
def test_what_lasts(world: World, fault: Any, words: str, code: str) -> None:
    """One error that says what it was, in time; and the device goes on once it is over."""
    device = world.enrolled()
    world.authorizer.behave_next(TOKEN, fault, times=100)
    before = world.time.clock.now
    with pytest.raises(AuthorizerError, match=words) as failure:
        attest(device)
    assert failure.value.code == code
    assert world.time.clock.now - before <= 8.0
    assert device.figures().last_error == str(failure.value)
    world.authorizer.work_again()
    world.time.clock.advance(900.0)
    assert attest(device)


def test_that_is_down(world: World) -> None:
    device = world.enrolled()
    port = int(world.url.rpartition(":")[2])
    world.authorizer.stop()
    with pytest.raises(AuthorizerError, match="refused") as failure:
        attest(device)
    assert failure.value.code == "authorizer_unreachable"
    world.authorizer = world.start(port)
    assert attest(device), "it has lost its database, so that the device enrols again"
    assert [type(one) for one in world.told] == [notices.Enrolled, notices.Issued]


def test_a_nonce_that_expires(world: World) -> None:
    device = world.enrolled()
    answer = b'{"error":"invalid or expired nonce"}'
    world.authorizer.behave_next(TOKEN, faults.reply(401, body=answer), times=2)
    assert attest(device)
    assert (world.asked(TOKEN), world.time.slept) == (3, [])


def test_a_device_that_is_forgotten(world: World) -> None:
    device = world.enrolled()
    world.authorizer.forget_devices()
    assert attest(device)
    assert [type(one) for one in world.told] == [notices.Enrolled, notices.Issued]
    world.authorizer.forget_devices()
    with pytest.raises(AuthorizerError, match="401"):
        attest(device)


def test_a_device_that_is_suspended(world: World) -> None:
    device = world.enrolled()
    (device_id,) = world.authorizer.device_ids
    world.authorizer.suspend(device_id)
    for _ in range(2):
        with pytest.raises(AuthorizerError, match="403: device is suspended") as failure:
            attest(device)
        assert failure.value.code == "authorizer_refused"
    assert [type(one) for one in world.told] == [notices.Refused]
    again = world.device(state_dir=str(world.folder / "empty"))
    with pytest.raises(AuthorizerError, match="409"):
        attest(again)
    assert world.named(notices.EnrolmentFailed)[0].retry_in_s == 900.0


@pytest.mark.parametrize("path", [ENROLL, ATTEST])
@pytest.mark.parametrize("fault", [faults.reply(503), faults.hang_up, faults.silent])
def test_an_enrolment_that_fails_at_first(world: World, path: str, fault: Any) -> None:
    world.authorizer.behave_next(path, fault)
    assert attest(world.device())
    assert [type(one) for one in world.told] == [
        *(notices.EnrolmentFailed, notices.Enrolled, notices.Issued)
    ]
    assert world.asked(ENROLL) == 2


# The TPM ---------------------------------------------------------------------------------------


def test_a_tpm_that_is_restarted(world: World) -> None:
    device = world.enrolled()
    attest(device)
    world.swtpm.restart()
    attest(device)
    assert world.asked(ENROLL) == 1


def test_a_tpm_that_is_away_for_a_moment(world: World) -> None:
    device = world.enrolled()
    world.swtpm.kill()
    world.time.meanwhile = world.swtpm.start
    attest(device)
    assert world.asked(ENROLL) == 1
    assert len(world.time.slept) == 1


def test_a_tpm_that_is_gone(world: World) -> None:
    device = world.enrolled()
    world.swtpm.kill()
    with pytest.raises(TpmError) as failure:
        attest(device)
    assert failure.value.code == "tpm_io"
    world.swtpm.start()
    attest(device)


def test_a_tpm_that_was_cleared(world: World) -> None:
    """It is another device then, with the same state directory."""
    device = world.enrolled()
    world.swtpm.clear()
    attest(device)
    assert len(world.authorizer.device_ids) == 2
    device.close()
    world.told.clear()
    attest(world.device())
    assert not world.named(notices.Enrolled)


def test_a_tpm_that_was_cleared_while_nobody_looked(world: World) -> None:
    world.enrolled().close()
    world.swtpm.clear()
    attest(world.device())
    assert len(world.authorizer.device_ids) == 2


def test_a_tpm_that_hangs(world: World) -> None:
    device = world.enrolled()
    world.swtpm.pause()
    with pytest.raises(TokenTimeout, match="no attest token within"):
        attest(device, limit_s=100 * MS)
    world.swtpm.resume()
    attest(device)


# The state -------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff"])
def test_a_state_that_is_lost(world: World, content: bytes | None) -> None:
    """The same device enrols again."""
    world.enrolled().close()
    file = world.folder / "state" / "state.json"
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    attest(world.device())
    (enrolled,) = world.named(notices.Enrolled)
    assert enrolled.re_enrolled
    assert len(world.named(notices.Remark)) == (content is not None)
    assert len(world.authorizer.device_ids) == 1


def test_two_processes_that_enrol_at_once(world: World) -> None:
    devices = [world.device(), world.device()]
    callers = [Greenlet.spawn(attest, device) for device in devices]
    joinall(callers, raise_error=True)
    assert world.asked(ENROLL) == 1


def test_a_process_that_has_enrolled_anew_takes_the_other_along(world: World) -> None:
    """It has made another key, and only that counts now."""
    mine = world.enrolled()
    (world.folder / "state" / "state.json").unlink()
    theirs = world.device()
    attest(theirs)
    attest(mine)
    assert world.asked(ENROLL) == 2


def test_a_process_that_keeps_the_lock(world: World) -> None:
    device = world.device()
    state = TpmState(world.folder / "state")
    with state.lock(), pytest.raises(TpmError, match="lock"):
        attest(device, limit_s=200 * MS)
    assert [type(one) for one in world.told] == [notices.EnrolmentFailed]
    world.time.clock.advance(1.0)
    assert attest(device)


# Many ------------------------------------------------------------------------------------------


def test_two_hundred_at_once(world: World) -> None:
    """Handshakes share one token; the others get one each."""
    device = world.device()
    shake = request(hostnames=())
    handshakes = [Greenlet.spawn(device.get_token, shake, 15.0) for _ in range(200)]
    attests = [Greenlet.spawn(attest, device, f"session-{number}") for number in range(200)]
    joinall([*handshakes, *attests], raise_error=True)
    assert len({one.value.value for one in handshakes}) == 1
    nonces = [unverified_claims(one.value.value)["session_nonce"] for one in attests]
    assert nonces == [f"session-{number}" for number in range(200)]
    assert world.asked(ENROLL) == 1


def test_no_secret_in_anything_told(world: World) -> None:
    device = world.device()
    tokens = [attest(device).value, device.get_token(request(hostnames=()), 9.0).value]
    world.authorizer.behave_next(TOKEN, faults.reply(400))
    error = outcome(attest, device)
    assert isinstance(error, TokenError)
    text = f"{world.told} {error} {error!r} {device.figures()}"
    assert not [token for token in tokens if token in text]
    assert "session" not in text.replace("another session", "")
