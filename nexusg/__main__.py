"""``python -m nexusg`` and the ``nexusg`` command. Only here is a process ever patched."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from nexusg.cli.commands import needs_patch


if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that ``arguments`` (default: those of the process) name; return its code.

    A command that runs on gevent has the process patched before anything else is imported.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if needs_patch(arguments):
        from gevent import monkey

        monkey.patch_all()
    from nexusg.cli import app

    return app.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
