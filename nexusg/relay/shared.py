"""What the parts of one development relay share: settings, tasks, pools, and its log."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from gevent.event import Event

from nexusg.agent.tasks import Tasks
from nexusg.relay.routing import Pools
from nexusg.relay.verify import Rules


if TYPE_CHECKING:
    from nexusg.relay.link import Link
    from nexusg.relay.settings import Habits, RelayConfig

_LOG = logging.getLogger("nexusg.relay")
# Shown even where nobody has configured logging.
_LEVELS = {"relay.started": logging.WARNING, "relay.task_failed": logging.ERROR}


class Shared:
    """One relay's common state. ``habits`` may be exchanged at any time."""

    def __init__(self, config: RelayConfig) -> None:
        self.config = config
        self.rules = Rules(config.secret)  #: complete once the ports are known
        self.habits: Habits = config.habits
        self.pools: Pools[Link] = Pools()
        self.links: list[Link] = []  #: the agents that are registered
        self.changed = Event()  #: set when ``links`` has changed
        self.tasks = Tasks("relay", self._failed)

    def log(self, event: str, **fields: object) -> None:
        """Tell ``on_log``, or else the logger nexusg.relay, what happened."""
        if self.config.on_log is not None:
            self.config.on_log(event, fields)
            return
        level = _LEVELS.get(event, logging.INFO)
        if _LOG.isEnabledFor(level):
            text = "".join(f" {name}={value}" for name, value in fields.items())
            _LOG.log(level, "%s%s", event, text)

    def _failed(self, name: str, error: BaseException) -> None:
        self.log("relay.task_failed", task=name, error=f"{type(error).__name__}: {error}")
