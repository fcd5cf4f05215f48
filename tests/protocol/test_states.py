"""The two state tables: every pair of state and input has an answer."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusg.errors import LocalProtocolError
from nexusg.protocol.states import (
    SESSION,
    STREAM,
    SessionInput,
    SessionState,
    StreamInput,
    StreamState,
    advance,
    diagram,
)
from tests.support import diagrams


MACHINES = [
    pytest.param(SESSION, SessionState, SessionInput, id="session"),
    pytest.param(STREAM, StreamState, StreamInput, id="stream"),
]
Table = dict[tuple[Any, Any], Any]


@pytest.mark.parametrize(("table", "states", "inputs"), MACHINES)
def test_every_pair_has_an_answer(table: Table, states: Any, inputs: Any) -> None:
    for state, step in itertools.product(states, inputs):
        if (state, step) in table:
            assert isinstance(advance(table, state, step), states)
        else:
            with pytest.raises(LocalProtocolError, match=f"^{step.value} .* {state.value}$"):
                advance(table, state, step)


@pytest.mark.parametrize(("table", "states", "inputs"), MACHINES)
@given(data=st.data())
def test_any_walk_is_answered(table: Table, states: Any, inputs: Any, data: st.DataObject) -> None:
    """From the first state on, and a refusal changes nothing."""
    state = next(iter(states))
    for step in data.draw(st.lists(st.sampled_from(list(inputs)), max_size=12)):
        try:
            state = advance(table, state, step)
        except LocalProtocolError:
            assert (state, step) not in table
        assert state in states


@pytest.mark.parametrize(("table", "states", "inputs"), MACHINES)
def test_every_state_can_be_reached_and_left(table: Table, states: Any, inputs: Any) -> None:
    first, *_, last = states
    reached = {first}
    while more := {table[pair] for pair in table if pair[0] in reached} - reached:
        reached |= more
    assert reached == set(states)
    for state in set(states) - {last}:
        assert any(pair[0] is state and table[pair] is not state for pair in table)


@pytest.mark.parametrize(("table", "states", "inputs"), MACHINES)
def test_the_last_state_is_final(table: Table, states: Any, inputs: Any) -> None:
    *_, last = states
    assert {table[pair] for pair in table if pair[0] is last} <= {last}


@pytest.mark.parametrize("state", SessionState)
def test_a_connection_can_be_lost_in_any_state(state: SessionState) -> None:
    assert advance(SESSION, state, SessionInput.LOST) is SessionState.CLOSED


@pytest.mark.parametrize("state", [s for s in StreamState if s is not StreamState.CLOSED])
def test_a_stream_can_be_ended_in_any_state(state: StreamState) -> None:
    for step in (StreamInput.ABORT, StreamInput.LOST):
        assert advance(STREAM, state, step) is StreamState.CLOSED


def test_a_refusal_reads_well() -> None:
    with pytest.raises(LocalProtocolError) as caught:
        advance(STREAM, StreamState.CLOSED, StreamInput.DIALLED)
    assert str(caught.value) == "dialled is not possible while the stream is closed"
    with pytest.raises(LocalProtocolError) as caught:
        advance(SESSION, SessionState.NEW, SessionInput.ACCEPTANCE)
    assert str(caught.value) == "acceptance is not possible while the session is new"


def test_the_diagram_has_a_line_for_each_row() -> None:
    first, *lines = diagram(STREAM).splitlines()
    assert first == "stateDiagram-v2"
    assert lines[0] == "    opening --> open: dialled"
    assert len(lines) == len(STREAM)


def test_the_page_of_diagrams_is_not_stale() -> None:
    assert diagrams.PAGE.read_text(encoding="utf-8") == diagrams.page(), (
        "run python -m tests.support.diagrams"
    )
