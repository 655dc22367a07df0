"""Whole sessions on a board in QEMU: our image and init, a stock kernel's 9P and FUSE, the built zipapp as client."""

import os
import signal
from pathlib import Path

import pytest

from rig import QemuBoard, wait_until

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(400)]

MOUNTS = ("9p", "fuse")


@pytest.mark.parametrize(("wire", "mount"), [("pycpu", "9p"), ("pycpu", "fuse"), ("u-root", "9p")])
def test_the_command_sees_our_files_and_writes_them(board: QemuBoard, tmp_path: Path, mount: str, wire: str) -> None:
    (tmp_path / "in").write_bytes(os.urandom(3_000_000))
    script = "cat in > out; echo said; echo wrong >&2; pwd; grep ' /tmp/cpu ' /proc/self/mounts | cut -d' ' -f3; exit 7"
    options = ("--wire", wire, *(("--mount", mount) if wire == "pycpu" else ()))
    result = board.cpu("sh", "-c", script, cwd=tmp_path, options=options)
    assert result.stderr == b"wrong\n"
    assert result.stdout.decode().splitlines() == ["said", str(tmp_path), {"9p": "9p", "fuse": "fuse.cpu"}[mount]]
    assert result.returncode == 7
    assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()


def test_9p_is_the_boards_own_choice(board: QemuBoard) -> None:
    assert board.cpu("grep", "-c", "^cpu /tmp/cpu 9p ", "/proc/self/mounts").stdout == b"1\n"


@pytest.mark.parametrize("mount", MOUNTS)
@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 200", 200), ("kill -9 $$", 137), ("kill -TERM $$", 143)],
)
def test_exit_status_is_exact(board: QemuBoard, mount: str, script: str, status: int) -> None:
    result = board.cpu("sh", "-c", script, options=("--mount", mount))
    assert (result.returncode, result.stdout, result.stderr) == (status, b"", b"")


@pytest.mark.parametrize("mount", MOUNTS)
def test_flashrom(board: QemuBoard, tmp_path: Path, mount: str) -> None:
    (tmp_path / "chip.bin").write_bytes(os.urandom(16 << 20))
    words = ("flashrom", "-p", "dummy:emulate=W25Q128FV,image=chip.bin")
    result = board.cpu(*words, "-r", "rom.img", cwd=tmp_path, options=("--mount", mount))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "rom.img").read_bytes() == (tmp_path / "chip.bin").read_bytes()
    assert board.on_board("command -v flashrom || echo none") == "none\n"
    (tmp_path / "chip.bin").unlink()
    (tmp_path / "rom.img").unlink()
    (tmp_path / "chip.bin").mkdir()  # flashrom takes an absent image for an empty chip
    result = board.cpu(*words, "-w", "no-such.rom", cwd=tmp_path, options=("--mount", mount))
    assert result.returncode == 1
    assert b"no-such.rom" in result.stderr + result.stdout


@pytest.mark.parametrize("mount", MOUNTS)
def test_ordinary_programs(board: QemuBoard, tmp_path: Path, mount: str) -> None:
    script = (
        "git init -q r && cd r && git config user.email a@b && git config user.name n && echo x > f && git add f && "
        "git commit -qm m && git fsck --strict && tar cf ../t.tar . && mkdir ../u && tar xf ../t.tar -C ../u && "
        "diff -r . ../u && cp -a ../u ../v && ls -l ../v && python3 -c 'print(1+1)'"
    )
    result = board.cpu("sh", "-c", script, cwd=tmp_path, options=("--mount", mount))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == b"2"
    assert (tmp_path / "v/f").read_text() == "x\n"


@pytest.mark.parametrize("mount", MOUNTS)
def test_nothing_remains(board: QemuBoard, mount: str) -> None:
    look = "cat /proc/mounts; ls -a / /tmp /home; ls /dev/pts"
    before = board.on_board(look)
    result = board.cpu("sh", "-c", "(setsid sleep 1234567 &); sleep 1234568 & exit 4", options=("--mount", mount))
    assert result.returncode == 4
    wait_until(lambda: "123456" not in board.on_board("ps -o args"), "what was left running to end")
    wait_until(lambda: board.on_board(look) == before, "the board to be as it was")


@pytest.mark.parametrize("mount", MOUNTS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_the_client_killed_ends_the_command(board: QemuBoard, mount: str, number: int) -> None:
    script = "echo ready; (setsid sleep 7654321 &); exec sleep 7654322"
    with board.start_cpu("sh", "-c", script, options=("--mount", mount)) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.wait(60) == {signal.SIGKILL: -9, signal.SIGHUP: 129}[signal.Signals(number)]
    wait_until(lambda: "765432" not in board.on_board("ps -o args"), "the command to end", 60)


def test_memory(board: QemuBoard) -> None:
    """256 MB of RAM are enough, and an idle cpud keeps to its 45 MB."""
    total_kib = int(board.on_board("grep MemTotal /proc/meminfo").split()[1])
    assert total_kib < 256 << 10
    script = "for p in $(pidof cpud); do grep -H VmRSS /proc/$p/status; done; grep VmRSS /proc/1/status"
    *cpuds, init = [int(line.split()[-2]) for line in board.on_board(script).splitlines()]
    assert cpuds
    assert max(cpuds) <= 45 << 10, f"cpud has {max(cpuds)} KiB"
    assert init <= 20 << 10, f"init has {init} KiB"


def test_a_board_without_9p_and_without_fuse(board: QemuBoard) -> None:
    modules = board.on_board("lsmod | cut -d' ' -f1").split()
    order = ["9p", "9pnet_fd", "fuse"]
    assert set(order) <= set(modules)
    paths = {name: board.on_board(f"find /lib/modules -name {name}.ko").strip() for name in order}
    try:
        board.on_board("rmmod 9p 9pnet_fd && rmmod fuse")
        result = board.cpu("true")
        assert result.returncode == 255
        assert result.stderr.decode().splitlines() == [
            "cpud: mount the client's files: this board has neither 9p nor /dev/fuse",
            "hint: its kernel needs CONFIG_9P_FS and CONFIG_NET_9P_FD, or CONFIG_FUSE_FS; "
            "-9p=false runs without the files",
        ]
        board.on_board(f"insmod {paths['fuse']}")
        result = board.cpu("true", options=("--mount", "9p"))
        assert result.stderr.startswith(b"cpud: mount the client's files: this board has no 9p\n")
        assert board.cpu("grep", "-c", "^cpu /tmp/cpu fuse.cpu ", "/proc/self/mounts").stdout == b"1\n"
    finally:
        for name in ("fuse", "9p", "9pnet_fd"):
            board.on_board(f"insmod {paths[name]} 2>/dev/null || true")


def test_a_terminal(board: QemuBoard) -> None:
    result = board.cpu("sh", "-c", "tty; stty size", options=("-t",))
    assert result.returncode == 0, result.stderr
    tty, size = result.stdout.decode().split("\r\n")[:2]
    assert tty.startswith("/dev/pts/")
    assert size == "24 80"
