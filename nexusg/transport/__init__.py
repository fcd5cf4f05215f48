"""Sockets, TLS, the HTTP upgrade and the link that carries WebSocket bytes."""
