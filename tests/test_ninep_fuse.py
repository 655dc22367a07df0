"""The FUSE mount: the conformance suite through the kernel, and programs run from it.

Another process serves; a watchdog kills that one when a test takes too long, which ends every call into the mount.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

import pytest

import conformance
from ninep.fuse import mount_options
from ninep.localfs import LocalFile

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="/dev/fuse cannot be opened"),
    pytest.mark.skipif(os.geteuid() != 0, reason="mount(2) is root's"),
]

SERVE = """
import asyncio, ctypes, logging, os, socket, sys
logging.basicConfig(level=logging.WARNING)
from ninep import client, fuse, fusetree, localfs, server, stream
assert "trio" not in sys.modules

async def main(export, fd):
    if len(sys.argv) > 4:
        os.setgroups([])
        os.setresgid(*[int(sys.argv[4])] * 3)
        os.setresuid(*[int(sys.argv[4])] * 3)
        ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE: /proc/self is root's otherwise
    ours, theirs = socket.socketpair()
    serving = asyncio.create_task(server.serve(stream.of_socket(theirs), localfs.LocalFile.root(export)))
    connection = await client.Client.connect(stream.of_socket(ours), in_order=True)
    root = await connection.attach()
    fusetree.Tree.__init__.__defaults__ = (int(sys.argv[3]),)
    await fuse.serve(root, fd, ready=lambda: print("ready", flush=True))
    await root.clunk()
    await asyncio.sleep(0.05)
    assert not connection.pending, connection.pending
    left = set(range(connection.next_fid)) - set(connection.free_fids)
    assert not left, f"fids left over: {left}"
    await connection.close()
    await serving

asyncio.run(main(sys.argv[1].encode(), int(sys.argv[2])))
"""

WATCHDOG_S = 60.0
REPOSITORY = Path(__file__).resolve().parent.parent
libc = ctypes.CDLL(None, use_errno=True)


def mount(fd: int, mountpoint: Path, flags: int = 0) -> None:
    if libc.mount(b"cpu", os.fsencode(mountpoint), b"fuse.cpu", flags, mount_options(fd)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextmanager
def mounted(
    export: Path,
    mountpoint: Path,
    files_max: int = 4096,
    serve_first: bool = True,
    user: int | None = None,
    watchdog_s: float = WATCHDOG_S,
) -> Iterator[Path]:
    """export at mountpoint, as a session does it: one process serves the descriptor, another mounts it."""
    fd = os.open("/dev/fuse", os.O_RDWR)
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(export), str(fd), str(files_max), *([str(user)] if user else [])],
        pass_fds=[fd],
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    )
    watchdog = threading.Timer(watchdog_s, server.kill)
    watchdog.start()
    try:
        assert server.stdout is not None
        if serve_first:
            assert server.stdout.readline() == b"ready\n"
            time.sleep(0.05)  # it finds nothing mounted yet, and has to wait for that
        try:
            mount(fd, mountpoint)
        finally:
            os.close(fd)
        try:
            yield mountpoint
        finally:
            libc.umount2(os.fsencode(mountpoint), 2)  # MNT_DETACH
        assert server.wait(10) == 0
    finally:
        server.kill()
        server.wait()
        watchdog.cancel()
        server.stdout.close()  # type: ignore[union-attr]


@pytest.fixture
def tree(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "export").mkdir()
    (tmp_path / "mnt").mkdir()
    return tmp_path / "export", tmp_path / "mnt"


def run(*command: str | Path, cwd: Path | None = None, **env: str) -> str:
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=WATCHDOG_S
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def test_conformance(tree: tuple[Path, Path]) -> None:
    """All checks on one mount, each in a folder of its own: a LocalFile there puts them through the kernel."""
    export, mountpoint = tree
    failed = {}

    async def one(check: conformance.Check, folder: Path) -> None:
        root = LocalFile.root(os.fsencode(folder))
        try:
            await check(root)
        finally:
            await root.clunk()

    with mounted(export, mountpoint):
        for check in conformance.CHECKS:
            folder = mountpoint / check.__name__
            folder.mkdir()
            try:
                asyncio.run(one(check, folder))
            except (AssertionError, OSError) as error:
                failed[check.__name__] = error
    assert not failed


def test_mounted_before_it_is_served(tree: tuple[Path, Path]) -> None:
    export, mountpoint = tree
    (export / "f").write_text("x")
    with mounted(export, mountpoint, serve_first=False):
        assert (mountpoint / "f").read_text() == "x"


def test_programs(tree: tuple[Path, Path]) -> None:
    """Python, shared libraries, git, tar and cp, run from the mount and on it."""
    export, mountpoint = tree
    with mounted(Path("/"), mountpoint):
        assert "ok" in run("/usr/sbin/chroot", mountpoint, "/usr/bin/python3", "-c", "import ssl, sqlite3; print('ok')")
        assert "Linux" in (mountpoint / "proc/version").read_text()  # a file whose size is said to be 0
        assert "git version" in run("/usr/sbin/chroot", mountpoint, "/usr/bin/git", "--version")
        inside = mountpoint / export.relative_to("/")
        listed = run("ls", "-l", mountpoint / "usr/bin").splitlines()
        assert len(listed) == len(os.listdir("/usr/bin")) + 1
        env = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b"}
        env |= {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
        run("git", "init", "-q", inside / "repo")
        run("cp", "-a", REPOSITORY / "ninep", inside / "repo" / "ninep")
        run("git", "add", ".", cwd=inside / "repo", **env)
        run("git", "commit", "-q", "-m", "first", cwd=inside / "repo", **env)
        run("git", "gc", "-q", cwd=inside / "repo", **env)
        run("git", "fsck", "--strict", cwd=inside / "repo", **env)
        assert run("git", "status", "--short", cwd=inside / "repo", **env) == ""
        os.mkfifo(inside / "repo" / "fifo")
        os.link(inside / "repo" / "ninep" / "codec.py", inside / "repo" / "hard")
        os.symlink("hard", inside / "repo" / "soft")
        run("tar", "-C", inside, "-cf", inside / "t.tar", "repo")
        (inside / "copy").mkdir()
        run("tar", "-C", inside / "copy", "-xpf", inside / "t.tar")
        run("cp", "-a", inside / "repo", inside / "copy2")
    for copy in (export / "copy" / "repo", export / "copy2"):
        run("diff", "-r", "--no-dereference", "-x", "fifo", export / "repo", copy)
        assert stat.S_ISFIFO((copy / "fifo").lstat().st_mode)
        assert (copy / "hard").stat().st_nlink == 2 and os.readlink(copy / "soft") == "hard"
        assert (copy / "hard").stat().st_mtime_ns // 10**9 == (export / "repo" / "hard").stat().st_mtime_ns // 10**9


def test_things_of_the_kernel(tree: tuple[Path, Path]) -> None:
    export, mountpoint = tree
    with mounted(export, mountpoint):
        # mapped and shared writing, seen on the other side
        path = mountpoint / "mapped"
        path.write_bytes(b"\0" * 10000)
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 10000) as shared:
            shared[5000:5005] = b"hello"
            shared.flush()
        assert (export / "mapped").read_bytes()[5000:5005] == b"hello"
        # FIFOs and sockets live in the mounting kernel
        os.mkfifo(mountpoint / "p")
        with open(mountpoint / "p", "r+b", buffering=0) as fifo:
            fifo.write(b"x")
            assert fifo.read(1) == b"x"
        import socket

        with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as other, chdir(mountpoint):
            one.bind("s")
            one.listen()
            other.connect("s")
        os.mknod(mountpoint / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        with open(mountpoint / "null", "wb", buffering=0) as null:
            assert null.write(b"x") == 1
        # flags
        fd = os.open(mountpoint / "append", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(fd, b"one")
        with open(export / "append", "ab") as local:
            local.write(b"TWO")
        os.write(fd, b"three")
        os.close(fd)
        assert (export / "append").read_bytes() == b"oneTWOthree"
        fd = os.open(mountpoint / "append", os.O_RDWR | os.O_TRUNC)
        assert os.fstat(fd).st_size == 0
        # unlinked and in use: the file, and the working directory
        os.unlink(mountpoint / "append")
        os.write(fd, b"still")
        os.fchmod(fd, 0o600)
        assert os.pread(fd, 10, 0) == b"still" and os.fstat(fd).st_nlink == 0
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.close(fd)
        (mountpoint / "cwd").mkdir()
        with chdir(mountpoint / "cwd"):
            os.rmdir(mountpoint / "cwd")
            os.stat(".")
            assert os.listdir(".") == []
        with pytest.raises(OSError) as caught:
            os.rename(mountpoint / "p", mountpoint / "p" / "x")
        assert caught.value.errno == errno.ENOTDIR
        st = os.statvfs(mountpoint)
        assert st.f_blocks > 0 and st.f_namemax == 255


def test_now_is_the_time_of_the_machine_with_the_file(tree: tuple[Path, Path]) -> None:
    """touch leaves "now" to the server; a given time is kept to the nanosecond, even that of a moment ago."""
    export, mountpoint = tree
    with mounted(export, mountpoint):
        path = mountpoint / "f"
        path.touch()
        for _ in range(50):
            given = time.time_ns()
            os.utime(path, ns=(given, given))
            assert path.stat().st_mtime_ns == (export / "f").stat().st_mtime_ns == given
        os.utime(path, ns=(1, 1))
        os.utime(path)
        assert abs((export / "f").stat().st_mtime - time.time()) < 5
        os.utime(path, ns=(-(10**9) + 5, 4 * 10**18))
        st = (export / "f").stat()
        assert (st.st_atime_ns, st.st_mtime_ns) == (-(10**9) + 5, 4 * 10**18)


def test_users_own_what_they_make(tree: tuple[Path, Path]) -> None:
    export, mountpoint = tree[0], Path(tempfile.mkdtemp())  # pytest's own folders are root's alone
    mountpoint.chmod(0o755)
    export.chmod(0o777)
    script = "umask 027; cd $1; touch f; mkdir d; ln -s f l; mkfifo p; chmod 4755 f; ! chown 0 f; ! cat secret"
    (export / "secret").write_text("x")
    (export / "secret").chmod(0o600)
    (export / "sticky").mkdir()
    (export / "sticky").chmod(0o2777)
    os.chown(export / "sticky", 0, 54321)
    with mounted(export, mountpoint):
        user = ["setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups"]
        run(*user, "sh", "-ec", script, "sh", mountpoint)
        run(*user, "touch", mountpoint / "sticky" / "f")
        run(*user, "mkdir", mountpoint / "sticky" / "d")
    mountpoint.rmdir()
    st = {name: os.lstat(export / name) for name in "fdlp"}
    assert {(s.st_uid, s.st_gid) for s in st.values()} == {(12345, 12345)}
    assert [oct(stat.S_IMODE(st[n].st_mode)) for n in "fdp"] == ["0o4755", "0o750", "0o640"]
    assert (export / "sticky" / "f").stat().st_gid == (export / "sticky" / "d").stat().st_gid == 54321
    assert (export / "sticky" / "d").stat().st_mode & stat.S_ISGID


def test_a_server_without_root(tree: tuple[Path, Path]) -> None:
    """Everything belongs to the server's user, only ownership cannot be changed, and what it may not reach is named."""
    export, mountpoint = Path(tempfile.mkdtemp()), tree[1]
    os.chown(export, 12345, 12345)
    try:
        with mounted(export, mountpoint, user=12345):
            run("sh", "-ec", "touch a; chmod 4711 a; mkdir d; touch d/f; ln -s a l; mkfifo p; mv a b", cwd=mountpoint)
            with conformance.fails(errno.EPERM):
                os.chown(mountpoint / "b", 0, 0)
            with conformance.fails(errno.EPERM):
                os.mknod(mountpoint / "n", stat.S_IFCHR | 0o600, os.makedev(1, 3))
            os.chmod(mountpoint / "d", 0o600)
            assert os.listdir(mountpoint / "d") == ["f"]
            with conformance.fails(errno.EACCES):
                os.stat(mountpoint / "d" / "f")
            os.chmod(mountpoint / "d", 0o700)
            time.sleep(1.1)
            assert stat.S_ISREG(os.stat(mountpoint / "d" / "f").st_mode)
        assert {os.lstat(export / name).st_uid for name in "bdlp"} == {12345}
        assert stat.S_IMODE(os.stat(export / "b").st_mode) == 0o4711
    finally:
        shutil.rmtree(export)


def test_more_files_than_may_be_held(tree: tuple[Path, Path]) -> None:
    """With room for 20 places: everything still works, is renamed and removed, and nothing is mistaken."""
    export, mountpoint = tree
    with mounted(export, mountpoint, files_max=20):
        for i in range(20):
            (mountpoint / f"d{i}").mkdir()
            for j in range(20):
                (mountpoint / f"d{i}" / f"f{j}").write_text(f"{i} {j}")
        held = [open(mountpoint / f"d{i}" / "f0") for i in range(20)]  # noqa: SIM115
        assert len(run("find", mountpoint, "-type", "f").split()) == 400
        for i in range(20):
            os.rename(mountpoint / f"d{i}", mountpoint / f"e{i}")
            os.unlink(mountpoint / f"e{i}" / "f0")
            os.rename(mountpoint / f"e{i}" / "f1", mountpoint / f"e{i}" / "f2")
        for i in range(20):
            for j in range(2, 20):
                assert (mountpoint / f"e{i}" / f"f{j}").read_text() == (f"{i} 1" if j == 2 else f"{i} {j}")
            assert held[i].read() == f"{i} 0" and os.fstat(held[i].fileno()).st_nlink == 0
            held[i].close()
        shutil.rmtree(mountpoint / "e0")
    assert len(os.listdir(export)) == 19


def test_a_directory_of_many(tree: tuple[Path, Path]) -> None:
    export, mountpoint = tree
    for i in range(5000):
        (export / f"file-{i}").touch()
    with mounted(export, mountpoint):
        found = os.listdir(mountpoint)
        assert len(found) == len(set(found)) == 5000
        shutil.rmtree(mountpoint, ignore_errors=True)  # the mount point itself stays
    assert os.listdir(export) == []


@pytest.mark.slow
def test_a_directory_of_a_hundred_thousand_that_changes_while_it_is_read(tree: tuple[Path, Path]) -> None:
    """Each entry that stays is met exactly once, whatever comes and goes, on either side of the mount."""
    export, mountpoint = tree
    stay = {f"stay-{i}" for i in range(100_000)}
    for name in stay:
        os.mknod(export / name)
    for i in range(1000):
        os.mknod(export / f"go-{i}")
    seen: list[str] = []
    with mounted(export, mountpoint):
        leaving = [f"go-{i}" for i in range(1000)]
        with os.scandir(mountpoint) as entries:
            for entry in entries:
                seen.append(entry.name)
                if len(seen) % 200 == 0 and leaving:
                    os.unlink((export if len(leaving) % 2 else mountpoint) / leaving.pop())
                    os.mknod((mountpoint if len(leaving) % 2 else export) / f"new-{len(leaving)}")
    assert len(leaving) < 600
    assert len([name for name in seen if name in stay]) == len(stay)
    assert len(seen) == len(set(seen))


def test_changes_on_the_other_side_are_seen(tree: tuple[Path, Path]) -> None:
    export, mountpoint = tree
    (export / "f").write_bytes(bytes(range(256)) * 1000)
    with mounted(export, mountpoint):
        (export / "late").write_text("seen")  # made on the other side after the mount
        assert (mountpoint / "late").read_text() == "seen"
        assert (mountpoint / "f").read_bytes() == bytes(range(256)) * 1000
        (export / "late").unlink()
        time.sleep(1.1)
        assert not (mountpoint / "late").exists()


def test_when_the_server_dies(tree: tuple[Path, Path]) -> None:
    export, mountpoint = tree
    fd = os.open("/dev/fuse", os.O_RDWR)
    server = subprocess.Popen([sys.executable, "-c", SERVE, str(export), str(fd), "100"], pass_fds=[fd], cwd=REPOSITORY)
    mount(fd, mountpoint)
    os.close(fd)
    try:
        os.listdir(mountpoint)
        server.kill()
        server.wait()
        with pytest.raises(OSError) as caught:
            os.listdir(mountpoint)
        assert caught.value.errno == errno.ENOTCONN
    finally:
        libc.umount2(os.fsencode(mountpoint), 2)


TWICE = """
import asyncio, ctypes, os, sys
from ninep import fuse
from ninep.localfs import LocalFile

def fds():
    return sorted(os.listdir("/proc/self/fd"), key=int)

async def touch(path):
    process = await asyncio.create_subprocess_exec("touch", path)
    return await process.wait()

async def main(export, mountpoint):
    root = LocalFile.root(export)
    before = fds()
    for turn in (b"cancelled", b"unmounted"):
        fd = os.open("/dev/fuse", os.O_RDWR)
        serving = asyncio.create_task(fuse.serve(root, fd))
        assert ctypes.CDLL(None).mount(b"cpu", mountpoint, b"fuse.cpu", 0, fuse.mount_options(fd)) == 0
        assert await touch(mountpoint + b"/" + turn) == 0
        if turn == b"cancelled":
            serving.cancel()
            await asyncio.wait([serving])
            assert serving.cancelled()
            os.close(fd)
            ctypes.CDLL(None).umount2(mountpoint, 2)
        else:
            process = await asyncio.create_subprocess_exec("umount", mountpoint)
            assert await process.wait() == 0
            await serving
            os.close(fd)
        assert fds() == before, (fds(), before)
    ready = asyncio.Event()
    mounting = asyncio.create_task(fuse.mount(root, mountpoint, ready=ready.set))
    await ready.wait()
    assert await touch(mountpoint + b"/libfuse") == 0
    mounting.cancel()
    await asyncio.wait([mounting])
    assert mountpoint not in open("/proc/mounts", "rb").read()
    try:
        await fuse.mount(root, b"/nonexistent")
    except OSError:
        pass
    assert fds() == before, (fds(), before)

asyncio.run(main(*[a.encode() for a in sys.argv[1:]]))
"""


def test_nothing_is_left_of_a_mount(tree: tuple[Path, Path]) -> None:
    """One process serves three mounts, one after the other: cancelled, unmounted by others, mounted by libfuse."""
    export, mountpoint = tree
    done = subprocess.run(
        [sys.executable, "-c", TWICE, export, mountpoint], cwd=REPOSITORY, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(export)) == ["cancelled", "libfuse", "unmounted"]
