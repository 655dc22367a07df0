"""From a board profile to the two files that it boots: initramfs.cpio and vmlinuz. Plan everything, then write.

Same inputs, same bytes: nothing of the time, the machine, the folder or the umask goes into an image. Its inputs are
the profile, this repository, the packages and wheels in the cache, the keys.
"""

import collections
import hashlib
import io
import json
import os
import shutil
import stat
import sys
import tomllib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from initramfs import compress, cpio, debian, epoch, files, kernel, python, report, wheel
from initramfs.closure import Origin
from initramfs.lock import locked
from initramfs.problem import Problem, reason
from initramfs.profile import Profile
from multicall import applets

TOP = Path(__file__).resolve().parent.parent
LOCK = TOP / "configs" / "lock"
OWN_PACKAGES = ("multicall", "ninep")
EFFORT = 6
SHARE_EFFORT = 2
"""A component's share is estimated by packing it alone, quickly: the ratios are the same to a few percent."""
LARGEST = 10
ELSEWHERE = ("bootstrap.py", "demo.py", "payload.py", "qemu.py")
"""What of the builder has no part in an image: a change there is no reason to make one again."""


class Plan(NamedTuple):
    """An image before it is written: everything in it, and what it was made from."""

    items: Sequence[files.Item]
    kernel: kernel.Kernel
    packages: Sequence[debian.Package]
    wheels: Sequence[wheel.Wheel]


def quiet(_: str) -> None:
    """Progress that nobody wants to see."""


def archive_path(board: Profile, build_dir: Path) -> Path:
    """Where a board's initramfs is, whether built or not."""
    return build_dir / board.name / f"initramfs.cpio{compress.get(board.compressor).suffix}"


def kernel_path(board: Profile, build_dir: Path) -> Path:
    """Where a board's kernel is, whether built or not."""
    return build_dir / board.name / "vmlinuz"


def parts(architecture: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of configs/lock/target.toml, Debian packages and wheels. Raises Problem."""
    path = LOCK / "target.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise Problem(f"read {path}: {reason(error)}") from error
    wanted = []
    for kind in ("debian", "wheel"):
        rows = [row for row in table.get(kind, []) if architecture in row.get("architectures", [architecture])]
        wanted.append(rows)
    return wanted[0], wanted[1]


def plan(
    board: Profile, build_dir: Path, authorized_keys: Sequence[str], progress: Callable[[str], None] = quiet
) -> Plan:
    """Gather everything of an image. Downloads what the cache under `build_dir` has not. Raises Problem."""
    cache = str(build_dir / "cache")
    debs, locked = parts(board.architecture)
    archive = debian.Archive(cache, board.architecture, progress)
    packages = archive.fetch([row["name"] for row in debs])
    kernel_package = archive.fetch_kernel(board.kernel)
    wheels = wheel.fetch(
        [row["name"] for row in locked], str(LOCK / "payload.txt"), cache, board.architecture, progress
    )
    chosen = kernel.find(kernel_package.folder, board.modules)
    sources = python.Sources(
        board.architecture,
        [Origin(row["component"], package.folder) for row, package in zip(debs, packages, strict=True)],
        [Origin(row["component"], each.folder) for row, each in zip(locked, wheels, strict=True)],
        [Origin(python.OWN, str(TOP), OWN_PACKAGES)],
    )
    modules = {applet.module for applet in applets.TABLE if applet.name in board.applets}
    items = files.system(board, chosen)
    for file in python.build(sources, ["multicall.__main__", *sorted(modules)], progress):
        items.append(files.Item(cpio.file(file.target.encode(), file.content, file.mode), file.component))
    for package in packages:
        if package.name == "busybox-static":
            items += files.busybox(os.path.join(package.folder, files.BUSYBOX))
    for module in chosen.modules:
        entry = cpio.Entry(module.target.encode(), stat.S_IFREG | 0o644, source=module.source)
        items.append(files.Item(entry, report.MODULES))
    items += files.keys(authorized_keys, _host_key(board, build_dir))
    return Plan(items, chosen, [*packages, kernel_package], wheels)


def _host_key(board: Profile, build_dir: Path) -> bytes | None:
    """The private key in build/BOARD/host_key, if whoever builds has made one."""
    try:
        return (build_dir / board.name / "host_key").read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Problem(f"read host key {build_dir / board.name / 'host_key'}: {reason(error)}") from error


def archive(items: Iterable[files.Item]) -> bytes:
    """Return the newc archive of an image, not packed. Its time is SOURCE_DATE_EPOCH or 1970. Raises Problem."""
    out = io.BytesIO()
    cpio.write(cpio.with_parents(item.entry for item in items), out, mtime=epoch.get(0))
    return out.getvalue()


def build(
    board: Profile,
    build_dir: Path,
    *,
    authorized_keys: Sequence[str] = (),
    progress: Callable[[str], None] = quiet,
    extra: Sequence[cpio.Entry] = (),
) -> report.Report:
    """Make build_dir/BOARD/{initramfs.cpio.*,vmlinuz,manifest.json,report.json}; return where the bytes are.

    `authorized_keys` are lines of that file. build_dir/BOARD/host_key, when there, becomes the board's host key.
    `extra` entries are added last and win over ours. Nothing is packed again that is there already. Each file appears
    whole or not at all; a second builder waits for the first. Raises Problem.
    """
    try:
        with locked(str(build_dir / board.name)):
            return _build(board, build_dir, authorized_keys, progress, extra)
    except OSError as error:
        raise Problem(f"build {board.name}: {error.filename or 'a file'}: {reason(error)}") from error


def _build(
    board: Profile,
    build_dir: Path,
    authorized_keys: Sequence[str],
    progress: Callable[[str], None],
    extra: Sequence[cpio.Entry],
) -> report.Report:
    folder = build_dir / board.name
    out = archive_path(board, build_dir)
    sources = _sources(board, build_dir, [*authorized_keys, *map(repr, extra)])
    known = _read_made(folder, out, {"sources": sources, "packages": _packages(board, build_dir)})
    if known is not None:
        progress("nothing has changed")
        return known
    planned = plan(board, build_dir, authorized_keys, progress)
    items = {item.entry.name: item for item in planned.items}
    items |= {entry.name: files.Item(entry, "extra") for entry in extra}
    raw = archive(items.values())
    manifest = _manifest(board, planned, hashlib.sha256(raw).hexdigest())
    manifest |= {"sources": sources, "packages": _packages(board, build_dir)}
    known = _read_made(folder, out, {key: manifest[key] for key in ("archive_sha256", "compressor", "budget")})
    if known is not None:
        # Something changed that is not in the image, such as a command that only clients have.
        progress("nothing in the image has changed")
        manifest["initramfs"] = json.loads((folder / "manifest.json").read_text())["initramfs"]
        _write(folder / "manifest.json", _json(manifest))
        return known
    progress(f"packing {len(raw) / 1e6:.1f} MB with {board.compressor}")
    compressor = compress.get(board.compressor)
    packed = compressor.pack(raw, board.architecture, EFFORT)
    progress("measuring the components")
    made = _report(board, list(items.values()), len(raw), len(packed))
    _write(out, packed)
    _copy(planned.kernel.vmlinuz, kernel_path(board, build_dir))
    _write(folder / "report.json", made.json().encode())
    manifest["initramfs"] = {"file": out.name, "sha256": hashlib.sha256(packed).hexdigest(), "bytes": len(packed)}
    _write(folder / "manifest.json", _json(manifest))
    return made


def _json(table: dict[str, Any]) -> bytes:
    return (json.dumps(table, indent=1) + "\n").encode()


def _manifest(board: Profile, planned: Plan, digest: str) -> dict[str, Any]:
    """What an image was made from, and what was made."""
    return {
        "board": board.name,
        "architecture": board.architecture,
        "kernel": planned.kernel.release,
        "compressor": f"{board.compressor} {EFFORT}",
        "budget": board.budget,
        "archive_sha256": digest,
        "debian": {row.name: {"version": row.version, "sha256": row.sha256} for row in planned.packages},
        "wheels": {row.name: {"version": row.version, "sha256": row.sha256} for row in planned.wheels},
    }


def _packages(board: Profile, build_dir: Path) -> str:
    """A digest of which packages of the board's architecture are in the cache. After a first build it is another."""
    path = Path(debian.index_path(str(build_dir / "cache"), board.architecture))
    return hashlib.sha256(path.read_bytes() if path.exists() else b"").hexdigest()


def _sources(board: Profile, build_dir: Path, more: Iterable[str]) -> str:
    """A digest of all else that decides an image: our sources, the locks, the profile, the keys, the environment."""
    digest = hashlib.sha256(f"{board} {EFFORT} {epoch.get(0)} {sys.version}".encode())
    paths = [path for name in (*OWN_PACKAGES, "initramfs") for path in sorted((TOP / name).rglob("*.py"))]
    paths = [path for path in paths if path.name not in ELSEWHERE]
    paths += [LOCK / "target.toml", LOCK / "payload.txt", build_dir / board.name / "host_key"]
    for path in paths:
        content = path.read_bytes() if path.exists() else b""
        digest.update(f"\0{path.name}\0{len(content)}\0".encode() + content)
    for text in more:
        digest.update(f"\0{text}".encode())
    return digest.hexdigest()


def _read_made(folder: Path, out: Path, wanted: dict[str, Any]) -> report.Report | None:
    """Return the report of what is in the folder, if it is whole and its manifest has what is wanted."""
    try:
        old = json.loads((folder / "manifest.json").read_text())
        with out.open("rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == old["initramfs"]["sha256"]
        if same and wanted.items() <= old.items() and (folder / "vmlinuz").exists():
            return report.parse((folder / "report.json").read_text())
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _report(board: Profile, items: Sequence[files.Item], raw: int, packed: int) -> report.Report:
    contents: dict[str, list[bytes]] = collections.defaultdict(list)
    for item in items:
        contents[item.component].append(_content(item.entry))
    compressor = compress.get(board.compressor)
    alone = {
        name: len(compressor.pack(b"".join(pieces), board.architecture, SHARE_EFFORT))
        for name, pieces in contents.items()
    }
    shares = report.shares(alone, packed)
    rows = [
        report.Row(name, len(pieces), sum(map(len, pieces)), shares[name]) for name, pieces in sorted(contents.items())
    ]
    largest = sorted(((item.entry.name.decode(), item.entry.size()) for item in items), key=lambda row: -row[1])
    return report.Report(board.name, tuple(rows), raw, packed, board.budget, tuple(largest[:LARGEST]))


def _content(entry: cpio.Entry) -> bytes:
    if entry.source is None:
        return entry.content
    with open(entry.source, "rb") as file:
        return file.read()


def _write(path: Path, content: bytes) -> None:
    """Put a file in place whole, or leave what was there. Raises Problem."""
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    except OSError as error:
        raise Problem(f"write {path}: {reason(error)}") from error


def _copy(source: str, path: Path) -> None:
    beside = path.with_name(f".{path.name}.new")
    try:
        shutil.copyfile(source, beside)
        os.replace(beside, path)
    except OSError as error:
        raise Problem(f"write {path}: {reason(error)}") from error
