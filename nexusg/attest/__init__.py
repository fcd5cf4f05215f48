"""Token providers: an external command, a shared secret, and the handshake cache."""
