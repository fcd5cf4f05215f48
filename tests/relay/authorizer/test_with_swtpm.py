"""The authorizer with a real software TPM, through the agent's own device."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest

from nexusg.attest.tpm.device import PytssDevice
from tests.relay.authorizer.conftest import ATTEST, ENROLL, NONCE, TOKEN, Site, b64, b64url
from tests.support.softtpm import ECC, RSA, composite
from tests.support.swtpm import swtpm, swtpm_with_certificate  # noqa: F401


if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.relay.authorizer.conftest import Reply
    from tests.support.swtpm import Swtpm


class Client:
    """A device of ``site`` with a TPM, behind the same endpoints as `conftest.Client`."""

    def __init__(self, site: Site, device: PytssDevice) -> None:
        self.site = site
        self.device = device
        self.device_id = ""

    def enroll(self, pcrs: Sequence[int] = (), *, certificate: bool = False) -> Reply:
        self.device.create_ak()
        known = self.device.endorsement()
        source = ("ek_cert", known.certificate) if certificate else ("ek_pub", known.public_der)
        assert source[1] is not None
        ak = b64(self.device.ak_params())
        begun = self.site.post(ENROLL, {source[0]: b64(source[1]), "ak_params": ak}).body
        answer = {
            "nonce": begun["nonce"],
            "secret": b64(self.device.activate(base64.b64decode(begun["enc_credential"]))),
            "quote": self.device.quote(bytes.fromhex(begun["nonce"]), pcrs),
            "pcr_values": composite(self.device.pcr_values(pcrs)) if pcrs else None,
        }
        reply = self.site.post(ATTEST, answer)
        self.device_id = reply.body.get("device_id", "")
        return reply

    def token(self, stage: int, session_nonce: str = "", pcrs: Sequence[int] = ()) -> Reply:
        nonce = self.site.get(NONCE).body["nonce"]
        headers = {
            "X-Device-ID": self.device_id,
            "X-Nonce": nonce,
            "X-TPM-Quote": self.device.quote(b64url(nonce), pcrs),
        }
        body = {"stage": stage, "session_nonce": session_nonce}
        return self.site.post(TOKEN, body, headers)


@pytest.fixture(params=[ECC, RSA])
def client(
    site: Site,
    swtpm: Swtpm,  # noqa: F811
    request: pytest.FixtureRequest,
) -> Iterator[Client]:
    device = PytssDevice(swtpm.tcti, request.param)
    yield Client(site, device)
    device.close()


def test_it_enrolls_and_gets_tokens(client: Client) -> None:
    assert client.enroll().status == 201
    assert client.token(0).status == 200
    assert client.token(1, "challenge").status == 200
    assert client.token(2, "another").status == 200
    assert client.token(1).refusal == (400, "session_nonce required for stage 1 and 2")


def test_pcrs(client: Client) -> None:
    assert client.enroll(range(8)).status == 201
    reply = client.token(0, pcrs=range(8))
    assert reply.refusal == (401, "tpm quote verification failed")
    assert client.site.why == "the quote was over PCR 0 which wasn't provided"


def test_another_key_of_the_same_tpm_takes_over(client: Client) -> None:
    first = client.enroll().body
    again = client.enroll()
    assert (again.status, again.body["device_id"]) == (200, first["device_id"])
    assert client.token(0).status == 200


def test_with_a_certificate(
    site: Site,
    swtpm_with_certificate: Swtpm,  # noqa: F811
) -> None:
    """It names the same device as the key alone does."""
    device = PytssDevice(swtpm_with_certificate.tcti, ECC)
    client = Client(site, device)
    try:
        first = client.enroll(certificate=True)
        second = client.enroll()
    finally:
        device.close()
    assert (first.status, second.status) == (201, 200)
    assert first.body["device_id"] == second.body["device_id"]
