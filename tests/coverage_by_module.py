"""Check that every module is covered to 100 % by its own test file alone.

    python tests/coverage_by_module.py nexusg/protocol nexusg/config

A module that only its neighbours' tests reach is not tested, it is used.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]


def check(source: Path) -> str:
    """Run the test file of ``source`` under coverage; return what is wrong, or nothing."""
    module = source.relative_to(ROOT)
    tests = Path("tests", *module.parent.parts[1:], f"test_{module.name}")
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"COVERAGE_FILE": str(Path(folder, "data"))}
        for command in (
            ["run", "-m", "pytest", "-q", str(tests)],
            ["combine", "-q"],
            ["report", f"--include={module}", "--fail-under=100"],
        ):
            done = subprocess.run(
                [sys.executable, "-m", "coverage", *command],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                return f"{module} by {tests}:\n{done.stdout}{done.stderr}"
    return ""


def main(folders: list[str]) -> int:
    """Check every module below ``folders``; return the exit status."""
    sources = [
        path
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.name != "__init__.py"
    ]
    if not sources:
        print(f"no modules below {folders}")
        return 2
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = [problem for problem in pool.map(check, sources) if problem]
    print("\n".join(problems) or f"{len(sources)} modules, each covered by its own test file")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
