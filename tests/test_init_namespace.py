"""init as process 1 of a pid namespace: real mounts, real children, a real terminal, and a reboot(2) that ends only it.

Its programs are scripts in overlays of /usr and /etc which nobody else sees. Nothing here may run outside the
namespace: what init does to every process, it would do to this machine's.
"""

import contextlib
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare"),
]

SET_UP = r"""
set -e
mount -t tmpfs tmpfs "$1"
cd "$1"
mkdir usr usr-work etc etc-work usr/bin etc/pycpu
cat "$2/board.json" > etc/pycpu/board.json
for name in cpud dhcp; do cat "$2/$name" > usr/bin/$name; chmod 755 usr/bin/$name; done
touch etc/pycpu/console
mount -t overlay -o lowerdir=/usr,upperdir=usr,workdir=usr-work overlay /usr
mount -t overlay -o lowerdir=/etc,upperdir=etc,workdir=etc-work overlay /etc
mount --bind "$3" /etc/pycpu/console
umask 077
shift 3
exec "$@"
"""

CPUD = """#!/bin/sh
echo "cpud $* HOME=$HOME" >> /etc/pycpu/log
# An orphan that ends, and one that does not hear TERM.
(sleep 0.2 &)
trap 'echo "cpud terminated" >> /etc/pycpu/log; exit 0' TERM
while :; do sleep 0.1 & wait $!; done
"""

DHCP = """#!/bin/sh
echo "dhcp $*" >> /etc/pycpu/log
trap 'echo "dhcp $1 terminated" >> /etc/pycpu/log; exit 0' TERM
while :; do sleep 0.1 & wait $!; done
"""

BOARD = {
    "hostname": "tester",
    "console": "/etc/pycpu/console",
    "network": {"mode": "dhcp", "interfaces": ["late0"]},
    "cpud": ["-pk", "keys"],
    "modules": ["kernel/nope.ko"],
}

START = "from multicall import init; from multicall.lib import boot; boot.STOP_GRACE_S = 1.5; init.main(['init'])"


def until(condition: Callable[[], object], what: str, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)


class Board:
    """A booted namespace."""

    def __init__(self, folder: Path, table: dict[str, object], code: str = START) -> None:
        self.folder = folder
        (folder / "board.json").write_text(json.dumps(table))
        (folder / "cpud").write_text(CPUD)
        (folder / "dhcp").write_text(DHCP)
        (folder / "tmp").mkdir()
        self.terminal, slave = pty.openpty()
        self.heard = b""
        self.output = (folder / "output").open("wb")
        command = ["unshare", "-m", "-p", "-u", "-n", "-i", "--fork", "--kill-child", "--mount-proc"]
        script = ["sh", "-c", SET_UP, "sh", str(folder / "tmp"), str(folder), os.ttyname(slave)]
        self.process = subprocess.Popen(
            [*command, *script, sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(TOP)},
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=self.output,
        )
        os.close(slave)
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        until(lambda: children.read_text().split(), "a child of unshare")
        self.pid = int(children.read_text().split()[0])
        self.root = Path(f"/proc/{self.pid}/root")

    @property
    def log(self) -> list[str]:
        try:
            return (self.root / "etc/pycpu/log").read_text().splitlines()
        except OSError:
            return []

    def text(self) -> str:
        return (self.folder / "output").read_text()

    def hear(self, wanted: bytes, timeout_s: float = 20) -> bytes:
        """Read the terminal until `wanted` comes; returns what came before, and it."""
        deadline = time.monotonic() + timeout_s
        while wanted not in self.heard:
            ready = select.select([self.terminal], [], [], max(0, deadline - time.monotonic()))[0]
            assert ready, f"never on the console: {wanted!r}; but {self.heard!r}"
            with contextlib.suppress(OSError):  # EIO while no process has it open
                self.heard += os.read(self.terminal, 65536)
        before, _, self.heard = self.heard.partition(wanted)
        return before + wanted

    def type(self, text: bytes) -> None:
        os.write(self.terminal, text)

    def enter(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nsenter", "-a", "-t", str(self.pid), *command], capture_output=True, text=True, check=False, timeout=30
        )

    def children(self) -> dict[int, str]:
        """pid (out here) and state of init's children."""
        found = {}
        for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                found[int(pid)] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return found

    def find(self, name: str) -> int:
        for pid in self.children():
            with contextlib.suppress(OSError):
                if f"/usr/bin/{name}".encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        return 0

    def cpu_ticks(self) -> int:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    def close(self) -> None:
        self.process.kill()  # and its child, which is all of them
        self.process.wait()
        os.close(self.terminal)
        self.output.close()


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    booted = Board(tmp_path_factory.mktemp("board"), BOARD)
    yield booted
    booted.close()


def test_it_comes_up_and_tells_what_failed(board: Board) -> None:
    until(lambda: board.log, "cpud started")
    assert board.log[0] == "cpud -pk keys HOME=/root"
    assert board.enter("hostname").stdout == "tester\n"
    problems = (board.root / "run/pycpu/problems").read_text().splitlines()
    assert any("load module kernel/nope.ko: No such file or directory" in line for line in problems), problems
    assert "init: load module kernel/nope.ko" in board.text()
    assert "tmpfs /run tmpfs rw,nosuid,nodev" in (board.root / "proc/1/mounts").read_text()


def test_a_shell_is_on_the_console(board: Board) -> None:
    assert b"on tester: no address yet" in board.hear(b"# ")
    board.type(b"echo =$((6*7))= $HOME $PATH $TERM; umask; tty\n")
    board.hear(b"=42= /root /usr/sbin:/usr/bin:/sbin:/bin vt220\r\n0022\r\n")
    board.hear(b"# ")
    board.type(b"sleep 100\n")
    time.sleep(0.3)
    board.type(b"\x03")  # its terminal is its own, so ^C is the program's
    board.hear(b"# ")


def test_the_shell_comes_again(board: Board) -> None:
    board.type(b"stty raw -echo; exit\n")
    board.hear(b"on tester: ")
    board.hear(b"# ")
    board.type(b"echo =$((5+5))=\n")
    board.hear(b"=10=\r\n")
    board.hear(b"# ")


def test_orphans_are_reaped(board: Board) -> None:
    board.type(b"for i in 1 2 3 4 5; do (sleep 0.1 &) ; done; echo do''ne\n")
    board.hear(b"done\r\n")
    until(lambda: len(board.children()) == 2, "only cpud and the shell")
    assert "Z" not in board.children().values()


def test_cpud_that_dies_is_started_again(board: Board) -> None:
    first = board.find("cpud")
    started = len(board.log)
    os.kill(first, signal.SIGKILL)
    until(lambda: len(board.log) > started, "cpud started again")
    assert board.find("cpud") not in (0, first)
    assert "cpud: killed by Killed" in (board.root / "run/pycpu/problems").read_text()


def test_an_interface_that_comes_later_gets_its_client(board: Board) -> None:
    assert board.enter("ip", "link", "add", "late0", "type", "veth", "peer", "name", "other0").returncode == 0
    until(lambda: "dhcp late0" in board.log, "a client for late0")
    assert board.find("dhcp")
    assert board.enter("ip", "link", "del", "late0").returncode == 0
    until(lambda: "dhcp late0 terminated" in board.log, "the client's end")
    until(lambda: not board.find("dhcp"), "no client")
    assert not any("other0" in line for line in board.log)


def test_idle_it_costs_nothing_and_is_small(board: Board) -> None:
    os.kill(board.find("cpud"), signal.SIGSTOP)  # whose children would be our work
    time.sleep(0.3)
    before = board.cpu_ticks()
    time.sleep(2)
    assert board.cpu_ticks() == before
    os.kill(board.find("cpud"), signal.SIGCONT)
    status = Path(f"/proc/{board.pid}/status").read_text()
    size_kib = int(status.partition("VmRSS:")[2].split()[0])
    assert size_kib < 18 << 10, status


def test_poweroff_ends_everything_and_switches_off(board: Board) -> None:
    # One that hears nothing but KILL, and is nobody's child but init's.
    board.type(b"(trap '' TERM HUP; setsid sh -c 'trap \"\" TERM; while :; do sleep 1; done' &); echo ready$((1))\n")
    board.hear(b"ready1")
    done = board.enter("env", f"PYTHONPATH={TOP}", sys.executable, "-m", "multicall", "poweroff")
    assert done.returncode in (0, -signal.SIGTERM), done.stderr  # it may be among those that init ends
    # reboot(2) in a pid namespace: process 1 ends by INT for switching off, by HUP for a restart.
    assert board.process.wait(20) == -signal.SIGINT
    text = board.text()
    assert "init: poweroff: switching off" in text
    assert "init: killing what is left" in text
    assert "Traceback" not in text


def test_term_restarts_and_a_wrong_description_is_no_end(tmp_path: Path) -> None:
    board = Board(tmp_path, {**BOARD, "console": "/nope", "hostname": ""})
    try:
        until(lambda: board.log, "cpud started")
        assert board.enter("hostname").stdout == os.uname().nodename + "\n", "what it was"
        until(lambda: "run shell on nope: /nope: No such file or directory" in board.text(), "why there is no shell")
        os.kill(board.pid, signal.SIGTERM)
        assert board.process.wait(20) == -signal.SIGHUP
        assert 'hostname = "": must be a text that is not empty' in board.text()
    finally:
        board.close()


def test_when_all_else_fails_there_is_a_shell(tmp_path: Path) -> None:
    broken = "import sys; sys.modules['multicall.lib.boot'] = None; import multicall.init as i; i.main(['init'])"
    board = Board(tmp_path, BOARD, f"import os; os.system('mount --bind /etc/pycpu/console /dev/console'); {broken}")
    try:
        board.hear(b"here is a shell\r\n")
        board.hear(b"# ")
        board.type(b"echo =$((6*7))=; exit\n")
        board.hear(b"=42=\r\n")
        board.hear(b"# ")
    finally:
        board.close()
