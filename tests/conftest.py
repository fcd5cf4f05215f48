"""What every test gets: a patched process, tidy greenlets, its logging settings back.

The process is patched before anything else is imported, so threads in tests are greenlets.
"""
# ruff: noqa: E402 - patching must come before the other imports

from __future__ import annotations

from gevent import monkey


monkey.patch_all()

import logging
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any

import gevent
import hypothesis
import pytest


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: One millisecond of waiting in real time, for the few tests that must: ``gevent.sleep(5 * MS)``.
#: A slow machine sets NEXUSG_TEST_MS to a number above 1.
MS = 0.001 * float(os.environ.get("NEXUSG_TEST_MS", "1"))

#: How long a greenlet that is already ending may outlive its test. Costs time only when one does.
GRACE_S = 500 * MS

hypothesis.settings.register_profile("default", derandomize=True, max_examples=50, deadline=None)
hypothesis.settings.register_profile(
    "thorough", derandomize=False, max_examples=2000, deadline=None, print_blob=True
)
hypothesis.settings.load_profile("default")  # pytest --hypothesis-profile=thorough


class Greenlets:
    """What happened to the greenlets and loop callbacks of one test.

    A test that provokes a failure on purpose takes it out of ``failures``. An error that another
    greenlet collects with ``get()`` counts as well: gevent reports it all the same.
    """

    def __init__(self) -> None:
        self.spawned: list[gevent.Greenlet[..., Any]] = []
        self.failures: list[str] = []

    def handle_error(self, context: object, kind: type, value: object, trace: Any) -> None:
        """Stand in for ``hub.handle_error``, which would only print."""
        hub = gevent.get_hub()
        if context is None or issubclass(kind, hub.SYSTEM_ERROR):
            hub.handle_system_error(kind, value, trace)  # Ctrl-C ends the run
            return
        if issubclass(kind, hub.NOT_ERROR):
            return
        if not isinstance(value, BaseException):  # the hub may pass what exceptions are made from
            value = kind(value)
        lines = traceback.format_exception(kind, value, trace)
        self.failures.append(f"{context!r} failed:\n{''.join(lines)}")

    def complaints(self) -> list[str]:
        """Wait for what is ending, end the rest, and return what a test must not leave. Blocks."""
        alive = [greenlet for greenlet in self.spawned if not greenlet.ready()]
        if alive:
            gevent.joinall(alive, timeout=GRACE_S)
        alive = [greenlet for greenlet in alive if not greenlet.ready()]
        outlived = [f"{greenlet!r} outlived its test\n" for greenlet in alive]
        try:
            gevent.killall(alive, timeout=GRACE_S)
        except gevent.Timeout:
            outlived.append("… and would not die\n")
        return self.failures + outlived


@pytest.fixture(autouse=True)
def tidy_greenlets() -> Iterator[Greenlets]:
    """Fail the test when a greenlet dies of an error or outlives it (gevent's testing/leakcheck).

    Set up first and torn down last of what a test uses, so fixtures end their servers before.
    """
    greenlets = Greenlets()
    hub = gevent.get_hub()
    noticed = greenlets.spawned.append
    hub.handle_error = greenlets.handle_error
    gevent.Greenlet.add_spawn_callback(noticed)
    try:
        yield greenlets
        complaints = greenlets.complaints()
    finally:
        gevent.Greenlet.remove_spawn_callback(noticed)
        del hub.handle_error
    if complaints:
        pytest.fail("\n".join(complaints), pytrace=False)


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Undo what a test does to the root logger and to structlog's global configuration."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    restore_structlog = _structlog_state()
    yield
    root.setLevel(level)
    for handler in root.handlers[:]:
        if handler not in handlers:
            root.removeHandler(handler)
    restore_structlog()


def _structlog_state() -> Callable[[], None]:
    """Return a function that brings the present configuration back."""
    structlog = sys.modules.get("structlog")
    if structlog is not None and structlog.is_configured():
        config = structlog.get_config()
        return lambda: structlog.configure(**config)

    def reset() -> None:
        if structlog := sys.modules.get("structlog"):  # not worth an import where it is not used
            structlog.reset_defaults()
            structlog.contextvars.clear_contextvars()

    return reset
