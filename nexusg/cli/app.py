"""The ``nexusg`` command: reads the command line, runs the command, makes exit codes of errors.

It imports no gevent, and of the commands only the one that is meant: the quick ones stay quick.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from nexusg.errors import ConfigError, NexusgError

from .arguments import parser
from .commands import DEFAULT
from .exits import Exit


if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; what went wrong is on stderr.

    Raises SystemExit for ``--help`` and for a command line that cannot be used.
    """
    given = parser().parse_args(arguments)
    command: Any = import_module(f"nexusg.cli.{given.command or DEFAULT}")
    try:
        code = int(command.execute(given))
        sys.stdout.flush()
        return code
    except ConfigError as error:
        _complain(*error.problems)
        return Exit.USAGE
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    except (NexusgError, OSError) as error:
        _complain(f"nexusg: {error}")
        return Exit.FAILED
    except KeyboardInterrupt:
        return Exit.FAILED


def _complain(*lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr)
