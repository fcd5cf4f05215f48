"""What is known of a user; how it is made of a stream is in tests/agent/test_connect.py."""

from __future__ import annotations

import dataclasses

import pytest

import nexusg
from nexusg.agent import connect
from nexusg.targets.request import ConnectRequest
from tests.targets.users import user


def test_it_has_one_class_under_all_its_names() -> None:
    assert nexusg.ConnectRequest is connect.ConnectRequest is ConnectRequest


def test_it_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        user().port = 1  # type: ignore[misc]
