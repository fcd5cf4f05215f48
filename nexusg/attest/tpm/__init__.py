"""Attestation by the TPM of this machine (namek-server is the authorizer)."""
