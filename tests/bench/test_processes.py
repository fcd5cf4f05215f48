"""Real processes: started, asked, measured, ended."""

from __future__ import annotations

import os
import select
import sys
from typing import TYPE_CHECKING

import pytest

from bench import Failed
from bench.processes import Process, tree


if TYPE_CHECKING:
    from pathlib import Path

TALKER = "import sys; print(sys.argv[1], flush=True); sys.stdin.read(); print('done')"
PARENT = (
    "import subprocess, sys\n"
    "subprocess.Popen([sys.executable, '-c', 'print(1, flush=True); input()']).wait()"
)


def python(folder: Path, code: str, *arguments: str) -> Process:
    return Process("child", [sys.executable, "-c", code, *arguments], folder, piped=True)


def test_a_process_answers_and_ends(tmp_path: Path) -> None:
    with python(tmp_path, TALKER, '{"port": 7}') as child:
        assert child.read_answer() == {"port": 7}
        child.close_input()
        assert child.read_line(5) == "done"
        assert child.wait_end(5)


def test_all_that_it_says(tmp_path: Path) -> None:
    with python(tmp_path, "print('a\\nb')") as child:
        assert child.read_rest(5) == "a\nb\n"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [("nonsense", "said 'nonsense', not JSON"), ('{"error": "no luck"}', "child: no luck")],
)
def test_answers_that_are_none(tmp_path: Path, line: str, complaint: str) -> None:
    with python(tmp_path, TALKER, line) as child, pytest.raises(Failed, match=complaint):
        child.read_answer()


def test_the_end_of_the_log_says_why_it_ended(tmp_path: Path) -> None:
    with python(tmp_path, "raise SystemExit('the reason')") as child:
        with pytest.raises(Failed, match="child ended\nIts log ends with:\nthe reason"):
            child.read_line(5)
        child.wait_end(5)
        with pytest.raises(Failed, match="child ended with 1"):
            child.usage()


def test_silence_is_a_failure(tmp_path: Path) -> None:
    with python(tmp_path, "input()") as child, pytest.raises(Failed, match=r"nothing for 0\.01 s"):
        child.read_line(0.01)


def test_the_usage_is_that_of_the_whole_tree(tmp_path: Path) -> None:
    with python(tmp_path, PARENT) as child:
        child.read_line(5)
        child.reset_peak()
        usage = child.usage()
        [_, grandchild] = tree(child.pid)
        handle = os.pidfd_open(grandchild)
    assert usage.peak_bytes >= usage.rss_bytes > 5_000_000
    assert usage.descriptors >= 6
    assert usage.cpu_s > 0
    assert select.select([handle], [], [], 5)[0], "it has ended, too"
    os.close(handle)


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="child cannot be started: No such file"):
        Process("child", ["/nowhere/at/all"], tmp_path)
