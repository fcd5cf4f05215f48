"""The TPM for greenlets: every call is a job of one worker thread, with a limit.

It must not know tokens, enrollment or HTTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from nexusg.errors import TpmError

from .chip import AkBlobs, Chip, Endorsement
from .worker import Worker


if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["AkBlobs", "Endorsement", "PytssDevice"]

R = TypeVar("R")

#: How long one call may take once it is its turn. Hardware signs a quote in well under a second.
CALL_TIMEOUT_S = 10.0

#: Making an RSA key takes some TPMs half a minute; what may make one has this much more time.
KEY_MAKING_FACTOR = 6.0

#: Nobody who stops an agent wants to wait for a TPM: it forgets our keys anyway.
CLOSE_TIMEOUT_S = 1.0


class PytssDevice:
    """The TPM at ``tcti`` (as in ``device:/dev/tpmrm0``), by tpm2-pytss, with one attestation key.

    ``ak`` is the kind of key that is made, see `templates.AK_KINDS`. Nothing is imported or opened
    before the first call. Every method but ``close`` blocks the calling greenlet, and raises
    TpmError with one of its codes. After a reset of the TPM it goes on by itself.

    For the greenlets of one thread, and usually one for each TPM in a process.
    """

    def __init__(self, tcti: str, ak: str, *, call_timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._worker = Worker(lambda: Chip(tcti))
        self._kind = ak
        self._limit_s = call_timeout_s
        self._blobs: AkBlobs | None = None

    def create_ak(self) -> AkBlobs:
        """Make an attestation key, and use it from now on."""
        blobs = self._call(lambda chip: chip.create_ak(self._kind), makes_key=True)
        self._blobs = blobs
        return blobs

    def load_ak(self, blobs: AkBlobs) -> None:
        """Use the attestation key that was made before, whatever its kind.

        Raises:
            TpmError: also ``tpm_cleared``: this TPM, as it is now, has not made that key.
        """
        self._call(lambda chip: chip.load_ak(blobs))
        self._blobs = blobs

    def ak_params(self) -> bytes:
        """The attestation key in use as TPMT_PUBLIC, without a size before it. Never blocks."""
        return self._kept().public[2:]

    def endorsement(self) -> Endorsement:
        """Tell which TPM this is."""
        return self._call(Chip.endorsement, makes_key=True)

    def activate(self, wire: bytes) -> bytes:
        """Open the authorizer's ``enc_credential``, decoded, and return the secret in it."""
        blobs = self._kept()
        return self._call(lambda chip: chip.activate(blobs, wire), makes_key=True)

    def quote(self, nonce: bytes, pcrs: Sequence[int] = ()) -> str:
        """Sign ``nonce`` (at most 64 bytes) and the state of ``pcrs``, as base64.

        A quote for a token must be over no PCR, or namek refuses it.
        """
        blobs = self._kept()
        return self._call(lambda chip: chip.quote(blobs, nonce, pcrs))

    def pcr_values(self, pcrs: Sequence[int]) -> dict[int, bytes]:
        """Read PCRs of the SHA-256 bank."""
        return self._call(lambda chip: chip.pcr_values(pcrs))

    def close(self) -> None:
        """Leave the TPM and end the thread. Blocks for CLOSE_TIMEOUT_S at most; never raises.

        Another call opens it again.
        """
        self._worker.close(CLOSE_TIMEOUT_S)

    def _call(self, job: Callable[[Chip], R], *, makes_key: bool = False) -> R:
        return self._worker.call(self._limit_s * (KEY_MAKING_FACTOR if makes_key else 1), job)

    def _kept(self) -> AkBlobs:
        if self._blobs is None:
            raise TpmError("no attestation key has been made or loaded")
        return self._blobs
