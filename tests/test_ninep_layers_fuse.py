"""A union over an archive, mounted by FUSE: the conformance suite through the kernel, and programs on it."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

import conformance
import conformance_reading as reading
import test_ninep_fuse as mounts
from conformance_reading import tar
from ninep.localfs import LocalFile

pytestmark = mounts.pytestmark

UNION = """union.Union([localfs.LocalFile.root(export + b"/top"), archive.open_archive(export + b"/archive")])"""

ABOVE = {"the_root_is_a_wall", "qids_tell_files_apart"}  # ask for "..", which of a mount is not in it


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """What is served by mounts.mounted(), and where: a union of export/top over export/archive."""
    serve = mounts.SERVE.replace("localfs.LocalFile.root(export)", UNION).replace(
        "client, fuse", "archive, union, client, fuse"
    )
    assert UNION in serve
    monkeypatch.setattr(mounts, "SERVE", serve)
    export, mountpoint = tmp_path / "export", tmp_path / "mnt"
    (export / "top").mkdir(parents=True)
    mountpoint.mkdir()
    (export / "archive").write_bytes(tar())
    return export, mountpoint


def test_conformance(mounted: tuple[Path, Path]) -> None:
    """The reading half on what the archive has; all of the suite in directories made in one of the archive's."""
    failed: dict[str, str] = {}

    async def one(check: conformance.Check, folder: Path) -> None:
        root = LocalFile.root(os.fsencode(folder))
        try:
            await check(root)
        finally:
            await root.clunk()

    export, mountpoint = mounted
    with mounts.mounted(export, mountpoint):
        for check in reading.READS:
            if check.__name__ in ABOVE:
                continue
            try:
                asyncio.run(one(check, mountpoint))
            except (AssertionError, OSError) as error:
                failed[check.__name__] = repr(error)
        for check in conformance.CHECKS:
            folder = mountpoint / "a" / "b" / check.__name__
            folder.mkdir()
            try:
                asyncio.run(one(check, folder))
            except (AssertionError, OSError) as error:
                failed[check.__name__] = repr(error)
        assert not failed


@pytest.mark.slow
def test_programs(mounted: tuple[Path, Path], tmp_path: Path) -> None:
    """What cp, diff, mv, git and rm do is what they would do to the extracted archive."""
    export, mountpoint = mounted
    (export / "archive").write_bytes(tar(reading.TREE[:-850]))  # with fewer files, which is the slow part
    plain = tmp_path / "plain"
    plain.mkdir()
    subprocess.run(["tar", "-xf", export / "archive", "-C", plain], check=True)
    commands = [
        "echo more >> a/f && cat other && stat -c '%a %s %h' setuid",
        "mv many moved && ls moved | wc -l",  # mv copies: EXDEV
        "mv a/f a/g && ln a/g a/h && cat a/g && cat other",
        "rm -rf deep && mkdir deep && ls -A deep",
        "cd moved && git init -q . && git add . && git -c user.name=a -c user.email=a@b commit -qm x && git fsck",
        "cp -a moved copied && diff -r moved copied && chmod -R go-rwx copied && find copied/f* | wc -l",
        "find . -path '*/.git' -prune -o -print | sort | md5sum",
        "md5sum big empty setuid",
        "rm -rf moved copied a && ls -A | sort",
    ]
    with mounts.mounted(export, mountpoint):
        for command in commands:
            results = []
            for folder in (plain, mountpoint):
                done = subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, timeout=60)
                results.append((done.returncode, done.stdout, done.stderr))
            assert results[1] == results[0], command
            assert results[0][0] == 0, results[0]
    assert not (export / "top" / "many").exists() and (export / "top" / "deep").exists()
