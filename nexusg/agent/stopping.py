"""The graceful stop (PROTOCOL.md section 15)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gevent

from nexusg.protocol.messages import Reason, format_id
from nexusg.protocol.states import StreamState


if TYPE_CHECKING:
    from collections.abc import Sequence

    from gevent.event import Event

    from nexusg.agent.context import Context
    from nexusg.agent.session import Session
    from nexusg.agent.shell import StreamShell
    from nexusg.agent.supervisor import Supervisor
    from nexusg.agent.tasks import Tasks


#: How often the streams are looked at.
STEP_S = 0.1
#: For the close frames of all sessions together.
CLOSE_S = 2.0


def drain(
    context: Context,
    slots: Sequence[Supervisor],
    tasks: Tasks,
    grace_s: float,
    cut_short: Event,
) -> int:
    """Let the streams finish, then close the sessions; how many streams were cut. Blocks.

    New streams are refused at once. A stream that is idle for ``shutdown.idleSeconds`` does not
    hold the stop, unless it is known to be at work. ``cut_short`` ends the wait.
    """
    for slot in slots:
        slot.stop()
    for session in _established(slots):
        session.drain()
    deadline = context.clock() + grace_s
    activity: dict[StreamShell, tuple[int, float]] = {}
    while context.pumps and context.clock() < deadline:
        _end_idle(context, activity)
        if context.pumps and cut_short.wait(STEP_S):
            break
    cut = len(context.pumps)
    for pump in list(context.pumps):
        pump.finish(Reason.SHUTDOWN, "agent", "the agent is stopping")
    closing = [tasks.spawn("close", session.close, "stopping") for session in _established(slots)]
    gevent.joinall(closing, timeout=CLOSE_S)
    return cut


def _established(slots: Sequence[Supervisor]) -> list[Session]:
    sessions = [slot.session for slot in slots]
    return [session for session in sessions if session is not None and session.established]


def _end_idle(context: Context, activity: dict[StreamShell, tuple[int, float]]) -> None:
    now, idle_s = context.clock(), context.config.shutdown.idle_s
    for pump in list(context.pumps):
        stream = pump.stream
        seen, since = activity.get(pump, (stream.idle_mark, stream.idle_since))
        if seen != stream.activity or format_id(stream.id) in context.at_work:
            seen, since = stream.activity, now
        activity[pump] = seen, since
        if stream.state is StreamState.OPEN and not pump.buffered_bytes and now - since >= idle_s:
            pump.finish(Reason.SHUTDOWN, "agent", "")
