"""What the TPM library says, in our words; and what it means."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

import pytest

from nexusg.attest.tpm import library


if TYPE_CHECKING:
    from pathlib import Path


class Failure(RuntimeError):
    """Like TSS2_Exception."""

    def __init__(self, rc: int) -> None:
        super().__init__("tpm:what the TSS says")
        self.rc = rc


@pytest.mark.parametrize("error", [ImportError("no such module"), OSError("libtss2-esys.so")])
def test_a_missing_library_names_what_to_install(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        assert name == "tpm2_pytss"
        raise error

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(library.TpmError) as caught:
        library.load()
    assert caught.value.code == "tpm_missing"
    for part in (str(error), "pip install 'nexusg[tpm]'", "libtss2-dev", "libtss2-tcti-device0"):
        assert part in str(caught.value)


@pytest.mark.parametrize(("before", "after"), [(None, "all+none"), ("esys+debug", "esys+debug")])
def test_the_tss_is_quiet_unless_somebody_wants_to_hear_it(
    before: str | None, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TSS2_LOG", before or "")
    if before is None:
        monkeypatch.delenv("TSS2_LOG")
    monkeypatch.setattr(importlib, "import_module", lambda _: os.environ["TSS2_LOG"])
    assert library.load() == after


@pytest.mark.parametrize(
    ("code", "lost", "full", "refusal", "word"),
    [
        (0x0A000A, True, False, False, "tpm_io"),  # the TCTI cannot read or write
        (0x070007, True, False, False, "tpm_io"),  # the context is of no use after that
        (0x070018, True, False, False, "tpm_io"),  # a handle of the context before
        (0x000910, True, False, False, "tpm"),  # the key is not loaded
        (0x00018B, True, False, False, "tpm"),  # there is no such handle
        (0x000902, False, True, False, "tpm"),  # no room for a key
        (0x0B0902, False, True, False, "tpm"),  # the same, of the kernel's resource manager
        (0x000903, False, True, False, "tpm"),  # no room for a session
        (0x0001DF, False, False, True, "tpm"),  # integrity
        (0x00098E, False, False, True, "tpm"),  # a wrong password
        (0x000921, False, False, False, "tpm"),  # locked
        (0x000101, False, False, False, "tpm"),  # broken
    ],
)
def test_what_an_error_means(code: int, lost: bool, full: bool, refusal: bool, word: str) -> None:
    assert library.is_lost(code) is lost
    assert library.is_full(code) is full
    assert library.is_refusal(code) is (refusal or code == 0x18B)
    error = library.failed("sign a quote", Failure(code))
    assert error.code == word
    assert str(error).startswith(f"the TPM cannot sign a quote: tpm:what the TSS says (0x{code:x})")


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (0x902, "; other programs keep keys in it, which /dev/tpmrm0 would put aside"),
        (0x921, "; after too many wrong passwords it refuses for a while"),
        (0x98E, "; one of its hierarchies has a password, which nexusg cannot give"),
        (0x9A2, "; one of its hierarchies has a password, which nexusg cannot give"),
        (0x1DF, ")"),
    ],
)
def test_what_may_help_is_said(code: int, advice: str) -> None:
    assert str(library.failed("do it", Failure(code))).endswith(advice)


@pytest.mark.parametrize(
    ("tcti", "code", "word", "advice"),
    [
        ("swtpm:path=x", 0xA0015, "tpm_missing", "package libtss2-tcti-swtpm0 may be missing"),
        ("swtpm:path=x", 0xA000A, "tpm_io", "(0xa000a)"),
        ("device:x/none", 0xA0001, "tpm_io", "(0xa0001)"),
        ("device:x/none", 0xA000A, "tpm_missing", "; there is no x/none"),
    ],
)
def test_why_a_tpm_cannot_be_opened(tcti: str, code: int, word: str, advice: str) -> None:
    error = library.not_opened(tcti, Failure(code))
    assert error.code == word
    assert str(error).startswith(f"the TPM {tcti} cannot be opened: ")
    assert str(error).endswith(advice)


@pytest.mark.parametrize("allowed", [True, False])
def test_a_device_of_others_needs_its_group(
    allowed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "tpmrm0"
    device.touch()
    monkeypatch.setattr(os, "access", lambda path, _: (str(path) == str(device)) and allowed)
    error = library.not_opened(f"device:{device}", Failure(0xA000A))
    assert error.code == "tpm_io"
    assert ("group (tss)" in str(error)) is not allowed
