"""From a host name or literal to the addresses to try. It opens no sockets."""

from __future__ import annotations

import functools
import ipaddress
from itertools import chain, zip_longest
from typing import Any, NamedTuple

import gevent
from gevent import socket
from gevent.lock import Semaphore
from gevent.monkey import get_original

from nexusg.transport.failure import ConnectError, words


# gevent's pool has 10 native threads, and a look-up that hangs keeps one of them however soon its
# caller has given up. Two stay free for everything else.
MAX_LOOKUPS = 8
# One dial opens at most this many sockets, whatever a name server answers.
MAX_ADDRESSES = 16

_lookups = Semaphore(MAX_LOOKUPS)
# The same few targets are dialled for every stream.
_parse = functools.lru_cache(256)(ipaddress.ip_address)


class SocketAddress(NamedTuple):
    """An address family, and what connect() takes in it."""

    family: int
    address: tuple[Any, ...]


def resolve(host: str, port: int) -> list[SocketAddress]:
    """The addresses of a host in the order to try them, IPv6 and IPv4 in turn (RFC 8305 section 4).

    Raises ConnectError with code ``dns``, or as `known` does. Blocks.
    """
    return known(host, port) or _take_turns(_look_up(host, port))[:MAX_ADDRESSES]


def known(host: str, port: int) -> list[SocketAddress]:
    """The addresses of a host that needs no look-up, or none. Never blocks.

    Literals and ``localhost`` (RFC 6761 section 6.3) need none, so a local service stays reachable
    while the name server hangs. Raises ConnectError with code ``unreachable`` for the zone of an
    interface that does not exist.
    """
    if host.rstrip(".").lower() == "localhost":
        return [_literal("::1", port), _literal("127.0.0.1", port)]
    try:
        return [_literal(host, port)]
    except ValueError:
        return []  # a name
    except OSError as error:
        raise ConnectError(f"cannot connect to {host}: {words(error)}", "unreachable") from error


def _literal(host: str, port: int) -> SocketAddress:
    address = _parse(host)
    if isinstance(address, ipaddress.IPv4Address):
        return SocketAddress(socket.AF_INET, (host, port))
    scope = socket.if_nametoindex(address.scope_id) if address.scope_id else 0
    return SocketAddress(socket.AF_INET6, (host.partition("%")[0], port, 0, scope))


def _look_up(host: str, port: int) -> list[SocketAddress]:
    """Ask the system's resolver in a native thread: same nsswitch and hosts file as the host's."""
    _lookups.acquire()
    task = None
    try:
        task = gevent.get_hub().threadpool.spawn(_ask, host, port)
    finally:
        if task is None:  # interrupted
            _lookups.release()
    # Not when we stop waiting but when the thread is free again.
    task.rawlink(lambda _: _lookups.release())
    answer: Any = task.get()
    if isinstance(answer, Exception):
        why = words(answer) if isinstance(answer, OSError) else "not a valid host name"
        raise ConnectError(f"cannot resolve {host}: {why}", "dns") from answer
    return list(dict.fromkeys(SocketAddress(entry[0], entry[4]) for entry in answer))


def _ask(host: str, port: int) -> Any:
    """Entries of getaddrinfo, or its error: the pool prints errors that are raised."""
    try:
        return get_original("socket", "getaddrinfo")(host, port, 0, socket.SOCK_STREAM)
    except (OSError, ValueError) as error:  # ValueError: a label that is empty or too long
        return error


def _take_turns(addresses: list[SocketAddress]) -> list[SocketAddress]:
    """Alternate the families, beginning with the one that the system prefers."""
    preferred = [entry for entry in addresses if entry.family == addresses[0].family]
    other = [entry for entry in addresses if entry.family != addresses[0].family]
    return [entry for entry in chain(*zip_longest(preferred, other)) if entry]
