"""``nexusg tpm``: which device this machine's TPM makes it, and its enrollment."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

from nexusg.attest.tpm.device import AkBlobs, PytssDevice
from nexusg.attest.tpm.names import device_id, slug
from nexusg.attest.tpm.notices import EnrolmentFailed, Remark
from nexusg.attest.tpm.shared import Identity
from nexusg.attest.tpm.state import TpmState
from nexusg.config.loader import load
from nexusg.config.tpm import Tpm
from nexusg.errors import ConfigError, TpmError

from .exits import Exit


if TYPE_CHECKING:
    import argparse

    from nexusg.attest.tpm.notices import Notice
    from nexusg.attest.tpm.state import Enrolment
    from nexusg.config.model import Backend

#: An enrollment is a handful of requests, and perhaps an RSA key from a slow TPM.
ENROLL_TIMEOUT_S = 120.0

# In the order of the table; those of an enrollment stand in it.
_LABELS = {
    "tcti": "TPM",
    "ek_fingerprint": "EK fingerprint",
    "ek_certificate": "EK certificate",
    "device_id": "device id",
    "slug": "host name",
    "ak": "attestation key",
    "authorizer_url": "authorizer",
    "state_file": "state file",
    "note": "",
    "enrolled": "enrolled",
}
_ENROLMENT_LABELS = {
    "device_id": "  device id",
    "hostname": "  host name",
    "identity_class": "  identity class",
    "nexus_endpoints": "  relays",
}
_WIDTH = 18


def execute(given: argparse.Namespace) -> int:
    """Show the device, or enroll it. Blocks. Raises ConfigError, TokenError."""
    settings = chosen(given)
    if given.action == "enroll":
        found = enroll(settings)
    elif given.tcti is None:
        found = {**device(settings), **state(settings)}
    else:
        found = device(settings)
    if given.json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        print(table(found))
    return Exit.OK


def chosen(given: argparse.Namespace) -> Tpm:
    """The settings that the command line means. Raises ConfigError."""
    if given.tcti is not None:
        if given.action == "enroll":
            raise ConfigError(["nexusg tpm enroll needs a configuration: --tcti is for info"])
        return Tpm(tcti=given.tcti)
    backends = load(given.config).config.backends
    if given.backend is not None:
        backends = tuple(one for one in backends if one.name == given.backend)
        if not backends:
            raise ConfigError([f"{given.config}: there is no backend {given.backend!r}"])
    with_tpm = [one for one in backends if one.attestation.tpm]
    if not with_tpm:
        what = _names(backends)
        raise ConfigError([f"{given.config}: no attestation.tpm in {what}; or give --tcti"])
    blocks = {one.attestation.tpm for one in with_tpm}
    if len(blocks) > 1:
        text = f"{_names(with_tpm)} have different TPM settings: which, --backend NAME?"
        raise ConfigError([f"{given.config}: {text}"])
    return blocks.pop()


def device(settings: Tpm) -> dict[str, Any]:
    """What the TPM says of itself, and what namek makes of that. Blocks. Raises TpmError."""
    tpm = PytssDevice(settings.tcti, settings.ak)
    try:
        found = tpm.endorsement()
    finally:
        tpm.close()
    return {
        "tcti": settings.tcti,
        "ek_fingerprint": found.fingerprint,
        "ek_certificate": found.certificate is not None,
        "ek_certificate_problem": found.certificate_problem,
        "device_id": device_id(found.fingerprint),
        "slug": slug(found.fingerprint),
    }


def state(settings: Tpm) -> dict[str, Any]:
    """What is kept of an enrollment, and whether it is for this TPM. Blocks. Raises TpmError."""
    kept = TpmState(settings.state_dir)
    found = kept.load()
    about: dict[str, Any] = {
        "ak": settings.ak,
        "authorizer_url": settings.authorizer_url,
        "state_file": str(kept.path),
        "note": kept.note or "",
        "enrolled": False,
        "problem": kept.problem or "",
        "enrolment": None,
    }
    if found is not None:
        problem = _mismatch(found, settings)
        about.update(enrolled=not problem, problem=problem, enrolment=_enrolment(found))
    return about


def enroll(settings: Tpm) -> dict[str, Any]:
    """Enroll the device, or see whether it still is. Blocks. Raises TokenError, ConfigError."""
    identity = Identity(dataclasses.replace(settings, enroll="auto"))
    identity.join(_complain)
    try:
        identity.issuer.enroll(ENROLL_TIMEOUT_S)
        if not identity.enroller.count:  # a state file may say so for long after it was true
            identity.issuer.me()
        found = identity.enroller.current
        assert found is not None, "it has just been"
    finally:
        identity.leave(_complain)
    return {
        "tcti": settings.tcti,
        "ek_fingerprint": found.ek_fingerprint,
        "authorizer_url": found.authorizer_url,
        "ak": found.ak_kind,
        "state_file": str(TpmState(settings.state_dir).path),
        "enrolled": True,
        "just_now": bool(identity.enroller.count),
        "enrolment": _enrolment(found),
    }


def table(found: dict[str, Any]) -> str:
    """The same for people."""
    shown = dict(found)
    if "ek_certificate" in found:
        problem = found["ek_certificate_problem"]
        shown["ek_certificate"] = f"none: {problem}" if problem else "there, and it fits"
    if "slug" in found:
        shown["slug"] = f"{found['slug']}, below the domain of the authorizer"
    if "enrolled" in found:
        shown["enrolled"] = _enrolled(found)
    rows = [(label, shown.get(name)) for name, label in _LABELS.items()]
    if found.get("enrolled"):
        enrolment = found["enrolment"]
        shown = {**enrolment, "nexus_endpoints": ", ".join(enrolment["nexus_endpoints"]) or "none"}
        rows += [(label, shown[name]) for name, label in _ENROLMENT_LABELS.items()]
    return "\n".join(f"{label:{_WIDTH}}{value}" for label, value in rows if value)


def _enrolled(found: dict[str, Any]) -> str:
    if not found["enrolled"]:
        return f"no: {found['problem']}" if found["problem"] else "no"
    if "just_now" not in found:
        return "yes"
    return "yes, just now" if found["just_now"] else "yes, as before"


def _mismatch(found: Enrolment, settings: Tpm) -> str:
    """Why the enrollment that is kept is of no use, if so."""
    if found.authorizer_url != settings.authorizer_url:
        return f"the state is of another authorizer, {found.authorizer_url}"
    if found.ak_kind != settings.ak:
        return f"the state has a key of another kind, {found.ak_kind}"
    tpm = PytssDevice(settings.tcti, settings.ak)
    try:
        tpm.load_ak(AkBlobs(found.ak_public, found.ak_private))
    except TpmError as error:
        if error.code != "tpm_cleared":
            raise
        return str(error)
    finally:
        tpm.close()
    return ""


def _enrolment(found: Enrolment) -> dict[str, Any]:
    return {
        "device_id": found.device_id,
        "hostname": found.hostname,
        "identity_class": found.identity_class,
        "nexus_endpoints": list(found.nexus_endpoints),
    }


def _names(backends: tuple[Backend, ...] | list[Backend]) -> str:
    return ", ".join(f"backend {one.name!r}" for one in backends)


def _complain(notice: Notice) -> None:
    """What is worth a line of its own; errors are the command's."""
    if isinstance(notice, Remark):
        print(f"warning: {notice.text}", file=sys.stderr)
    elif isinstance(notice, EnrolmentFailed):
        print(f"attempt failed: {notice.error}", file=sys.stderr)
