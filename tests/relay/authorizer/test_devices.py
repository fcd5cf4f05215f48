from __future__ import annotations

import pytest

from nexusg.attest.tpm.names import device_id, slug
from nexusg.relay.authorizer.devices import Registry
from nexusg.relay.authorizer.keys import EndorsementKey
from nexusg.relay.authorizer.refusal import Refusal
from tests.support.clock import FakeClock
from tests.support.softtpm import ECC, RSA, SoftTpm, tpm2b


NONCE = bytes(range(32))


class Enrolling:
    """A registry and the steps of one TPM."""

    def __init__(self, tpm: SoftTpm, registry: Registry | None = None) -> None:
        self.tpm = tpm
        self.clock = FakeClock()
        self.registry = registry or Registry("example.com", self.clock)

    def begin(self) -> tuple[str, bytes]:
        key = EndorsementKey.from_public(self.tpm.ek_public)
        return self.registry.begin(key, self.tpm.ak_params)

    def complete(self, nonce: str, credential: bytes) -> tuple[object, bool]:
        quote = self.tpm.quote(bytes.fromhex(nonce))
        return self.registry.complete(nonce, self.tpm.activate(credential), quote, {}, "Debian 12")


def refusal(status: int, text: str) -> pytest.RaisesExc[Refusal]:
    return pytest.RaisesExc(
        Refusal, check=lambda error: (error.status, error.text) == (status, text)
    )


@pytest.mark.parametrize("kind", [RSA, ECC])
def test_an_enrollment(kind: str) -> None:
    device = Enrolling(SoftTpm(kind))
    fresh, known = device.complete(*device.begin())
    assert not known
    again, known = device.complete(*device.begin())
    assert known
    assert again is fresh
    [found] = device.registry.devices.values()
    assert found is fresh
    fingerprint = device.tpm.fingerprint
    assert found.device_id == device_id(fingerprint)
    assert found.hostname == f"{slug(fingerprint)}.example.com"
    assert (found.status, found.identity_class) == ("active", "unverified")
    assert found.os_version == "Debian 12"
    assert device.registry.authenticate(found.device_id, NONCE, device.tpm.quote(NONCE)) is found


def test_a_new_attestation_key_locks_the_old_one_out() -> None:
    old = Enrolling(SoftTpm(ECC))
    old.complete(*old.begin())
    new = Enrolling(SoftTpm(ECC), old.registry)
    assert new.complete(*new.begin())[1]
    [identity] = old.registry.devices
    old.registry.authenticate(identity, NONCE, new.tpm.quote(NONCE))
    with refusal(401, "tpm quote verification failed"):
        old.registry.authenticate(identity, NONCE, old.tpm.quote(NONCE))


def test_an_enrollment_can_be_tried_once() -> None:
    device = Enrolling(SoftTpm(ECC))
    nonce, credential = device.begin()
    with refusal(401, "credential verification failed"):
        device.registry.complete(nonce, bytes(32), device.tpm.quote(bytes.fromhex(nonce)), {})
    with refusal(400, "enrollment expired or not found"):
        device.complete(nonce, credential)


def test_the_quote_of_an_enrollment_is_verified() -> None:
    device = Enrolling(SoftTpm(ECC))
    nonce, credential = device.begin()
    secret = device.tpm.activate(credential)
    with refusal(401, "quote verification failed") as caught:
        device.registry.complete(nonce, secret, device.tpm.quote(NONCE), {})
    assert caught.value.reason == "the quote is for another nonce"


def test_pcr_values_may_be_given_at_an_enrollment() -> None:
    device = Enrolling(SoftTpm(ECC))
    nonce, credential = device.begin()
    quote = device.tpm.quote(bytes.fromhex(nonce), [0, 7])
    values = {pcr: device.tpm.pcrs[pcr] for pcr in (0, 7)}
    device.registry.complete(nonce, device.tpm.activate(credential), quote, values)


def test_an_enrollment_expires() -> None:
    device = Enrolling(SoftTpm(ECC))
    begun = device.begin()
    device.clock.advance(300)
    device.complete(*begun)
    begun = device.begin()
    device.clock.advance(300.1)
    with refusal(400, "enrollment expired or not found"):
        device.complete(*begun)


def test_a_new_start_replaces_the_one_before() -> None:
    device = Enrolling(SoftTpm(ECC))
    first, second = device.begin(), device.begin()
    with refusal(400, "enrollment expired or not found"):
        device.complete(*first)
    device.complete(*second)


def test_only_so_many_may_be_pending() -> None:
    clock = FakeClock()
    registry = Registry("example.com", clock, capacity=1)
    one, other = (Enrolling(SoftTpm(ECC, number), registry) for number in (0, 1))
    one.begin()
    one.begin()
    with refusal(503, "enrollment capacity reached"):
        other.begin()
    clock.advance(301)
    other.complete(*other.begin())


@pytest.mark.parametrize("status", ["suspended", "revoked"])
def test_who_may_not(status: str) -> None:
    device = Enrolling(SoftTpm(ECC))
    device.complete(*device.begin())
    begun = device.begin()
    [found] = device.registry.devices.values()
    found.status = status
    with refusal(409, "device already enrolled"):
        device.complete(*begun)
    with refusal(409, "device already enrolled") as caught:
        device.begin()
    assert caught.value.reason == f"device is {status}"
    with refusal(403, f"device is {status}"):
        device.registry.authenticate(found.device_id, NONCE, device.tpm.quote(NONCE))


def test_what_is_no_attestation_key() -> None:
    tpm = SoftTpm(ECC)
    registry = Registry("example.com", FakeClock())
    with refusal(500, "internal server error"):
        registry.begin(EndorsementKey.from_public(tpm.ek_public), tpm2b(tpm.ak_params))


def test_devices_can_be_forgotten() -> None:
    device = Enrolling(SoftTpm(ECC))
    device.complete(*device.begin())
    [identity] = device.registry.devices
    begun = device.begin()
    device.registry.forget()
    with refusal(401, "device not found"):
        device.registry.authenticate(identity, NONCE, device.tpm.quote(NONCE))
    with refusal(400, "enrollment expired or not found"):
        device.complete(*begun)


def test_secrets_are_not_shown() -> None:
    device = Enrolling(SoftTpm(ECC))
    nonce, credential = device.begin()
    shown = repr(device.registry._pending[nonce])
    assert repr(device.tpm.activate(credential)) not in shown
