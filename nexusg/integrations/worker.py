"""What the integration relies on in a gunicorn worker; nothing else of it is touched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol


if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nexusg.integrations.lines import Log


class Settings(Protocol):
    """gunicorn's own settings, of which these matter here."""

    graceful_timeout: float
    is_ssl: bool
    proxy_protocol: str | bool
    workers: int


class Worker(Protocol):
    """A worker of gunicorn's class GeventWorker, or of one that is derived from it."""

    age: int  #: counts all workers of a master
    alive: bool  #: False once it is to stop
    cfg: Settings
    log: Log
    run: Callable[[], object]  #: the main loop, which begins after fork and after patching
    server_class: Callable[..., Any] | None  #: makes a server for each bound socket, if set
    sockets: Sequence[Any]  #: the bound ones

    def handle(self, listener: Any, client: Any, addr: Any) -> object:
        """Serve one connection."""

    def notify(self) -> None:
        """Tell the master that this worker is alive. Raises SystemExit if there is none."""


def is_gevent_based(worker: object) -> bool:
    """Whether a worker is a `Worker`. Found out without importing gevent into others."""
    return any(
        (base.__module__, base.__name__) == ("gunicorn.workers.ggevent", "GeventWorker")
        for base in type(worker).__mro__
    )
