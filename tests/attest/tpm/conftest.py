"""Software TPMs for every test of this folder that asks for one."""

from __future__ import annotations

from tests.support.swtpm import swtpm, swtpm_with_certificate


__all__ = ["swtpm", "swtpm_with_certificate"]
