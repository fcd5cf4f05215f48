"""Chooses the token provider that a backend's settings ask for (PROTOCOL.md section 9.1).

It must not know what the providers do.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nexusg.attest.base import Stage, TokenRequest
from nexusg.attest.cache import HandshakeCache
from nexusg.attest.command import CommandProvider
from nexusg.attest.hmac import HmacProvider
from nexusg.errors import ConfigError


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nexusg.attest.base import TokenProvider
    from nexusg.attest.tpm.notices import Notice
    from nexusg.config.model import Attestation, Backend


# Variables whose values are kept out of the log, by the names that people give them; but a path
# or an address is what a message is about.
_SECRET_NAME = re.compile(
    r"(?=.*(?:secret|token|pass|credential|key))(?!.*_(?:file|path|dir|ur[il])$)", re.IGNORECASE
)


def provider_for(
    backend: Backend,
    *,
    on_stderr: Callable[[str], None] | None = None,
    on_notice: Callable[[Notice], object] | None = None,
) -> TokenProvider:
    """Make the provider of ``backend``: its TPM, its command, or its secret.

    Handshake tokens are kept, as the settings allow. ``on_stderr`` is given each line that the
    command prints on stderr, redacted, ``on_notice`` what there is to tell of the TPM. A provider
    for a TPM, a `TpmTokenProvider`, is to be closed.

    Raises:
        ConfigError: the settings have none of them, or those of the TPM contradict another's.
    """
    settings = backend.attestation
    if settings.tpm:
        from nexusg.attest.tpm import shared  # late: most agents have no use for it

        return shared.provider(settings.tpm, on_notice or (lambda _: None))
    provider: TokenProvider
    if settings.command is not None:
        provider = CommandProvider(
            settings.command,
            settings.args,
            settings.env,
            settings.timeout_s,
            on_stderr=on_stderr,
            secrets=_secrets(settings),
        )
    elif settings.hmac_secret is not None:
        provider = HmacProvider.from_backend(backend)
    else:
        raise ConfigError(
            [f"backend {backend.name!r}: attestation needs a command, a secret or a TPM"]
        )
    return HandshakeCache(provider, settings.cache_handshake_s, settings.handshake_max_age_s)


def request_for(backend: Backend, stage: Stage, nonce: str = "") -> TokenRequest:
    """Make the request for a token of ``stage``; ``nonce`` is the relay's, empty at handshake."""
    return TokenRequest(
        stage=stage,
        nonce=nonce,
        backend=backend.name,
        hostnames=backend.hostnames,
        tcp_ports=backend.tcp_ports,
        udp_routes=backend.udp_routes,
        weight=backend.weight,
        outbound_allowed=backend.attestation.outbound_allowed,
        allowed_outbound_ports=backend.attestation.allowed_outbound_ports,
    )


def _secrets(settings: Attestation) -> Iterator[str]:
    if settings.hmac_secret is not None:
        yield settings.hmac_secret.reveal()
    for name, value in settings.env.items():
        if _SECRET_NAME.match(name):
            yield value
