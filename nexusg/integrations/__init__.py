"""nexusg inside other servers: what starts an agent there, and hands it their connections."""
