from __future__ import annotations

from nexusg.cli.exits import MEANINGS, OUTCOMES, Exit, table


def test_codes_do_not_change() -> None:
    assert {code.name: code.value for code in Exit} == {
        "OK": 0,
        "FAILED": 1,
        "USAGE": 2,
        "REFUSED": 3,
    }


def test_every_code_has_a_meaning_and_a_line() -> None:
    assert set(MEANINGS) == set(Exit)
    lines = table().splitlines()
    assert len(lines) == 1 + len(Exit)
    assert lines[-1].startswith("  3  the relay kept refusing")


def test_every_outcome_of_an_agent_has_a_code() -> None:
    assert OUTCOMES == {"stopped": Exit.OK, "refused": Exit.REFUSED, "failed": Exit.FAILED}
