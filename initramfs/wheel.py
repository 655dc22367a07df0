"""Wheels for a board's architecture, locked by hash: fetched once by pip, then from the cache, unpacked as folders."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

from initramfs.lock import locked
from initramfs.problem import Problem

PLATFORMS = {"amd64": "x86_64", "arm64": "aarch64", "armhf": "armv7l"}
GLIBC_MINORS = (36, 34, 31, 28, 24, 17)
"""The wheels' C library versions that run on the board's (2.36), newest first."""


class Wheel(NamedTuple):
    """A wheel: its project, version and hash, and the folder it is unpacked in."""

    name: str
    version: str
    sha256: str
    folder: str


class Pin(NamedTuple):
    """A line of the lock: project, version, the hashes that any of its files may have, as pip reads it."""

    name: str
    version: str
    hashes: frozenset[str]
    text: str


def normal(name: str) -> str:
    """A project's name as it is compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> dict[str, Pin]:
    """Read a lock file as pip-compile writes it: requirement -> its version and hashes."""
    found = {}
    for block in re.split(r"\n(?=\S)", text):
        match = re.match(r"([A-Za-z0-9._-]+)==([^\s\\]+)", block)
        if match:
            hashes = frozenset(re.findall(r"--hash=sha256:([0-9a-f]{64})", block))
            lines = [line for line in block.splitlines() if not line.lstrip().startswith("#")]
            name = normal(match[1])
            found[name] = Pin(name, match[2], hashes, "\n".join(lines) + "\n")
    return found


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _find(folder: str, pin: Pin) -> tuple[str, str] | None:
    """Return the path and hash of a wheel in the cache that the lock allows."""
    for name in sorted(os.listdir(folder)):
        parts = name.split("-")
        if name.endswith(".whl") and normal(parts[0]) == pin.name and parts[1] == pin.version:
            path = os.path.join(folder, name)
            digest = _digest(path)
            if digest in pin.hashes:
                return path, digest
    return None


def _download(wanted: Sequence[Pin], architecture: str, folder: str) -> None:
    machine = PLATFORMS[architecture]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "--dest", folder]
    command += [
        "--python-version",
        "3.11",
        "--implementation",
        "cp",
        "--abi",
        "cp311",
        "--abi",
        "abi3",
        "--abi",
        "none",
    ]
    for platform in [*(f"manylinux_2_{minor}_{machine}" for minor in GLIBC_MINORS), f"manylinux2014_{machine}", "any"]:
        command += ["--platform", platform]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
        requirements.write("".join(pin.text for pin in wanted))
        requirements.flush()
        result = subprocess.run(
            [*command, "--requirement", requirements.name], capture_output=True, text=True, check=False
        )
    if result.returncode:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR:")]
        raise Problem(
            f"download wheels for {architecture}: {'; '.join(errors[-2:]) or result.stderr.strip()}",
            "is there a network? is there such a wheel for this architecture?",
        )


def fetch(
    names: Sequence[str], lock: str, cache: str, architecture: str, progress: Callable[[str], None]
) -> list[Wheel]:
    """Return the named projects' wheels of the lock file's versions, unpacked. Raises Problem."""
    with open(lock, encoding="utf-8") as file:
        pinned = pins(file.read())
    unknown = [name for name in names if normal(name) not in pinned]
    if unknown:
        raise Problem(f"wheel {', '.join(unknown)}: not in {lock}")
    folder = os.path.join(cache, "wheels", architecture)
    wanted = [pinned[normal(name)] for name in names]
    with locked(folder):
        return _fetch(wanted, lock, folder, architecture, progress)


def _fetch(
    wanted: Sequence[Pin], lock: str, folder: str, architecture: str, progress: Callable[[str], None]
) -> list[Wheel]:
    missing = [pin for pin in wanted if _find(folder, pin) is None]
    if missing:
        progress(f"downloading wheels: {', '.join(f'{pin.name} {pin.version}' for pin in missing)}")
        _download(missing, architecture, folder)
    wheels = []
    for pin in wanted:
        found = _find(folder, pin)
        if found is None:
            raise Problem(f"wheel {pin.name} {pin.version}: what was downloaded is not what {lock} allows")
        path, digest = found
        wheels.append(Wheel(pin.name, pin.version, digest, _unpack(path, digest)))
    return wheels


def _unpack(path: str, digest: str) -> str:
    # Named by its hash: a folder that exists is complete and is this wheel.
    folder = os.path.join(os.path.dirname(path), "unpacked", digest[:16])
    if not os.path.isdir(folder):
        shutil.rmtree(f"{folder}.new", ignore_errors=True)
        with zipfile.ZipFile(path) as archive:
            archive.extractall(f"{folder}.new")
        os.rename(f"{folder}.new", folder)
    return folder
