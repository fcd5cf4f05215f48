"""What the command's exit codes mean. This is the only place that says so."""

from __future__ import annotations

import enum


class Exit(enum.IntEnum):
    """The exit codes of every command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3


MEANINGS = {
    Exit.OK: "done, or stopped as asked",
    Exit.FAILED: "anything else went wrong",
    Exit.USAGE: "the configuration or the command line cannot be used",
    Exit.REFUSED: "the relay kept refusing the credentials (reconnect.giveUpAfterRejections)",
}

#: How an agent ended (``Agent.outcome``), as an exit code.
OUTCOMES = {"stopped": Exit.OK, "refused": Exit.REFUSED, "failed": Exit.FAILED}


def table() -> str:
    """The codes as the help shows them."""
    rows = [f"  {code.value}  {MEANINGS[code]}" for code in Exit]
    return "\n".join(["exit codes:", *rows])
