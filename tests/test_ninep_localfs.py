"""Local files: the conformance suite, and what only they can be asked: the wall under attack, devices, descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

import conformance
from ninep import message as m
from ninep.localfs import LocalFile


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda c: c.__name__)
def test_conformance(check: conformance.Check, tmp_path: Path) -> None:
    before = open_fds()

    async def run() -> None:
        root = LocalFile.root(os.fsencode(tmp_path))
        await check(root)
        await root.clunk()

    asyncio.run(run())
    deadline = time.monotonic() + 5  # a thread that has just given up a FIFO may still be closing its own
    while open_fds() != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert open_fds() == before, "descriptors left open"


def test_root_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LocalFile.root(os.fsencode(tmp_path / "nope"))


def test_more_files_than_the_soft_limit(tmp_path: Path) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 5000:
        pytest.skip("this machine allows too few descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))

    async def run() -> None:
        root = LocalFile.root(os.fsencode(tmp_path))
        await conformance.made(root, b"f")
        for file in [await conformance.at(root, b"f") for _ in range(3000)]:
            await file.clunk()
        await root.clunk()

    try:
        asyncio.run(run())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_link_swapped_in_does_not_lead_out(tmp_path: Path) -> None:
    """While somebody exchanges a directory and a link to the outside, no walk ever gets outside."""
    (tmp_path / "export" / "real").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").touch()
    (tmp_path / "export" / "real" / "secret").touch()
    outside = (tmp_path / "outside" / "secret").stat().st_ino
    door = tmp_path / "export" / "door"
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            os.symlink("../outside", tmp_path / "export" / "new")
            os.rename(tmp_path / "export" / "new", door)
            os.unlink(door)
            os.rename(tmp_path / "export" / "real", door)
            os.rename(door, tmp_path / "export" / "real")

    async def run() -> int:
        root = LocalFile.root(os.fsencode(tmp_path / "export"))
        reached = 0
        for _ in range(5000):
            try:
                _, file = await root.walk((b"door", b"secret"))
            except FileNotFoundError:
                continue
            if file is not None:
                reached += 1
                assert file.qid.path != outside
                await file.clunk()
        await root.clunk()
        return reached

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        asyncio.run(run())
    finally:
        stop.set()
        thread.join()


def test_moved_directories_stay_inside(tmp_path: Path) -> None:
    """Going up from a directory that has been moved meanwhile ends in the tree it was walked in."""
    (tmp_path / "export" / "a" / "b").mkdir(parents=True)

    async def run() -> None:
        root = LocalFile.root(os.fsencode(tmp_path / "export"))
        b = await conformance.at(root, b"a", b"b")
        os.rename(tmp_path / "export" / "a" / "b", tmp_path / "b")
        up = await conformance.at(b, b"..", b"..", b"..", b"..")
        assert up.qid == root.qid
        for file in (up, b, root):
            await file.clunk()

    asyncio.run(run())


@pytest.mark.root
def test_qids_differ_between_file_systems(tmp_path: Path) -> None:
    """/proc and /sys both have small inode numbers, as the root has."""

    async def run() -> None:
        root = LocalFile.root(b"/")
        seen: dict[int, tuple[int, int]] = {}
        for path in ("/", "/proc", "/sys", "/dev", f"/proc/{os.getpid()}/fd", "/sys/kernel", "/dev/null"):
            file = await conformance.at(root, *[p for p in os.fsencode(path).split(b"/") if p])
            st = os.stat(path)
            assert seen.setdefault(file.qid.path, (st.st_dev, st.st_ino)) == (st.st_dev, st.st_ino)
            await file.clunk()
        assert len(seen) == 7
        await root.clunk()

    asyncio.run(run())


def test_inodes_of_any_size_have_a_qid(tmp_path: Path) -> None:
    root = LocalFile.root(os.fsencode(tmp_path))
    paths = {
        root.tree.make_qid(0, dev, ino, 0).path for dev in (1, 2, 3) for ino in (1, 2, 1 << 47, 1 << 48, 2**64 - 1)
    }
    assert len(paths) == 15 and max(paths) < 1 << 64
    asyncio.run(root.clunk())


@pytest.mark.skipif(not os.access("/proc/kmsg", os.R_OK), reason="/proc/kmsg is root's")
def test_regular_files_that_wait_do_not_stop_others() -> None:
    async def run() -> None:
        root = LocalFile.root(b"/proc")
        kmsg = await conformance.opened(root, b"kmsg")

        async def drain() -> None:
            while await kmsg.read(0, 65536):
                pass

        with contextlib.suppress(TimeoutError, PermissionError):
            await asyncio.wait_for(drain(), 0.2)
        await kmsg.clunk()
        await root.clunk()

    asyncio.run(run())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_new_files_of_a_root_server(tmp_path: Path) -> None:
    async def run() -> None:
        root = LocalFile.root(os.fsencode(tmp_path), owner=1234)
        await root.mkdir(b"d", 0o755, 4321)
        await root.symlink(b"l", b"x", 4321)
        await root.mknod(b"p", 0o010600, 0, 0, 0xFFFFFFFF)
        file = await conformance.at(root)
        await file.create(b"f", m.O_RDWR, 0o6755, 4321)
        await file.clunk()
        await root.clunk()

    asyncio.run(run())
    st = {name: os.lstat(tmp_path / name) for name in "dlpf"}
    assert {s.st_uid for s in st.values()} == {1234}
    assert [st[n].st_gid for n in "dlf"] == [4321] * 3 and st["p"].st_gid == os.getgid()
    assert st["f"].st_mode & 0o7777 == 0o6755


def test_reading_up_to_any_wire_number_is_an_errno(tmp_path: Path) -> None:
    async def run() -> None:
        root = LocalFile.root(os.fsencode(tmp_path))
        big = 0xFFFFFFFF
        for call in (
            root.mknod(b"x", 0o020600, big, big, 0),
            root.setattr(m.SETATTR_MTIME | m.SETATTR_MTIME_SET, mtime_ns=1 << 100),
            root.getxattr(b""),
            root.getxattr(b"user.\0"),
            root.setxattr(b"", b"", 0),
            root.symlink(b"x", b"a\0b", 0),
            root.symlink(b"x", b"", 0),
            root.open(3),
        ):
            with pytest.raises(OSError) as caught:
                await call
            assert caught.value.errno in (errno.EINVAL, errno.EOVERFLOW, errno.ENOENT)
        await root.clunk()

    asyncio.run(run())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_conformance_without_root() -> None:
    """The same as a user without any rights: in a child, which has all its modules already."""
    folder = tempfile.mkdtemp()  # pytest's own folders are root's alone
    os.chown(folder, 12345, 12345)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(12345, 12345, 12345)
            os.setresuid(12345, 12345, 12345)
            ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE: /proc/self is root's otherwise
            conformance.GID = 12345
            for check in conformance.CHECKS:
                try:
                    os.mkdir(f"{folder}/{check.__name__}")
                    asyncio.run(check(LocalFile.root(os.fsencode(f"{folder}/{check.__name__}"))))  # type: ignore[arg-type]
                except BaseException as error:
                    os.write(writer, f"{check.__name__}: {error!r}\n".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as failures:
        text = failures.read()
    os.waitpid(child, 0)
    shutil.rmtree(folder)
    assert text == ""


def test_locks_of_a_whole_file_are_both_kinds(tmp_path: Path) -> None:
    """A peer's flock(2) comes as a lock of the whole file: it meets both calls of the programs here."""
    path = tmp_path / "f"
    path.write_bytes(b"0123456789")
    rd, wr, un = m.LOCK_TYPE_RDLCK, m.LOCK_TYPE_WRLCK, m.LOCK_TYPE_UNLCK

    def local(kind: str, how: int) -> bool:
        """Whether a program here could lock it."""
        code = f"import fcntl, sys; fcntl.{kind}(open(sys.argv[1], 'r+'), {how | fcntl.LOCK_NB})"
        return not subprocess.run([sys.executable, "-c", code, path], stderr=subprocess.DEVNULL).returncode

    async def run() -> None:
        root = LocalFile.root(os.fsencode(tmp_path))
        one, two = [await conformance.opened(root, b"f", m.O_RDWR) for _ in range(2)]
        reader = await conformance.opened(root, b"f", m.O_RDONLY)
        for kind in ("flock", "lockf"):
            assert await one.lock(rd, 0, 0, 0, 1, b"") == m.LOCK_SUCCESS
            assert not local(kind, fcntl.LOCK_EX)
            assert local("flock", fcntl.LOCK_SH)
            assert await two.lock(rd, 0, 0, 0, 1, b"") == m.LOCK_SUCCESS
            assert await one.lock(wr, 0, 0, 0, 1, b"") == m.LOCK_BLOCKED
            assert await two.lock(un, 0, 0, 0, 1, b"") == m.LOCK_SUCCESS
            assert not local(kind, fcntl.LOCK_EX)  # what one had it still has
            assert await one.lock(wr, 0, 0, 0, 1, b"") == m.LOCK_SUCCESS
            assert not local("flock", fcntl.LOCK_SH)
            assert await one.lock(un, 0, 0, 0, 1, b"") == m.LOCK_SUCCESS
            assert local(kind, fcntl.LOCK_EX)
        with path.open("r+b") as file:
            for take in (fcntl.flock, fcntl.lockf):
                take(file, fcntl.LOCK_EX)
                assert await one.lock(wr, 0, 0, 0, 1, b"") == m.LOCK_BLOCKED
                take(file, fcntl.LOCK_UN)
            # a part of it is fcntl's alone
            fcntl.flock(file, fcntl.LOCK_EX)
            assert await one.lock(wr, 0, 0, 10, 1, b"") == m.LOCK_SUCCESS
            assert await one.lock(un, 0, 0, 0, 1, b"") == m.LOCK_SUCCESS
            fcntl.flock(file, fcntl.LOCK_UN)
        # flock(2) does not ask how the file was opened
        assert await reader.lock(wr, 0, 0, 0, 1, b"") == m.LOCK_SUCCESS
        assert await one.lock(wr, 0, 0, 0, 1, b"") == m.LOCK_BLOCKED
        assert not local("flock", fcntl.LOCK_SH)
        with conformance.fails(errno.EBADF):
            await reader.lock(wr, 0, 0, 10, 1, b"")
        await reader.clunk()
        assert local("flock", fcntl.LOCK_EX)
        for file in (one, two, root):
            await file.clunk()

    asyncio.run(run())
