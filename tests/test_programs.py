"""Programs people use, on the FUSE mount: what they make must be right on the mount and on the machine behind it."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import shutil
import sqlite3
import stat
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from rig import TOP
from test_ninep_fuse import mounted, pytestmark  # noqa: F401

WATCHDOG_S = 100.0
NOBODY = 12345


@dataclass
class Place:
    """An export and where it is mounted, and who works there: 0 with a server of root's, or a user with its own."""

    export: Path
    mnt: Path
    user: int

    def run(self, *command: str | Path, cwd: Path | None = None, **env: str) -> str:
        """What a command says, run by the user, in the mount's root unless told otherwise."""
        who = ["setpriv", "--reuid", str(self.user), "--regid", str(self.user), "--clear-groups"] if self.user else []
        done = subprocess.run(
            [*who, *map(str, command)],
            cwd=cwd or self.mnt,
            env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": str(self.mnt), "LC_ALL": "C.UTF-8", **env},
            capture_output=True,
            text=True,
            timeout=WATCHDOG_S,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(params=[0, NOBODY], ids=["root", "user"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    base = Path(tempfile.mkdtemp())  # pytest's own folders are root's alone
    base.chmod(0o755)
    try:
        for name in ("export", "mnt"):
            (base / name).mkdir()
        os.chown(base / "export", request.param, request.param)
        with mounted(base / "export", base / "mnt", user=request.param or None, watchdog_s=WATCHDOG_S):
            yield Place(base / "export", base / "mnt", request.param)
    finally:
        shutil.rmtree(base)


as_root = pytest.mark.parametrize("place", [0], ids=["root"], indirect=True)


@pytest.mark.slow
def test_git(place: Place) -> None:
    """init, add, commit, branch, merge, clone (hard links and by the wire), gc, fsck, worktree."""
    script = """
    git init -q -b main origin && cd origin
    for i in $(seq 70); do mkdir -p d$((i % 7)); seq $i $((i * 3)) > d$((i % 7))/f$i; done
    ln -s d1 link; echo '#!/bin/sh' > run; chmod +x run
    git add . && git commit -qm first
    git checkout -qb side && git mv d1 e1 && echo x >> e1/f1 && git commit -qam side
    git checkout -q main && echo y >> d2/f2 && git commit -qam main && git merge -q -m merged side
    cd .. && git clone -q origin linked && git clone -q file://$PWD/origin packed
    cd packed && git log --oneline | wc -l
    echo z > new && git add new && git commit -qm new && git push -q origin @:side2
    git gc -q --prune=now && git fsck --strict --full && git status --porcelain
    git worktree add -q ../worktree && git -C ../worktree rev-parse HEAD && git rev-parse HEAD && cd ..
    git -C origin gc -q && git -C origin fsck --strict && git -C linked fsck --strict
    git -C origin stash list && git -C origin reset -q --hard && git -C origin status --porcelain
    """
    config = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b"}
    config |= {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
    commits, worktree, head = place.run("sh", "-ec", script, **config).split()
    assert commits == "4" and worktree == head
    there = ["git", "-c", "safe.directory=*", "-C", str(place.export / "packed")]
    subprocess.run([*there, "fsck", "--strict"], check=True, capture_output=True)
    assert subprocess.run([*there, "status", "--porcelain"], check=True, capture_output=True).stdout == b""
    assert os.readlink(place.export / "packed" / "link") == "d1"
    assert (place.export / "linked" / "run").stat().st_mode & 0o111 == 0o111


COUNT = """
import sqlite3, sys
db = sqlite3.connect("counter", timeout=60, isolation_level=None)
for i in range(int(sys.argv[1])):
    db.execute("begin immediate")
    n = db.execute("select n from counter").fetchone()[0]
    db.execute("update counter set n = ?", (n + 1,))
    db.execute("insert into log values (?, ?)", (n, "x" * 500))
    db.execute("commit")
"""


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_sqlite_from_two_processes(place: Place, mode: str) -> None:
    """No update is lost, whether the journal is a shared mapping (wal) or guarded by byte-range locks."""
    place.run("sqlite3", "counter", f"pragma journal_mode={mode}; create table counter(n); create table log(n, t);")
    place.run("sqlite3", "counter", "insert into counter values (0)")
    python = "/usr/bin/python3"
    place.run("sh", "-ec", f"{python} -c '{COUNT}' 60 & one=$!; {python} -c '{COUNT}' 60; wait $one")
    said = "pragma journal_mode; pragma integrity_check; select n from counter; select count(distinct n) from log;"
    assert place.run("sqlite3", "counter", said).split() == [mode, "ok", "120", "120"]
    assert not (place.export / "counter-wal").exists()  # the last to close has folded it in
    with sqlite3.connect(f"file:{place.export}/counter?mode=ro&immutable=1", uri=True) as db:
        assert db.execute("select n from counter").fetchone() == (120,)
    db.close()


def test_sqlite_keeps_a_second_writer_out(place: Place) -> None:
    script = """
import sqlite3, subprocess, sys
db = sqlite3.connect("x", isolation_level=None)
db.execute("create table t(n)")
db.execute("begin exclusive")
other = subprocess.run(["sqlite3", "x", "insert into t values (1)"], capture_output=True, text=True)
assert "database is locked" in other.stderr, other
db.execute("commit")
subprocess.run(["sqlite3", "x", "insert into t values (1)"], check=True)
"""
    place.run("/usr/bin/python3", "-c", script)


MAKEFILE = """\
CFLAGS = -O1 -g -fPIC -MMD
objects = $(patsubst %.c,%.o,$(wildcard part*.c))
all: program static
libparts.so: $(objects)
\t$(CC) -shared -o $@ $^
libparts.a: $(objects)
\t$(AR) rcs $@ $^
program: main.o libparts.so
\t$(CC) -o $@ main.o -L. -lparts -Wl,-rpath,'$$ORIGIN'
static: main.o libparts.a
\t$(CC) -static -o $@ main.o libparts.a
clean:
\t$(RM) *.o *.d *.so *.a program static
-include $(wildcard *.d)
"""


def test_gcc_and_make(place: Place) -> None:
    """A parallel build with a shared and a static library, run from the mount; a touched header rebuilds some."""
    source = place.export / "src"
    source.mkdir()
    (source / "Makefile").write_text(MAKEFILE)
    (source / "parts.h").write_text("".join(f"int part{i}(void);\n" for i in range(8)))
    for i in range(8):
        include = '#include "parts.h"\n' if i < 3 else ""
        (source / f"part{i}.c").write_text(f"{include}int part{i}(void) {{ return {i}; }}\n")
    total = "+".join(f"part{i}()" for i in range(8))
    main = f'#include <stdio.h>\n#include "parts.h"\nint main(void) {{ printf("%d\\n", {total}); return 0; }}\n'
    (source / "main.c").write_text(main)
    os.chown(source, place.user, place.user)
    here = place.mnt / "src"
    place.run("make", "-s", "-j2", cwd=here)
    assert place.run(here / "program") == place.run(here / "static") == "28\n"
    assert "Nothing to be done" in place.run("make", cwd=here)
    place.run("make", "-s", "clean", cwd=here)
    place.run("make", "-s", "-j2", cwd=here)
    os.utime(source / "parts.h")
    rebuilt = place.run("sh", "-c", "sleep 1.1; make -j2", cwd=here)
    assert {f"part{i}.o" for i in range(8) if f"-o part{i}.o" in rebuilt} == {"part0.o", "part1.o", "part2.o"}
    assert place.run(here / "program") == "28\n"


def furnish(top: Path, root: bool) -> None:
    """A folder with one of each kind of thing a copy has to keep."""
    top.mkdir()
    (top / "plain").write_bytes(os.urandom(100_000))
    os.link(top / "plain", top / "hard")
    os.symlink("plain", top / "soft")
    os.symlink("/nowhere", top / "dangling")
    os.mkfifo(top / "fifo")
    (top / "empty").touch()
    (top / "setuid").touch()
    (top / "setuid").chmod(0o4751)
    (top / "deep" / "er").mkdir(parents=True)
    os.link(top / "plain", top / "deep" / "er" / "third")
    (top / "deep").chmod(0o2750)
    (top / os.fsdecode(b"\xff\xfe name\n\\")).write_text("odd name")
    (top / ("n" * 255)).write_text("long name")
    with (top / "holes").open("wb") as file:
        file.truncate(1 << 18)
        file.seek(1 << 17)
        file.write(b"x" * 10_000)
    os.setxattr(top / "plain", "user.one", b"1")
    (top / "shared").touch()
    everybody = 2**32 - 1
    entries = ((1, 6, everybody), (2, 6, 54321), (4, 0, everybody), (16, 6, everybody), (32, 0, everybody))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)  # linux/posix_acl_xattr.h
    os.setxattr(top / "shared", "system.posix_acl_access", acl)
    os.setxattr(top / "deep", "user.two", os.urandom(1000))
    if root:
        os.setxattr(top / "plain", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
        os.setxattr(top / "empty", "trusted.t", b"t")
        os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.chown(top / "empty", 1, 2)
    for path in (top / "deep" / "er", top / "deep", top / "soft", top / "plain", top):
        os.utime(path, ns=(1_000_000_000_000_000_001, 1_234_567_890_123_456_789), follow_symlinks=False)


def facts(top: Path, every_time: bool = True, unit_ns: int = 1) -> dict[str, tuple[object, ...]]:
    """All there is to know of a tree, but for what no copy keeps; every_time: of links and FIFOs too."""
    found: dict[str, tuple[object, ...]] = {}
    inodes: dict[int, str] = {}
    for folder, folders, files in sorted(os.walk(top)):
        for name in [*sorted(folders + files), ""]:
            path = os.path.join(folder, name)
            st = os.lstat(path)
            content: object = None
            if stat.S_ISREG(st.st_mode):
                content = Path(path).read_bytes()
            elif stat.S_ISLNK(st.st_mode):
                content = os.readlink(path)
            shown = os.path.relpath(path, top)
            first = inodes.setdefault(st.st_ino, shown)
            names = os.listxattr(path, follow_symlinks=False)
            xattrs = {x: os.getxattr(path, x, follow_symlinks=False) for x in names}
            timed = every_time or stat.S_ISREG(st.st_mode) or stat.S_ISDIR(st.st_mode)
            mtime = st.st_mtime_ns // unit_ns if timed else 0
            links = 0 if stat.S_ISDIR(st.st_mode) else st.st_nlink
            found[shown] = (st.st_mode, st.st_uid, st.st_gid, st.st_rdev, mtime, links, first, xattrs, content)
    return found


@contextmanager
def acting_as(user: int) -> Iterator[None]:
    """This process's calls are the user's."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(user)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def test_tar(place: Place) -> None:
    """Out and in again, both on the mount, then each to the other side."""
    with acting_as(place.user):
        furnish(place.mnt / "tree", root=not place.user)
    tar = ["tar", "--format=posix", "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner"]
    place.run(*tar, "-cSf", "tree.tar", "tree")
    (place.export / "local").mkdir()
    os.chown(place.export / "local", place.user, place.user)
    place.run("mkdir", "copy")
    place.run(*tar, "-xpSf", "tree.tar", "-C", "copy")
    place.run(*tar, "-xpSf", place.export / "tree.tar", "-C", "local", cwd=place.export)
    place.run(*tar, "--compare", "-f", place.export / "tree.tar")
    expected = facts(place.export / "tree")
    assert expected == facts(place.mnt / "tree")
    assert expected == facts(place.export / "copy" / "tree") == facts(place.export / "local" / "tree")
    for copy in ("tree", "copy/tree"):
        st = (place.export / copy / "holes").stat()
        assert st.st_size == (1 << 18) and st.st_blocks * 512 < 100_000


def test_rsync(place: Place) -> None:
    """Onto the mount, from it, and once more with nothing left to do. (rsync 3.5 gives links and FIFOs new times.)"""
    with acting_as(place.user):
        furnish(place.export / "there", root=not place.user)
        os.mkdir(place.export / "local")
    expected = facts(place.export / "there", every_time=False)
    rsync = ["rsync", "-aHAX", "--checksum", "--sparse", "--numeric-ids", "--itemize-changes"]
    assert place.run(*rsync, f"{place.export}/there/", f"{place.mnt}/onto/")
    assert facts(place.export / "onto", every_time=False) == facts(place.mnt / "onto", every_time=False) == expected
    assert place.run(*rsync, f"{place.mnt}/onto/", f"{place.export}/local/back/")
    assert facts(place.export / "local" / "back", every_time=False) == expected
    assert (place.export / "onto" / "holes").stat().st_blocks * 512 < 100_000
    for source, target in (("there", f"{place.mnt}/onto"), ("local/back", f"{place.mnt}/there")):
        assert place.run(*rsync, "--delete", f"{place.export}/{source}/", f"{target}/") == ""
    (place.export / "there" / "plain").write_bytes(b"changed")
    (place.export / "there" / "empty").unlink()
    time.sleep(1.1)  # the kernel has just seen the folder's attributes
    changed = place.run(*rsync, "--delete", f"{place.mnt}/there/", f"{place.mnt}/onto/").splitlines()
    assert "*deleting   empty" in changed
    assert facts(place.export / "onto", every_time=False) == facts(place.export / "there", every_time=False)


def test_python_venv(place: Place) -> None:
    """An environment made on the mount runs from it, and finds what is put into it."""
    place.run("/usr/bin/python3", "-m", "venv", "--without-pip", "env")
    packages = place.mnt / "env/lib/python3.11/site-packages"
    place.run("sh", "-c", f"mkdir {packages}/found; echo 'where = __file__' > {packages}/found/__init__.py")
    code = "import found, sys; print(sys.prefix, found.where)"
    said = place.run(place.mnt / "env/bin/python", "-c", code).split()
    assert said == [str(place.mnt / "env"), f"{packages}/found/__init__.py"]
    assert list((place.export / "env/lib/python3.11/site-packages/found/__pycache__").iterdir())
    place.run("sh", "-ec", ". env/bin/activate; test $(command -v python) = $PWD/env/bin/python")


@pytest.mark.slow
@as_root
def test_find_and_du_over_10000_files(place: Place) -> None:
    for i in range(100):
        (place.export / f"d{i}").mkdir()
        for j in range(100):
            (place.export / f"d{i}" / f"f{j}").write_bytes(b"x" * (i * j % 5000))
    found = place.run("find", ".", "-type", "f", "-printf", "%p %s %n %m %T@\n").splitlines()
    here = place.run("find", ".", "-type", "f", "-printf", "%p %s %n %m %T@\n", cwd=place.export).splitlines()
    assert len(found) == 10_000 and sorted(found) == sorted(here)
    for how in ("-s", "-sb", "--inodes"):
        assert sorted(place.run("du", how, ".").splitlines()) == sorted(
            place.run("du", how, ".", cwd=place.export).splitlines()
        )
    place.run("find", ".", "-name", "f?", "-delete")
    assert sum(len(files) for _, _, files in os.walk(place.export)) == 9000


@pytest.mark.slow
@as_root
def test_a_gibibyte_with_holes(place: Place) -> None:
    """dd and cmp over 1 GiB of which 3 MiB are there; the holes stay holes."""
    size = 1 << 30
    place.run("truncate", "-s", str(size), "big")
    for at in (0, 500, 1023):
        place.run("dd", "if=/dev/urandom", "of=big", "bs=1M", "count=1", f"seek={at}", "conv=notrunc", "status=none")
    blocks = (place.export / "big").stat().st_blocks
    assert 3 << 20 <= blocks * 512 < 4 << 20
    assert (place.mnt / "big").stat().st_blocks == blocks
    place.run("dd", "if=big", "of=copy", "bs=1M", "conv=sparse", "status=none")
    assert (place.export / "copy").stat().st_blocks == blocks
    place.run("cmp", place.mnt / "copy", place.export / "big")
    assert (place.export / "copy").stat().st_size == size


@as_root
@pytest.mark.parametrize("engine", ["psync", "mmap", "libaio"])
def test_fio_random_reads_and_writes_verified(place: Place, engine: str) -> None:
    job = ["fio", "--name=job", "--filename=data", "--rw=randrw", "--bsrange=512-64k", "--size=24m", "--numjobs=1"]
    job += [f"--ioengine={engine}", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--randseed=7"]
    job += ["--iodepth=4", "--output-format=terse", *(["--fsync=64"] if engine == "psync" else [])]
    place.run(*job)
    place.run(*job, "--verify_only", cwd=place.export)


@as_root
def test_a_new_file_can_be_mapped_at_once(place: Place) -> None:
    """Shared mappings are refused where the kernel's cache is not used, as it is not for files that look empty."""
    path = place.mnt / "new"
    path.write_bytes(b"x" * 10_000)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 10_000, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
        assert mapped[9_999] == ord("x")


@as_root
def test_what_the_other_side_changes(place: Place) -> None:
    """Data is seen at the next open, not in what is mapped; inotify is only told what goes through the mount."""
    path, there = place.mnt / "f", place.export / "f"
    path.write_text("one")
    assert path.read_text() == "one"
    for text in ("two", "more than two", "less"):
        there.write_text(text)
        assert path.read_text() == text
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 4) as mapped:
        assert mapped[:] == b"less"
        there.write_text("more")
        time.sleep(1.1)
        assert mapped[:] == b"less"
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(watch, os.fsencode(place.mnt), 0x100) >= 0  # IN_CREATE
    (place.export / "beside").touch()
    os.listdir(place.mnt)
    with pytest.raises(BlockingIOError):
        os.read(watch, 4096)
    (place.mnt / "through").touch()
    assert b"through" in os.read(watch, 4096)
    os.close(watch)


@as_root
def test_locks_stay_inside_the_mount(place: Place) -> None:
    """Programs on one mount keep each other out; those beside it or on another do not (docs/filesystem.md)."""
    for name in ("f", "g"):
        (place.mnt / name).touch()
    code = """
import fcntl, sys
file = open(sys.argv[2], "r+b")
try:
    {"flock": fcntl.flock, "fcntl": fcntl.lockf}[sys.argv[1]](file, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("held")
else:
    print("free")
"""
    second = place.mnt.parent / "second"
    second.mkdir()
    with mounted(place.export, second):
        for name, kind, take in (("f", "flock", fcntl.flock), ("g", "fcntl", fcntl.lockf)):
            with (place.mnt / name).open("r+b") as file:
                take(file, fcntl.LOCK_EX)
                assert place.run("/usr/bin/python3", "-c", code, kind, name) == "held\n"
                for elsewhere in (place.export, second):
                    assert place.run("/usr/bin/python3", "-c", code, kind, name, cwd=elsewhere) == "free\n"
    for name, kind in (("f", "flock"), ("g", "fcntl")):
        assert place.run("/usr/bin/python3", "-c", code, kind, name) == "free\n"


GAPS = TOP / "tests" / "on_board_gaps.py"
EXCEPTIONS = {
    "holes_are_found": "False",
    "space_is_reserved": "ENOTSUP",
    "a_hole_is_punched": "ENOTSUP",
    "flags_of_chattr": "ENOTTY",
    "a_file_without_a_name": "ENOTSUP",
    "rename_that_replaces_nothing": "EINVAL",
    "rename_that_exchanges": "EINVAL",
    "time_of_birth": "False",
    "an_acl_lets_its_user_in": "EACCES",
    "a_default_acl_is_inherited": "0o600",
}
"""What the mount answers otherwise than a local file system: each is a row of docs/filesystem.md."""


def answers(said: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in said.splitlines())


def differences(local: Path, elsewhere: dict[str, str]) -> dict[str, str]:
    """What on_board_gaps.py is answered otherwise elsewhere than in a local folder."""
    local.mkdir()
    local.parent.chmod(0o755)
    said = subprocess.check_output(["/usr/bin/python3", GAPS, local], text=True)
    expected = answers(said)
    assert expected.keys() == elsewhere.keys()
    return {name: answer for name, answer in elsewhere.items() if answer != expected[name]}


@as_root
def test_nothing_else_is_missing(place: Place) -> None:
    """Where the mount differs from the local file system beside it: what docs/filesystem.md says and no more."""
    place.run("mkdir", "gaps")
    found = answers(place.run("/usr/bin/python3", GAPS, place.mnt / "gaps"))
    assert differences(place.export / "local", found) == EXCEPTIONS
    path = place.mnt / "f"
    with path.open("w+b") as file:
        os.posix_fallocate(file.fileno(), 0, 100_000)  # libc's own way, where the kernel has none
    assert path.stat().st_size == 100_000
