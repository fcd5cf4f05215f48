"""How many files the process may have open: each stream needs one."""

from __future__ import annotations

import resource


#: Ten thousand streams, and some for everything else.
WANTED = 10_240


def raise_limit() -> str:
    """Raise the soft limit as far as the system lets us; a warning when that is short, else "".

    The soft limit is 1024 in most places because of select(), which nothing here uses.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError):  # not every system lets everything up to its own limit
            pass
    if soft == resource.RLIM_INFINITY or soft >= WANTED:
        return ""
    return (
        f"only {soft} files may be open, and every stream needs one; "
        f"raise the limit (ulimit -n, minfds of supervisord, LimitNOFILE of systemd)"
    )
