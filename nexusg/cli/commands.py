"""The commands there are, and which one a command line means.

It imports nothing, because it is asked before gevent patches the process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple


if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Command(NamedTuple):
    """A command; its module in this package has the same name."""

    help: str
    patched: bool  #: whether the process is patched for gevent before anything else happens


DEFAULT = "run"

COMMANDS = {
    "run": Command("run the agent; this is what happens without a command", patched=True),
    "serve": Command("run the agent with a WSGI application in this process", patched=True),
    "check": Command("say what is wrong with a configuration", patched=False),
    "route": Command("say where a connection would go, and why", patched=False),
    "tpm": Command("show the device that this TPM makes, or enroll it", patched=True),
    "demo": Command("show a tunnel at work, on this machine alone", patched=True),
    "relay": Command("run a relay for development and tests", patched=True),
    "version": Command("show the versions that a report should name", patched=False),
}

#: Options before the command that take a value, which is no command.
_VALUED = frozenset({"--config", "-config", "--log-level", "--log-format"})
_QUESTIONS = frozenset({"-h", "--help", "--version"})


def chosen(arguments: Sequence[str]) -> str:
    """The command that ``arguments`` name; it may be one that does not exist."""
    return next(_words(arguments), DEFAULT)


def needs_patch(arguments: Sequence[str]) -> bool:
    """Whether these arguments run something on gevent."""
    if not _QUESTIONS.isdisjoint(arguments):
        return False
    command = COMMANDS.get(chosen(arguments))
    return command is not None and command.patched


def _words(arguments: Sequence[str]) -> Iterator[str]:
    rest = iter(arguments)
    for argument in rest:
        if argument in _VALUED:
            next(rest, None)
        elif not argument.startswith("-"):
            yield argument
