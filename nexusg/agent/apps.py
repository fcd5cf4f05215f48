"""The WSGI applications of one agent: whose a stream is, and what becomes of their errors.

They come from the program (``Agent(config, wsgi=…)``) or are named by ``wsgi:`` targets.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nexusg.agent.lifecycle import AppFailed, AppStderr
from nexusg.config.checks import is_wsgi, pattern, quoted
from nexusg.config.destination import TlsTerminate
from nexusg.config.mapping import PortMapping
from nexusg.errors import ConfigError
from nexusg.targets.application import Application, check, load
from nexusg.targets.router import Router
from nexusg.targets.terminate import terminate
from nexusg.targets.wsgi import WsgiService


if TYPE_CHECKING:
    from collections.abc import Iterator

    from nexusg.agent.connect import ConnectRequest
    from nexusg.agent.context import Context
    from nexusg.config.model import Config
    from nexusg.targets.base import Target
    from nexusg.targets.certificates import Certificates


@dataclass(frozen=True, slots=True)
class Served:
    """A WSGI application and how it is served.

    ``tls_terminate`` has the certificate for users who come by TLS; without one these are refused.
    ``name`` is what logs call the application, by default ``wsgi:`` with its module and name.
    """

    app: Application
    tls_terminate: TlsTerminate = field(default_factory=TlsTerminate)
    name: str = ""


#: What the program gives: one application for all hosts, or several by host pattern. The patterns
#: are those of ``portMappings.*.hosts``, and "default".
Wsgi = Application | Served | Mapping[str, Application | Served]

_DEFAULT = "default"
_PORT = 0  # of the mapping: an application's does not matter


class Apps:
    """The connect handler that gives streams to the applications of the program.

    Raises ConfigError for what is no application and for patterns that are none. Call `attach`
    before it is asked.
    """

    def __init__(self, config: Config, wsgi: Wsgi | None) -> None:
        self._named = {target: load(target) for target in dict.fromkeys(wsgi_targets(config))}
        self._served = _by_pattern(wsgi)
        hosts = {key: _DEFAULT for key in self._served if key != _DEFAULT}
        default = _DEFAULT if _DEFAULT in self._served else None
        self._router = Router({_PORT: PortMapping(default, hosts)})

    def attach(self, context: Context, certificates: Certificates) -> Mapping[str, WsgiService]:
        """Serve by ``context`` from now on; the services of the ``wsgi:`` targets, by target."""
        self._context = context
        self._certificates = certificates
        self._services = {
            key: self._service(served.app, served.name) for key, served in self._served.items()
        }
        named = {target: self._service(app, target) for target, app in self._named.items()}
        self._all = [*self._services.values(), *named.values()]
        return named

    def drain(self) -> None:
        """The agent stops: let each connection end with the request at hand. Never blocks."""
        for service in self._all:
            service.drain()

    def __call__(self, request: ConnectRequest) -> Target | None:
        """The application for a stream; None if there is none. Raises TargetError.

        Never blocks.
        """
        route = self._router.resolve(_PORT, request.hostname)
        if route is None or request.transport != "tcp":
            return None
        how, service = self._served[route.pattern].tls_terminate, self._services[route.pattern]
        tls = request.is_tls and bool(how)
        target = service.connect(request, self._context.tasks.spawn, tls)
        return terminate(target, how, self._certificates) if tls else target

    def _service(self, app: Application, name: str) -> WsgiService:
        return WsgiService(
            app,
            name,
            on_error=functools.partial(self._failed, name),
            on_output=functools.partial(self._said, name),
            at_work=self._context.at_work,
        )

    def _failed(self, name: str, request: ConnectRequest, line: str, error: BaseException) -> None:
        self._context.emit(
            AppFailed(
                app=name,
                stream=request.client_id,
                request=line,
                error=f"{type(error).__name__}: {error}",
                traceback="".join(traceback.format_exception(error)),
            )
        )

    def _said(self, name: str, text: str) -> None:
        self._context.emit(AppStderr(app=name, text=text))


def _by_pattern(wsgi: Wsgi | None) -> dict[str, Served]:
    """What the program gives, as one form, and checked."""
    if wsgi is None:
        return {}
    if not isinstance(wsgi, Mapping):
        return {_DEFAULT: _served(wsgi, "wsgi")}
    served: dict[str, Served] = {}
    for key, value in wsgi.items():
        place = f"wsgi[{quoted(key)}]"
        if problem := pattern(key):
            raise ConfigError([f"{place}: {problem}"])
        [normal] = PortMapping(hosts={key: _DEFAULT}).hosts
        if normal in served:
            raise ConfigError([f"{place}: the name stands here twice"])
        served[normal] = _served(value, place)
    return served


def _served(value: Application | Served, place: str) -> Served:
    served = value if isinstance(value, Served) else Served(value)
    check(served.app, place)
    if served.name:
        return served
    kind = served.app if hasattr(served.app, "__qualname__") else type(served.app)
    return Served(served.app, served.tls_terminate, f"wsgi:{kind.__module__}:{kind.__qualname__}")


def wsgi_targets(config: Config) -> Iterator[str]:
    """The targets that name applications."""
    for backend in config.backends:
        for mapping in backend.port_mappings.values():
            for destination in (mapping.default, *mapping.hosts.values()):
                if destination is not None:
                    yield from filter(is_wsgi, destination.targets)
