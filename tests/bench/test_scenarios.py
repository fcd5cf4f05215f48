"""What the tools say, understood; the rest of the scenarios is in test_quick."""

from __future__ import annotations

import json

import pytest

from bench import Failed
from bench.bed import Bed, Relay, Targets
from bench.scenarios import Iperf, catalogue, read_iperf, read_wrk
from bench.tools import Tools
from tests.support.source import ROOT


WRK = """\
Running 1s test @ http://127.0.0.1:8080/small
Requests/sec: 104016.40
RESULT {"requests": 1000, "micros": 500000, "bytes": 159000, "p50_us": 30, "p99_us": 294, \
"status": 1, "connect": 2, "read": 3, "write": 4, "timeout": 5}
"""


def test_what_wrk_says() -> None:
    assert read_wrk(WRK) == {
        "units": 1000,
        "rate": 2000,
        "p50_ms": 0.03,
        "p99_ms": 0.294,
        "errors": 15,
    }


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        ("unable to connect", "no result: unable to connect"),
        (WRK.replace("1000,", "0,"), "no answer"),
    ],
)
def test_what_wrk_says_without_a_result(output: str, complaint: str) -> None:
    with pytest.raises(Failed, match=complaint):
        read_wrk(output)


def test_wrk_is_told_to_say_it() -> None:
    script = (ROOT / "bench/wrk.lua").read_text()
    assert "'RESULT {" in script
    assert all(f'"{key}":' in script for key in json.loads(WRK.partition("RESULT ")[2]))


def iperf(**sums: float) -> str:
    return json.dumps({"end": {"sum_received": sums}})


def test_what_iperf3_says() -> None:
    said = read_iperf(iperf(bytes=3 * 2**20, seconds=1.5))
    assert said == {"units": 3, "rate": 2, "errors": 0}


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        ("nonsense", "no result: nonsense"),
        (json.dumps({"end": {}, "error": "reset"}), "iperf3: reset"),
        (iperf(bytes=0, seconds=1), "nothing was received"),
    ],
)
def test_what_iperf3_says_without_a_result(output: str, complaint: str) -> None:
    with pytest.raises(Failed, match=complaint):
        read_iperf(output)


def test_a_scenario_names_the_package_that_it_lacks() -> None:
    relay = Relay("ws://127.0.0.1:1/connect", ROOT, ROOT, ("127.0.0.1", 2))
    bed = Bed(ROOT, Tools(), relay, Targets("", "", "", ""), ROOT, ROOT)
    lacking = {one.name: one.lacks(bed) for one in catalogue() if one.lacks(bed)}
    assert set(lacking) == {one.name for one in catalogue() if isinstance(one, Iperf)}
    assert set(lacking.values()) == {"iperf3 is not here: apt-get install iperf3"}
