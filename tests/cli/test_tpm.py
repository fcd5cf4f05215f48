"""`nexusg tpm` with a software TPM and the development authorizer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from nexusg.attest.tpm.device import PytssDevice
from nexusg.attest.tpm.issuer import TokenIssuer
from nexusg.attest.tpm.notices import EnrolmentFailed, Issued
from nexusg.cli import tpm
from nexusg.cli.commands import needs_patch
from nexusg.errors import TpmError
from nexusg.relay.authorizer.server import Authorizer
from tests.support.swtpm import Swtpm, swtpm


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.cli.conftest import Done

    Nexusg = Callable[..., Done]
    Write = Callable[[str], str]

__all__ = ["swtpm"]

RELAY = "wss://relay.example.com/connect"

BACKEND = """\
  - name: {name}
    attestation: {{tpm: {{authorizerUrl: "{url}", tcti: "{tcti}", stateDir: "{folder}", ak: {ak}}}}}
    portMappings: {{443: {{default: "127.0.0.1:8080"}}}}
"""
PLAIN = """\
  - name: plain
    hostnames: [app.example.com]
    nexusAddresses: [wss://relay.example.com/connect]
    attestation: {command: /usr/bin/token}
    portMappings: {443: {default: "127.0.0.1:8080"}}
"""


@pytest.fixture
def authorizer() -> Iterator[Authorizer]:
    """An authorizer that takes every TPM."""
    made = Authorizer("s" * 40, "example.com", nexus_endpoints=[RELAY], on_log=lambda *_: None)
    with made:
        yield made


class Files:
    """Writes configurations for one TPM and authorizer."""

    def __init__(self, write: Write, folder: Path, url: str, tcti: str) -> None:
        self.folder = folder
        self._write = write
        self._values = {"url": url, "tcti": tcti, "ak": "ecc-p256", "folder": folder / "a"}

    def backend(self, name: str = "web", **changes: object) -> str:
        """A backend with a TPM."""
        return BACKEND.format(**self._values | {"name": name} | changes)

    def config(self, *backends: str) -> str:
        """The path of a configuration, by default with one such backend."""
        return self._write("backends:\n" + "".join(backends or (self.backend(),)))


@pytest.fixture
def files(write: Write, tmp_path: Path, authorizer: Authorizer, swtpm: Swtpm) -> Files:
    """Configurations that can be used."""
    return Files(write, tmp_path, authorizer.url, swtpm.tcti)


@pytest.fixture
def unused(write: Write, tmp_path: Path) -> Files:
    """Configurations of which neither TPM nor authorizer is asked for anything."""
    return Files(write, tmp_path, "https://namek.example.com", "swtpm:path=none")


def told(done: Done) -> dict[str, Any]:
    assert done.code == 0, done
    found = json.loads(done.out)
    assert isinstance(found, dict)
    return found


def rows(done: Done) -> list[tuple[str, str]]:
    assert done.code == 0, done
    return [(line[:18].strip(), line[18:]) for line in done.out.splitlines()]


def test_it_runs_on_gevent() -> None:
    assert needs_patch(["tpm", "info", "--json"])


def test_a_tpm_says_who_it_is_without_a_configuration(nexusg: Nexusg, swtpm: Swtpm) -> None:
    found = told(nexusg("tpm", "info", "--tcti", swtpm.tcti, "--json"))
    device = PytssDevice(swtpm.tcti, "ecc-p256")
    fingerprint = device.endorsement().fingerprint
    device.close()
    assert found["tcti"] == swtpm.tcti
    assert found["ek_fingerprint"] == fingerprint
    assert (found["ek_certificate"], found["ek_certificate_problem"]) == (
        False,
        "the TPM holds none",
    )
    assert "enrolled" not in found
    table = dict(rows(nexusg("tpm", "info", "--tcti", swtpm.tcti)))
    assert table == {
        "TPM": swtpm.tcti,
        "EK fingerprint": fingerprint,
        "EK certificate": "none: the TPM holds none",
        "device id": found["device_id"],
        "host name": f"{found['slug']}, below the domain of the authorizer",
    }


def test_a_certificate_that_fits_is_said_to_be_there() -> None:
    found = {"ek_certificate": True, "ek_certificate_problem": ""}
    assert tpm.table(found) == "EK certificate    there, and it fits"


def test_info_tells_the_device_before_it_is_enrolled_and_enroll_makes_it_so(
    nexusg: Nexusg, files: Files
) -> None:
    config = files.config()
    before = told(nexusg("tpm", "info", "--config", config, "--json"))
    assert (before["enrolled"], before["problem"], before["enrolment"]) == (False, "", None)
    assert ("enrolled", "no") in rows(nexusg("tpm", "info", "--config", config))

    first = told(nexusg("tpm", "enroll", "--config", config, "--json"))
    assert (first["enrolled"], first["just_now"]) == (True, True)
    assert first["enrolment"] == {
        "device_id": before["device_id"],
        "hostname": f"{before['slug']}.example.com",
        "identity_class": "unverified",
        "nexus_endpoints": [RELAY],
    }
    again = rows(nexusg("tpm", "enroll", "--config", config))
    assert ("enrolled", "yes, as before") in again
    assert again[-3:] == [
        ("host name", f"{before['slug']}.example.com"),
        ("identity class", "unverified"),
        ("relays", RELAY),
    ]

    after = nexusg("tpm", "info", "--config", config)
    assert ("enrolled", "yes") in rows(after)
    assert ("relays", RELAY) in rows(after)
    found = told(nexusg("tpm", "info", "--config", config, "--json"))
    assert found["enrolment"] == first["enrolment"]
    assert found["state_file"] == str(files.folder / "a" / "state.json")


def test_a_device_that_the_authorizer_has_forgotten_is_enrolled_again(
    nexusg: Nexusg, files: Files, authorizer: Authorizer
) -> None:
    config = files.config()
    told(nexusg("tpm", "enroll", "--config", config, "--json"))
    with Authorizer("s" * 40, "example.com", on_log=lambda *_: None) as other:
        text = files.backend(url=other.url)
        done = nexusg("tpm", "info", "--config", files.config(text))
        problem = f"no: the state is of another authorizer, {authorizer.url}"
        assert ("enrolled", problem) in rows(done)
        found = rows(nexusg("tpm", "enroll", "--config", files.config(text)))
        assert ("enrolled", "yes, just now") in found
        assert found[-1] == ("relays", "none")


def test_a_state_of_another_tpm_is_no_enrollment(
    nexusg: Nexusg, files: Files, swtpm: Swtpm
) -> None:
    config = files.config()
    told(nexusg("tpm", "enroll", "--config", config, "--json"))
    swtpm.clear()
    found = told(nexusg("tpm", "info", "--config", config, "--json"))
    assert not found["enrolled"]
    assert found["problem"].startswith("the TPM does not know the attestation key")
    assert found["enrolment"]["device_id"] != found["device_id"]
    enrolment = told(nexusg("tpm", "enroll", "--config", config, "--json"))["enrolment"]
    assert enrolment["device_id"] == found["device_id"]


def test_a_key_of_another_kind_is_no_enrollment(nexusg: Nexusg, files: Files) -> None:
    told(nexusg("tpm", "enroll", "--config", files.config(), "--json"))
    done = nexusg("tpm", "info", "--config", files.config(files.backend(ak="rsa2048")))
    assert ("enrolled", "no: the state has a key of another kind, ecc-p256") in rows(done)


def test_a_damaged_state_is_said_and_replaced(nexusg: Nexusg, files: Files) -> None:
    config = files.config()
    told(nexusg("tpm", "enroll", "--config", config, "--json"))
    path = files.folder / "a" / "state.json"
    path.chmod(0o644)
    table = rows(nexusg("tpm", "info", "--config", config))
    assert ("", f"{path} was open to other users (mode 644): changed to 600") in table
    path.write_text("{")
    line = dict(rows(nexusg("tpm", "info", "--config", config)))["enrolled"]
    assert line.startswith(f"no: {path} is no enrollment: ")
    done = nexusg("tpm", "enroll", "--config", config)
    assert ("enrolled", "yes, just now") in rows(done)
    assert done.err.startswith(f"warning: {path} is no enrollment: ")


def test_a_tpm_that_fails_in_the_middle_is_an_error(
    nexusg: Nexusg, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = files.config()
    told(nexusg("tpm", "enroll", "--config", config, "--json"))

    def fail(*_: object) -> None:
        raise TpmError("the TPM is tired", "tpm_io")

    monkeypatch.setattr(PytssDevice, "load_ak", fail)
    done = nexusg("tpm", "info", "--config", config)
    assert (done.code, done.out, done.err) == (1, "", "nexusg: the TPM is tired\n")


def test_attempts_that_fail_are_told(
    nexusg: Nexusg, unused: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def enroll(issuer: TokenIssuer, _: float) -> None:
        issuer._notify(Issued("handshake", 1.0, 1.0, None))  # not worth a line
        issuer._notify(EnrolmentFailed("authorizer", "HTTP 503", 1.0))
        raise TpmError("in the end, nothing")

    monkeypatch.setattr(TokenIssuer, "enroll", enroll)
    done = nexusg("tpm", "enroll", "--config", unused.config())
    assert (done.code, done.out) == (1, "")
    assert done.err == "attempt failed: HTTP 503\nnexusg: in the end, nothing\n"


@pytest.mark.parametrize(
    ("backends", "options", "problem"),
    [
        ("plain", "", "no attestation.tpm in backend 'plain'; or give --tcti"),
        ("web plain", "--backend plain", "no attestation.tpm in backend 'plain'; or give --tcti"),
        ("web plain", "--backend other", "there is no backend 'other'"),
        (
            "web two",
            "",
            "backend 'web', backend 'two' have different TPM settings: which, --backend NAME?",
        ),
    ],
)
@pytest.mark.parametrize("action", ["info", "enroll"])
def test_it_must_be_clear_which_tpm_is_meant(
    nexusg: Nexusg, unused: Files, action: str, backends: str, options: str, problem: str
) -> None:
    texts = {
        "plain": PLAIN,
        "web": unused.backend(),
        "two": unused.backend("two", folder=unused.folder / "b", tcti="swtpm:path=other"),
    }
    config = unused.config(*(texts[name] for name in backends.split()))
    done = nexusg("tpm", action, "--config", config, *options.split())
    assert (done.code, done.out) == (2, "")
    assert done.err == f"{config}: {problem}\n"


def test_which_tpm_may_be_clear_by_the_backend(unused: Files, nexusg: Nexusg) -> None:
    two = unused.backend("two", folder=unused.folder / "b", tcti="abacus:x")
    config = unused.config(unused.backend(), two, PLAIN)
    done = nexusg("tpm", "info", "--config", config, "--backend", "two")
    assert done.code == 1
    assert "abacus:x" in done.err or "pip install" in done.err


def test_only_info_does_without_a_configuration(nexusg: Nexusg) -> None:
    done = nexusg("tpm", "enroll", "--tcti", "device:/dev/tpmrm0")
    assert (done.code, done.err) == (
        2,
        "nexusg tpm enroll needs a configuration: --tcti is for info\n",
    )
    assert nexusg("tpm").code == 2
    assert nexusg("tpm", "sell").code == 2
