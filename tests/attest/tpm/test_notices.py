"""What a device tells: plain data, and no place for a secret."""

from __future__ import annotations

import dataclasses
import typing

import pytest

from nexusg.attest.tpm import notices


@pytest.mark.parametrize("kind", [*typing.get_args(notices.Notice), notices.Figures])
def test_fields(kind: type) -> None:
    names = {field.name for field in dataclasses.fields(kind)}
    assert not names & {"nonce", "quote", "token", "secret"}


def test_figures_begin_empty() -> None:
    assert not any(dataclasses.astuple(notices.Figures()))
