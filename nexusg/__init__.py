"""A reverse-tunnel agent for the Nexus relay. These are the public names.

``import nexusg`` patches nothing, starts nothing and does not import gevent: each name is fetched
from its module when it is first used (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from nexusg.version import __version__


if TYPE_CHECKING:
    from nexusg.agent.agent import Agent
    from nexusg.agent.apps import Served
    from nexusg.agent.connect import ConnectRequest
    from nexusg.agent.lifecycle import LifecycleEvent
    from nexusg.attest.base import Stage, Token, TokenRequest
    from nexusg.config.loader import load as load_config
    from nexusg.config.model import (
        Attestation,
        Backend,
        Config,
        Destination,
        FlowControl,
        HealthChecks,
        PortMapping,
        RelayTls,
        Socks5Auth,
        TargetHealth,
        TargetTls,
        TlsTerminate,
        Tpm,
        UdpRoute,
    )
    from nexusg.config.secret import Secret
    from nexusg.errors import (
        AuthorizerError,
        ConfigError,
        DialFailed,
        LocalProtocolError,
        NexusgError,
        NoRoute,
        ProtocolError,
        Rejected,
        RelayError,
        RemoteProtocolError,
        Retry,
        SessionLost,
        TargetError,
        TokenError,
        TokenTimeout,
        TpmError,
        UpgradeRefused,
    )
    from nexusg.observe.logs import LogObserver
    from nexusg.targets.memory import MemorySocket, memory_pair

__all__ = [
    "Agent",
    "Attestation",
    "AuthorizerError",
    "Backend",
    "Config",
    "ConfigError",
    "ConnectRequest",
    "Destination",
    "DialFailed",
    "FlowControl",
    "HealthChecks",
    "LifecycleEvent",
    "LocalProtocolError",
    "LogObserver",
    "MemorySocket",
    "NexusgError",
    "NoRoute",
    "PortMapping",
    "ProtocolError",
    "Rejected",
    "RelayError",
    "RelayTls",
    "RemoteProtocolError",
    "Retry",
    "Secret",
    "Served",
    "SessionLost",
    "Socks5Auth",
    "Stage",
    "TargetError",
    "TargetHealth",
    "TargetTls",
    "TlsTerminate",
    "Token",
    "TokenError",
    "TokenRequest",
    "TokenTimeout",
    "Tpm",
    "TpmError",
    "UdpRoute",
    "UpgradeRefused",
    "__version__",
    "load_config",
    "memory_pair",
]

# The home of every name that is not an error: "module" or "module:name there".
_HOMES = {
    "Agent": "nexusg.agent.agent",
    "Attestation": "nexusg.config.model",
    "Backend": "nexusg.config.model",
    "Config": "nexusg.config.model",
    "ConnectRequest": "nexusg.agent.connect",
    "FlowControl": "nexusg.config.model",
    "HealthChecks": "nexusg.config.model",
    "LifecycleEvent": "nexusg.agent.lifecycle",
    "LogObserver": "nexusg.observe.logs",
    "MemorySocket": "nexusg.targets.memory",
    "PortMapping": "nexusg.config.model",
    "RelayTls": "nexusg.config.model",
    "Secret": "nexusg.config.secret",
    "Served": "nexusg.agent.apps",
    "Socks5Auth": "nexusg.config.model",
    "Stage": "nexusg.attest.base",
    "Destination": "nexusg.config.model",
    "TargetHealth": "nexusg.config.model",
    "TargetTls": "nexusg.config.model",
    "Tpm": "nexusg.config.model",
    "TlsTerminate": "nexusg.config.model",
    "Token": "nexusg.attest.base",
    "TokenRequest": "nexusg.attest.base",
    "UdpRoute": "nexusg.config.model",
    "load_config": "nexusg.config.loader:load",
    "memory_pair": "nexusg.targets.memory",
}


if not TYPE_CHECKING:  # a type checker that sees it would let every misspelt name pass

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, _, attribute = _HOMES.get(name, "nexusg.errors").partition(":")
        value = getattr(import_module(module), attribute or name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
