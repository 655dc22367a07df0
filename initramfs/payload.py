"""The zipapp of this machine: build/cpu.pyz, one file with every command and all they need, and its many names.

It is made of what the builder's environment has installed by hash (configs/lock/payload.txt) and of this repository's
packages; nothing is downloaded or compiled again, so pyfuse3, which has no wheel, is compiled once. Same environment,
same bytes: names sorted, one time, permissions and bytecode left out, extensions stripped of where they were compiled.
shiv unpacks it on its first start, to $SHIV_ROOT or ~/.shiv.

A board does not run this file: files.py says what it has instead, and why.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from initramfs import elf, epoch, wheel
from initramfs.problem import Problem, reason
from multicall import applets

TOP = Path(__file__).resolve().parent.parent
LOCK = TOP / "configs" / "lock" / "payload.txt"
OWN_PACKAGES = ("multicall", "ninep")
ENTRY_POINT = "multicall.__main__:main"
EPOCH = 315532800
"""The first second a zip can say: 1980-01-01."""
KEPT_METADATA = ("METADATA", "entry_points.txt", "LICENSE", "COPYING", "AUTHORS", "NOTICE")
"""What of a .dist-info folder is kept: what programs ask for by importlib.metadata, and the licences."""


def interpreter() -> str:
    """The zipapp's first line: the Python minor version that its extensions are compiled for."""
    return f"/usr/bin/env python{sys.version_info.major}.{sys.version_info.minor}"


def _distribution_files(name: str, version: str) -> Iterable[tuple[str, Path]]:
    """Yield (path in the archive, path here) of an installed distribution. Raises Problem if it isn't `version`."""
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError as error:
        raise Problem(f"zipapp: {name} is not installed here", "run build.py: it makes the environment") from error
    if found.version != version:
        raise Problem(f"zipapp: {name} {found.version} is installed, the lock says {version}", "remove .venv")
    for file in found.files or ():
        where = file.as_posix()
        if where.startswith("../") or where.endswith(".pyc"):
            continue
        folder = where.partition("/")[0]
        if folder.endswith(".dist-info") and not file.name.startswith(KEPT_METADATA):
            continue
        yield where, Path(str(found.locate_file(file)))


def _own_files() -> Iterable[tuple[str, Path]]:
    for package in OWN_PACKAGES:
        for path in sorted((TOP / package).rglob("*")):
            if path.is_file() and path.suffix in (".py", ".typed"):
                yield path.relative_to(TOP).as_posix(), path


def contents() -> dict[str, Path]:
    """Return what goes into the zipapp: path in it -> path here. Raises Problem."""
    found = dict(_own_files())
    for pin in wheel.pins(LOCK.read_text(encoding="utf-8")).values():
        found.update(_distribution_files(pin.name, pin.version))
    return dict(sorted(found.items()))


def _read(path: Path) -> bytes:
    if path.name.endswith(".so") and elf.is_elf(str(path)):
        return elf.stripped(str(path), shutil.which("strip"), "-R", ".note.gnu.build-id")
    return path.read_bytes()


def build_zipapp(out: Path) -> Path:
    """Make the zipapp `out` and, beside it, bin/NAME links for every command. Return `out`.

    Nothing is made again that is there and made of the same files. `out` appears whole or not at all. Raises Problem.
    """
    try:
        gathered = {name: _read(path) for name, path in contents().items()}
        digest = hashlib.sha256(f"{interpreter()} {epoch.get(EPOCH)}".encode())
        for name, content in gathered.items():
            digest.update(f"\0{name}\0{len(content)}\0".encode() + content)
        stamp = out.with_name(f".{out.name}.json")
        if not _is_made(out, stamp, digest.hexdigest()):
            out.parent.mkdir(parents=True, exist_ok=True)
            _pack(gathered, out)
            made = {"inputs": digest.hexdigest(), "output": _digest(out)}
            stamp.write_text(json.dumps(made), encoding="ascii")
        _link(out)
    except OSError as error:
        raise Problem(f"make {out}: {error.filename or ''} {reason(error)}") from error
    return out


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_made(out: Path, stamp: Path, inputs: str) -> bool:
    try:
        made = json.loads(stamp.read_text(encoding="ascii"))
        return bool(made == {"inputs": inputs, "output": _digest(out)})
    except (OSError, ValueError):
        return False


def _pack(gathered: dict[str, bytes], out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder, "site")
        for name, content in gathered.items():
            path = site / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(0o644)  # it goes into the archive: a umask must not
        made = Path(folder, out.name)
        command = [sys.executable, "-m", "shiv", "--site-packages", str(site), "--entry-point", ENTRY_POINT]
        command += ["--python", interpreter(), "--reproducible", "--output-file", str(made)]
        environment = {**os.environ, epoch.VARIABLE: str(max(EPOCH, epoch.get(EPOCH)))}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if result.returncode:
            raise Problem(f"make {out}: shiv: {(result.stderr or result.stdout).strip()}")
        beside = out.with_name(f".{out.name}.new")
        shutil.copyfile(made, beside)
        beside.chmod(0o755)
        os.replace(beside, out)


def _link(out: Path) -> None:
    """Make bin/NAME for every row of the applet table, and remove the links of rows that are gone."""
    folder = out.parent / "bin"
    folder.mkdir(exist_ok=True)
    target = f"../{out.name}"
    names = {applet.name for applet in applets.TABLE}
    for path in folder.iterdir():
        if path.is_symlink() and path.name not in names:
            path.unlink()
    for name in sorted(names):
        path = folder / name
        if path.is_symlink() and os.readlink(path) == target:
            continue
        path.unlink(missing_ok=True)
        path.symlink_to(target)
