"""The TPM library, tpm2-pytss: fetched when it is first used, and its errors in our words.

It must not know which commands are sent. Names of the library are looked up at run time, because
it is an optional extra that type checkers and most machines do not have.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from nexusg.errors import TpmError


#: What runs tpm2-pytss on Debian 12; the last one is dlopened, so nothing else asks for it.
PACKAGES = (
    "libtss2-esys-3.0.2-0 libtss2-tctildr0 libtss2-rc0 libtss2-mu0 libtss2-fapi1 "
    "libtss2-tcti-device0"
)

# Which part of the stack an error comes from (TSS 2.0 Overview, 3.12): bits 16 to 23.
_TPM, _RESOURCE_MANAGER = 0x00, 0x0B

# Warnings of the TPM, TPM 2.0 part 2, 6.6.3 (RC_WARN).
_NO_ROOM = frozenset({0x902, 0x903, 0x905})  # for objects; for sessions
_FIRST_REFERENCE, _LAST_REFERENCE = 0x910, 0x91E  # something that is not loaded (any more)
_LOCKOUT = 0x921

# Errors of the TPM about one of the arguments (RC_FMT1), without the number of the argument.
_FORMAT_ONE = 0x080
_HANDLE = 0x08B
_AUTHORIZATION = frozenset({0x08E, 0x0A2})

# Errors of the TCTI.
_TCTI_IO = 0xA000A
_TCTI_UNKNOWN = 0xA0015


def load() -> Any:
    """Import tpm2-pytss; its first import takes a while.

    Raises:
        TpmError: it is not installed, or what it is linked to is not (``tpm_missing``).
    """
    # Otherwise the TSS prints on stderr whatever goes wrong. It reads this at its first call.
    os.environ.setdefault("TSS2_LOG", "all+none")
    try:
        return importlib.import_module("tpm2_pytss")
    except (ImportError, OSError) as error:
        text = f"the TPM library cannot be loaded ({error}): pip install 'nexusg[tpm]', "
        text += f"which on Debian needs libtss2-dev to be built and {PACKAGES} to run"
        raise TpmError(text, "tpm_missing") from error


def is_lost(code: int) -> bool:
    """Whether the connection, or what was loaded through it, is gone: a new one may help."""
    if _layer(code) not in (_TPM, _RESOURCE_MANAGER):
        return True
    number = code & 0xFFFF
    return _FIRST_REFERENCE <= number <= _LAST_REFERENCE or number & 0xFF == _HANDLE


def is_full(code: int) -> bool:
    """Whether the TPM has no room left for one more key or session."""
    return (code & 0xFFFF) in _NO_ROOM and _layer(code) in (_TPM, _RESOURCE_MANAGER)


def is_refusal(code: int) -> bool:
    """Whether the TPM itself found an argument wrong."""
    return _layer(code) == _TPM and bool(code & _FORMAT_ONE)


def failed(what: str, error: Any) -> TpmError:
    """The error for a command that failed with a TSS2_Exception; ``what`` could not be done."""
    code = error.rc
    text = f"the TPM cannot {what}: {error} (0x{code:x})"
    if is_full(code):
        text += "; other programs keep keys in it, which /dev/tpmrm0 would put aside"
    elif code == _LOCKOUT:
        text += "; after too many wrong passwords it refuses for a while"
    elif is_refusal(code) and code & 0xFF in _AUTHORIZATION:
        text += "; one of its hierarchies has a password, which nexusg cannot give"
    broken = _layer(code) not in (_TPM, _RESOURCE_MANAGER)
    return TpmError(text, "tpm_io" if broken else "tpm")


def not_opened(tcti: str, error: Any) -> TpmError:
    """The error for a TPM that cannot be opened; it says what is likely to help."""
    code = error.rc
    text = f"the TPM {tcti} cannot be opened: {error} (0x{code:x})"
    name, _, device = tcti.partition(":")
    if code == _TCTI_UNKNOWN:
        text += f"; on Debian the package libtss2-tcti-{name}0 may be missing"
        return TpmError(text, "tpm_missing")
    if name != "device" or code != _TCTI_IO:
        return TpmError(text, "tpm_io")
    device = device or "/dev/tpm0"
    if not Path(device).exists():
        return TpmError(f"{text}; there is no {device}", "tpm_missing")
    if not os.access(device, os.R_OK | os.W_OK):
        text += f"; this user may not read and write {device}, members of its group (tss) may"
    return TpmError(text, "tpm_io")


def _layer(code: int) -> int:
    return code >> 16 & 0xFF
