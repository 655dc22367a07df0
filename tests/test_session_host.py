"""Whole sessions on this machine: cpu, ssh, cpud, 9P, a FUSE mount in a private namespace, the command."""

import os
import pty
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rig import Cpud, running, wait_until

pytestmark = [pytest.mark.root, pytest.mark.fuse]

WIRES = ("pycpu", "u-root")


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cpud]:
    daemon = Cpud(tmp_path_factory.mktemp("board"))
    yield daemon
    daemon.stop()


@pytest.mark.parametrize("wire", WIRES)
def test_the_command_sees_our_files_and_writes_them(board: Cpud, tmp_path: Path, wire: str) -> None:
    (tmp_path / "in").write_bytes(bytes(range(256)) * 1000)
    script = "cat in > out && echo said && echo wrong >&2 && pwd && grep -c ' /tmp/cpu ' /proc/self/mounts; exit 7"
    result = board.cpu("sh", "-c", script, cwd=tmp_path, options=("--wire", wire))
    assert result.stdout.decode().splitlines() == ["said", str(tmp_path), "1"]
    assert result.stderr == b"wrong\n"
    assert result.returncode == 7
    assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 200", 200), ("exit 255", 255), ("kill -9 $$", 137), ("kill -TERM $$", 143)],
)
def test_exit_status_is_exact(board: Cpud, wire: str, script: str, status: int) -> None:
    result = board.cpu("sh", "-c", script, options=("--wire", wire))
    assert (result.returncode, result.stdout, result.stderr) == (status, b"", b"")


def test_what_cannot_be_run(board: Cpud, tmp_path: Path) -> None:
    missing = board.cpu("no-such-command")
    assert (missing.returncode, missing.stderr) == (127, b"cpud: no-such-command: command not found\n")
    (tmp_path / "plain").write_text("x")
    denied = board.cpu("./plain", cwd=tmp_path)
    assert (denied.returncode, denied.stderr) == (126, b"cpud: ./plain: Permission denied\n")
    (tmp_path / "foreign").write_text("#!/no/such/interpreter\n")
    (tmp_path / "foreign").chmod(0o755)
    foreign = board.cpu("./foreign", cwd=tmp_path)
    assert foreign.returncode == 126
    assert b"not its interpreter" in foreign.stderr


def test_a_script_without_a_first_line_is_the_shells(board: Cpud, tmp_path: Path) -> None:
    (tmp_path / "script").write_text("echo from $0 $1\n")
    (tmp_path / "script").chmod(0o755)
    assert board.cpu("./script", "x", cwd=tmp_path).stdout == b"from ./script x\n"


def test_arguments_and_environment_are_bytes(board: Cpud) -> None:
    argv = board.argv("printf", "%s|", "a b", "it's", '"', "", "*")
    argv += [b"\xff\xfe"]  # type: ignore[list-item]
    environment = {**{os.fsencode(k): os.fsencode(v) for k, v in board.environment().items()}, b"ODD": b"\xff\n\x01"}
    result = subprocess.run(argv, env=environment, capture_output=True, check=False, cwd=board.folder)
    assert result.stdout == b"a b|it's|\"||*|\xff\xfe|"
    argv = board.argv("sh", "-c", 'printf %s "$ODD"')
    assert subprocess.run(argv, env=environment, capture_output=True, check=False).stdout == b"\xff\n\x01"


def test_the_environment_has_no_trace_of_the_session(board: Cpud) -> None:
    for wire in WIRES:
        names = {line.split(b"=")[0] for line in board.cpu("env", "-0", options=("--wire", wire)).stdout.split(b"\0")}
        assert b"HOME" in names
        assert not names & {b"CPUNONCE", b"CPU_FSTAB", b"LC_GLENDA_CPU_FSTAB"}


def test_input_and_output_are_binary_and_large(board: Cpud) -> None:
    content = os.urandom(20 << 20)
    result = board.cpu("cat", input=content)
    assert result.stdout == content


def test_input_held_open_does_not_hold_the_session(board: Cpud) -> None:
    with board.start_cpu("true") as process:
        assert process.wait(20) == 0


def test_input_at_its_end_ends_the_commands(board: Cpud) -> None:
    assert board.cpu("wc", "-c", input=b"12345").stdout == b"5\n"
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *board.argv("wc", "-c")],
        env=board.environment(),
        cwd=board.folder,
        capture_output=True,
        check=False,
    )
    assert closed.stdout == b"0\n"


def test_a_reader_that_leaves_ends_us_without_a_word(board: Cpud) -> None:
    with board.start_cpu("sh", "-c", "yes; echo unique-yes >&2") as process:
        assert process.stdout and process.stderr
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(20) == 141
        assert process.stderr.read() == b""
    wait_until(lambda: not running("unique-yes"), "yes to end")


def test_two_sessions_have_each_their_own_tmp(board: Cpud) -> None:
    with board.start_cpu("sh", "-c", "echo one > /tmp/mine; echo ready; read x; cat /tmp/mine") as first:
        assert first.stdout and first.stdin
        assert first.stdout.readline() == b"ready\n"
        assert board.cpu("ls", "/tmp").stdout.split() == [b"cpu", b"local", b"merge", *_cwd_in_tmp(board), b"root"]
        first.stdin.write(b"\n")
        first.stdin.close()
        assert first.stdout.read() == b"one\n"
    assert not Path("/tmp/mine").exists()


def _cwd_in_tmp(board: Cpud) -> list[bytes]:
    parts = board.folder.parts
    return [os.fsencode(parts[2])] if parts[:2] == ("/", "tmp") else []


def test_namespace_binds_and_what_is_not_there(board: Cpud, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_text("mine")
    bind = f"+/opt/pycpu-test/x={tmp_path}/tree"
    result = board.cpu("cat", "/opt/pycpu-test/x/file", options=("-namespace", bind))
    assert (result.stdout, result.stderr, result.returncode) == (b"mine", b"", 0)
    board.wait_quiet()
    assert not Path("/opt/pycpu-test").exists(), "a mount point that a session made outlived it"
    missing = board.cpu("echo", "ran", options=("-namespace", "+/nowhere=/no/such/place"))
    assert missing.stdout == b"ran\n"
    assert missing.stderr == b"cpud: mount /tmp/cpu/no/such/place on /nowhere: No such file or directory (skipped)\n"


def test_fstab_lines_come_before_the_binds(board: Cpud, tmp_path: Path) -> None:
    (tmp_path / "fstab").write_text("tmpfs /mnt tmpfs size=1m 0 0\nbad\nnone /proc nosuchfs defaults 0 0\n")
    result = board.cpu(
        "sh", "-c", "grep ' /mnt ' /proc/mounts | cut -d' ' -f3", options=("-fstab", str(tmp_path / "fstab"))
    )
    assert result.stdout == b"tmpfs\n"
    lines = result.stderr.decode().splitlines()
    assert lines[0].startswith("cpud: fstab line 2: 'bad'")
    assert lines[1] == "cpud: mount none on /proc: No such device (skipped)"
    assert len(lines) == 2


def test_nothing_remains_after_the_command(board: Cpud) -> None:
    before = _mounts()
    result = board.cpu("sh", "-c", "(setsid sleep 1234567 &) ; sleep 1234568 & exit 4")
    assert result.returncode == 4
    board.wait_quiet()
    assert not running("123456")
    assert _mounts() == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_nothing_remains_after_the_client_is_killed(board: Cpud, number: int) -> None:
    with board.start_cpu("sh", "-c", "echo ready; (setsid sleep 7654321 &); exec sleep 7654322") as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        expected = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGHUP: 129}[signal.Signals(number)]
        assert process.wait(20) == expected
    wait_until(lambda: not running("765432"), "the command to end")
    board.wait_quiet()


def test_a_command_that_ignores_hup_is_killed(board: Cpud) -> None:
    with board.start_cpu("sh", "-c", "trap '' HUP TERM; echo ready; while :; do sleep 5551212; done") as process:
        assert process.stdout
        process.stdout.readline()
        process.kill()
    wait_until(lambda: not running("5551212"), "the command to be killed", 30)
    board.wait_quiet()


def test_signals_reach_the_command(board: Cpud) -> None:
    script = 'for s in USR1 USR2 QUIT INT TERM; do trap "echo got $s" $s; done; echo ready; while :; do sleep 0.1; done'
    with board.start_cpu("bash", "-c", script) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        for name in ("USR1", "USR2", "QUIT", "INT", "TERM"):
            process.send_signal(getattr(signal, f"SIG{name}"))
            assert process.stdout.readline() == b"got %s\n" % name.encode()
        process.kill()


@pytest.mark.parametrize("wire", WIRES)
def test_a_terminal_with_its_type_its_size_and_its_resize(board: Cpud, wire: str) -> None:
    import fcntl
    import struct
    import termios

    script = "tty; echo $TERM; stty size; trap 'stty size; exit 5' WINCH; echo ready; while :; do sleep 0.1; done"
    pid, master = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 111, 0, 0))
        argv = board.argv("bash", "-c", script, options=("--wire", wire))
        os.execve(argv[0], argv, board.environment(TERM="screen"))
    output = b""
    while b"ready" not in output:
        output += os.read(master, 4096)
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 122, 0, 0))
    try:
        while chunk := os.read(master, 4096):
            output += chunk
    except OSError:
        pass
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(master)
    lines = output.decode().split("\r\n")
    assert re.fullmatch(r"/dev/pts/\d+", lines[0])
    assert lines[1:5] == ["screen", "33 111", "ready", "44 122"]
    assert status == 5


def test_escape_ends_the_session(board: Cpud) -> None:
    pid, master = pty.fork()
    if pid == 0:
        argv = board.argv("sh", "-c", "stty -echo; echo ready; exec sleep 8675309")
        os.execve(argv[0], argv, board.environment())
    output = b""
    while b"ready" not in output:
        output += os.read(master, 4096)
    os.write(master, b"\r~?")
    while b"escape sequences" not in output:
        output += os.read(master, 4096)
    os.write(master, b"~.")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 255
    os.close(master)
    wait_until(lambda: not running("8675309"), "the command to end")


def test_cpud_killed_takes_everything_along(tmp_path: Path) -> None:
    daemon = Cpud(tmp_path)
    before = _mounts()
    try:
        with daemon.start_cpu("sh", "-c", "echo ready; exec sleep 2718281") as process:
            assert process.stdout and process.stderr
            assert process.stdout.readline() == b"ready\n"
            daemon.process.kill()
            assert process.wait(30) == 255
            assert process.stderr.read().startswith(b"cpu: 127.0.0.1:")
        wait_until(lambda: not running("2718281"), "the command to end")
        wait_until(lambda: not running(f"-sp\0{daemon.port}"), "the connection's process to end")
        assert _mounts() == before
    finally:
        daemon.stop()


def test_a_hangup_lets_sessions_go_on_and_takes_no_more(tmp_path: Path) -> None:
    daemon = Cpud(tmp_path)
    with daemon.start_cpu("sh", "-c", "echo ready; read x; echo done") as process:
        assert process.stdout and process.stdin
        assert process.stdout.readline() == b"ready\n"
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: daemon.cpu("true").returncode == 255, "cpud to stop listening")
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"done\n"
    assert daemon.process.wait(20) == 0


def test_python_git_and_tar_run_from_the_mount(board: Cpud, tmp_path: Path) -> None:
    script = (
        "git init -q r && cd r && git config user.email a@b && git config user.name n && echo x > f && git add f && "
        "git commit -qm m && git fsck --strict && tar cf ../t.tar . && mkdir ../u && tar xf ../t.tar -C ../u && "
        "diff -r . ../u && cp -a ../u ../v && ls -l ../v && python3 -c 'print(1+1)'"
    )
    result = board.cpu("sh", "-c", script, cwd=tmp_path, PATH="/usr/bin:/bin")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == b"2"
    assert (tmp_path / "v/f").read_text() == "x\n"


def test_unix_sockets(tmp_path: Path) -> None:
    for index, address in enumerate((str(tmp_path / "s"), f"@pycpu-{os.getpid()}")):
        daemon = Cpud(tmp_path / str(index), port=address, network="unix")
        try:
            assert daemon.cpu("echo", "hi").stdout == b"hi\n"
        finally:
            daemon.stop()
    assert not (tmp_path / "s").exists()


def _mounts() -> list[str]:
    return Path("/proc/self/mounts").read_text().splitlines()
