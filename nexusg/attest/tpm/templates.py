"""What the keys in the TPM look like, and which PCRs a quote is over.

Every function is given the TPM library (`library.load`), and calls no TPM. The values are those
that namek-server knows devices by: an endorsement key of another template is another device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from collections.abc import Sequence

#: Kinds of attestation key, as the setting ``ak`` names them.
RSA_2048 = "rsa2048"
ECC_P256 = "ecc-p256"
AK_KINDS = (RSA_2048, ECC_P256)

#: How many PCRs there are (TCG PC Client Platform TPM Profile, 4.6.1).
PCRS = 24

# PolicySecret(TPM_RH_ENDORSEMENT) (TCG EK Credential Profile 2.0, B.6.2).
_EK_POLICY = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")


def endorsement_key(tss: Any) -> Any:
    """Template L-1, RSA 2048 (TCG EK Credential Profile 2.0, B.3.3).

    Its ``unique`` is 256 zero bytes. An empty one gives another key than the manufacturer's.
    """
    flag = tss.TPMA_OBJECT
    rsa = _rsa(tss, _aes(tss), tss.TPMT_RSA_SCHEME(scheme=tss.TPM2_ALG.NULL))
    return _public(
        tss,
        type=tss.TPM2_ALG.RSA,
        objectAttributes=_own(tss) | flag.ADMINWITHPOLICY | flag.DECRYPT,
        authPolicy=_EK_POLICY,
        parameters=tss.TPMU_PUBLIC_PARMS(rsaDetail=rsa),
        unique=tss.TPMU_PUBLIC_ID(rsa=bytes(256)),
    )


def storage_key(tss: Any) -> Any:
    """The parent of the attestation key: ECC P-256, which a TPM makes ten times faster than RSA."""
    flag = tss.TPMA_OBJECT
    return _public(
        tss,
        type=tss.TPM2_ALG.ECC,
        objectAttributes=_own(tss) | flag.NODA | flag.USERWITHAUTH | flag.DECRYPT,
        parameters=_ecc(tss, _aes(tss), tss.TPMT_ECC_SCHEME(scheme=tss.TPM2_ALG.NULL)),
    )


def attestation_key(tss: Any, kind: str) -> Any:
    """A key that signs only what the TPM itself says (restricted): RSASSA, or ECDSA; SHA-256."""
    flag, algorithm = tss.TPMA_OBJECT, tss.TPM2_ALG
    none = tss.TPMT_SYM_DEF_OBJECT(algorithm=algorithm.NULL)
    sha256 = tss.TPMS_SCHEME_HASH(hashAlg=algorithm.SHA256)
    if kind == RSA_2048:
        details = tss.TPMU_ASYM_SCHEME(rsassa=sha256)
        scheme = tss.TPMT_RSA_SCHEME(scheme=algorithm.RSASSA, details=details)
        parameters = tss.TPMU_PUBLIC_PARMS(rsaDetail=_rsa(tss, none, scheme))
    else:
        details = tss.TPMU_ASYM_SCHEME(ecdsa=sha256)
        scheme = tss.TPMT_ECC_SCHEME(scheme=algorithm.ECDSA, details=details)
        parameters = _ecc(tss, none, scheme)
    return _public(
        tss,
        type=algorithm.RSA if kind == RSA_2048 else algorithm.ECC,
        objectAttributes=_own(tss) | flag.NODA | flag.USERWITHAUTH | flag.SIGN_ENCRYPT,
        parameters=parameters,
    )


def pcr_selection(tss: Any, pcrs: Sequence[int] = ()) -> Any:
    """One selection in the SHA-256 bank, also of no PCR at all: namek wants exactly one.

    A quote for a token must select no PCR, or namek refuses it.
    """
    mask = sum(1 << pcr for pcr in set(pcrs)).to_bytes(PCRS // 8, "little")
    one = tss.TPMS_PCR_SELECTION(hash=tss.TPM2_ALG.SHA256, sizeofSelect=len(mask), pcrSelect=mask)
    return tss.TPML_PCR_SELECTION([one])


def selected(tss: Any, selection: Any) -> list[int]:
    """The PCRs of a TPMS_PCR_SELECTION, as the TPM answers with; none of another bank."""
    if selection.hash != tss.TPM2_ALG.SHA256:
        return []
    mask = int.from_bytes(bytes(selection.pcrSelect)[: selection.sizeofSelect], "little")
    return [pcr for pcr in range(PCRS) if mask >> pcr & 1]


def _own(tss: Any) -> Any:
    """Made in this TPM, never to leave it, and only for what the TPM itself has made."""
    flag = tss.TPMA_OBJECT
    return flag.FIXEDTPM | flag.FIXEDPARENT | flag.SENSITIVEDATAORIGIN | flag.RESTRICTED


def _public(tss: Any, **area: Any) -> Any:
    return tss.TPM2B_PUBLIC(publicArea=tss.TPMT_PUBLIC(nameAlg=tss.TPM2_ALG.SHA256, **area))


def _aes(tss: Any) -> Any:
    algorithm = tss.TPM2_ALG
    return tss.TPMT_SYM_DEF_OBJECT(
        algorithm=algorithm.AES,
        keyBits=tss.TPMU_SYM_KEY_BITS(aes=128),
        mode=tss.TPMU_SYM_MODE(aes=algorithm.CFB),
    )


def _rsa(tss: Any, symmetric: Any, scheme: Any) -> Any:
    return tss.TPMS_RSA_PARMS(symmetric=symmetric, scheme=scheme, keyBits=2048, exponent=0)


def _ecc(tss: Any, symmetric: Any, scheme: Any) -> Any:
    detail = tss.TPMS_ECC_PARMS(
        symmetric=symmetric,
        scheme=scheme,
        curveID=tss.TPM2_ECC.NIST_P256,
        kdf=tss.TPMT_KDF_SCHEME(scheme=tss.TPM2_ALG.NULL),
    )
    return tss.TPMU_PUBLIC_PARMS(eccDetail=detail)
