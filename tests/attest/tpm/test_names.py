"""The names that namek gives a device."""

from __future__ import annotations

import uuid

from nexusg.attest.tpm.names import device_id, slug


def test_identities() -> None:
    """Deterministic; the ids and names of namek for the same fingerprint."""
    fingerprint = "00443214c74254b635cf84653a56d7c675be77df" + "0" * 24
    assert slug(fingerprint) == "0123456789abcdefghjk"
    assert slug("f" * 64) == "z" * 20
    namespace = uuid.UUID("a3e4b8c1-7f2d-4e6a-9b5c-d8f1e2a3b4c5")
    assert device_id(fingerprint) == str(uuid.uuid5(namespace, fingerprint))
