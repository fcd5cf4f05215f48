"""The benchmark itself, as CI runs it, but with less of everything: does it still work?"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.support.source import ROOT


if TYPE_CHECKING:
    from pathlib import Path

QUICK = ("--quick", "--plain", "--seconds", "0.05", "--idle", "5")


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=25)


def test_both_agents_do_what_two_scenarios_ask(tmp_path: Path) -> None:
    file, agents, scenarios = tmp_path / "f.json", ("nexusg", "naive"), ("requests-1", "upload-1")
    done = bench(*QUICK, "--only", *agents, "--scenario", *scenarios, "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    measured = json.loads(file.read_text())["measurements"]
    assert {(one["scenario"], one["agent"]) for one in measured} == {
        (scenario, agent)
        for scenario in ("requests-1", "upload-1")
        for agent in ("nexusg", "naive")
    }
    for one in measured:
        assert one["values"]["units"] > 0
        assert one["values"]["errors"] == 0
        assert one["values"]["peak_mib"] > 10
    assert "| **requests-1** | nexusg |" in done.stdout


def test_an_agent_that_does_not_come_up_is_a_failure() -> None:
    agent = f"broken={sys.executable} -c raise\\ SystemExit(7) {{config}}"
    done = bench(*QUICK, "--agent", agent, "--only", "broken", "--scenario", "requests-1")
    assert done.returncode == 1
    assert "- broken, FAILED: agent-broken ended with 7: requests-1" in done.stdout


def test_the_list_needs_nothing_to_run() -> None:
    done = bench("--list")
    assert done.returncode == 0
    assert "agents: nexusg, naive, nginx" in done.stdout
