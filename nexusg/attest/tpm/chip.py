"""What a TPM does for us: an attestation key, quotes by it, the proof of which TPM this is.

It must not know threads or gevent, nor where the results are sent. Everything in it blocks its
thread. The byte formats are those of namek-server.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nexusg.errors import TpmError

from . import certificate, library, templates
from .connection import Connection


if TYPE_CHECKING:
    from collections.abc import Sequence

#: Where manufacturers put the RSA endorsement key and its certificate (TCG TPM v2.0 Provisioning
#: Guidance, 7.8; TCG EK Credential Profile 2.0, 2.2.1.4).
EK_HANDLE = 0x81010001
EK_CERTIFICATE_INDEX = 0x01C00002

#: What is read of an NV index at once; every TPM of a PC can do that much.
NV_CHUNK_BYTES = 512

#: A nonce is a digest to the TPM, which has room for a SHA-512.
MAX_NONCE_BYTES = 64


@dataclass(frozen=True, slots=True)
class AkBlobs:
    """An attestation key as it is kept: TPM2B_PUBLIC, and TPM2B_PRIVATE, wrapped by its TPM."""

    public: bytes = field(repr=False)
    private: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Endorsement:
    """The endorsement key (PKIX), the SHA-256 of that in hex, and the certificate (DER).

    A certificate that is not for this key counts as none; ``certificate_problem`` says which.
    """

    public_der: bytes
    fingerprint: str
    certificate: bytes | None
    certificate_problem: str = ""


class Chip:
    """The TPM at ``tcti``. Every method may raise TpmError. Not for several threads at once.

    An attestation key is given to each method that uses it, and stays loaded until another is.
    """

    def __init__(self, tcti: str) -> None:
        self._tpm = Connection(tcti)
        self._loaded: AkBlobs | None = None  # what the connection's key is, while it has one

    def create_ak(self, kind: str) -> AkBlobs:
        """Make an attestation key, and load it. RSA takes seconds, or more."""
        return self._tpm.run("make an attestation key", self._create_ak, kind)

    def load_ak(self, blobs: AkBlobs) -> None:
        """Load an attestation key that was made before.

        Raises:
            TpmError: also ``tpm_cleared``: this TPM, as it is now, has not made that key.
        """
        self._tpm.run("load the attestation key", self._load_ak, blobs)

    def endorsement(self) -> Endorsement:
        """Tell which TPM this is. Where the manufacturer has not kept the key it takes seconds."""
        return self._tpm.run("show its endorsement key", self._endorsement)

    def activate(self, blobs: AkBlobs, wire: bytes) -> bytes:
        """Open a credential, and return the secret in it: only this TPM with this key can.

        ``wire`` is uint16 n, TPM2B_ID_OBJECT of n bytes, TPM2B_ENCRYPTED_SECRET.
        """
        return self._tpm.run("open the credential", self._activate, blobs, wire)

    def quote(self, blobs: AkBlobs, nonce: bytes, pcrs: Sequence[int]) -> str:
        """Sign ``nonce`` and the state of ``pcrs``.

        Returns base64 of uint32 n, TPMS_ATTEST of n bytes, TPMT_SIGNATURE.
        """
        if len(nonce) > MAX_NONCE_BYTES:
            raise TpmError(f"the TPM cannot sign a nonce of {len(nonce)} bytes")
        return self._tpm.run("sign a quote", self._quote, blobs, nonce, pcrs)

    def pcr_values(self, pcrs: Sequence[int]) -> dict[int, bytes]:
        """Read PCRs of the SHA-256 bank."""
        return self._tpm.run("read PCRs", self._pcr_values, pcrs)

    def close(self) -> None:
        """Disconnect. The next call connects again."""
        self._tpm.close()

    def _create_ak(self, kind: str) -> AkBlobs:
        tpm, tss = self._tpm, self._tpm.tss
        tpm.drop_key()
        parent = self._storage_key()
        try:
            template = templates.attestation_key(tss, kind)
            private, public, *_ = tpm.esys.create(parent, tss.TPM2B_SENSITIVE_CREATE(), template)
            tpm.key = tpm.esys.load(parent, private, public)
        finally:
            tpm.flush(parent)
        self._loaded = AkBlobs(public.marshal(), private.marshal())
        return self._loaded

    def _load_ak(self, blobs: AkBlobs) -> None:
        tpm, tss = self._tpm, self._tpm.tss
        tpm.drop_key()
        try:
            public = _unmarshalled(tss.TPM2B_PUBLIC, blobs.public)
            private = _unmarshalled(tss.TPM2B_PRIVATE, blobs.private)
        except ValueError as error:
            text = f"the attestation key that was kept is damaged: {error}"
            raise TpmError(text, "tpm_cleared") from error
        parent = self._storage_key()
        try:
            tpm.key = tpm.esys.load(parent, private, public)
        except tss.TSS2_Exception as error:
            if library.is_lost(error.rc) or not library.is_refusal(error.rc):
                raise
            text = "the TPM does not know the attestation key that was kept: it was cleared since, "
            text += f"or it is another TPM (0x{error.rc:x})"
            raise TpmError(text, "tpm_cleared") from error
        finally:
            tpm.flush(parent)
        self._loaded = blobs

    def _ak(self, blobs: AkBlobs) -> Any:
        """The handle of the attestation key, which may have to be loaded."""
        if self._tpm.key is None or self._loaded != blobs:
            self._load_ak(blobs)
        return self._tpm.key

    def _storage_key(self) -> Any:
        tss = self._tpm.tss
        template = templates.storage_key(tss)
        handle, *_ = self._tpm.esys.create_primary(tss.TPM2B_SENSITIVE_CREATE(), template)
        return handle

    def _endorsement(self) -> Endorsement:
        handle, public, kept = self._endorsement_key()
        self._leave(handle, kept)
        public_der = bytes(public.to_der())
        own, problem = self._certificate(public_der)
        return Endorsement(public_der, hashlib.sha256(public_der).hexdigest(), own, problem)

    def _certificate(self, public_der: bytes) -> tuple[bytes | None, str]:
        """The key's certificate, or why there is none: authorizers do without."""
        try:
            found = self._read_nv(EK_CERTIFICATE_INDEX)
        except self._tpm.tss.TSS2_Exception as error:
            if library.is_lost(error.rc):
                raise
            return None, f"it cannot be read ({error})"
        if found is None:
            return None, "the TPM holds none"
        return certificate.matching(found, public_der)

    def _endorsement_key(self) -> tuple[Any, Any, bool]:
        """Its handle, its public part, and whether the TPM keeps it by itself."""
        esys, tss = self._tpm.esys, self._tpm.tss
        handle = self._existing(EK_HANDLE)
        if handle is not None:
            public = esys.read_public(handle)[0]
            if public.publicArea.type == tss.TPM2_ALG.RSA:
                return handle, public, True
            esys.tr_close(handle)
        empty, template = tss.TPM2B_SENSITIVE_CREATE(), templates.endorsement_key(tss)
        handle, public, *_ = esys.create_primary(empty, template, tss.ESYS_TR.ENDORSEMENT)
        return handle, public, False

    def _leave(self, handle: Any, kept: bool) -> None:
        if kept:
            self._tpm.esys.tr_close(handle)
        else:
            self._tpm.flush(handle)

    def _existing(self, handle: int) -> Any:
        """What ESAPI calls a persistent object; None if there is no such object."""
        try:
            return self._tpm.esys.tr_from_tpmpublic(handle)
        except self._tpm.tss.TSS2_Exception as error:
            if library.is_refusal(error.rc):
                return None
            raise

    def _read_nv(self, index: int) -> bytes | None:
        esys, tss = self._tpm.esys, self._tpm.tss
        handle = self._existing(index)
        if handle is None:
            return None
        try:
            about, _ = esys.nv_read_public(handle)  # a part of it does not keep it alive
            size, data = about.nvPublic.dataSize, b""
            while len(data) < size:
                count = min(NV_CHUNK_BYTES, size - len(data))
                part = esys.nv_read(handle, count, len(data), auth_handle=tss.ESYS_TR.OWNER)
                data += bytes(part)
            return data
        finally:
            esys.tr_close(handle)

    def _activate(self, blobs: AkBlobs, wire: bytes) -> bytes:
        esys, tss = self._tpm.esys, self._tpm.tss
        end = 2 + int.from_bytes(wire[:2], "big")
        try:
            credential = _unmarshalled(tss.TPM2B_ID_OBJECT, wire[2:end])
            secret = _unmarshalled(tss.TPM2B_ENCRYPTED_SECRET, wire[end:])
        except ValueError as error:
            raise TpmError(f"the credential of the authorizer is damaged: {error}") from error
        ak = self._ak(blobs)
        ek, _, kept = self._endorsement_key()
        try:
            session = self._ek_session()
            try:
                password = tss.ESYS_TR.PASSWORD
                return bytes(
                    esys.activate_credential(
                        ak, ek, credential, secret, session1=password, session2=session
                    )
                )
            finally:
                self._tpm.flush(session)
        finally:
            self._leave(ek, kept)

    def _ek_session(self) -> Any:
        """A session that satisfies the policy of the endorsement key."""
        esys, tss = self._tpm.esys, self._tpm.tss
        none, plain = tss.ESYS_TR.NONE, tss.TPMT_SYM_DEF(algorithm=tss.TPM2_ALG.NULL)
        session = esys.start_auth_session(
            none, none, tss.TPM2_SE.POLICY, plain, tss.TPM2_ALG.SHA256
        )
        try:
            esys.policy_secret(tss.ESYS_TR.ENDORSEMENT, session, b"", b"", b"", 0)
        except tss.TSS2_Exception:
            self._tpm.flush(session)
            raise
        return session

    def _quote(self, blobs: AkBlobs, nonce: bytes, pcrs: Sequence[int]) -> str:
        ak = self._ak(blobs)
        selection = templates.pcr_selection(self._tpm.tss, pcrs)
        attest, signature = self._tpm.esys.quote(ak, selection, nonce)
        said = bytes(attest)
        return base64.b64encode(struct.pack(">I", len(said)) + said + signature.marshal()).decode()

    def _pcr_values(self, pcrs: Sequence[int]) -> dict[int, bytes]:
        values: dict[int, bytes] = {}
        wanted = set(pcrs)
        while missing := sorted(wanted - values.keys()):
            selection = templates.pcr_selection(self._tpm.tss, missing)
            _, answered, digests = self._tpm.esys.pcr_read(selection)  # of at most 8 at once
            found = [pcr for one in answered for pcr in templates.selected(self._tpm.tss, one)]
            if not found:
                raise TpmError("the TPM has no PCRs in a SHA-256 bank")
            values.update(zip(found, map(bytes, digests), strict=True))
        return values


def _unmarshalled(kind: Any, data: bytes) -> Any:
    """Read one TPM2B, which ``data`` must be as a whole; ValueError otherwise."""
    size = int.from_bytes(data[:2], "big")
    if size == 0 or len(data) != 2 + size:
        raise ValueError(f"{kind.__name__} of {len(data)} bytes")
    try:
        value, used = kind.unmarshal(data)
    except RuntimeError as error:  # as TSS2_Exception is
        raise ValueError(f"{kind.__name__}: {error}") from error
    if used != len(data):
        raise ValueError(f"{kind.__name__} with something else in it")
    return value
