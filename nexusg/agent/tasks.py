"""Named greenlets that are reported, counted and ended together.

The only place in the package that makes greenlets (tests/test_layers.py sees to that), so none can
die unseen or outlive its owner. It knows neither sessions nor streams nor logs.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

import gevent


if TYPE_CHECKING:
    from collections.abc import Callable

    Task = gevent.Greenlet[..., Any]


def contained(
    on_error: Callable[[BaseException], object], function: Callable[..., Any], *args: Any
) -> Any:
    """Call ``function(*args)``; what it raises goes to ``on_error``, and None is returned then.

    A kill still ends the greenlet, quietly; Ctrl-C and sys.exit() travel to the main greenlet.
    """
    try:
        return function(*args)
    except (gevent.GreenletExit, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a leaked gevent.Timeout is a failure like any other
        on_error(error)
        return None


class Tasks:
    """The greenlets of one owner.

    ``on_error(name, error)`` is called, in the failed task, with every error but GreenletExit;
    it must not raise. It decides what the failure means: a Tasks ends nothing by itself.
    """

    def __init__(self, name: str, on_error: Callable[[str, BaseException], None]) -> None:
        self.name = name
        self._on_error = on_error
        self._running: set[Task] = set()
        self._ended = self._running.discard  # bound once, not once a task

    def __len__(self) -> int:
        """How many tasks have not ended."""
        return len(self._running)

    def __contains__(self, greenlet: object) -> bool:
        """Whether ``greenlet`` is one of the tasks, and has not ended."""
        return greenlet in self._running

    def __repr__(self) -> str:
        return f"<Tasks {self.name}: {len(self)} running>"

    def spawn(
        self,
        name: str,
        function: Callable[..., Any],
        *args: Any,
        on_error: Callable[[BaseException], object] | None = None,
    ) -> Task:
        """Run ``function(*args)`` in a greenlet called ``name``, from the next loop turn on.

        A task that is killed before that turn never runs, so what needs closing belongs to the
        spawner until the function has begun. The value of a task that failed is None. ``on_error``
        is told of its failure instead of the owner.
        """
        # Nothing stands between: each call on the way to where a task waits costs memory.
        on_error = on_error or functools.partial(self._on_error, name)
        task = gevent.Greenlet(contained, on_error, function, *args)
        task.name = name
        self._running.add(task)
        # A link also sees the task that was killed before it ran; a ``finally`` in it would not.
        task.rawlink(self._ended)
        task.start()
        return task

    def join(self, timeout_s: float) -> bool:
        """Wait until no task but the caller is left. Return whether that was reached. Blocks."""
        return self._wait(timeout_s, kill=False)

    def kill(self, timeout_s: float) -> bool:
        """End every task but the caller, and wait until their ``finally`` blocks have run. Blocks.

        Tasks that these spawn meanwhile are ended as well. Return whether all ended in time. A
        second call interrupts what is still running once more.
        """
        return self._wait(timeout_s, kill=True)

    def abandon(self) -> None:
        """End every task but the caller without waiting. Never blocks."""
        current = gevent.getcurrent()
        gevent.killall([task for task in self._running if task is not current], block=False)

    def _wait(self, timeout_s: float, *, kill: bool) -> bool:
        deadline = time.monotonic() + timeout_s
        current = gevent.getcurrent()
        while others := [task for task in self._running if task is not current]:
            if kill:
                gevent.killall(others, block=False)
            left_s = deadline - time.monotonic()
            if len(gevent.joinall(others, timeout=max(left_s, 0))) < len(others):
                return False
        return True
