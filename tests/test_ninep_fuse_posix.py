"""The mount beside a local directory: the same calls on both, as root and as others, must give the same answers."""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from test_ninep_fuse import mounted, pytestmark  # noqa: F401

NAMES = [
    "a",
    "b",
    "c",
    "d/a",
    "d/b",
    "d/e/a",
    "e",
    "e/a",
    "d",
    "d/e",
    "a/",
    "d/",
    "x" * 255,
    "y" * 256,
    "a/b",
    "d/../a",
    "",
]
MODES = [0o644, 0o600, 0o000, 0o755, 0o4755, 0o2755, 0o1777, 0o7777, 0o444]
USERS = [(0, 0), (0, 0), (12345, 12345), (12346, 12345), (12346, 12346)]
FLAGS = [
    os.O_RDONLY,
    os.O_WRONLY,
    os.O_RDWR,
    os.O_RDWR | os.O_CREAT,
    os.O_RDWR | os.O_CREAT | os.O_EXCL,
    os.O_WRONLY | os.O_TRUNC,
    os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    os.O_RDONLY | os.O_DIRECTORY,
    os.O_RDONLY | os.O_NOFOLLOW,
    os.O_WRONLY | os.O_APPEND | os.O_CREAT,
]


def look(path: str) -> tuple[int, ...]:
    st = os.lstat(path)
    if stat.S_ISDIR(st.st_mode):
        return (st.st_mode, st.st_uid, st.st_gid, st.st_nlink)
    return (st.st_mode, st.st_uid, st.st_gid, st.st_nlink, st.st_size, st.st_rdev)


def use(path: str, flags: int, mode: int) -> Any:
    fd = os.open(path, flags | os.O_NONBLOCK, mode)
    try:
        answers: list[Any] = [stat.S_IFMT(os.fstat(fd).st_mode)]
        for call in (
            lambda: os.write(fd, b"12345"),
            lambda: os.pread(fd, 3, 1),
            lambda: os.ftruncate(fd, 4),
            lambda: os.fchmod(fd, mode),
            lambda: os.fsync(fd),
            lambda: os.fstat(fd).st_size if stat.S_ISREG(answers[0]) else 0,
        ):
            answers.append(attempt(call))
        return answers
    finally:
        os.close(fd)


def attempt(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except OSError as error:
        return errno.errorcode[error.errno]  # type: ignore[index]


def times(path: str) -> tuple[int, int]:
    os.utime(path, ns=(1_000_000_001, 2_000_000_002))
    st = os.stat(path)
    return st.st_atime_ns, st.st_mtime_ns


def step(r: random.Random) -> tuple[str, Callable[[str], Any]]:
    """A random call, as words and as a function of the directory to do it in."""
    a, b, mode, flags = r.choice(NAMES), r.choice(NAMES), r.choice(MODES), r.choice(FLAGS)
    user = r.choice(USERS)[0]
    kind = r.choice([stat.S_IFIFO, stat.S_IFREG, stat.S_IFCHR, stat.S_IFSOCK])
    calls: list[tuple[str, Callable[[str], Any]]] = [
        (f"mkdir {a} {mode:o}", lambda d: os.mkdir(f"{d}/{a}", mode)),
        (f"mkdir {a} {mode:o}", lambda d: os.mkdir(f"{d}/{a}", mode)),
        (f"rmdir {a}", lambda d: os.rmdir(f"{d}/{a}")),
        (f"unlink {a}", lambda d: os.unlink(f"{d}/{a}")),
        (f"rename {a} {b}", lambda d: os.rename(f"{d}/{a}", f"{d}/{b}")),
        (f"link {a} {b}", lambda d: os.link(f"{d}/{a}", f"{d}/{b}")),
        (f"link -P {a} {b}", lambda d: os.link(f"{d}/{a}", f"{d}/{b}", follow_symlinks=False)),
        (f"symlink {b} {a}", lambda d: os.symlink(b or "x", f"{d}/{a}")),
        (f"readlink {a}", lambda d: os.readlink(f"{d}/{a}")),
        (f"chmod {a} {mode:o}", lambda d: os.chmod(f"{d}/{a}", mode)),
        (f"chown {a} {user}", lambda d: os.chown(f"{d}/{a}", user, -1)),
        (f"chgrp {a} {user}", lambda d: os.lchown(f"{d}/{a}", -1, user)),
        (f"truncate {a}", lambda d: os.truncate(f"{d}/{a}", 7)),
        (f"utime {a}", lambda d: times(f"{d}/{a}")),
        (f"touch {a}", lambda d: os.utime(f"{d}/{a}")),
        (f"mknod {a} {kind:o}", lambda d: os.mknod(f"{d}/{a}", kind | mode, os.makedev(1, 3))),
        (f"open {a} {flags:o} {mode:o}", lambda d: use(f"{d}/{a}", flags, mode)),
        (f"open {a} {flags:o} {mode:o}", lambda d: use(f"{d}/{a}", flags, mode)),
        (f"open {a} {flags:o} {mode:o}", lambda d: use(f"{d}/{a}", flags, mode)),
        (f"list {a}", lambda d: sorted(os.listdir(f"{d}/{a}"))),
        (f"access {a}", lambda d: [os.access(f"{d}/{a}", m) for m in (os.R_OK, os.W_OK, os.X_OK)]),
    ]
    return r.choice(calls)


def tree_of(top: str) -> dict[str, tuple[int, ...]]:
    return {
        os.path.relpath(os.path.join(folder, name), top): look(os.path.join(folder, name))
        for folder, folders, files in os.walk(top)
        for name in folders + files
    }


@pytest.mark.parametrize("seed", range(6))
def test_the_same_as_a_local_directory(seed: int) -> None:
    """600 random calls by random users; the trees are compared every now and then, and from both sides at the end."""
    r = random.Random(seed)
    base = Path(tempfile.mkdtemp())  # pytest's own folders are root's alone
    base.chmod(0o755)
    for name in ("local", "export", "mnt"):
        (base / name).mkdir()
    for name in ("local", "export"):
        (base / name / "w").mkdir()  # not the mount's own root, which is busy to some calls
        (base / name / "w").chmod(0o1777 if seed % 2 else 0o777)
    done: list[str] = []
    groups = os.getgroups()
    umask = os.umask(r.choice([0, 0o022, 0o077]))
    try:
        with mounted(base / "export", base / "mnt", files_max=5 if seed % 3 else 4096):
            os.setgroups([])
            for turn in range(600):
                words, call = step(r)
                uid, gid = r.choice(USERS)
                answers = []
                for side in ("local", "mnt"):
                    os.setegid(gid)
                    os.seteuid(uid)
                    try:
                        answers.append(attempt(partial(call, f"{base}/{side}/w")))
                    finally:
                        os.seteuid(0)
                        os.setegid(0)
                done.append(f"{uid}:{gid} {words} -> {answers[0]}")
                assert answers[0] == answers[1], "\n".join([*done[-30:], f"but on the mount: {answers[1]}"])
                if turn % 50 == 49:
                    trees = [tree_of(f"{base}/{side}") for side in ("local", "mnt")]
                    assert trees[0] == trees[1], "\n".join(done[-50:])
        assert tree_of(f"{base}/local") == tree_of(f"{base}/export")
    finally:
        os.setgroups(groups)
        os.umask(umask)
        shutil.rmtree(base)
