"""The agent inside gunicorn: two lines in ``gunicorn.conf.py``, which its master runs.

    from nexusg.integrations.gunicorn import serve
    pre_fork = serve("nexusg.yaml")

The configuration is read and judged here, in the master, and nothing is started: that happens in
each worker's main loop (`tunnel`), where gevent has patched the process. So nothing here may import
gevent.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from typing import TYPE_CHECKING, Literal, cast

from nexusg.config.loader import load
from nexusg.errors import ConfigError
from nexusg.integrations.generations import Generations
from nexusg.integrations.leader import Leadership, default_path
from nexusg.integrations.worker import is_gevent_based


if TYPE_CHECKING:
    from collections.abc import Callable

    from nexusg.config.model import Config
    from nexusg.integrations.worker import Worker

Deliver = Literal["memory", "socket", "config"]
Mode = Literal["every worker", "one per host"]

_CHOICES = {
    "deliver": ("memory", "socket", "config"),
    "mode": ("every worker", "one per host"),
}


def serve(
    config: str | os.PathLike[str],
    *,
    deliver: Deliver = "memory",
    mode: Mode = "every worker",
    lock: str | os.PathLike[str] | None = None,
) -> Hook:
    """Make the hook that puts an agent into each worker; it is for ``pre_fork`` or ``post_fork``.

    ``config`` is the agent's configuration file, in which port mappings may be missing unless they
    are to decide where streams go. ``deliver`` says where the streams go: ``memory``,
    the worker's own handling of connections, as if the user had connected to it; ``socket``, the
    first socket that gunicorn listens on; ``config``, the port mappings of the file. ``mode`` says
    who has sessions: ``every worker``, or ``one per host``, where the others stand by. ``lock`` is
    the file that these agree by, in the system's folder for temporary files unless told otherwise.

    Raises ValueError, and SystemExit with a message if the file cannot be used: gunicorn does not
    start then. In a reload it goes on with what the file said before, and logs the problems.
    """
    for name, value in (("deliver", deliver), ("mode", mode)):
        if value not in _CHOICES[name]:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, _CHOICES[name]))}")
    path = os.fspath(config)
    found, problems = _load(path, mapped=deliver != "config")
    lock_path = None
    if mode == "one per host":
        lock_path = default_path(path) if lock is None else os.fspath(lock)
    return Hook(Plan(found, problems, deliver, lock_path))


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What the workers of one generation are to do."""

    config: Config
    problems: tuple[str, ...]  #: of the file as it is now, if ``config`` is what it was before
    deliver: Deliver
    lock: str | None  #: where they agree on a leader; None if each has sessions of its own


class Hook:
    """What gunicorn calls before, or right after, it forks a worker. It starts nothing."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._generations = _generations()

    def __call__(self, server: object, worker: object) -> None:
        """Have the main loop of ``worker`` begin with an agent beside it."""
        if not is_gevent_based(worker):
            _without_tunnel(worker)
            return
        one = cast("Worker", worker)
        self._generations.announce(one.age)
        one.run = functools.partial(_run, self._plan, self._generations, one, one.run)


def _without_tunnel(worker: object) -> None:
    log = getattr(worker, "log", None)
    if log is None:
        raise RuntimeError("nexusg: serve() makes a hook for pre_fork, and was used for another")
    log.error(
        "nexusg: no tunnel, the agent needs a gevent worker and this is a %s: "
        "run gunicorn with --worker-class gevent",
        type(worker).__name__,
    )


def _run(plan: Plan, generations: Generations, worker: Worker, serve: Callable[[], object]) -> None:
    """The worker's main loop. Blocks."""
    from nexusg.integrations.tunnel import run_beside  # not before gevent has patched the process

    for problem in plan.problems:
        worker.log.error("nexusg: %s", problem)
    leadership = None if plan.lock is None else Leadership(plan.lock)
    run_beside(worker, serve, plan.config, plan.deliver, leadership, generations)


# In one master ---------------------------------------------------------------------------------

# It runs gunicorn.conf.py anew for each reload, where an exception would be the end of the server.
_LAST_GOOD: dict[tuple[str, bool], Config] = {}


def _load(path: str, *, mapped: bool) -> tuple[Config, tuple[str, ...]]:
    """What the file says, or said before the reload, and then what is wrong with it now."""
    key = os.path.realpath(path), mapped
    try:
        loaded = load(path, mapped=mapped)
    except ConfigError as error:
        if key not in _LAST_GOOD:
            advice = f"gunicorn has not started: mend {path}, and start it again"
            text = "\n".join(["nexusg: no usable configuration:", str(error), advice])
            raise SystemExit(text) from None
        advice = f"{path} cannot be used, so this worker does what it said before the reload"
        return _LAST_GOOD[key], (*error.problems, advice)
    for warning in loaded.warnings:
        sys.stderr.write(f"nexusg: warning: {warning}\n")
    _LAST_GOOD[key] = loaded.config
    return loaded.config, ()


@functools.cache
def _generations() -> Generations:
    """The same page for all generations, whose hooks a reload makes anew."""
    return Generations()
