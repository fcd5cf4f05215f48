"""Enrolling, with an authorizer and a TPM that do what a test says, and a real state directory."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from gevent import Greenlet, joinall
from gevent.event import Event

from nexusg.attest.tpm import notices
from nexusg.attest.tpm.enrolment import REPEAT_S, Enroller, passing
from nexusg.attest.tpm.namek import Device
from nexusg.attest.tpm.pace import Pace
from nexusg.attest.tpm.state import Enrolment, TpmState
from nexusg.config.tpm import Tpm
from nexusg.errors import AuthorizerError, TokenError, TokenTimeout, TpmError
from tests.attest.tpm.doubles import DEVICE_ID, FakeNamek, FakeTime, FakeTpm


if TYPE_CHECKING:
    from pathlib import Path

    from nexusg.attest.tpm.notices import Notice

URL = "https://namek.test"
UNREACHABLE = AuthorizerError("refused", "authorizer_unreachable")
BUSY = AuthorizerError("HTTP 503", status=503)
UNAUTHORIZED = AuthorizerError("HTTP 401", status=401)


class Bench:
    """An enroller and everything around it. A second one on the same folder is a process more."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.tpm, self.namek, self.time = FakeTpm(), FakeNamek(), FakeTime()
        self.notices: list[Notice] = []
        self.state = TpmState(folder)
        self.enroller = self.make(**settings)

    def make(self, **settings: Any) -> Enroller:
        made = Tpm(**{"authorizer_url": URL, "state_dir": str(self.folder), **settings})
        tpm: Any = self.tpm
        namek: Any = self.namek
        return Enroller(tpm, namek, self.state, made, self.notices.append, self.time.timing)

    def pace(self, limit_s: float = 10.0) -> Pace:
        return Pace(self.time.timing, limit_s)

    def ensure(self, limit_s: float = 10.0) -> Enrolment:
        return self.enroller.ensure(self.pace(limit_s))

    def renew(self, old: Enrolment, cause: Any = UNAUTHORIZED) -> Enrolment:
        return self.enroller.renew(old, cause, self.pace())

    def named(self, kind: type) -> list[Any]:
        return [notice for notice in self.notices if isinstance(notice, kind)]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


class TestEnsure:
    def test_enrolls_once(self, bench: Bench) -> None:
        found = bench.ensure()
        assert found is bench.ensure()
        assert bench.namek.calls == ["enroll_start", "enroll_attest"]
        assert bench.namek.seen["ak_params"] == b"public-0"
        assert bench.namek.seen["ek_certificate"] == b"certificate"
        assert bench.namek.seen["secret"] == b"secret of credential"
        assert bench.namek.seen["quote"] == "quote over [] of b'\\xab'"
        assert bench.namek.seen["pcr_values"] is None
        assert found == TpmState(bench.folder).load()
        assert (found.device_id, found.authorizer_url, found.ak_kind) == (DEVICE_ID, URL, "rsa2048")
        assert bench.notices == [
            notices.Enrolled(DEVICE_ID, "slug.test", "verified", False, took_s=0.0)
        ]
        assert bench.enroller.count == 1

    def test_takes_what_is_stored(self, bench: Bench) -> None:
        stored = bench.ensure()
        bench.enroller = bench.make()
        assert bench.ensure() == stored
        assert bench.namek.count("enroll_start") == 1
        assert bench.tpm.calls[-1] == "load_ak"
        assert bench.tpm.calls.count("endorsement") == 1  # which takes long
        assert bench.enroller.count == 0

    def test_tells_more_if_asked_to(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, ek_cert="never", enroll_pcrs=(0, 7), os_version="debian")
        bench.ensure()
        assert bench.namek.seen["ek_certificate"] is None
        assert bench.namek.seen["os_version"] == "debian"
        assert bench.namek.seen["quote"].startswith("quote over [0, 7]")
        assert bench.namek.seen["pcr_values"] == {0: bytes(32), 7: bytes(32)}

    def test_keeps_when_to_come_back(self, bench: Bench) -> None:
        bench.namek.device = Device(DEVICE_ID, "slug.test", "verified", (), retry_after_s=5.0)
        bench.ensure()
        assert bench.enroller.retry_after_s == 5.0

    @pytest.mark.parametrize("changed", [{"authorizer_url": "https://b.test"}, {"ak": "ecc-p256"}])
    def test_enrolls_anew_for_other_settings(self, bench: Bench, changed: dict[str, str]) -> None:
        first = bench.ensure()
        bench.enroller = bench.make(**changed)
        second = bench.ensure()
        assert second.ak_public != first.ak_public
        assert TpmState(bench.folder).load() == second

    def test_enrolls_anew_with_another_tpm(self, bench: Bench) -> None:
        """Or with the same, cleared: it does not know the key any more."""
        first = bench.ensure()
        bench.enroller = bench.make()
        bench.tpm.known.clear()
        bench.tpm.known.add(b"??occupied")
        second = bench.ensure()
        assert second.ak_public != first.ak_public
        assert bench.namek.count("enroll_attest") == 2

    def test_does_not_take_the_failure_of_a_tpm_for_that(self, bench: Bench) -> None:
        bench.ensure()
        bench.enroller = bench.make()
        bench.tpm.fails["load_ak"] = [TpmError("broken", "tpm")]
        with pytest.raises(TpmError, match="broken"):
            bench.ensure()
        assert bench.namek.count("enroll_start") == 1

    @pytest.mark.parametrize("content", ["", "{", '{"version": 99}', "\0" * 100])
    def test_outlives_a_damaged_file(self, bench: Bench, content: str) -> None:
        bench.ensure()
        bench.enroller = bench.make()
        (bench.folder / "state.json").write_text(content)
        bench.ensure()
        (remark,) = bench.named(notices.Remark)
        assert "state.json" in remark.text
        assert len(bench.named(notices.Enrolled)) == 2
        assert TpmState(bench.folder).load() == bench.enroller.current

    def test_goes_on_when_nothing_can_be_kept(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def save(_: object) -> None:
            raise TpmError("disk full")

        monkeypatch.setattr(bench.state, "save", save)
        assert bench.ensure() is bench.enroller.current
        assert bench.named(notices.Remark) == [
            notices.Remark("the enrolment is not kept: disk full")
        ]


class TestNever:
    def test_does_not_enroll(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, enroll="never")
        with pytest.raises(TokenError, match=r"not enrolled with https://namek\.test"):
            bench.ensure()
        assert not bench.namek.calls
        assert not bench.notices

    def test_takes_what_is_stored(self, bench: Bench) -> None:
        stored = bench.ensure()
        bench.enroller = bench.make(enroll="never")
        assert bench.ensure() == stored
        bench.time.clock.advance(2 * REPEAT_S)
        with pytest.raises(AuthorizerError, match="401"):
            bench.renew(bench.ensure())


class TestFailure:
    @pytest.mark.parametrize(
        ("where", "error"),
        [
            ("enroll_start", UNREACHABLE),
            ("enroll_attest", BUSY),
            ("enroll_attest", UNREACHABLE),
        ],
    )
    def test_that_passes(self, bench: Bench, where: str, error: AuthorizerError) -> None:
        """Every attempt begins with phase 1, and none makes a new key."""
        bench.namek.fails[where] = [error] * 3
        bench.ensure()
        assert bench.time.slept == [1.0, 2.0, 4.0]
        assert bench.namek.count("enroll_start") == 4
        assert bench.tpm.calls.count("create_ak") == 1
        assert [one.retry_in_s for one in bench.named(notices.EnrolmentFailed)] == [1.0, 2.0, 4.0]
        assert bench.notices[0] == notices.EnrolmentFailed(error.code, str(error), 1.0)

    def test_of_the_tpm_that_passes(self, bench: Bench) -> None:
        bench.tpm.fails["activate"] = [TpmError("no answer", "tpm_io")]
        bench.ensure()
        assert bench.time.slept == [1.0]

    def test_waits_as_long_as_it_is_told(self, bench: Bench) -> None:
        slow_down = AuthorizerError("HTTP 429", status=429, retry_after_s=6.0)
        bench.namek.fails["enroll_start"] = [slow_down]
        bench.ensure()
        assert bench.time.slept == [6.0]

    def test_ends_when_the_time_is_up(self, bench: Bench) -> None:
        """And whoever comes before the hold is over is told the same, without an attempt."""
        bench.namek.fails["enroll_start"] = [BUSY] * 9
        with pytest.raises(AuthorizerError, match="503"):
            bench.ensure(10.0)
        attempts = bench.namek.count("enroll_start")
        assert attempts == 4
        with pytest.raises(AuthorizerError, match="503"):
            bench.ensure(0.5)
        assert bench.namek.count("enroll_start") == attempts

    def test_holds_for_a_minute_at_most(self, bench: Bench) -> None:
        bench.namek.fails["enroll_start"] = [BUSY] * 9
        bench.ensure(600.0)
        assert bench.time.slept == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]

    @pytest.mark.parametrize(
        ("error", "hold_s"),
        [
            (AuthorizerError("HTTP 400", status=400), 1.0),
            (UNAUTHORIZED, 1.0),
            (AuthorizerError("HTTP 409", "authorizer_refused", 409), 900.0),
            (TpmError("no such library", "tpm_missing"), 1.0),
            (TpmError("it hangs", "tpm_timeout"), 1.0),
        ],
    )
    def test_that_does_not_pass(self, bench: Bench, error: Any, hold_s: float) -> None:
        bench.tpm.fails["endorsement"] = [error]
        with pytest.raises(type(error)) as failure:
            bench.ensure()
        assert failure.value is error
        assert bench.notices == [notices.EnrolmentFailed(error.code, str(error), hold_s)]
        assert bench.time.slept == []
        bench.time.clock.advance(hold_s)
        bench.ensure()

    def test_of_a_lock_that_another_process_has(self, bench: Bench) -> None:
        with TpmState(bench.folder).lock(), pytest.raises(TpmError, match="lock"):
            bench.ensure(0.1)
        assert len(bench.named(notices.EnrolmentFailed)) == 1


class TestRenew:
    def test_enrolls_again_with_the_same_key(self, bench: Bench) -> None:
        old = bench.ensure()
        new = bench.renew(old)
        assert new is bench.enroller.current
        assert new.ak_public == old.ak_public
        assert bench.namek.count("enroll_attest") == 2
        assert bench.enroller.count == 2

    def test_is_no_cure_so_soon(self, bench: Bench) -> None:
        new = bench.renew(bench.ensure())
        bench.time.clock.advance(REPEAT_S - 1)
        with pytest.raises(AuthorizerError) as failure:
            bench.renew(new)
        assert failure.value is UNAUTHORIZED
        assert bench.ensure() is new
        bench.time.clock.advance(1)
        assert bench.renew(new) is not new

    def test_is_done_for_all_at_once(self, bench: Bench) -> None:
        old = bench.ensure()
        new = bench.renew(old)
        assert bench.renew(old) is new
        assert bench.namek.count("enroll_attest") == 2

    def test_makes_a_new_key_if_the_old_one_is_gone(self, bench: Bench) -> None:
        old = bench.ensure()
        bench.tpm.known.remove(old.ak_public)
        bench.tpm.known.add(b"??occupied")
        new = bench.renew(old, TpmError("cleared", "tpm_cleared"))
        assert new.ak_public != old.ak_public

    def test_makes_a_new_key_if_the_tpm_is_another(self, bench: Bench) -> None:
        old = bench.ensure()
        bench.tpm.fingerprint = "fingerprint-2"
        assert bench.renew(old).ak_public != old.ak_public

    def test_makes_a_new_key_if_the_old_one_cannot_be_loaded(self, bench: Bench) -> None:
        old = bench.ensure()
        bench.tpm.fails["load_ak"] = [TpmError("cleared", "tpm_cleared")]
        assert bench.renew(old).ak_public != old.ak_public

    def test_does_not_make_one_for_less(self, bench: Bench) -> None:
        old = bench.ensure()
        bench.tpm.fails["load_ak"] = [TpmError("busy", "tpm")]
        with pytest.raises(TpmError, match="busy"):
            bench.renew(old)

    def test_after_a_failure_begins_again(self, bench: Bench) -> None:
        old = bench.ensure()
        bench.namek.fails["enroll_start"] = [AuthorizerError("HTTP 400", status=400)]
        with pytest.raises(AuthorizerError, match="400"):
            bench.renew(old)
        assert bench.enroller.current is None
        assert bench.renew(old) is bench.enroller.current

    def test_takes_what_another_process_has_done(self, bench: Bench) -> None:
        """Even soon after an enrolment of its own: that is what the 401 was about."""
        old = bench.renew(bench.ensure())
        theirs = dataclasses.replace(old, ak_public=b"??theirs")
        bench.tpm.known.add(theirs.ak_public)
        bench.state.save(theirs)
        assert bench.renew(old) == theirs
        assert bench.namek.count("enroll_attest") == 2


class TestUpdate:
    FOUND = Device(DEVICE_ID, "new.test", "unverified", ("wss://b.test/connect",))

    def test_is_kept(self, bench: Bench) -> None:
        bench.ensure()
        bench.enroller.update(self.FOUND, bench.pace())
        stored = TpmState(bench.folder).load()
        assert stored == bench.enroller.current
        assert stored is not None
        assert stored.hostname == "new.test"
        assert stored.nexus_endpoints == ("wss://b.test/connect",)

    def test_of_nothing_new_writes_nothing(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench.ensure()
        monkeypatch.setattr(bench.state, "save", None)
        bench.enroller.update(bench.namek.device, bench.pace())

    def test_leaves_the_file_of_another_process_alone(self, bench: Bench) -> None:
        theirs = dataclasses.replace(bench.ensure(), ak_public=b"theirs")
        bench.state.save(theirs)
        bench.enroller.update(self.FOUND, bench.pace())
        assert TpmState(bench.folder).load() == theirs

    def test_does_without_the_file(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        bench.ensure()
        with TpmState(bench.folder).lock():
            bench.enroller.update(self.FOUND, bench.pace(0.1))
        assert bench.ensure().hostname == "new.test"
        assert len(bench.named(notices.Remark)) == 1

    def test_without_an_enrolment_is_nothing(self, bench: Bench) -> None:
        bench.enroller.update(self.FOUND, bench.pace())
        assert not (bench.folder / "state.json").exists()


class TestTurns:
    def test_many_callers_are_one_enrolment(self, bench: Bench) -> None:
        callers = [Greenlet.spawn(bench.ensure) for _ in range(50)]
        joinall(callers)
        assert {id(caller.value) for caller in callers} == {id(bench.enroller.current)}
        assert bench.namek.count("enroll_start") == 1

    def test_who_waits_too_long_is_told(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        go, endorsement = Event(), bench.tpm.endorsement

        def slow() -> Any:
            go.wait()
            return endorsement()

        monkeypatch.setattr(bench.tpm, "endorsement", slow)
        first = Greenlet.spawn(bench.ensure)
        first.join(0)
        with pytest.raises(TokenTimeout, match=r"waited 0\.06 s for the enrolment"):
            bench.ensure(0.06)
        bench.enroller._last = BUSY
        with pytest.raises(AuthorizerError, match="503"):
            bench.ensure(0.06)
        go.set()
        first.join()

    def test_who_comes_late_to_a_renewal_that_failed_begins_it_again(self, bench: Bench) -> None:
        old = bench.ensure()
        bench.enroller.current = None
        assert bench.renew(old) is bench.enroller.current


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UNREACHABLE, True),
        (BUSY, True),
        (AuthorizerError("", status=429), True),
        (AuthorizerError("", status=500), True),
        (UNAUTHORIZED, False),
        (AuthorizerError(""), False),
        (TpmError("", "tpm_io"), True),
        (TpmError("", "tpm_timeout"), False),
    ],
)
def test_passing(error: TokenError, expected: bool) -> None:
    assert passing(error) is expected
