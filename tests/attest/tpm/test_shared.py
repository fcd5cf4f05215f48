"""One identity for all who are the same device, put together of fakes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from gevent import Greenlet, joinall

from nexusg.attest.base import Stage
from nexusg.attest.tpm import notices, shared
from nexusg.attest.tpm.namek import Device
from nexusg.config.tpm import Tpm
from nexusg.errors import AuthorizerError, ConfigError, TokenTimeout
from tests.attest.doubles import request
from tests.attest.tpm.doubles import DEVICE_ID, FakeNamek, FakeTime, FakeTpm


if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nexusg.attest.tpm.notices import Notice
    from nexusg.attest.tpm.provider import TpmTokenProvider

RELAYS = ("wss://relay.test/connect",)
DOWN = AuthorizerError("refused", "authorizer_unreachable")


class Bench:
    """Makes providers, and closes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tpms: list[FakeTpm] = []
        self.namek = FakeNamek()
        self.told: list[Notice] = []
        self.providers: list[TpmTokenProvider] = []

    def tpm(self, *_: object) -> FakeTpm:
        self.tpms.append(FakeTpm())
        return self.tpms[-1]

    def provider(self, notify: Any = None, **settings: Any) -> TpmTokenProvider:
        usual = {"authorizer_url": "https://namek.test", "state_dir": str(self.folder)}
        made = shared.provider(Tpm(**{**usual, **settings}), notify or self.told.append)
        self.providers.append(made)
        return made

    def identity(self) -> shared.Identity:
        """One on a clock of its own."""
        settings = Tpm(authorizer_url="https://namek.test", state_dir=str(self.folder))
        return shared.Identity(settings, timing=FakeTime().timing)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    monkeypatch.setattr(shared, "PytssDevice", bench.tpm)
    monkeypatch.setattr(shared, "NamekClient", lambda *_: bench.namek)
    yield bench
    for provider in bench.providers:
        provider.close()
    assert shared._identities == {}


class TestSharing:
    def test_the_same_settings_are_the_same_identity(self, bench: Bench) -> None:
        one, two = bench.provider(), bench.provider()
        assert one._identity is two._identity
        assert len(bench.tpms) == 1

    def test_another_folder_is_another(self, bench: Bench, tmp_path: Path) -> None:
        bench.provider()
        bench.provider(state_dir=str(tmp_path / "other"))
        assert len(bench.tpms) == 2

    def test_other_settings_for_a_folder_are_refused(self, bench: Bench) -> None:
        bench.provider()
        with pytest.raises(ConfigError, match="in use with other settings"):
            bench.provider(authorizer_url="https://else.test")

    def test_the_last_one_closes_the_tpm(self, bench: Bench) -> None:
        one, two = bench.provider(), bench.provider()
        one.close()
        assert bench.tpms[0].calls == []
        two.close()
        assert bench.tpms[0].calls == ["close"]
        bench.provider()
        assert len(bench.tpms) == 2

    def test_a_fork_shares_nothing(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        mine = bench.provider()
        monkeypatch.setattr(shared, "_pid", -1)
        theirs = bench.provider()
        assert theirs._identity is not mine._identity
        mine.close()
        assert shared._identities

    def test_handshake_tokens_are_shared(self, bench: Bench) -> None:
        providers = [bench.provider(), bench.provider()]
        callers = [
            Greenlet.spawn(provider.get_token, request(backend=str(number)), 5.0)
            for number in range(100)
            for provider in providers
        ]
        joinall(callers)
        assert len({caller.value.value for caller in callers}) == 1
        providers[0].invalidate()
        assert providers[1].get_token(request(), 5.0) != callers[0].value

    def test_other_tokens_are_not(self, bench: Bench) -> None:
        provider = bench.provider()
        asked = request(Stage.ATTEST, "session")
        assert provider.get_token(asked, 5.0) != provider.get_token(asked, 5.0)

    def test_only_the_first_is_told(self, bench: Bench) -> None:
        others: list[Notice] = []
        first = bench.provider()
        second = bench.provider(others.append)
        second.enroll(5.0)
        assert [type(notice) for notice in bench.told] == [notices.Enrolled]
        first.close()
        second.get_token(request(hostnames=()), 5.0)
        assert [type(notice) for notice in others] == [notices.Issued]

    def test_nobody_is_told_when_nobody_is_there(self, bench: Bench) -> None:
        bench.identity().issuer.enroll(5.0)
        assert bench.told == []


class TestEndpoints:
    def test_are_those_of_the_enrolment(self, bench: Bench) -> None:
        assert bench.provider().endpoints(5.0) == RELAYS
        assert bench.namek.count("me") == 0

    def test_are_asked_for_later(self, bench: Bench) -> None:
        bench.namek.device = Device(DEVICE_ID, "slug.test", "verified", (), retry_after_s=5.0)
        provider = bench.provider()
        assert provider.endpoints(5.0) == ()
        assert provider.retry_after_s == 5.0
        bench.namek.device = Device(DEVICE_ID, "slug.test", "verified", RELAYS)
        assert provider.endpoints(5.0) == RELAYS
        assert bench.namek.count("me") == 1

    @pytest.mark.parametrize("error", [DOWN, TokenTimeout("late")])
    def test_are_those_stored_while_nobody_answers(self, bench: Bench, error: Exception) -> None:
        identity = bench.identity()
        identity.endpoints(5.0)
        bench.namek.fails["nonce"] = [error] * 9
        assert identity.endpoints(5.0) == RELAYS

    def test_are_none_without_an_answer(self, bench: Bench) -> None:
        bench.namek.device = Device(DEVICE_ID, "slug.test", "verified", ())
        identity = bench.identity()
        identity.endpoints(5.0)
        bench.namek.fails["me"] = [DOWN] * 9
        with pytest.raises(AuthorizerError):
            identity.endpoints(5.0)
