"""The sans-I/O protocol core: bytes in, bytes and events out. No socket, clock, log, random or gevent."""
