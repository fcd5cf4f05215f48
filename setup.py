"""Describes the package. The runtime list is requirements.txt, the version nexusg/version.py."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup


HERE = Path(__file__).resolve().parent


def requirements(name: str) -> list[str]:
    """Return the requirements in file ``name``, without its comments."""
    lines = (HERE / name).read_text(encoding="utf-8").splitlines()
    return [line for line in (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines) if line]


def version() -> str:
    """Return the version by pattern: importing the package would need what it depends on."""
    found = re.search(r'__version__ = "(.+)"', (HERE / "nexusg/version.py").read_text("utf-8"))
    assert found, "no version in nexusg/version.py"
    return found[1]


README = HERE / "README.md"

setup(
    name="nexusg",
    version=version(),
    description="A gevent-based reverse-tunnel agent for the Nexus relay",
    long_description=README.read_text("utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["nexusg", "nexusg.*"]),
    package_data={"nexusg": ["py.typed"]},
    python_requires=">=3.10",
    install_requires=requirements("requirements.txt"),
    extras_require={
        "dev": requirements("requirements-dev.txt"),
        # Attestation with a TPM. Compiled where it is installed: see docs/tpm.md.
        "tpm": ["tpm2-pytss>=3,<4"],
        # The development relay and the demo make certificates of their own.
        "relay": ["cryptography>=42"],
    },
    entry_points={"console_scripts": ["nexusg = nexusg.__main__:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: Console",
        "Intended Audience :: Developers",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Internet :: Proxy Servers",
        "Typing :: Typed",
    ],
)
