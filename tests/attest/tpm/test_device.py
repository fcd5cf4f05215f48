"""A real software TPM behind the greenlets' interface: nothing that it does stops the loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gevent
import pytest
from gevent import Greenlet

from nexusg.attest.tpm import device as module
from nexusg.attest.tpm.device import AkBlobs, PytssDevice
from nexusg.attest.tpm.worker import outcome
from nexusg.errors import TpmError
from tests.attest.tpm.authority import NO_PCR, make_credential, verified
from tests.conftest import MS


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.swtpm import Swtpm

    Open = Callable[..., PytssDevice]

NONCE = b"n" * 32
SHORT_S = 0.05


@pytest.fixture
def open_device(swtpm: Swtpm) -> Iterator[Open]:
    """Opens devices on a new software TPM, and closes them."""
    opened: list[PytssDevice] = []

    def start(ak: str = "ecc-p256", call_timeout_s: float = 10.0) -> PytssDevice:
        opened.append(PytssDevice(swtpm.tcti, ak, call_timeout_s=call_timeout_s))
        return opened[-1]

    yield start
    for device in opened:
        device.close()


def turn(count: int) -> None:
    """Let the loop go round, which it cannot while anything stops it."""
    for _ in range(count):
        gevent.sleep(0)


@pytest.mark.parametrize("kind", ["rsa2048", "ecc-p256"])
def test_the_whole_story_of_an_enrollment(open_device: Open, kind: str) -> None:
    device = open_device(kind)
    blobs = device.create_ak()
    params = device.ak_params()
    wire = make_credential(device.endorsement().public_der, params, b"secret")
    assert device.activate(wire) == b"secret"
    quoted = verified(device.quote(NONCE), params)
    assert (quoted.nonce, quoted.pcrs, quoted.pcr_digest) == (NONCE, (), NO_PCR)
    assert verified(device.quote(NONCE, [7]), params).pcrs == (7,)
    assert list(device.pcr_values([7])) == [7]
    device.close()
    assert verified(device.quote(NONCE), params).nonce == NONCE, "it opens again"

    later = open_device("rsa2048")  # the kind is that of keys to be made
    later.load_ak(AkBlobs(blobs.public, blobs.private))
    assert later.ak_params() == params
    verified(later.quote(NONCE), params)


def test_without_a_key_there_is_nothing_to_do(open_device: Open) -> None:
    device = open_device()
    for method in (device.ak_params, lambda: device.quote(NONCE), lambda: device.activate(b"")):
        with pytest.raises(TpmError, match="no attestation key has been made or loaded"):
            method()


def test_a_key_that_cannot_be_loaded_is_not_used(open_device: Open) -> None:
    device = open_device()
    device.create_ak()
    params = device.ak_params()
    with pytest.raises(TpmError) as caught:
        device.load_ak(AkBlobs(b"", b""))
    assert caught.value.code == "tpm_cleared"
    verified(device.quote(NONCE), params)


def test_two_hundred_at_once_are_all_served_and_never_stop_the_loop(
    open_device: Open, swtpm: Swtpm
) -> None:
    device = open_device("rsa2048")
    swtpm.pause()  # a stop on the loop would be for good
    making = Greenlet.spawn(device.create_ak)
    turn(1000)
    swtpm.resume()
    making.get()
    nonces = [bytes([number]) * 32 for number in range(200)]
    quotes = [Greenlet.spawn(device.quote, nonce) for nonce in nonces]
    for done in (1, 50, 100, 150):
        gevent.wait(quotes, count=done)
        swtpm.pause()
        turn(1000)
        assert not all(quote.ready() for quote in quotes)
        swtpm.resume()
    gevent.joinall(quotes)
    params = device.ak_params()
    assert [verified(quote.get(), params).nonce for quote in quotes] == nonces


def test_a_reset_is_survived(open_device: Open, swtpm: Swtpm) -> None:
    device = open_device()
    device.create_ak()
    params = device.ak_params()
    failed: list[TpmError] = []

    def quote() -> None:
        try:
            verified(device.quote(NONCE), params)
        except TpmError as error:  # while it was down
            failed.append(error)

    quotes = [Greenlet.spawn(quote) for _ in range(40)]
    gevent.wait(quotes, count=5)
    swtpm.restart()
    gevent.joinall(quotes)
    assert {error.code for error in failed} <= {"tpm_io"}
    verified(device.quote(NONCE), params)


def test_a_tpm_that_is_down_is_an_error_until_it_is_up(open_device: Open, swtpm: Swtpm) -> None:
    device = open_device()
    device.create_ak()
    swtpm.kill()
    for _ in range(2):
        with pytest.raises(TpmError) as caught:
            device.quote(NONCE)
        assert caught.value.code == "tpm_io"
    swtpm.start()
    verified(device.quote(NONCE), device.ak_params())


def test_another_tpm_does_not_know_the_key(open_device: Open, swtpm: Swtpm) -> None:
    device = open_device()
    device.create_ak()
    swtpm.clear()
    with pytest.raises(TpmError) as caught:
        device.quote(NONCE)
    assert caught.value.code == "tpm_cleared"
    device.create_ak()
    verified(device.quote(NONCE), device.ak_params())


def test_a_tpm_that_hangs_is_a_timeout_and_the_loop_goes_on(
    open_device: Open, swtpm: Swtpm
) -> None:
    device = open_device(call_timeout_s=SHORT_S)
    device.create_ak()
    swtpm.pause()
    for _ in range(4):
        asked = Greenlet.spawn(outcome, device.quote, NONCE)
        turn(100)
        done, error = asked.get()
        assert not done
        assert error.code == "tpm_timeout"
    swtpm.resume()
    with gevent.Timeout(20):
        while not (answer := outcome(device.quote, NONCE))[0]:
            gevent.sleep(MS)
    verified(answer[1], device.ak_params())


def test_making_a_key_may_take_longer(
    open_device: Open, swtpm: Swtpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEY_MAKING_FACTOR", 2.0)
    device = open_device(call_timeout_s=SHORT_S)
    device.load_ak(open_device().create_ak())
    swtpm.pause()
    for method in (device.create_ak, device.endorsement, lambda: device.activate(b"")):
        with pytest.raises(TpmError, match=r"within 0\.1 s"):
            method()
    swtpm.resume()


def test_a_caller_that_leaves_does_not_change_the_key(open_device: Open, swtpm: Swtpm) -> None:
    device = open_device()
    device.create_ak()
    params = device.ak_params()
    for method in (device.create_ak, lambda: device.quote(NONCE)):
        swtpm.pause()
        caller = Greenlet.spawn(method)
        gevent.sleep(0)
        caller.kill()
        swtpm.resume()
        assert device.ak_params() == params
        verified(device.quote(NONCE), params)
