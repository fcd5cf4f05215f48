"""Where the tokens come from: a command, a shared secret, or the host program's own code."""
