"""The pools of one backend: which destinations have one, and what is told and asked of them."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

from nexusg.agent.health import HealthCheck
from nexusg.agent.lifecycle import TargetDown, TargetUp
from nexusg.agent.stats import TargetStats
from nexusg.config.destination import TlsTerminate
from nexusg.targets.pool import Pool


if TYPE_CHECKING:
    from collections.abc import Iterator

    from nexusg.agent.context import Context
    from nexusg.config.model import Backend, Destination
    from nexusg.targets.certificates import Certificates
    from nexusg.targets.pool import Member


class Pools:
    """A pool for each destination with several targets, and for each that says how to check it.

    The single target of another one is just dialled, so that it costs nothing. Hosts that share
    their targets, and how these are reached, share a pool.
    """

    def __init__(self, context: Context, backend: Backend, certificates: Certificates) -> None:
        self.checks: list[HealthCheck] = []  #: their ``run`` is for the agent's greenlets
        self._context = context
        self._backend = backend
        self._certificates = certificates
        self._by_way: dict[Destination, Pool] = {}
        self._by_identity: dict[int, Pool] = {}  # the hash of a destination takes long
        for destination in _destinations(backend):
            if len(destination.targets) > 1 or destination.health.path is not None:
                self._by_identity[id(destination)] = self._shared(destination)

    def of(self, destination: Destination) -> Pool | None:
        """The pool of a destination of the backend, if it has one."""
        return self._by_identity.get(id(destination))

    def stats(self) -> Iterator[TargetStats]:
        """The figures of each target."""
        now = self._context.clock()
        for pool in self._by_way.values():
            for one in pool.members:
                yield TargetStats(
                    backend=self._backend.name,
                    target=one.target,
                    up=one.down_since is None,
                    streams=one.connections,
                    error=one.error,
                    down_for_s=0.0 if one.down_since is None else now - one.down_since,
                )

    def _shared(self, destination: Destination) -> Pool:
        # How the TLS of users ends makes no difference to a target.
        way = dataclasses.replace(destination, tls_terminate=TlsTerminate())
        pool = self._by_way.get(way)
        if pool is None:
            pool = self._by_way[way] = self._make(destination)
        return pool

    def _make(self, destination: Destination) -> Pool:
        context = self._context
        pool = Pool(
            destination.targets,
            destination.health.failures,
            on_down=self._report_down,
            on_up=self._report_up,
            clock=context.clock,
        )
        self.checks.append(
            HealthCheck(
                pool,
                destination,
                context.buffer,
                self._certificates,
                rng=context.rng,
                failed=functools.partial(context.task_failed, "health"),
            )
        )
        return pool

    def _report_down(self, member: Member) -> None:
        self._context.emit(
            TargetDown(
                backend=self._backend.name,
                target=member.target,
                error=member.error,
                streams=member.connections,
            )
        )

    def _report_up(self, member: Member, down_s: float) -> None:
        self._context.emit(
            TargetUp(backend=self._backend.name, target=member.target, down_s=round(down_s, 3))
        )


def _destinations(backend: Backend) -> Iterator[Destination]:
    """Those that TCP streams may go to: checks connect, and a UDP service would be down."""
    udp_ports = {route.port for route in backend.udp_routes}
    for port, mapping in backend.port_mappings.items():
        if port in udp_ports and port not in backend.tcp_ports and not backend.hostnames:
            continue
        if mapping.default is not None:
            yield mapping.default
        for host, destination in mapping.hosts.items():
            if not host.startswith("udp:"):
                yield destination
