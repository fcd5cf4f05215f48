"""What a device is called after its TPM: namek derives both from the endorsement key alone.

So they can be told before the device has ever enrolled, and stay the same whenever it does again.
"""

from __future__ import annotations

import uuid


NAMESPACE = uuid.UUID("a3e4b8c1-7f2d-4e6a-9b5c-d8f1e2a3b4c5")  # namek's
CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
SLUG_CHARACTERS = 20  # of 5 bits


def device_id(fingerprint: str) -> str:
    """The id of the TPM with this EK fingerprint (hex)."""
    return str(uuid.uuid5(NAMESPACE, fingerprint))


def slug(fingerprint: str) -> str:
    """The first 100 bits of a fingerprint (hex) in Crockford's base32: a device's host name."""
    bits = int(fingerprint[: SLUG_CHARACTERS * 5 // 4], 16)
    return "".join(CROCKFORD[bits >> 5 * at & 31] for at in reversed(range(SLUG_CHARACTERS)))
