"""The configuration of the agent as a whole."""

from __future__ import annotations

import dataclasses

import pytest

from nexusg.config import model
from nexusg.config.model import (
    Attestation,
    Backend,
    Config,
    Limits,
    Logging,
    Reconnect,
    Shutdown,
    Tpm,
)


def test_defaults() -> None:
    config = Config()
    assert config.backends == ()
    assert config.shutdown == Shutdown(grace_s=30.0, idle_s=5.0)
    assert config.logging == Logging(level="info", format="auto", streams="all")
    assert config.limits == Limits(4 << 20, 16 << 20, 256 << 20, 1 << 20, 4096, 2048)
    assert config.reconnect == Reconnect(give_up_after_rejections=0)
    assert config.workers == 1


def test_backends_are_a_tuple() -> None:
    backend = Backend(name="a")
    assert Config([backend]).backends == (backend,)  # type: ignore[arg-type]


def test_every_block_is_frozen_and_slotted() -> None:
    blocks = [getattr(model, name) for name in model.__all__]
    assert len(blocks) == 18
    for block in blocks:
        assert block.__dataclass_params__.frozen
        assert "__slots__" in vars(block)


def test_every_field_is_a_setting_with_words() -> None:
    for name in model.__all__:
        for field in dataclasses.fields(getattr(model, name)):
            setting = field.metadata["setting"]
            assert setting.doc.endswith("."), f"{name}.{field.name}"
            assert field.name.endswith("_s") == (setting.unit == "s"), f"{name}.{field.name}"
            assert field.name.endswith("_bytes") == (setting.unit == "bytes")


@pytest.mark.parametrize("size", [model.MIN_MESSAGE_BYTES, 16 << 20])
def test_limits(size: int) -> None:
    assert list(Limits(stream_buffer_bytes=size).findings()) == []


def test_a_stream_is_paused_before_it_is_ended() -> None:
    [finding] = Limits(stream_buffer_bytes=17 << 20).findings()
    assert finding.fatal
    assert finding.text == "must not be above streamBufferMaxBytes (16777216)"


def test_equal_names_are_doubtful() -> None:
    config = Config((Backend(name="a"), Backend(name="b"), Backend(name="a")))
    assert [(one.path, one.fatal) for one in config.findings()] == [
        (("backends", 0, "name"), False),
        (("backends", 2, "name"), False),
    ]


def test_backends_on_one_tpm() -> None:
    """A TPM is one device, and a directory holds one enrolment."""
    same = Attestation(tpm=Tpm("https://a"))
    backends = [
        Backend(name="a", attestation=same),
        Backend(name="b"),
        Backend(name="c", attestation=same),
        Backend(name="d", attestation=Attestation(tpm=Tpm("https://b"))),
        Backend(name="e", attestation=Attestation(tpm=Tpm("https://b", state_dir="/e"))),
    ]
    assert [(one.path[1:], one.fatal) for one in Config(tuple(backends)).findings()] == [
        ((2, "attestation", "tpm"), False),
        ((3, "attestation", "tpm", "stateDir"), True),
        ((4, "attestation", "tpm", "stateDir"), True),
    ]
