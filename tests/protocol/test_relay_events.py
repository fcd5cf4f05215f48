from __future__ import annotations

from nexusg.protocol.relay_events import TokenReceived


def test_the_token_is_not_shown() -> None:
    assert repr(TokenReceived("attest", "secret")) == "TokenReceived(stage='attest')"
