from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

import gevent
import pytest
from gevent.event import Event

from nexusg.cli.orders import HELD, Order, Orders
from nexusg.cli.signals import Signals


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    Listening = Callable[..., AbstractContextManager[Orders]]


class Master:
    """The other end of the pipe."""

    def __init__(self) -> None:
        self.reader, writer = os.pipe()
        self._pipe = open(writer, "wb", buffering=0)  # noqa: SIM115 - see vanish

    def order(self, *orders: Order) -> None:
        self._pipe.write(b"".join(order.value for order in orders))

    def vanish(self) -> None:
        self._pipe.close()


@pytest.fixture
def master() -> Iterator[Master]:
    master = Master()
    yield master
    master.vanish()
    with open(master.reader, "rb"):
        pass


@pytest.fixture
def orphaned() -> Event:
    return Event()


@pytest.fixture
def listening(master: Master) -> Listening:
    """A context with ``Orders`` that does give the signals back."""

    @contextmanager
    def listening(orphaned: Callable[[], None] = lambda: None) -> Iterator[Orders]:
        orders = Orders(master.reader, orphaned)
        try:
            with orders:
                yield orders
        finally:
            Signals.__exit__(orders)

    return listening


@pytest.fixture
def orders(listening: Listening, orphaned: Event) -> Iterator[Orders]:
    with listening(orphaned.set) as orders:
        yield orders


def test_orders(orders: Orders, master: Master) -> None:
    master.order(Order.HANGUP)
    assert orders.hangup.wait(5)
    assert not orders.stop.is_set()
    master.order(Order.STOP)
    assert orders.stop.wait(5)
    assert not orders.at_once.is_set()
    master.order(Order.AT_ONCE)
    assert orders.at_once.wait(5)


def test_several_orders_at_once(orders: Orders, master: Master) -> None:
    master.order(Order.HANGUP, Order.AT_ONCE)
    assert orders.at_once.wait(5)
    assert orders.hangup.is_set()
    assert orders.stop.is_set()


def test_without_a_master_it_stops(orders: Orders, master: Master, orphaned: Event) -> None:
    master.vanish()
    assert orders.stop.wait(5)
    assert orphaned.is_set()
    assert not orders.at_once.is_set()


def test_orders_that_came_before_are_obeyed(master: Master, listening: Listening) -> None:
    master.order(Order.STOP)
    with listening() as orders:
        assert orders.stop.wait(5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_to_the_whole_group_do_not_count(orders: Orders, number: int) -> None:
    for _ in range(2):
        os.kill(os.getpid(), number)
        assert orders.stop.wait(5)
        orders.stop.clear()
    assert not orders.at_once.is_set()


def test_a_hangup_is_an_order_only(orders: Orders) -> None:
    os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGTERM)
    assert orders.stop.wait(5)
    gevent.sleep(0)
    assert not orders.hangup.is_set()


def test_signals_wait_until_it_listens(
    listening: Listening,
) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    try:
        signal.raise_signal(signal.SIGTERM)  # to this thread only; to another it ends the tests
        with listening() as orders:
            assert orders.stop.wait(5)
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & HELD
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_late_signal_does_not_disturb_the_end(listening: Listening) -> None:
    with listening() as orders:
        orders.__exit__()
        signal.raise_signal(signal.SIGINT)  # a KeyboardInterrupt, if it had been given back
