"""A connection to a TPM survives what happens to it, as far as that is possible."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from nexusg.attest.tpm import templates
from nexusg.attest.tpm.connection import Connection
from nexusg.errors import TpmError
from tests.support.swtpm import require


if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.swtpm import Swtpm


@pytest.fixture
def connection(swtpm: Swtpm) -> Iterator[Connection]:
    """A connection to a new software TPM."""
    made = Connection(swtpm.tcti)
    yield made
    made.close()


def primary(connection: Connection) -> Any:
    """Make a key, whose handle is returned."""
    template = templates.storage_key(connection.tss)
    handle, *_ = connection.esys.create_primary(connection.tss.TPM2B_SENSITIVE_CREATE(), template)
    return handle


def fill(connection: Connection) -> None:
    """What programs leave that die on a TPM without a resource manager."""
    for _ in range(3):
        primary(connection)
    session(connection)


def session(connection: Connection) -> Any:
    tss = connection.tss
    none, plain = tss.ESYS_TR.NONE, tss.TPMT_SYM_DEF(algorithm=tss.TPM2_ALG.NULL)
    kind, digest = tss.TPM2_SE.POLICY, tss.TPM2_ALG.SHA256
    return connection.esys.start_auth_session(none, none, kind, plain, digest)


def handles(connection: Connection) -> list[int]:
    """The keys and sessions in the TPM."""

    def found() -> list[int]:
        kind = connection.tss.TPM2_CAP.HANDLES
        found = []
        for first in (0x80000000, 0x02000000):
            _, answer = connection.esys.get_capability(kind, first, 64)
            found += list(answer.data.handles)
        return found

    return connection.run("list handles", found)


def test_it_is_opened_when_it_is_needed_and_again_after_a_close(connection: Connection) -> None:
    assert connection.esys is None
    connection.close()
    for _ in range(2):
        assert connection.run("be random", lambda: len(bytes(connection.esys.get_random(8)))) == 8
        connection.close()
        assert connection.esys is None


def test_its_key_leaves_the_tpm_with_it(connection: Connection) -> None:
    connection.key = connection.run("make a key", primary, connection)
    assert len(handles(connection)) == 1
    connection.close()
    assert connection.key is None
    assert handles(connection) == []
    connection.drop_key()  # there is none


def test_what_is_gone_already_is_flushed_without_complaint(connection: Connection) -> None:
    key = connection.run("make a key", primary, connection)
    connection.flush(key)
    connection.flush(key)
    assert handles(connection) == []


def test_after_a_reset_the_operation_is_done_again(connection: Connection, swtpm: Swtpm) -> None:
    connection.key = connection.run("make a key", primary, connection)
    asked: list[bool] = []

    def use() -> str:
        asked.append(connection.key is not None)
        connection.key = connection.key or primary(connection)
        return type(connection.esys.read_public(connection.key)[0]).__name__

    swtpm.restart()
    assert connection.run("read a key", use) == "TPM2B_PUBLIC"
    assert asked == [True, False]


def test_an_operation_is_not_done_a_third_time(connection: Connection) -> None:
    asked: list[None] = []

    def use() -> None:
        asked.append(None)
        key = primary(connection)
        connection.flush(key)
        connection.esys.read_public(key)

    with pytest.raises(TpmError, match=r"^the TPM cannot read a key: esapi:.*\(0x70018\)$"):
        connection.run("read a key", use)
    assert len(asked) == 2


def test_what_would_not_help_is_not_tried(connection: Connection) -> None:
    asked: list[None] = []

    def refuse() -> None:
        asked.append(None)
        raise connection.tss.TSS2_Exception(0x1DF)

    with pytest.raises(TpmError, match=r"^the TPM cannot sign: .*\(0x1df\)$") as caught:
        connection.run("sign", refuse)
    assert caught.value.code == "tpm"
    assert len(asked) == 1


def test_a_tpm_that_is_down_is_an_error_until_it_is_up(
    connection: Connection, swtpm: Swtpm
) -> None:
    swtpm.kill()
    for _ in range(2):
        with pytest.raises(TpmError, match="cannot be opened") as caught:
            connection.run("make a key", primary, connection)
        assert caught.value.code == "tpm_io"
    swtpm.start()
    connection.run("make a key", primary, connection)
    swtpm.kill()
    with pytest.raises(TpmError, match="cannot be opened"):
        handles(connection)


def test_an_unknown_kind_of_tpm_names_the_package() -> None:
    require()
    with pytest.raises(TpmError, match="libtss2-tcti-abacus0") as caught:
        Connection("abacus:x").run("count", lambda: None)
    assert caught.value.code == "tpm_missing"


def test_a_software_tpm_that_is_full_is_emptied(connection: Connection) -> None:
    connection.run("fill it", fill, connection)
    connection.key = "stale"
    connection.run("make a key", primary, connection)
    assert connection.key is None
    assert len(handles(connection)) == 1


def test_hardware_is_never_emptied(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    connection.run("fill it", fill, connection)
    monkeypatch.setattr(connection, "_tcti", "device:/dev/tpm0")
    with pytest.raises(TpmError, match="other programs keep keys in it"):
        connection.run("make a key", primary, connection)
    monkeypatch.undo()
    assert len(handles(connection)) == 4


def test_a_tpm_that_cannot_be_emptied_stays_full(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection.run("fill it", fill, connection)

    def fail(*_: object) -> None:
        raise connection.tss.TSS2_Exception(0xA000A)

    monkeypatch.setattr(connection.esys, "get_capability", fail)
    with pytest.raises(TpmError, match="other programs keep keys in it"):
        connection.run("make a key", primary, connection)
