"""Programs people use, on a board, through a stock kernel's 9P client; and locks between boards and this machine."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from rig import TOP, QemuBoard
from test_programs import COUNT, GAPS, answers, differences, facts, furnish
from test_programs import EXCEPTIONS as FUSE_EXCEPTIONS

pytestmark = [pytest.mark.qemu, pytest.mark.slow, pytest.mark.timeout(600)]

GIT = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b"}
GIT |= {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
GIT |= {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "maintenance.auto", "GIT_CONFIG_VALUE_0": "false"}

SECOND_NS = 10**9  # what Linux 6.1's v9fs keeps of a given time


def run(board: QemuBoard, folder: Path, script: str, **environment: str) -> str:
    result = board.cpu(
        "sh", "-ec", script, cwd=folder, options=("--mount", "9p"), timeout_s=590, LC_ALL="C.UTF-8", **environment
    )
    assert result.returncode == 0, (result.stdout + result.stderr).decode()
    return result.stdout.decode()


def test_git_commit_and_clone(board: QemuBoard, tmp_path: Path) -> None:
    """A few commands make a minute: each of git's many processes loads itself and its libraries from here."""
    script = """
    git init -q -b main origin && cd origin
    for i in 1 2 3 4 5; do mkdir d$i; echo $i > d$i/f; done; ln -s d1 link; chmod +x d1/f
    git add . && git commit -qm first && cd .. && git clone -q origin copy && stat -c %h copy/.git/objects/*/* | sort -u
    """
    assert run(board, tmp_path, script, **GIT) == "2\n"  # a clone in the same file system has hard links
    there = ["git", "-C", str(tmp_path / "copy")]
    subprocess.run([*there, "fsck", "--strict"], check=True, capture_output=True)
    assert subprocess.check_output([*there, "status", "--porcelain"]) == b""
    assert os.readlink(tmp_path / "copy/link") == "d1" and os.access(tmp_path / "copy/d1/f", os.X_OK)


def test_git_gc(board: QemuBoard, tmp_path: Path) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(os.urandom(10_000))
        subprocess.run([*git, "add", name], check=True)
        subprocess.run([*git, "commit", "-qm", name], check=True)
    head = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True)
    said = run(board, tmp_path, "git gc -q --prune=now; git fsck --strict; git status --porcelain; git rev-parse HEAD")
    assert said == head
    assert len(list((tmp_path / ".git/objects/pack").glob("*.pack"))) == 1
    assert not list((tmp_path / ".git/objects").glob("??"))
    subprocess.run([*git, "fsck", "--strict"], check=True, capture_output=True)


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_sqlite_from_two_processes(board: QemuBoard, tmp_path: Path, mode: str) -> None:
    create = f"pragma journal_mode={mode}; create table counter(n); create table log(n, t);"
    script = f"""
    sqlite3 counter '{create} insert into counter values (0)' > /dev/null
    python3 -c '{COUNT}' 20 & one=$!
    python3 -c '{COUNT}' 20; wait $one
    sqlite3 counter 'pragma journal_mode; pragma integrity_check; select n from counter;'
    """
    assert run(board, tmp_path, script).split() == [mode, "ok", "40"]
    with closing(sqlite3.connect(tmp_path / "counter")) as db:
        assert db.execute("select count(distinct n) from log").fetchone() == (40,)


def test_sqlite_from_the_board_and_from_here(board: QemuBoard, tmp_path: Path) -> None:
    """Locks hold between the machines; with a rollback journal that is all sqlite needs."""
    with closing(sqlite3.connect(tmp_path / "counter")) as db:
        db.executescript("create table counter(n); create table log(n, t); insert into counter values (0);")
    with subprocess.Popen([sys.executable, "-c", COUNT, "150"], cwd=tmp_path) as here:
        run(board, tmp_path, f"python3 -c '{COUNT}' 20")
        assert here.wait(100) == 0
    with closing(sqlite3.connect(tmp_path / "counter")) as db:
        assert db.execute("select n from counter").fetchone() == (170,)
        assert db.execute("select count(distinct n) from log").fetchone() == (170,)
        assert db.execute("pragma integrity_check").fetchone() == ("ok",)


def test_tar(board: QemuBoard, tmp_path: Path) -> None:
    tar = "tar --format=posix --xattrs --xattrs-include='*' --acls --numeric-owner"
    furnish(tmp_path / "tree", root=True)
    expected = facts(tmp_path / "tree", unit_ns=SECOND_NS)
    run(board, tmp_path, f"{tar} -cSf tree.tar tree; mkdir copy; {tar} -xpSf tree.tar -C copy")
    (tmp_path / "local").mkdir()
    subprocess.run(["sh", "-c", f"{tar} -xpSf ../tree.tar"], cwd=tmp_path / "local", check=True)
    assert facts(tmp_path / "local/tree", unit_ns=SECOND_NS) == expected  # all was read
    assert facts(tmp_path / "copy/tree", unit_ns=SECOND_NS) == expected  # and all was written
    assert (tmp_path / "copy/tree/holes").stat().st_blocks * 512 < 100_000


def test_rsync(board: QemuBoard, tmp_path: Path) -> None:
    furnish(tmp_path / "tree", root=True)
    rsync = "rsync -aHAX --checksum --sparse --numeric-ids --itemize-changes --modify-window=1"
    said = run(board, tmp_path, f"{rsync} tree/ copy/ > said; {rsync} --delete tree/ copy/")
    assert said == ""
    expected = facts(tmp_path / "tree", every_time=False, unit_ns=SECOND_NS)
    assert facts(tmp_path / "copy", every_time=False, unit_ns=SECOND_NS) == expected


def test_python_venv(board: QemuBoard, tmp_path: Path) -> None:
    script = """
    /usr/bin/python3 -m venv --without-pip env
    echo 'where = __file__' > env/lib/python3.11/site-packages/found.py
    env/bin/python -c 'import found, sys; print(sys.prefix, found.where)'
    """
    prefix, found = run(board, tmp_path, script, PYTHONDONTWRITEBYTECODE="").split()
    assert prefix == str(tmp_path / "env")
    assert found == f"{tmp_path}/env/lib/python3.11/site-packages/found.py"
    assert list((tmp_path / "env/lib/python3.11/site-packages/__pycache__").glob("found.*.pyc"))


# What Linux 6.1's v9fs answers otherwise than a local file system: each is a row of docs/filesystem.md.
EXCEPTIONS = FUSE_EXCEPTIONS | {
    "nanoseconds_of_given_times": "0",
    "a_device_is_opened": "EACCES",
    "a_lease": "EINVAL",
    "one_process_locks_by_two_descriptors": "EAGAIN",
    "a_close_gives_up_locks_of_other_descriptors": "False",
}


def test_nothing_else_is_missing(board: QemuBoard, tmp_path: Path) -> None:
    """Where v9fs differs from the local file system: what docs/filesystem.md says and no more."""
    (tmp_path / "gaps").mkdir()
    (tmp_path / "gaps.py").write_text(GAPS.read_text())
    found = answers(run(board, tmp_path, "python3 gaps.py /tmp/cpu$PWD/gaps"))
    assert differences(tmp_path / "local", found) == EXCEPTIONS


def test_what_the_other_side_changes(board: QemuBoard, tmp_path: Path) -> None:
    """Data and attributes are seen at once, but for what is mapped: that stays as it was (docs/filesystem.md)."""
    code = """
import mmap, os, sys
os.chdir(os.path.dirname(sys.argv[0]))
file = open("f", "r+b")
mapped = mmap.mmap(file.fileno(), 4)
print(mapped[:], flush=True)
sys.stdin.readline()
print(mapped[:], open("g").read(), os.stat("g").st_size, os.path.exists("h"), flush=True)
"""
    for name in ("f", "g", "h"):
        (tmp_path / name).write_text("less")
    (tmp_path / "code").write_text(code)
    options = ("--mount", "9p")
    with board.start_cpu("python3", f"/tmp/cpu{tmp_path}/code", options=options) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == b"b'less'\n"
        for name in ("f", "g"):
            (tmp_path / name).write_text("more")
        with (tmp_path / "g").open("a") as file:
            file.write(" than that")
        (tmp_path / "h").unlink()
        out, _ = process.communicate(b"\n", 100)
        assert out.decode() == "b'less' more than that 14 False\n"


class Locker:
    """A process with a file open, here or on the board, that takes locks as told."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def start(self, order: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(order.encode() + b"\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().decode().strip()

    def __call__(self, order: str) -> str:
        self.start(order)
        return self.answer()


@contextmanager
def lockers(board: QemuBoard, file: Path) -> Iterator[list[Locker]]:
    """One here, and two in sessions of their own on the board: each has its own mount, as on two boards."""
    file.write_bytes(b"x" * 100)
    script = str(TOP / "tests/on_board_lock.py")
    board.folder.joinpath("on_board_lock.py").write_text(Path(script).read_text())
    with ExitStack() as stack:
        found = []
        for command in (
            [sys.executable, script, str(file)],
            *[board.argv("python3", "on_board_lock.py", f"/tmp/cpu{file}", options=("--mount", "9p"))] * 2,
        ):
            process = subprocess.Popen(
                command,
                cwd=board.folder,
                env=board.environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            found.append(Locker(process))
        for locker in found:
            assert locker.answer() == "ready"
        yield found
        for locker in found:
            assert locker.process.stdin
            locker.process.stdin.close()
            assert locker.process.wait(60) == 0


@pytest.mark.parametrize("kind", ["flock", "fcntl"])
def test_locks_between_two_boards_and_this_machine(board: QemuBoard, tmp_path: Path, kind: str) -> None:
    with lockers(board, tmp_path / "file") as three:
        here, one, two = three
        for holder in three:
            others = [locker for locker in three if locker is not holder]
            assert holder(f"{kind} try") == "done"
            assert [other(f"{kind} try") for other in others] == ["held", "held"]
            assert holder(f"{kind} drop") == "done"
            assert [other(f"{kind} try") for other in others] == ["done", "held"]
            assert others[0](f"{kind} drop") == "done"
        if kind == "fcntl":
            assert here("fcntl try 0 10") == one("fcntl try 10 10") == two("fcntl try 20 10") == "done"
            assert here("fcntl try 5 10") == one("fcntl try 5 10") == two("fcntl try 15 90") == "held"
            assert [locker("fcntl drop") for locker in three] == ["done"] * 3
        # waiting: for this machine's, for another board's, and of this machine for a board's
        for holder, waiter in ((here, one), (one, two), (two, here)):
            assert holder(f"{kind} try") == "done"
            waiter.start(f"{kind} wait")
            time.sleep(1)
            assert holder(f"{kind} drop") == "done"
            dropped = time.monotonic()
            assert waiter.answer() == "done"
            assert time.monotonic() - dropped < 10, "the kernel asks only every 30 s"
            assert waiter(f"{kind} drop") == "done"


@pytest.mark.parametrize("kind", ["flock", "fcntl"])
def test_a_board_that_goes_leaves_no_lock(board: QemuBoard, tmp_path: Path, kind: str) -> None:
    with lockers(board, tmp_path / "file") as (here, one, two):
        assert one(f"{kind} try") == "done"
        assert here(f"{kind} try") == two(f"{kind} try") == "held"
        # With its sessions' clients the locks go: a client that is killed takes its server along.
        assert one.process.stdin
        one.process.stdin.close()
        assert one.process.wait(60) == 0
        assert here(f"{kind} try") == "done"
        assert here(f"{kind} drop") == "done"
        assert two(f"{kind} try") == "done"
