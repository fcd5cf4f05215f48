"""The configuration as frozen data: tokens from an authorizer that knows this machine's TPM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import checks
from .setting import Finding, Kind, ListOf, Settings, listed, setting, unique


if TYPE_CHECKING:
    from collections.abc import Iterator


DEVICE = "device:/dev/tpmrm0"  # the kernel's resource manager: many programs, and it cleans up

STATE_DIR = "/var/lib/nexusg/tpm"

_LAST_PCR = 23


@dataclass(frozen=True, slots=True)
class Tpm(Settings):
    """How a device proves itself with its TPM. It is on if there is an ``authorizer_url``."""

    authorizer_url: str | None = setting(
        "authorizerUrl",
        Kind.TEXT,
        None,
        "The authorizer (namek-server). It decides the host names, and can name the relays.",
        check=checks.authorizer_url,
        example="https://namek.example.com",
        usual=True,
    )
    tcti: str = setting(
        "tcti",
        Kind.TEXT,
        DEVICE,
        "How the TPM is reached, in the words of the TSS. A software TPM: swtpm:path=/run/tpm.",
        advice=checks.tcti,
    )
    state_dir: str = setting(
        "stateDir",
        Kind.TEXT,
        STATE_DIR,
        "A directory of its own for what the enrolment yields.",
        check=checks.absolute_path,
        expand=True,
    )
    ak: str = setting(
        "ak",
        Kind.TEXT,
        "rsa2048",
        "The kind of key that signs. ecc-p256 is several times faster on most TPMs.",
        choices=("rsa2048", "ecc-p256"),
    )
    enroll: str = setting(
        "enroll",
        Kind.TEXT,
        "auto",
        "auto: enrols when that is needed. never: only `nexusg tpm enroll` does.",
        choices=("auto", "never"),
    )
    ek_cert: str = setting(
        "ekCert",
        Kind.TEXT,
        "auto",
        "The TPM maker's certificate. auto: sent if there is one that fits.",
        choices=("auto", "never"),
    )
    ca_file: str | None = setting(
        "caFile",
        Kind.TEXT,
        None,
        "PEM certificates to trust for the authorizer instead of the system's.",
        expand=True,
        example="/etc/nexusg/authorizer-ca.pem",
    )
    enroll_pcrs: tuple[int, ...] = setting(
        "enrollPcrs",
        ListOf(Kind.INTEGER),
        (),
        "PCRs whose values the authorizer is told when the device enrols. Tokens never hold any.",
        check=checks.between(0, _LAST_PCR),
        example="[0, 1, 2, 3, 4, 5, 6, 7]",
    )
    os_version: str | None = setting(
        "osVersion",
        Kind.TEXT,
        None,
        "Told to the authorizer when the device enrols.",
        example="debian-12",
    )

    def __post_init__(self) -> None:
        self._set(
            authorizer_url=(self.authorizer_url or "").strip().rstrip("/") or None,
            tcti=self.tcti.strip() or DEVICE,
            state_dir=self.state_dir.strip() or STATE_DIR,
            ca_file=self.ca_file or None,
            enroll_pcrs=unique(listed(self.enroll_pcrs)),
            os_version=self.os_version or None,
        )

    def __bool__(self) -> bool:
        return self.authorizer_url is not None

    def findings(self) -> Iterator[Finding]:
        """Whoever writes a block wants it used."""
        if not self and self != Tpm():
            yield Finding(("authorizerUrl",), "is required", involves=("authorizerUrl",))

    def clash(self, other: Tpm) -> Finding | None:
        """What becomes of two backends of one agent that have these blocks."""
        same_device = (self.tcti, self.authorizer_url) == (other.tcti, other.authorizer_url)
        same_key = (self.state_dir, self.ak) == (other.state_dir, other.ak)
        if same_device and same_key:
            text = "another backend is the same device: both will claim the same host names"
            return Finding((), text, fatal=False)
        if same_device:
            text = "another backend enrols the same TPM with another key, and each locks out the"
            return Finding(("stateDir",), f"{text} other: give both the same stateDir and ak")
        if self.state_dir == other.state_dir:
            return Finding(("stateDir",), "another backend keeps another enrolment there")
        return None
