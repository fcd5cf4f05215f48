"""The network watcher, over a socket pair and over the kernel."""

from __future__ import annotations

import errno
import os
import socket as native
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from gevent.queue import Queue

from nexusg.agent import network
from nexusg.agent.netlink import DEL_ADDRESS, DEL_ROUTE, Notice
from nexusg.agent.network import DEBOUNCE_S, NetworkWatcher
from nexusg.agent.tasks import Tasks
from tests.agent.netlinks import UP, address, link, route
from tests.conftest import MS


if TYPE_CHECKING:
    from collections.abc import Iterator

linux = pytest.mark.skipif(sys.platform != "linux", reason="netlink is Linux's")


class Watched:
    """A watcher whose kernel is the other end of a socket pair."""

    def __init__(self) -> None:
        self.kernel, self.ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ours.setblocking(False)
        self.details: Queue[str] = Queue()
        self.errors: list[BaseException] = []
        self.pauses: list[float] = []
        self.settled = Event()
        self.settled.set()
        self.tasks = Tasks("test", lambda name, error: self.errors.append(error))
        self.watcher = NetworkWatcher(self.details.put, self.tasks, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.settled.wait()

    def send(self, *messages: bytes) -> None:
        for one in messages:
            self.kernel.send(one)

    def next(self) -> str:
        return self.details.get(timeout=5)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    made = Watched()
    monkeypatch.setattr(network, "_open", lambda: made.ours)
    assert made.watcher.start()
    yield made
    made.watcher.stop()
    made.tasks.kill(1)
    made.kernel.close()
    assert made.errors == []


def test_changes_are_told(watched: Watched) -> None:
    watched.send(link(9999))
    assert watched.next() == "interface 9999: up"
    watched.send(address(9999) + route(0, DEL_ROUTE))
    assert watched.next() == "interface 9999: address added, default route removed"
    assert watched.pauses == [DEBOUNCE_S, DEBOUNCE_S]


def test_interfaces_are_called_by_name(watched: Watched) -> None:
    index, name = native.if_nameindex()[0]
    watched.send(link(index))
    assert watched.next() == f"{name}: up"


@pytest.mark.parametrize(
    ("index", "words"),
    [(0, "up"), (-1, "interface -1: up"), (2**32 - 1, "interface 4294967295: up")],
)
def test_interfaces_without_a_name(index: int, words: str) -> None:
    assert network._words(Notice("link", ("link", index), True)) == words


def test_a_flock_of_changes_is_told_once(watched: Watched) -> None:
    watched.settled.clear()
    watched.send(link(9999))
    while not watched.pauses:
        gevent.sleep(0)
    watched.send(*[link(9999 + n) for n in range(5)])
    watched.settled.set()
    assert watched.next() == (
        "interface 9999: up, interface 10000: up, interface 10001: up and 2 more"
    )
    assert len(watched.pauses) == 1


def test_repetitions_are_no_changes(watched: Watched) -> None:
    """As of Wi-Fi scans, router advertisements and renewed leases."""
    everything = link(9999) + address(9999) + route(9999)
    watched.send(everything)
    watched.next()
    watched.send(everything, everything)
    gevent.sleep(MS)
    watched.send(link(9998))
    assert watched.next() == "interface 9998: up"


def test_what_goes_down_may_come_up_again(watched: Watched) -> None:
    everything = link(9999) + address(9999) + route(9999)
    watched.send(everything)
    first = watched.next()
    watched.send(link(9999, flags=UP), everything)
    assert watched.next() == first


def test_an_interface_that_goes_down_is_no_change_by_itself(watched: Watched) -> None:
    watched.send(link(9999, flags=0), link(9998))
    assert watched.next() == "interface 9998: up"


def test_what_is_removed_is_a_change_even_if_unknown(watched: Watched) -> None:
    watched.send(address(9999, kind=DEL_ADDRESS))
    assert watched.next() == "interface 9999: address removed"
    watched.send(address(9999))
    assert watched.next() == "interface 9999: address added"


def test_what_is_known_has_a_bound(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "MAX_KNOWN", 2)
    watched.send(link(9996), link(9997), link(9998), link(9996))
    watched.next()
    assert len(watched.watcher._known) <= 2


def test_other_greenlets_have_their_turn_in_a_storm(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "MAX_DATAGRAMS", 2)
    watched.send(*[link(9995 + n) for n in range(5)])
    assert watched.next() == (
        "interface 9995: up, interface 9996: up, interface 9997: up and 1 more"
    )
    assert watched.next() == "interface 9999: up"


class Sick:
    """A socket whose next receive fails."""

    def __init__(self, sock: Any, code: int) -> None:
        self._sock = sock
        self._code = code

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def recv(self, size: int) -> bytes:
        if self._code:
            code, self._code = self._code, 0
            raise OSError(code, os.strerror(code))
        data: bytes = self._sock.recv(size)
        return data


@pytest.mark.parametrize("code", [errno.ENOBUFS, errno.EINTR])
def test_lost_messages_are_a_change(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Case 48: ENOBUFS is survived; what was known may be wrong."""
    sick = Watched()
    monkeypatch.setattr(network, "_open", lambda: Sick(sick.ours, code))
    assert sick.watcher.start()
    sick.watcher._known.add(("link", 9999))
    sick.send(link(9999))
    assert sick.next() == "more than could be read, interface 9999: up"
    sick.send(address(9999))
    assert sick.next() == "interface 9999: address added"
    sick.watcher.stop()
    sick.tasks.kill(1)
    sick.kernel.close()


def test_any_other_error_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    sick = Watched()
    monkeypatch.setattr(network, "_open", lambda: Sick(sick.ours, errno.ENOTCONN))
    assert sick.watcher.start()
    sick.send(link())
    sick.tasks.join(5)
    [error] = sick.errors
    assert isinstance(error, OSError)
    assert error.errno == errno.ENOTCONN
    assert sick.ours.fileno() == -1
    sick.kernel.close()


@pytest.mark.parametrize("turns", [0, 1])
def test_stop_closes_the_socket(monkeypatch: pytest.MonkeyPatch, turns: int) -> None:
    """Also before the greenlet has begun."""
    stopped = Watched()
    monkeypatch.setattr(network, "_open", lambda: stopped.ours)
    stopped.watcher.stop()
    stopped.watcher.start()
    for _ in range(turns):
        gevent.sleep(0)
    stopped.watcher.stop()
    stopped.watcher.stop()
    assert stopped.tasks.join(5)
    gevent.sleep(0)
    assert stopped.ours.fileno() == -1
    assert stopped.errors == []
    stopped.kernel.close()


@linux
def test_it_starts_and_stops_with_the_kernel() -> None:
    errors: list[BaseException] = []
    tasks = Tasks("test", lambda name, error: errors.append(error))
    watcher = NetworkWatcher(lambda detail: None, tasks)
    for _ in range(2):
        assert watcher.start()
        assert watcher.note == ""
        gevent.sleep(0)
        watcher.stop()
    assert tasks.join(5)
    assert errors == []


def test_without_netlink_there_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_NETLINK", raising=False)
    tasks = Tasks("test", lambda name, error: None)
    watcher = NetworkWatcher(lambda detail: None, tasks)
    assert not watcher.start()
    assert watcher.note == ("network changes are not watched: this system has no netlink sockets")
    assert len(tasks) == 0
    watcher.stop()


@linux
def test_when_it_is_refused_there_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Refused(socket.socket):
        def bind(self, address: object) -> None:
            made.append(self)
            raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(socket, "socket", Refused)
    watcher = NetworkWatcher(lambda detail: None, Tasks("test", lambda name, error: None))
    assert not watcher.start()
    assert watcher.note == "network changes are not watched: Operation not permitted"
    assert made[0].fileno() == -1


IN_A_NAMESPACE = """
import gevent
from gevent import subprocess
from gevent.queue import Queue
from nexusg.agent.network import NetworkWatcher
from nexusg.agent.tasks import Tasks

details = Queue()
watcher = NetworkWatcher(details.put, Tasks("x", print), lambda seconds: gevent.sleep(0.02))
subprocess.run("ip link add v0 type veth peer name v1", shell=True, check=True)
assert watcher.start(), watcher.note
for command in (
    "ip link set v1 up && ip link set v0 up",
    "ip address add 192.0.2.1/24 dev v0",
    "ip route add default via 192.0.2.2",
    "ip route del default",
    "ip address del 192.0.2.1/24 dev v0",
):
    subprocess.run(command, shell=True, check=True)
    print(details.get(timeout=5))
watcher.stop()
"""


@linux
def test_in_a_network_namespace() -> None:
    """Where this machine lets us have one."""
    probe = "ip link add v0 type veth peer name v1"
    try:
        may = not subprocess.run(
            ["unshare", "-n", "sh", "-c", probe], capture_output=True
        ).returncode
    except FileNotFoundError:
        may = False
    if not may:
        pytest.skip("no network namespaces here")
    command = ["unshare", "-n", sys.executable, "-c", IN_A_NAMESPACE]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    links, *others = done.stdout.splitlines()
    assert sorted(links.split(", ")) == ["v0: up", "v1: up"]
    assert others == [
        "v0: address added",
        "v0: default route added",
        "v0: default route removed",
        "v0: address removed",
    ]
