"""What all sessions of one agent share."""

from __future__ import annotations

import dataclasses
import os
import random
import time
from typing import TYPE_CHECKING

from nexusg.agent.flowtable import FlowTable, affordable
from nexusg.agent.stats import Counters
from nexusg.transport.channel import READ_BYTES


if TYPE_CHECKING:
    from collections.abc import Callable

    from nexusg.agent.budget import Budget
    from nexusg.agent.lifecycle import LifecycleEvent
    from nexusg.agent.shell import StreamShell
    from nexusg.agent.tasks import Tasks
    from nexusg.config.model import Config


@dataclasses.dataclass(slots=True)
class Context:
    """Settings, counters and resources of one agent. Clock, randomness and entropy come in here."""

    config: Config
    budget: Budget
    tasks: Tasks  #: of the streams, which may outlive their session by a moment
    emit: Callable[[LifecycleEvent], None]
    task_failed: Callable[[str, BaseException], None]  #: a greenlet died of a bug
    worker: int | None = None  #: which of several processes with the same configuration
    counters: Counters = dataclasses.field(default_factory=Counters)
    pumps: set[StreamShell] = dataclasses.field(default_factory=set)  #: of all streams
    #: IDs of the streams that are known to be waited for by their user, however idle they look.
    at_work: set[str] = dataclasses.field(default_factory=set)
    flows: FlowTable = dataclasses.field(init=False)  #: those of the streams that are UDP flows
    #: The one buffer that relays and local services are read into; used up before the next switch.
    buffer: bytearray = dataclasses.field(default_factory=lambda: bytearray(READ_BYTES))
    clock: Callable[[], float] = time.monotonic
    rng: Callable[[], float] = random.random
    entropy: Callable[[int], bytes] = os.urandom

    def __post_init__(self) -> None:
        self.flows = FlowTable(affordable(self.config.limits.udp_flows))
