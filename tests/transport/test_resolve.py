"""From names to addresses."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import Greenlet
from gevent.monkey import get_original

from nexusg.transport import resolve as module
from nexusg.transport.deadline import Deadline, limit
from nexusg.transport.failure import ConnectError
from nexusg.transport.resolve import MAX_ADDRESSES, MAX_LOOKUPS, SocketAddress, resolve


if TYPE_CHECKING:
    from collections.abc import Callable

V4, V6 = socket.AF_INET, socket.AF_INET6

Answer = list[tuple[int, int, int, str, tuple[Any, ...]]]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Puts a function in the place of the system's getaddrinfo. It runs in a native thread."""

    def replace(native: Callable[..., Any]) -> None:
        monkeypatch.setattr(module, "get_original", lambda *_: native)

    return replace


def entry(family: int, host: str) -> Any:
    return (family, socket.SOCK_STREAM, 6, "", (host, 80) if family == V4 else (host, 80, 0, 0))


def test_literals_need_no_look_up(answers: Any) -> None:
    answers(lambda *_: pytest.fail("asked the resolver"))
    loopback = socket.if_nameindex()[0]
    assert resolve("192.0.2.7", 80) == [(V4, ("192.0.2.7", 80))]
    assert resolve("2001:db8::7", 80) == [(V6, ("2001:db8::7", 80, 0, 0))]
    assert resolve(f"fe80::1%{loopback[1]}", 80) == [(V6, ("fe80::1", 80, 0, loopback[0]))]


def test_a_zone_that_does_not_exist() -> None:
    with pytest.raises(ConnectError, match="cannot connect to fe80::1%nowhere0: ") as caught:
        resolve("fe80::1%nowhere0", 80)
    assert caught.value.code == "unreachable"


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "localhost."])
def test_localhost_needs_no_look_up(answers: Any, name: str) -> None:
    answers(lambda *_: pytest.fail("asked the resolver"))
    assert resolve(name, 80) == [(V6, ("::1", 80, 0, 0)), (V4, ("127.0.0.1", 80))]


def test_the_system_is_asked() -> None:
    assert resolve("127.1", 80) == [(V4, ("127.0.0.1", 80))]  # only inet_aton() knows this form


def test_what_runs_in_the_native_thread() -> None:
    """Called here too, as coverage does not follow it there."""
    assert [entry[4] for entry in module._ask("127.1", 80)] == [("127.0.0.1", 80)]
    assert isinstance(module._ask("a..test", 80), ValueError)


def test_families_take_turns_from_the_preferred_one_on(answers: Any) -> None:
    found = [entry(V6, "::a"), entry(V6, "::b"), entry(V6, "::c"), entry(V4, "10.0.0.1")]
    answers(lambda *_: [*found, found[0]])
    assert [address[0] for _, address in resolve("x.test", 80)] == ["::a", "10.0.0.1", "::b", "::c"]


def test_addresses_are_limited(answers: Any) -> None:
    answers(lambda *_: [entry(V4, f"10.0.0.{number}") for number in range(100)])
    assert len(resolve("x.test", 80)) == MAX_ADDRESSES


def test_an_unknown_name(answers: Any) -> None:
    def unknown(*_: Any) -> Answer:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    answers(unknown)
    with pytest.raises(ConnectError, match=r"resolve x\.test: Name or service not known") as caught:
        resolve("x.test", 80)
    assert caught.value.code == "dns"
    assert isinstance(caught.value.__cause__, socket.gaierror)


@pytest.mark.parametrize("name", ["a" * 70 + ".test", "a..test"])
def test_a_name_that_cannot_be(name: str) -> None:
    with pytest.raises(ConnectError, match="not a valid host name") as caught:
        resolve(name, 80)
    assert caught.value.code == "dns"


class Late(Exception):
    pass


class Gate:
    """Shut until it is opened, for native threads: threading.Event would wait for greenlets."""

    def __init__(self) -> None:
        self._lock = get_original("_thread", "allocate_lock")()
        self._lock.acquire()

    def wait(self) -> None:
        with self._lock:
            pass

    def open(self) -> None:
        self._lock.release()


def test_a_hung_resolver_does_not_take_all_threads(answers: Any) -> None:
    """A look-up occupies its thread after its caller has given up, and is counted until then."""
    gate = Gate()
    asked: list[str] = []

    def hang(host: str, *_: Any) -> Answer:
        asked.append(host)
        gate.wait()
        return [entry(V4, "192.0.2.7")]

    answers(hang)
    try:
        callers = [Greenlet.spawn(resolve, "x.test", 80) for _ in range(MAX_LOOKUPS + 3)]
        while len(asked) < MAX_LOOKUPS:
            gevent.sleep(0.001)
        gevent.killall(callers)
        with pytest.raises(Late), limit(Deadline(0.01), Late()):
            resolve("x.test", 80)
        assert len(asked) == MAX_LOOKUPS
        assert gevent.get_hub().threadpool.apply(sum, ([1, 2],)) == 3, "others find a thread"
        assert resolve("127.0.0.1", 80), "and literals and localhost need none"
    finally:
        gate.open()
    assert resolve("after.test", 80) == [SocketAddress(V4, ("192.0.2.7", 80))]
    while module._lookups.counter < MAX_LOOKUPS:
        gevent.sleep(0)


def test_giving_up_before_there_is_a_thread_returns_the_turn(answers: Any) -> None:
    answers(lambda *_: pytest.fail("asked the resolver"))
    gate = Gate()
    pool = gevent.get_hub().threadpool
    tasks = [pool.spawn(gate.wait) for _ in range(pool.maxsize + 1)]  # it queues one more
    try:
        with pytest.raises(Late), limit(Deadline(0.01), Late()):
            resolve("x.test", 80)
    finally:
        gate.open()
        gevent.wait(tasks)
    assert module._lookups.counter == MAX_LOOKUPS
