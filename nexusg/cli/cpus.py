"""How many processors this process may use: what ``workers: auto`` stands for."""

from __future__ import annotations

import math
import os
from pathlib import Path

from nexusg.config.checks import AUTO, MAX_WORKERS


#: Linux: the control group of this process, and where control groups are.
OWN_GROUP = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")


def processors() -> int:
    """The processors it may run on, or what its container or service is allowed if that is less."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return math.ceil(min(allowed or 1, _quota()))


def how_many(workers: int | str) -> int:
    """The setting ``workers`` as a number."""
    return min(processors(), MAX_WORKERS) if workers == AUTO else int(workers)


def _quota() -> float:
    """The least ``cpu.max`` of the control group and those around it (cgroups(7))."""
    try:
        lines = OWN_GROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    own = next((line[3:] for line in lines if line.startswith("0::")), "/")  # version 2
    folder = Path(own.strip("/"))
    quotas = [_quota_of(GROUPS / one / "cpu.max") for one in (folder, *folder.parents)]
    return min(quotas)


def _quota_of(file: Path) -> float:
    try:
        quota, period = file.read_text(encoding="ascii").split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # no such file, or "max"
        return math.inf
