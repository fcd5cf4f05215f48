"""One connection to a TPM, which is opened when it is needed, and opened anew when it broke.

It must not know what the keys are for. Everything in it blocks its thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from . import library


if TYPE_CHECKING:
    from collections.abc import Callable

R = TypeVar("R")

# The first handles of what is lost when the TPM is reset (TPM 2.0 part 2, 7.2).
_SESSIONS, _TRANSIENT = 0x02000000, 0x80000000
_MAX_HANDLES = 64  # more than any TPM has room for

#: TCTIs to a TPM that is only there for us: a software TPM without a resource manager.
SOFTWARE_TPM = "swtpm"


class Connection:
    """The TPM at ``tcti``. Not for several threads at once.

    ``tss`` is the TPM library and ``esys`` the open context (ESAPI), for operations that `run`
    calls. ``key`` is the handle of a key that stays loaded between operations; it becomes None
    when the key is gone.
    """

    def __init__(self, tcti: str) -> None:
        self.tss: Any = None
        self.esys: Any = None
        self.key: Any = None
        self._tcti = tcti
        self._transport: Any = None

    def run(self, what: str, operation: Callable[..., R], *args: Any) -> R:
        """Return ``operation(*args)``, which may use ``esys``; ``what`` it does is for errors.

        After a reset of the TPM, or of what leads to it, connection and keys are gone: the
        operation is tried once more with new ones.

        Raises:
            TpmError: it failed.
        """
        again = True
        while True:
            self._open()
            try:
                return operation(*args)
            except self.tss.TSS2_Exception as error:
                if not (self._recover(error.rc) and again):
                    raise library.failed(what, error) from error
                again = False

    def flush(self, handle: Any) -> None:
        """Remove a key or session from the TPM; what cannot be removed is gone already."""
        try:
            self.esys.flush_context(handle)
        except self.tss.TSS2_Exception:
            pass

    def drop_key(self) -> None:
        """Remove ``key``, if there is one."""
        if self.key is not None:
            self.flush(self.key)
            self.key = None

    def close(self) -> None:
        """Leave the TPM without our key, and disconnect. The next `run` connects again."""
        if self.esys is not None:
            self.drop_key()
            self.esys.close()
            self.esys = None
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def _open(self) -> None:
        if self.esys is not None:
            return
        self.tss = library.load()
        try:
            self._transport = self.tss.TCTILdr.parse(self._tcti)
            self.esys = self.tss.ESAPI(self._transport)
        except self.tss.TSS2_Exception as error:
            self.close()
            raise library.not_opened(self._tcti, error) from error

    def _recover(self, code: int) -> bool:
        """Do what may help after the error ``code``. Return whether there was anything to do."""
        if library.is_full(code) and self._tcti.startswith(SOFTWARE_TPM):
            self._empty()
        elif library.is_lost(code):
            self.close()
        else:
            return False
        return True

    def _empty(self) -> None:
        """Remove what others, who died, have left in a software TPM. Ours goes with it."""
        self.key = None
        for first in (_TRANSIENT, _SESSIONS):
            kind = self.tss.TPM2_CAP.HANDLES
            try:
                # The list in it does not keep the answer alive.
                _, found = self.esys.get_capability(kind, first, _MAX_HANDLES)
                for handle in found.data.handles:
                    self.flush(self.esys.tr_from_tpmpublic(handle))
            except self.tss.TSS2_Exception:
                pass  # whatever it is, the second attempt at what was to be done will tell
