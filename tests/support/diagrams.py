"""The page of state diagrams; ``python -m tests.support.diagrams`` draws it from the tables."""

from __future__ import annotations

from nexusg.protocol.states import SESSION, STREAM, diagram
from tests.support.source import ROOT


PAGE = ROOT / "docs" / "states.md"

TEXT = """\
# States

Generated from the tables in `nexusg/protocol/states.py` by `python -m tests.support.diagrams`; a
test fails when this page is older than they are. What is not drawn is a `LocalProtocolError`.

## Session

The life of one WebSocket. It is `attested` once both tokens have been sent, and `open` only when
the relay has proven that it accepted them.

```mermaid
{session}
```

## Stream

The life of one public client's connection at the agent, or of one that the relay makes for a local
program. It is `flushing` when the local end has finished and the relay has yet to acknowledge the
last messages, and `delivering` when the other end has gone and the local one has yet to take the
last bytes.

```mermaid
{stream}
```
"""


def page() -> str:
    """What the page should hold."""
    return TEXT.format(session=diagram(SESSION), stream=diagram(STREAM))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
