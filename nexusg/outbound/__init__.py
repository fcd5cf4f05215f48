"""Local programs that connect out through a relay: SOCKS5."""
