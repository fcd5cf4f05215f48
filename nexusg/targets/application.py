"""From ``wsgi:module:attribute`` to the WSGI application of that name in this process."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import traceback
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from nexusg.config.checks import WSGI
from nexusg.errors import ConfigError


if TYPE_CHECKING:
    from types import ModuleType, TracebackType

#: PEP 3333.
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

#: What an application is called where nothing else is said, as mod_wsgi and Django have it.
ATTRIBUTE = "application"
#: What else they are called.
USUAL = ("app", "application", "create_app", "make_app")


def load(text: str) -> Application:
    """The application that ``wsgi:module:attribute`` names; both names may be dotted.

    ``wsgi:module:attribute()`` calls a factory. Where modules are looked for is up to the process.
    Raises ConfigError for a name that leads nowhere, for a module that cannot be imported, and for
    what is no WSGI application.
    """
    module_name, _, path = text.removeprefix(WSGI).partition(":")
    made = path.endswith("()")
    found: Any = _module(text, module_name)
    for name in (path.removesuffix("()") or ATTRIBUTE).split("."):
        found = _attribute(text, found, name)
    if made:
        with _Blamed(text, "the factory failed"):
            found = found()
    check(found, text)
    return found  # type: ignore[no-any-return]


def check(app: object, name: str) -> None:
    """Raise ConfigError if ``app``, called ``name``, cannot be a WSGI application."""
    if not callable(app):
        text = f"is of type {type(app).__name__}, and a WSGI application is something to call"
        raise _problem(name, text)
    if inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(type(app).__call__):
        raise _problem(name, "is asynchronous (ASGI): wrap it for WSGI, for example with a2wsgi")
    try:
        signature = inspect.signature(app)
    except ValueError:  # written in C, and not telling
        return
    try:
        signature.bind({}, None)
    except TypeError as error:
        way_out = f"; for a factory write {name}()" if _callable_with_nothing(signature) else ""
        text = f"cannot be called with environ and start_response: {error}{way_out}"
        raise _problem(name, text) from None


def _module(text: str, name: str) -> ModuleType:
    with _Blamed(text, f"module {name!r} cannot be imported"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if missing != name and not name.startswith(f"{missing}."):
                raise
        except ValueError:  # nothing in front of the colon
            missing = name
    way_out = "run nexusg in the directory that holds it, or set PYTHONPATH"
    raise _problem(text, f"there is no module {missing!r} here ({os.getcwd()}): {way_out}")


def _attribute(text: str, place: Any, name: str) -> Any:
    try:
        return getattr(place, name)
    except AttributeError:
        known = [known for known in dir(place) if not known.startswith("_")]
    likely = difflib.get_close_matches(name, known, 1) or [one for one in USUAL if one in known]
    hint = f"; did you mean {likely[0]!r}?" if likely else ""
    kind = f"module {place.__name__!r}" if inspect.ismodule(place) else f"{type(place).__name__!r}"
    raise _problem(text, f"{kind} has no {name!r}{hint}")


class _Blamed:
    """A block whose errors become a ConfigError with the place: it is somebody else's code."""

    def __init__(self, name: str, what: str) -> None:
        self._name = name
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, Exception):
            frames = [one for one in traceback.extract_tb(trace) if _tells(one.filename)]
            place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
            text = f"{self._what}: {type(error).__name__}: {error}{place}"
            raise _problem(self._name, text) from error


def _tells(file: str) -> bool:
    """Whether a line of ``file`` says where it went wrong: not those of the import itself."""
    return file not in (__file__, importlib.__file__) and not file.startswith("<")


def _callable_with_nothing(signature: inspect.Signature) -> bool:
    try:
        signature.bind()
    except TypeError:
        return False
    return True


def _problem(name: str, text: str) -> ConfigError:
    return ConfigError([f"{name}: {text}"])
