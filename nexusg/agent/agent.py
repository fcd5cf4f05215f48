"""The agent as a library: start, stop, join (ARCHITECTURE.md, rule 9).

Making an `Agent` opens nothing. It installs no signal handlers and configures no logging, works in
a patched and in an unpatched process, beside other agents, and when it is started after a fork.
"""

from __future__ import annotations

import functools
import itertools
import os
import traceback
import weakref
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event

from nexusg.agent.apps import Apps
from nexusg.agent.budget import Budget
from nexusg.agent.connector import Connector
from nexusg.agent.context import Context
from nexusg.agent.devices import Devices
from nexusg.agent.discovery import Discovery, require_relays
from nexusg.agent.dispatch import Dispatcher
from nexusg.agent.lifecycle import (
    AgentStarted,
    AgentStopped,
    AgentStopping,
    CertificateFailed,
    NetworkChanged,
    TaskFailed,
    TokenStderr,
)
from nexusg.agent.network import NetworkWatcher
from nexusg.agent.socks import SocksService
from nexusg.agent.stats import Stats, stream_stats, totals
from nexusg.agent.stopping import drain
from nexusg.agent.supervisor import Supervisor
from nexusg.agent.tasks import Tasks, contained
from nexusg.attest.base import as_provider
from nexusg.attest.tpm.provider import TpmTokenProvider
from nexusg.config.validate import require_valid
from nexusg.protocol.messages import Reason
from nexusg.targets.certificates import Certificates
from nexusg.version import __version__


if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nexusg.agent.apps import Wsgi
    from nexusg.agent.connect import ConnectHandler
    from nexusg.agent.dispatch import EventHandler
    from nexusg.agent.tasks import Task
    from nexusg.attest.base import Token, TokenProvider, TokenRequest
    from nexusg.config.model import Backend, Config


#: How long greenlets and the event subscriber get at the very end.
CLEANUP_S = 2.0


class Agent:
    """Keeps the sessions of a configuration and serves their streams.

    ``connect_handler`` is asked for the local service of each stream before the port mappings are;
    ``wsgi`` is an application of this process, or several by host pattern, asked between the two;
    ``token_provider`` takes the place of the configured attestation; ``on_event`` is called with
    every lifecycle event, in order, in a greenlet of its own. ``worker`` numbers, from 0, processes
    of one host that run the same configuration: they share its SOCKS5 ports, and `Stats` names it.
    Raises ConfigError, and TypeError for a provider that is none.
    """

    def __init__(
        self,
        config: Config,
        *,
        connect_handler: ConnectHandler | Sequence[ConnectHandler] | None = None,
        wsgi: Wsgi | None = None,
        token_provider: TokenProvider | Callable[[TokenRequest], Token | str] | None = None,
        on_event: EventHandler | None = None,
        worker: int | None = None,
    ) -> None:
        mapped = connect_handler is not None or wsgi is not None
        require_valid(config, attested=token_provider is not None, mapped=mapped)
        self.config = config
        self.outcome = ""  #: "stopped", "refused" or "failed" once it has ended
        self._apps = Apps(config, wsgi)
        self._handlers: list[ConnectHandler] = [] if wsgi is None else [self._apps]
        if callable(connect_handler):
            self._handlers.append(connect_handler)
        elif connect_handler is not None:
            self._handlers.extend(connect_handler)
        self._token_provider = None if token_provider is None else as_provider(token_provider)
        if token_provider is not None:
            require_relays(config)
        self._on_event = on_event
        self._worker = worker
        self._pid = 0
        self._running = self._stopping = False
        self._cut_short = Event()
        self._ended = Event()
        self._slots: list[Supervisor] = []
        self._socks: list[SocksService] = []
        self._connectors: list[Connector] = []
        self._checks: list[Task] = []
        self._discoveries: list[Discovery] = []

    def add_connect_handler(self, handler: ConnectHandler) -> None:
        """Ask ``handler`` before those that are there already."""
        self._handlers.append(handler)

    # Life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to connect, and return at once. Raises RuntimeError if it is running already."""
        if self._running:
            raise RuntimeError("the agent is running already")
        self._make_runtime()
        self._pid, self._running, self._stopping, self.outcome = os.getpid(), True, False, ""
        self._cut_short.clear()
        self._ended.clear()
        self._dispatcher.start()
        self._context.emit(
            AgentStarted(
                version=__version__,
                backends=tuple(backend.name for backend in self.config.backends),
                sessions=len(self._slots),
            )
        )
        self._watcher.start()
        for socks in self._socks:
            socks.start()
        checks = [check for connector in self._connectors for check in connector.pools.checks]
        self._checks = [self._side_tasks.spawn("health", check.run) for check in checks]
        failed = functools.partial(self._slot_failed, "discovery")
        for discovery in self._discoveries:  # before the sessions, which need what it brings about
            run = discovery.run
            self._checks.append(self._side_tasks.spawn("discovery", run, on_error=failed))
        for slot in self._slots:
            self._start_slot(slot)
        _AGENTS.add(self)

    def stop(self, grace_s: float | None = None) -> None:
        """Stop: no new streams, the existing ones may finish, then close. Blocks.

        ``grace_s`` is how long they may take, by default ``shutdown.graceSeconds``. A second call
        ends the wait of the first at once. Without effect when not running. Whoever gives up
        waiting, by a timeout or a kill, does not end the stop.

        Called by one of the agent's own greenlets (an event or connect handler, a token provider)
        it returns at once, since the stop waits for that greenlet.
        """
        if not self._running:
            return
        if self._stopping:
            self._cut_short.set()
        else:
            self._begin_stop(self.config.shutdown.grace_s if grace_s is None else grace_s)
        if not self._is_own(gevent.getcurrent()):
            self._ended.wait()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until the agent has ended; whether it has. Blocks."""
        return bool(self._ended.wait(timeout_s))

    def __enter__(self) -> Agent:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Whether it was started, in this process, and has not ended."""
        return self._running and self._pid == os.getpid()

    # Figures ---------------------------------------------------------------------------------

    def stats(self, *, streams: bool = False) -> Stats:
        """A snapshot; with ``streams`` it lists every stream. Never blocks.

        Raises RuntimeError before the first `start`.
        """
        if not self._pid:
            raise RuntimeError("the agent was never started")
        context = self._context
        now = context.clock()
        pumps = list(context.pumps)
        return totals(
            context.counters,
            pumps,
            [s.session for s in self._slots if s.session is not None and s.session.opened],
            tuple(slot.stats() for slot in self._slots),
            streams=tuple(stream_stats(pump, now) for pump in pumps) if streams else (),
            targets=tuple(one for connector in self._connectors for one in connector.pools.stats()),
            devices=self._devices.stats(),
            buffered_bytes=context.budget.used_bytes,
            events_dropped=self._dispatcher.dropped,
            worker=self._worker,
        )

    # Inside ----------------------------------------------------------------------------------

    _context: Context
    _dispatcher: Dispatcher
    _devices: Devices
    _watcher: NetworkWatcher
    _slot_tasks: Tasks
    _side_tasks: Tasks

    def _make_runtime(self) -> None:
        self._slot_tasks = Tasks("sessions", self._slot_failed)
        self._side_tasks = Tasks("agent", self._task_failed)
        self._dispatcher = Dispatcher(self._on_event, self._side_tasks)
        self._context = Context(
            config=self.config,
            budget=Budget(self.config.limits.agent_buffer_bytes),
            tasks=Tasks("streams", self._task_failed),
            emit=self._dispatcher.emit,
            task_failed=self._task_failed,
            worker=self._worker,
        )
        self._watcher = NetworkWatcher(self._network_changed, self._side_tasks)
        certificates = Certificates(self._certificate_failed)
        services = self._apps.attach(self._context, certificates)
        names = (f"s{number}" for number in itertools.count(1))
        self._slots, self._socks, self._connectors, self._discoveries = [], [], [], []
        self._devices = Devices(self._context.emit)
        for backend in self.config.backends:
            provider = self._provider(backend)
            connector = Connector(self._context, backend, self._handlers, certificates, services)
            self._connectors.append(connector)
            what = self._context, backend, provider, connector
            make = functools.partial(Supervisor, *what, names=names, refused=self._refused)
            slots = [make(relay) for relay in backend.nexus_addresses]
            self._slots += slots
            if isinstance(provider, TpmTokenProvider):
                open_slot = functools.partial(self._open_slot, make)
                found = Discovery(self._context, backend, provider, slots, open_slot)
                self._discoveries.append(found)
            if backend.socks5_listen_addr:
                socks = SocksService(self._context, backend, slots, self._side_tasks)
                self._socks.append(socks)

    def _provider(self, backend: Backend) -> TokenProvider:
        if self._token_provider is not None:
            return self._token_provider

        def on_stderr(line: str) -> None:
            self._context.emit(TokenStderr(backend=backend.name, line=line))

        return self._devices.provider(backend, on_stderr)

    def _open_slot(self, make: Callable[[str], Supervisor], relay: str) -> Supervisor:
        """Serve a relay that was found later."""
        slot = make(relay)
        self._slots.append(slot)
        self._start_slot(slot)
        return slot

    def _start_slot(self, slot: Supervisor) -> None:
        slot.task = self._slot_tasks.spawn("session", slot.run)
        slot.task.rawlink(functools.partial(self._slot_ended, slot))

    def _certificate_failed(self, error: str) -> None:
        self._context.emit(CertificateFailed(error=error))

    def _refused(self) -> None:
        """A relay has refused the credentials as often as the settings allow."""
        self._give_up("refused")

    def _network_changed(self, detail: str) -> None:
        self._context.emit(NetworkChanged(detail=detail))
        for slot in self._slots:
            slot.network_changed()
        for discovery in self._discoveries:
            discovery.network_changed()

    def _slot_failed(self, task: str, error: BaseException) -> None:
        # A slot without its greenlet would be a session that is down for ever, unseen.
        self._task_failed(task, error)
        self._give_up("failed")

    def _slot_ended(self, slot: Supervisor, _task: Task) -> None:
        # Called by the hub when the greenlet is gone for whatever reason: a kill is not reported.
        if self.running and slot in self._slots and not (self._stopping or self.outcome):
            if any(slot in discovery.retired for discovery in self._discoveries):
                self._slots.remove(slot)
            else:
                self._slot_failed("session", RuntimeError("its greenlet has ended"))

    def _give_up(self, outcome: str) -> None:
        self.outcome = outcome
        if not self._stopping:
            self._begin_stop(0)

    def _begin_stop(self, grace_s: float) -> None:
        self._stopping = True
        self._context.emit(AgentStopping(grace_s=grace_s, streams=len(self._context.pumps)))
        self._apps.drain()
        self._side_tasks.spawn("stop", self._stop, grace_s)
        for socks in self._socks:
            socks.stop()
        for check in self._checks:
            check.kill(block=False)

    def _stop(self, grace_s: float) -> None:
        # Whatever goes wrong, nobody may wait for the end for ever.
        failed = functools.partial(self._task_failed, "stop")
        what = (self._context, self._slots, self._slot_tasks, grace_s, self._cut_short)
        cut = contained(failed, drain, *what)
        contained(failed, self._close_all, cut or 0)
        self.outcome = self.outcome or "stopped"
        self._running = False
        _AGENTS.discard(self)
        self._ended.set()

    def _close_all(self, cut: int) -> None:
        self._watcher.stop()
        self._slot_tasks.join(CLEANUP_S)  # they report the end of their sessions
        self._slot_tasks.kill(CLEANUP_S)
        self._context.tasks.kill(CLEANUP_S)
        self._context.emit(AgentStopped(cut=cut))
        self._dispatcher.stop(CLEANUP_S)
        self._side_tasks.kill(CLEANUP_S)
        with gevent.Timeout(CLEANUP_S, False):  # type: ignore[arg-type]  # a TPM may hang
            self._devices.close()

    def _is_own(self, greenlet: object) -> bool:
        groups = [self._side_tasks, self._slot_tasks, self._context.tasks]
        groups += [slot.session.tasks for slot in self._slots if slot.session is not None]
        return any(greenlet in tasks for tasks in groups)

    def _task_failed(self, task: str, error: BaseException) -> None:
        trace = traceback.TracebackException.from_exception(error, capture_locals=False)
        self._context.emit(
            TaskFailed(
                task=task,
                error=f"{type(error).__name__}: {error}",
                traceback="".join(trace.format()),
            )
        )

    def _forked(self) -> None:
        """In a child of fork: leave the parent's sessions alone."""
        if self._running and self._pid != os.getpid():
            self._running = False
            self._ended.set()
            for slot in self._slots:
                if slot.session is not None:
                    slot.session.forked()
            # What is there now: the child may start the agent again before the callback runs.
            groups = (self._side_tasks, self._slot_tasks, self._context.tasks)
            what = groups, self._context, self._socks
            gevent.get_hub().loop.run_callback(_abandon, *what)


def _abandon(groups: Sequence[Tasks], context: Context, services: Sequence[SocksService]) -> None:
    for tasks in groups:
        tasks.abandon()
    for socks in services:
        socks.disown()
    for pump in list(context.pumps):
        pump.finish(Reason.SESSION_ENDED, "session", "this process is a fork")


_AGENTS: weakref.WeakSet[Any] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # gevent.subprocess runs this in every child before exec, so the rest is left to a callback: it
    # runs if, and only if, the child goes on to run the hub it has inherited.
    for agent in list(_AGENTS):
        agent._forked()


os.register_at_fork(after_in_child=_after_fork_in_child)
