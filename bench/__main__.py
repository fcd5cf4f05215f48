"""``python -m bench``: see ``--help`` and BENCHMARKS.md."""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import Failed, bed, machine, options, report, tools
from bench.figures import shown
from bench.runner import Measurement, Runner, laps


if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.agents import Agent
    from bench.scenarios import Scenario

#: More load than this on the machine before the run, and the run says so.
QUIET_LOAD = 0.5


def main(words: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; the exit code."""
    given = options.arguments(words)
    try:
        scenarios, agents = options.scenarios_of(given), options.agents_of(given)
        external = options.relay_of(given)
    except argparse.ArgumentTypeError as error:
        options.parser().error(str(error))
    if given.list:
        _list(scenarios, agents)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that contexts end
    _allow_descriptors()
    try:
        with contextlib.ExitStack() as stack:
            return _run(stack, given, scenarios, agents, external)
    except Failed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _run(
    stack: contextlib.ExitStack,
    given: argparse.Namespace,
    scenarios: Sequence[Scenario],
    agents: Sequence[Agent],
    external: bed.Relay | None,
) -> int:
    found, settings, repeats = tools.find(), options.settings_of(given), options.repeats_of(given)
    about = machine.describe(found)
    about["relay"] = "an external one" if external else "the development relay"
    about["run"] = f"{repeats} repeats of {settings.seconds:g} s, agents alternating"
    if (load := machine.load_average()) > QUIET_LOAD:
        about["busy"] = f"load {load:.1f} before the run, so figures will not repeat"
    _say(report.facts(about))
    ground = bed.make(stack, _folder(stack, given.keep), found, external, plain=given.plain)
    result = report.Report(scenarios, [agent.name for agent in agents])

    def measured(measurement: Measurement) -> None:
        result.add(measurement)
        _say(_progress(measurement, repeats))

    runner = Runner(ground, settings, measured)
    for lap in laps(agents, scenarios, repeats, quick=given.quick):
        runner.run(lap)
    tables = result.markdown()
    print(tables)
    if given.json:
        given.json.write_text(json.dumps({"about": about, **result.data()}, indent=1))
    if given.write:
        _write(given.write, report.facts(about) + "\n" + tables)
    return 0 if result.worked else 1


def _progress(one: Measurement, repeats: int) -> str:
    if one.failed:
        said = f"FAILED: {one.failed}"
    elif one.skipped:
        said = f"skipped: {one.skipped}"
    else:
        said = ", ".join(f"{name} {shown(value)}" for name, value in one.values.items())
    return f"{one.scenario:<16} {one.agent:<8} {one.repeat + 1}/{repeats}  {said}"


def _list(scenarios: Sequence[Scenario], agents: Sequence[Agent]) -> None:
    for scenario in scenarios:
        print(f"{scenario.name:<16} {scenario.title}")
    print(f"\nagents: {', '.join(agent.name for agent in agents)}")
    for name in tools.find().missing:
        print(tools.install(name))


def _folder(stack: contextlib.ExitStack, keep: Path | None) -> Path:
    if keep is None:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nexusg-bench-")))
    keep.mkdir(parents=True, exist_ok=True)
    return keep.absolute()


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(report.replace_between_marks(file.read_text("utf-8"), text), "utf-8")
    except ValueError as error:
        raise Failed(f"{file} cannot be written: {error}") from error


def _allow_descriptors() -> None:
    """All that may be had, for every child: a thousand streams are two thousand in some."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _say(line: Any) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
