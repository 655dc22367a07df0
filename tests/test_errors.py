"""What a person reads when something is not as it should be: one line, a hint, status 255, and nothing left hanging."""

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rig import PROGRAM, TOP, Cpud, free_port

pytestmark = [pytest.mark.root]


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cpud]:
    daemon = Cpud(tmp_path_factory.mktemp("board"))
    yield daemon
    daemon.stop()


def cpu(board: Cpud, *words: str, timeout_s: float = 30) -> tuple[int, list[str]]:
    """Run cpu with exactly these words; returns its status and the lines of its stderr."""
    result = subprocess.run(
        [*PROGRAM, "cpu", *words],
        env=board.environment(),
        cwd=board.folder,
        capture_output=True,
        timeout=timeout_s,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert result.stdout == b""
    return result.returncode, result.stderr.decode().splitlines()


def test_nothing_listens(board: Cpud) -> None:
    port = str(free_port())
    assert cpu(board, "-sp", port, "127.0.0.1", "true") == (
        255,
        [
            f"cpu: connect to 127.0.0.1:{port}: Connection refused",
            "hint: nothing listens there: is cpud running, and on this port?",
        ],
    )


def test_no_such_host(board: Cpud) -> None:
    status, lines = cpu(board, "no-such-board.invalid", "true")
    assert status == 255
    assert lines[0].startswith("cpu: look up no-such-board.invalid: ")


def test_somebody_else_answers(board: Cpud) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with subprocess.Popen(
            board.argv("true", options=("-p", str(port))), env=board.environment(), stderr=subprocess.PIPE
        ) as process:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            assert process.stderr
            lines = process.stderr.read().decode().splitlines()
        assert process.returncode == 255
        assert len(lines) == 1
        assert lines[0].startswith(f"cpu: connect to 127.0.0.1:{port}: ")


def test_wrong_key(board: Cpud, tmp_path: Path) -> None:
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    status, lines = cpu(board, "-sp", board.port, "-key", str(other), "somebody@127.0.0.1", "true")
    assert status == 255
    assert lines == [
        f"cpu: log in to 127.0.0.1:{board.port} as somebody: no key was accepted",
        "hint: -key FILE chooses one; the board knows the keys in its authorized_keys (cpud -pk)",
    ]


def test_a_key_that_is_none(board: Cpud, tmp_path: Path) -> None:
    status, lines = cpu(board, "-key", str(tmp_path / "absent"), "127.0.0.1", "true")
    assert (status, lines) == (255, [f"cpu: read key {tmp_path}/absent: No such file or directory"])
    (tmp_path / "text").write_text("hello\n")
    status, lines = cpu(board, "-key", str(tmp_path / "text"), "127.0.0.1", "true")
    assert status == 255
    assert lines[0].startswith(f"cpu: read key {tmp_path}/text: ")


def test_a_key_with_a_passphrase_and_no_terminal(board: Cpud, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", locked], check=True)
    result = subprocess.run(
        ["setsid", "-w", *PROGRAM, "cpu", "-key", str(locked), "-sp", board.port, "127.0.0.1", "true"],
        env=board.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 255
    assert result.stderr.decode().splitlines()[-1] == (
        f"cpu: read key {locked}: it has a passphrase and there is no terminal to ask on"
    )


def test_a_new_host_is_recorded_and_a_changed_one_refused(tmp_path: Path) -> None:
    daemon = Cpud(tmp_path / "one")
    known = daemon.home / ".ssh/known_hosts"
    try:
        assert daemon.cpu("true").returncode == 0
        (line,) = known.read_text().splitlines()
        public = subprocess.run(
            ["ssh-keygen", "-y", "-f", daemon.folder / "hk"], capture_output=True, text=True, check=True
        ).stdout.split()
        assert line.split() == [f"[127.0.0.1]:{daemon.port}", *public[:2]]
        assert known.stat().st_mode & 0o777 == 0o600
        assert daemon.cpu("true").returncode == 0
        assert known.read_text() == line + "\n"
    finally:
        daemon.stop()
    (daemon.folder / "hk").unlink()
    daemon.start()
    try:
        result = daemon.cpu("true")
        assert result.returncode == 255
        first, hint = result.stderr.decode().splitlines()
        assert first.startswith(f"cpu: host key of [127.0.0.1]:{daemon.port} has changed: it is SHA256:")
        assert ", known is SHA256:" in first
        assert hint.endswith(f"remove line 1 of {known}")
        assert known.read_text() == line + "\n"
    finally:
        daemon.stop()


def test_hashed_known_hosts(board: Cpud) -> None:
    known = board.home / ".ssh/known_hosts"
    assert board.cpu("true").returncode == 0
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", known], check=True, capture_output=True)
    before = known.read_text()
    assert before.startswith("|1|")
    assert board.cpu("true").returncode == 0
    assert known.read_text() == before


def test_a_pinned_host_key(board: Cpud, tmp_path: Path) -> None:
    pinned = tmp_path / "pinned.pub"
    pinned.write_bytes(
        subprocess.run(["ssh-keygen", "-y", "-f", board.folder / "hk"], capture_output=True, check=True).stdout
    )
    assert board.cpu("true", options=("-hk", str(pinned))).returncode == 0
    result = board.cpu("true", options=("-hk", f"{board.key}.pub"))
    assert result.returncode == 255
    first, hint = result.stderr.decode().splitlines()
    assert first.startswith(f"cpu: host key of [127.0.0.1]:{board.port}: SHA256:")
    assert f"is not the one in {board.key}.pub, SHA256:" in first
    assert "-hk" in hint


def test_a_mount_that_the_board_cannot_do(board: Cpud) -> None:
    if b"\t9p\n" in Path("/proc/filesystems").read_bytes():
        pytest.skip("this kernel has 9p")
    result = board.cpu("true", options=("--mount", "9p"))
    assert result.returncode == 255
    assert result.stderr.decode().splitlines() == [
        "cpud: mount the client's files: this board has no 9p",
        "hint: its kernel needs CONFIG_9P_FS and CONFIG_NET_9P_FD (modules 9p, 9pnet_fd); --mount fuse may work",
    ]


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (["-namespace", "/a:", "b", "true"], "cpu: namespace '/a:': an element is empty"),
        (["-fstab", "/no/such", "b", "true"], "cpu: read fstab /no/such: No such file or directory"),
        (["-root", "/no/such", "b", "true"], "cpu: serve -root /no/such: No such file or directory"),
        (["-net", "ipx", "b", "true"], "cpu: network ipx: not one of tcp, tcp4, tcp6, unix, vsock, unix-vsock"),
        (["-net", "vsock", "b", "true"], "cpu: vsock b: the host of a vsock is a CID, a number"),
        (["-sp", "x", "b", "true"], "cpu: port x: not a number from 0 to 65535"),
        (["-hk", "/no/such", "b", "true"], "cpu: read host key /no/such: No such file or directory"),
    ],
)
def test_wrong_values_are_named(board: Cpud, words: list[str], first: str) -> None:
    status, lines = cpu(board, *words)
    assert (status, lines[0]) == (255, first)
    assert len(lines) <= 2


@pytest.mark.parametrize("words", [["--no-such", "b"], [], ["-timeout9p", "never", "b"], ["--mount", "nfs", "b"]])
def test_wrong_command_lines_are_status_2(board: Cpud, words: list[str]) -> None:
    status, lines = cpu(board, *words)
    assert status == 2
    assert lines[-1] == "hint: cpu --help lists the options"


def test_cpud_says_what_is_wrong(tmp_path: Path) -> None:
    def run(*words: str) -> tuple[int, list[str]]:
        result = subprocess.run(
            [*PROGRAM, "cpud", *words], cwd=TOP, capture_output=True, text=True, timeout=30, check=False
        )
        return result.returncode, result.stderr.splitlines()

    assert run("-pk", str(tmp_path / "absent"), "-sp", "0") == (
        255,
        [
            f"cpud: read keys from {tmp_path}/absent: No such file or directory",
            "hint: -pk FILE names the public keys to let in",
        ],
    )
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        status, lines = run("-net", "tcp4", "-pk", "", "-sp", str(port))
        assert (status, lines) == (255, [f"cpud: listen on tcp4 {port}: Address already in use"])


def test_no_authentication_is_loud(tmp_path: Path) -> None:
    daemon = Cpud(tmp_path, "-pk", "")
    try:
        assert daemon.log.read_text().startswith("cpud: WARNING: no authentication: whoever can reach tcp ")
        result = subprocess.run(
            [*PROGRAM, "cpu", "-useKey=false", "-sp", daemon.port, "127.0.0.1", "echo", "in"],
            env=daemon.environment(),
            cwd=os.sep,
            capture_output=True,
            check=False,
        )
        assert result.stdout == b"in\n", result.stderr
    finally:
        daemon.stop()


def test_u_roots_wire_has_no_word_for_a_mount(board: Cpud) -> None:
    result = board.cpu("true", options=("--wire", "u-root", "--mount", "fuse"))
    assert result.returncode == 255
    assert result.stderr.decode().splitlines() == [
        "cpu: --mount fuse: u-root/cpu's protocol has no word for it",
        "hint: the board chooses; cpud has a --mount too",
    ]


def test_strangers_cannot_use_up_the_boards_processes(tmp_path: Path) -> None:
    from multicall.cpud import MAX_CONNECTIONS

    daemon = Cpud(tmp_path)
    strangers = []
    try:
        for _ in range(MAX_CONNECTIONS):
            sock = socket.create_connection(("127.0.0.1", int(daemon.port)), 20)
            strangers.append(sock)
            assert sock.recv(8, socket.MSG_WAITALL) == b"SSH-2.0-"
        assert len(daemon.connections()) == MAX_CONNECTIONS
        with socket.create_connection(("127.0.0.1", int(daemon.port)), 20) as waiting:
            waiting.settimeout(0.5)
            with pytest.raises(TimeoutError):
                waiting.recv(8)
            strangers.pop().close()
            waiting.settimeout(20)
            assert waiting.recv(8, socket.MSG_WAITALL) == b"SSH-2.0-"
    finally:
        for sock in strangers:
            sock.close()
        daemon.stop()
