from __future__ import annotations

import subprocess
import sys

import pytest

from nexusg.integrations.worker import is_gevent_based
from tests.support.source import ROOT


pytest.importorskip("gunicorn")


def test_gunicorns_classes() -> None:
    from geventwebsocket.gunicorn.workers import GeventWebSocketWorker
    from gunicorn.workers.ggevent import GeventPyWSGIWorker, GeventWorker
    from gunicorn.workers.gthread import ThreadWorker
    from gunicorn.workers.sync import SyncWorker

    class Derived(GeventWorker):
        """Somebody's own."""

    for yes in (GeventWorker, GeventPyWSGIWorker, GeventWebSocketWorker, Derived):
        assert is_gevent_based(yes.__new__(yes)), yes
    for no in (SyncWorker, ThreadWorker):
        assert not is_gevent_based(no.__new__(no)), no
    assert not is_gevent_based(None)


def test_the_master_gets_no_gevent_of_it() -> None:
    """A sync worker's master has none, and a gevent worker patches only later."""
    code = (
        "import sys, nexusg.integrations.gunicorn; "
        "print([name for name in sys.modules if name.startswith(('gevent', 'gunicorn'))])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
