"""init on a real kernel: what it brought up, what it costs, its shell, and how a board stops."""

import subprocess
from pathlib import Path

import pytest

from initramfs import demo, qemu
from rig import TOP, QemuBoard, wait_until

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(400)]

STOP_S = 60.0


def test_everything_came_up(board: QemuBoard) -> None:
    assert board.on_board("cat /run/pycpu/problems 2>/dev/null || echo none") == "none\n"
    mounts = {line.split()[1]: line.split()[2] for line in board.on_board("cat /proc/mounts").splitlines()}
    expected = {"/dev": "devtmpfs", "/proc": "proc", "/sys": "sysfs", "/dev/pts": "devpts", "/dev/shm": "tmpfs"}
    assert expected.items() <= mounts.items()
    assert board.on_board("hostname").strip() == board.made.profile.hostname
    loaded = {line.split()[0] for line in board.on_board("cat /proc/modules").splitlines()}
    assert {name.replace("-", "_") for name in board.made.profile.modules} - loaded <= {"af_packet"}  # built in
    assert int(board.on_board("date +%Y")) >= 2024


def test_the_network_is_configured_by_dhcp(board: QemuBoard) -> None:
    assert "inet 10.0.2.15/24 scope global dynamic eth0" in board.on_board("ip -4 addr show eth0")
    assert "default via 10.0.2.2 dev eth0" in board.on_board("ip route")
    assert "nameserver 10.0.2.3\n" in board.on_board("cat /etc/resolv.conf")
    assert '"yiaddr": "10.0.2.15"' in board.on_board("cat /run/pycpu/dhcp.eth0.json")


def test_idle_process_1_uses_no_time_and_has_no_zombies(board: QemuBoard) -> None:
    board.on_board("for i in 1 2 3; do (setsid sleep 0.1 &); done; sleep 0.5")
    look = "cut -d' ' -f14,15 /proc/1/stat"
    first, second = board.on_board(f"{look}; sleep 5; {look}").splitlines()
    # The session's own orphans go to its cpud, so nothing at all is left for process 1 to do.
    assert first == second
    states = board.on_board("cat /proc/[0-9]*/stat 2>/dev/null | sed 's/.*) //' | cut -c1")
    assert "Z" not in states
    size_kib = int(board.on_board("grep VmRSS /proc/1/status").split()[1])
    assert size_kib <= 14 << 10


def test_cpud_comes_again_when_it_dies(board: QemuBoard) -> None:
    board.machine.type("\rkill -9 $(pidof cpud)\r")
    board.machine.wait_console("cpud: killed by Killed", 30)
    board.machine.wait_ready(60)
    assert "cpud: killed by Killed\n" in board.on_board("cat /run/pycpu/problems; rm /run/pycpu/problems")


def test_a_shell_on_the_console_and_poweroff(made: demo.Made) -> None:
    with qemu.Board(made.profile, TOP / "build", port=demo.free_port(), append="cpu.hostname=lamp") as machine:
        machine.wait_console("pycpu 0.1.0 on lamp: ", demo.BOOT_TIMEOUT_S)
        machine.type("echo =$((6*7))= $HOME $(tty)\r")
        machine.wait_console("=42= /root /dev/ttyS0\n", STOP_S)
        machine.wait_ready(demo.BOOT_TIMEOUT_S)
        machine.type("echo =$((3+4))=; sleep 1000\r")
        machine.wait_console("=7=\n", STOP_S)  # from here on, ^C is a signal and no longer a character of the line
        machine.type("\x03")
        machine.type("exit\r")
        machine.wait_console("pycpu 0.1.0 on lamp: eth0 10.0.2.15\n", STOP_S)
        machine.type("/usr/bin/poweroff\r")
        machine.wait_off(STOP_S)
        assert "init: poweroff: switching off\n" in machine.console()
        assert "Power down" in machine.console()


def test_reboot_from_a_session_of_a_board_without_a_shell(made: demo.Made, tmp_path: Path) -> None:
    with qemu.Board(made.profile, TOP / "build", port=demo.free_port(), append="cpu.shell=0") as machine:
        machine.wait_ready(demo.BOOT_TIMEOUT_S)
        board = QemuBoard(made, machine, tmp_path)
        assert board.on_board("cat /run/pycpu/problems 2>/dev/null || echo none") == "none\n"
        assert "BusyBox" not in machine.console()
        result = subprocess.run(
            board.argv("/usr/bin/reboot", options=("-9p=false",)),
            env=board.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert b"reboot:" not in result.stderr
        machine.wait_off(STOP_S)  # QEMU is told to end instead of starting again
        wait_until(lambda: "init: reboot: restarting\n" in machine.console(), "the reason on the console")
