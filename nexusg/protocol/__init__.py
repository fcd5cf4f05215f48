"""The sans-I/O protocol core: bytes in, bytes and events out.

It knows no socket, clock, log, random source or gevent; tests/test_layers.py sees to that.
"""
