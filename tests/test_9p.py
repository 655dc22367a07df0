"""The 9p command, as people run it: its own two ends against each other, and each against Debian's diod.

Of diod's client programs diodls and diodcat are run against our server. mount.diod hands its socket to the kernel's
v9fs, which is tested in the QEMU board; dtop and diodload want diod's own "ctl" tree, and no other server has that.
"""

import asyncio
import contextlib
import inspect
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from initramfs import profile
from multicall import applets
from multicall.lib import attach, dialstring
from multicall.lib.log import Problem
from multicall.lib.readonly import ReadOnly
from ninep.file import File
from rig import PROGRAM, TOP, free_port, wait_until

WATCHDOG_S = 60.0
DIOD = shutil.which("diod") or "/usr/sbin/diod"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(TOP), "TZ": "UTC"}
ODD = b"not \xff\xfe utf-8"

needs_diod = pytest.mark.skipif(not Path(DIOD).exists(), reason="diod is not installed")
needs_fuse = pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="/dev/fuse cannot be opened")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="not root")


def run(*words: str | bytes | Path, data: bytes = b"", status: int = 0) -> subprocess.CompletedProcess[bytes]:
    """Run 9p; its exit status is checked."""
    argv: list[str | bytes | Path] = [*PROGRAM, "9p", *words]
    done = subprocess.run(argv, input=data, capture_output=True, timeout=WATCHDOG_S, env=ENVIRONMENT, check=False)
    assert done.returncode == status, done.stderr
    return done


class Server:
    """A `9p serve -v`, ready. `address` is what clients dial."""

    def __init__(self, *words: str | Path, cwd: Path) -> None:
        argv = [*PROGRAM, "9p", "serve", "-v", *words]
        self.log = cwd / "serve.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(argv, stderr=log, stdin=subprocess.DEVNULL, env=ENVIRONMENT, cwd=cwd)
        wait_until(lambda: "listening on" in self.text() or self.process.poll() is not None, "9p serve to listen")
        assert self.process.poll() is None, self.text()
        self.address = re.findall(r"listening on (\S+)", self.text())[0]

    def text(self) -> str:
        return self.log.read_text()

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(10)


@contextlib.contextmanager
def serving(root: Path, *words: str, address: str = "tcp!127.0.0.1!0") -> Iterator[Server]:
    server = Server("-root", root, *words, address, cwd=root.parent)
    try:
        yield server
    finally:
        server.stop(signal.SIGKILL)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A small tree with everything in it that is listed."""
    root = tmp_path / "export"
    (root / "d" / "e").mkdir(parents=True)
    (root / "f").write_bytes(b"hello\n")
    (root / "f").chmod(0o640)
    os.utime(root / "f", ns=(1_000_000_000_000_000_005, 1_000_000_000_000_000_007))
    (root / "link").symlink_to("d/../f")
    (root / "absolute").symlink_to("/d/e")
    (root / "loop").symlink_to("loop")
    (root / "d" / "e" / "up").symlink_to("../../link")
    with open(os.fsencode(root) + b"/" + ODD, "wb") as file:
        file.write(b"odd\n")
    return root


# Command line and addresses


def test_addresses() -> None:
    assert dialstring.parse("tcp!h!564") == ("tcp", "h", "564")
    assert dialstring.parse("tcp!h") == dialstring.parse("tcp!h!9fs") == ("tcp", "h", "564")
    assert dialstring.parse("tcp!::1!99") == dialstring.parse("tcp![::1]!99") == ("tcp", "::1", "99")
    assert dialstring.parse("unix!/a!b") == ("unix", "/a!b", "")
    assert dialstring.parse("vsock!3!564") == ("vsock", "3", "564")
    assert str(dialstring.parse("tcp!h")) == "tcp!h!564" and str(dialstring.parse("unix!x")) == "unix!x"
    for wrong in ("h", "", "tcp!", "unix!", "tcp!h!x", "tcp!h!65536", "ipx!h!1", "tcp!!564"):
        with pytest.raises(ValueError):
            dialstring.parse(wrong)


@pytest.mark.parametrize(
    "words",
    [(), ("frob",), ("ls",), ("ls", "localhost"), ("cat", "tcp!h!1"), ("ls", "--msize", "9", "tcp!h!1"), ("rm", "-x")],
)
def test_a_wrong_command_line_is_2(words: tuple[str, ...]) -> None:
    done = run(*words, status=2)
    assert done.stderr.startswith(b"9p: ") and b"\nhint: " in done.stderr and not done.stdout


def test_nobody_there(tmp_path: Path) -> None:
    port = free_port()
    done = run("cat", f"tcp!127.0.0.1!{port}", "/x", status=1)
    assert done.stderr == f"9p: dial tcp!127.0.0.1!{port}: Connection refused\n".encode()
    done = run("ls", f"unix!{tmp_path}/none", status=1)
    assert done.stderr == f"9p: dial unix!{tmp_path}/none: No such file or directory\n".encode()


def test_a_peer_that_speaks_something_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(b"SSH-2.0-not-9p\r\n")
                peer.recv(4096)

        thread = threading.Thread(target=answer)
        thread.start()
        address = f"tcp!127.0.0.1!{listener.getsockname()[1]}"
        done = run("ls", address, status=1)
        thread.join()
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"9p: agree on 9P2000.L with {address}: ".encode()) and b"Traceback" not in done.stderr


def test_a_peer_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = dialstring.parse(f"tcp!127.0.0.1!{listener.getsockname()[1]}")
        with pytest.raises(Problem, match=r"agree on 9P2000\.L with .*: no answer for 0\.2 s"):
            asyncio.run(attach.Tree.attach(address, attach.Options()))


def test_the_board_does_not_have_it() -> None:
    applet = applets.find("9p")
    assert applet is not None and applet.where == "client"
    for name in profile.names():
        assert "9p" not in profile.load(name).applets


# Our two ends


def test_reading(export: Path) -> None:
    with serving(export) as server:
        at = server.address
        names = [b"absolute", b"d", b"f", b"link", b"loop", ODD]
        assert run("ls", at).stdout.splitlines() == names
        assert run("ls", at, "/d", "f").stdout == b"/d/e\nf\n"
        assert run("ls", at, "d", "absolute").stdout == b"d/e\nabsolute/up\n"
        assert run("ls", "-d", at, "/d").stdout == b"/d\n"
        lines = run("ls", "-l", at).stdout.splitlines()
        assert [re.sub(rb".*:\d\d ", b"", line) for line in lines] == [
            b"absolute -> /d/e",
            b"d",
            b"f",
            b"link -> d/../f",
            b"loop -> loop",
            ODD,
        ]
        uid, gid = os.geteuid(), (export / "f").stat().st_gid
        assert re.fullmatch(rb"-rw-r-----  *1 %d %d  *6 2001-09-09 01:46:40 f" % (uid, gid), lines[2])
        (line,) = run("ls", "-ld", at, "link").stdout.splitlines()
        assert line.startswith(b"lrwxrwxrwx 1 ") and line.endswith(b" link -> d/../f")
        (line,) = run("stat", at, "f").stdout.splitlines()
        assert re.match(rb"-rw-r----- 100640 qid 0x[0-9a-f]+\.\d+\.0x00 nlink 1 uid \d+ gid \d+ size 6 ", line)
        assert b" mtime 2001-09-09 01:46:40.000000007 ctime " in line and line.endswith(b" f")
        assert run("stat", at, "link", "/").stdout.count(b"\n") == 2
        for path in ("f", "/f", "//f/", "link", "d/e/up", "absolute/up", "d/e/../../f", "../../../f"):
            assert run("cat", at, path).stdout == b"hello\n", path
        assert run("read", at, "f", ODD).stdout == b"hello\nodd\n"


def test_errors_name_operation_address_path_and_reason(export: Path) -> None:
    with serving(export) as server:
        at = server.address
        for words, reason in (
            (("cat", "/x"), "No such file or directory"),
            (("read", "/x"), "No such file or directory"),
            (("ls", "f/x"), "Not a directory"),
            (("stat", "d/x/y/z"), "No such file or directory"),
            (("cat", "loop"), "Too many levels of symbolic links"),
            (("cat", "d"), "Is a directory"),
            (("rm", "d"), "Directory not empty"),
            (("write", "d"), "Is a directory"),
            (("write", "no/x"), "No such file or directory"),
            (("ls", "n" * 256), "File name too long"),
        ):
            done = run(words[0], at, words[1], status=1)
            assert done.stderr.decode() == f"9p: {words[0]} {at} {words[1]}: {reason}\n"
        done = run("cat", at, "x", "f", "y", status=1)  # the others are done
        assert done.stdout == b"hello\n" and done.stderr.count(b"\n") == 2
        done = run("ls", "-a", "/elsewhere", at, status=1)
        assert done.stderr.decode() == f"9p: attach {at} /elsewhere: No such file or directory\n"
        assert run("ls", "-a", str(export), at).stdout == run("-A", "/", "ls", at).stdout


def test_writing_and_removing(export: Path) -> None:
    with serving(export) as server:
        at = server.address
        os.umask(umask := os.umask(0))
        run("write", at, "new", data=b"one\n")
        assert (export / "new").read_bytes() == b"one\n"
        assert (export / "new").stat().st_mode & 0o777 == 0o666 & ~umask
        run("write", at, "link", data=b"x")  # an existing file, by a link: emptied, and still the same
        assert (export / "f").read_bytes() == b"x" and (export / "link").is_symlink()
        assert (export / "f").stat().st_mode & 0o777 == 0o640
        run("write", at, b"d/" + ODD, data=b"")
        assert sorted(os.listdir(os.fsencode(export / "d"))) == [b"e", ODD]
        trace = run("write", "-D", "-l", at, "new", data=b"one\ntwo\nthree").stderr
        assert [int(n) for n in re.findall(rb"-> \d+ Twrite .*count (\d+)", trace)] == [4, 4, 5]
        assert (export / "new").read_bytes() == b"one\ntwo\nthree"
        (export / "empty").mkdir()
        run("rm", at, "new", "empty", "link", b"d/" + ODD)
        assert not {"new", "empty", "link"} & set(os.listdir(export)) and (export / "f").exists()


def test_a_trace_has_every_message_both_ways(export: Path) -> None:
    with serving(export, "-D") as server:
        trace = run("-D", "stat", "--msize", "8192", "-u", "4711", server.address, "d").stderr.decode().splitlines()
        assert [line.split()[2] for line in trace[:4]] == ["Tversion", "Rversion", "Tattach", "Rattach"]
        assert "msize 8192" in trace[1] and "n_uname 4711" in trace[2]
        wait_until(lambda: "has ended" in server.text(), "the connection to end")
        served = [line.split(maxsplit=2)[2] for line in server.text().splitlines() if re.match(r"\d+ (<-|->) ", line)]
        assert served == [line.split(maxsplit=1)[1] for line in trace]  # but for the arrows, the same


def test_big_files(export: Path) -> None:
    """Bytes beyond 4 GiB, and more of them than one message holds, by small and by the largest messages."""
    data = os.urandom(1 << 20) * 5 + b"tail"
    with serving(export) as server:
        for msize in ("4096", "1048600"):
            source = export.parent / "source"
            source.write_bytes(data)
            with source.open("rb") as file:
                argv = [*PROGRAM, "9p", "write", "--msize", msize, server.address, "big"]
                subprocess.run(argv, stdin=file, env=ENVIRONMENT, timeout=WATCHDOG_S, check=True)
            assert (export / "big").read_bytes() == data
            assert run("cat", "--msize", msize, server.address, "big").stdout == data
        run("write", server.address, "big", data=data)  # from a pipe
        assert (export / "big").read_bytes() == data
        with (export / "huge").open("wb") as file:
            file.seek((4 << 30) + 5)
            file.write(b"end")
        assert b" size 4294967304 " in run("stat", server.address, "huge").stdout


def test_many_names(export: Path) -> None:
    (export / "many").mkdir()
    names = sorted(b"%d-" % i + b"n" * 200 for i in range(3000))
    for name in names:
        os.close(os.open(os.fsencode(export / "many") + b"/" + name, os.O_CREAT))
    with serving(export) as server:
        assert run("ls", server.address, "many").stdout.splitlines() == names
        assert len(run("ls", "-l", "--msize", "4096", server.address, "many").stdout.splitlines()) == 3000


def test_names_cannot_command_a_terminal(export: Path) -> None:
    (export / "a\x1b[31m\nb").mkdir()
    with serving(export) as server:
        assert b"a\\x1b[31m\\x0ab" in run("ls", server.address).stdout.splitlines()


def test_standard_output_that_is_gone(export: Path) -> None:
    (export / "big").write_bytes(b"x" * 1000000)
    with serving(export) as server:
        script = '"$@" | head -c 1 >/dev/null; echo ${PIPESTATUS[0]}'
        done = subprocess.run(
            ["bash", "-c", script, "-", *PROGRAM, "9p", "cat", server.address, "big"],
            capture_output=True,
            env=ENVIRONMENT,
            timeout=WATCHDOG_S,
            check=False,
        )
        assert (done.stdout, done.stderr) == (b"141\n", b"")
        with open("/dev/full", "wb") as full:
            argv = [*PROGRAM, "9p", "cat", server.address, "f"]
            done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, env=ENVIRONMENT, check=False)
        assert (done.returncode, done.stderr) == (1, b"9p: write standard output: No space left on device\n")


# Serving


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_serve_ends_cleanly(export: Path, number: int) -> None:
    path = export.parent / "sock"
    with serving(export, address=f"unix!{path}") as server:
        assert path.is_socket() and path.stat().st_mode & 0o077 == 0  # for nobody else
        with socket.socket(socket.AF_UNIX) as idle:
            idle.connect(str(path))
            assert run("cat", server.address, "f").stdout == b"hello\n"
            assert server.stop(number) == 0
            assert idle.recv(1) == b""
        assert not path.exists()
        assert "Traceback" not in server.text()


def test_a_socket_left_over_is_replaced_and_one_in_use_is_not(export: Path) -> None:
    address = f"unix!{export.parent}/sock"
    with serving(export, address=address) as server:
        done = run("serve", "-root", export, address, status=1)
        assert done.stderr == f"9p: listen on {address}: Address already in use\n".encode()
        server.stop(signal.SIGKILL)
    assert (export.parent / "sock").is_socket()
    with serving(export, address=address):
        assert run("cat", address, "f").stdout == b"hello\n"
    done = run("serve", "-root", export, f"unix!{export}/f", status=1)  # a file is not a left-over socket
    assert (export / "f").read_bytes() == b"hello\n"


def test_serve_goes_on_when_connections_break(export: Path) -> None:
    with serving(export) as server:
        _, host, port = server.address.split("!")
        held = []
        for junk in (b"", b"\xff" * 100, b"GET / HTTP/1.0\r\n\r\n", b"\x13\0\0\0\x64\xff\xff\0\x20\0\0\x08\09P"):
            for ending in ("hold", "close", "reset"):
                sock = socket.create_connection((host, int(port)))
                sock.sendall(junk)
                if ending == "reset":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                if ending == "hold":
                    held.append(sock)
                else:
                    sock.close()
        argv = [*PROGRAM, "9p", "cat", server.address, "f"]
        clients = [subprocess.Popen(argv, stdout=subprocess.PIPE, env=ENVIRONMENT) for _ in range(8)]
        assert [client.communicate(timeout=WATCHDOG_S)[0] for client in clients] == [b"hello\n"] * 8
        for sock in held:
            sock.close()
        assert "Traceback" not in server.text() and server.stop() == 0


def test_serve_waits_out_a_lack_of_descriptors(export: Path) -> None:
    prlimit = shutil.which("prlimit")
    if not prlimit:
        pytest.skip("prlimit is not installed")
    with serving(export) as server:
        _, host, port = server.address.split("!")
        used = len(os.listdir(f"/proc/{server.process.pid}/fd"))
        subprocess.run([prlimit, "--pid", str(server.process.pid), f"--nofile={used + 3}"], check=True)
        held = [socket.create_connection((host, int(port))) for _ in range(8)]
        wait_until(lambda: "accept: Too many open files" in server.text(), "it to run out")
        for sock in held:
            sock.close()
        subprocess.run([prlimit, "--pid", str(server.process.pid), "--nofile=1000"], check=False)
        assert run("cat", server.address, "f").stdout == b"hello\n"


def test_the_root_is_a_wall_and_must_be_there(export: Path) -> None:
    (export.parent / "secret").write_text("x")
    (export / "out").symlink_to("../secret")
    with serving(export) as server:
        for path in ("../secret", "/../secret", "out", "d/../../secret", str(export.parent / "secret")):
            assert run("cat", server.address, path, status=1).stdout == b""
        (export.parent / "export").rename(export.parent / "moved")  # the directory is served, not its name
        assert run("cat", server.address, "f").stdout == b"hello\n"
    done = run("serve", "-root", export.parent / "none", "tcp!127.0.0.1!0", status=1)
    assert done.stderr == f"9p: serve -root {export.parent}/none: No such file or directory\n".encode()
    assert b"Not a directory" in run("serve", "-root", export.parent / "secret", "tcp!127.0.0.1!0", status=1).stderr


def test_read_only(export: Path) -> None:
    with serving(export, "--read-only") as server:
        at = server.address
        assert run("cat", at, "link").stdout == b"hello\n"
        assert run("ls", at, "d").stdout == b"e\n"
        for words in (("write", "f"), ("write", "new"), ("rm", "f"), ("rm", "d/e/up")):
            done = run(words[0], at, words[1], data=b"x", status=1)
            assert done.stderr.decode() == f"9p: {words[0]} {at} {words[1]}: Read-only file system\n"
    assert (export / "f").read_bytes() == b"hello\n" and not (export / "new").exists()


def test_read_only_knows_every_method() -> None:
    methods = {name for name, value in vars(File).items() if inspect.iscoroutinefunction(value)}
    assert len(methods) > 20 and methods <= set(vars(ReadOnly))


def test_others_can_reach_it_is_said(export: Path) -> None:
    with serving(export, address="tcp!*!0") as server:
        text = server.text()
        lines = [line for line in text.splitlines() if "WARNING" in line]
        assert len(lines) == 1 and "no authentication" in lines[0] and str(export) in lines[0]
        assert server.address.startswith("tcp!*!")
        assert run("cat", server.address.replace("*", "127.0.0.1"), "f").stdout == b"hello\n"
    for address in ("tcp!127.0.0.1!0", "tcp!localhost!0", f"unix!{export.parent}/sock"):
        with serving(export, address=address) as server:
            assert "WARNING" not in server.text()
            ports = re.findall(r"listening on tcp!\S+!(\d+)", server.text())
            assert len(set(ports)) <= 1  # of a host with several addresses, the same on each


# Mounting


def fuse_connection(mountpoint: Path) -> str:
    """The number of a mount's connection below /sys/fs/fuse/connections, without touching the mount."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        if words[4] == str(mountpoint):
            return words[2].partition(":")[2]
    return ""


class Mount:
    """A `9p mount -v`, ready, with a watchdog that ends every call into it."""

    def __init__(self, mountpoint: Path, address: str, *words: str) -> None:
        mountpoint.mkdir(exist_ok=True)
        self.mountpoint = mountpoint
        self.log = mountpoint.parent / "mount.log"
        argv = [*PROGRAM, "9p", *words, "mount", "-v", address, str(mountpoint)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(argv, stderr=log, stdin=subprocess.DEVNULL, env=ENVIRONMENT)
        self.watchdog = threading.Timer(WATCHDOG_S, self.abort)
        self.watchdog.start()
        wait_until(lambda: "ready" in self.text() or self.process.poll() is not None, "the mount")

    def text(self) -> str:
        return self.log.read_text()

    def abort(self) -> None:
        if number := fuse_connection(self.mountpoint):
            with contextlib.suppress(OSError):
                Path(f"/sys/fs/fuse/connections/{number}/abort").write_text("1")
        self.process.kill()
        subprocess.run(["umount", "-l", str(self.mountpoint)], capture_output=True, check=False)

    def end(self) -> None:
        self.watchdog.cancel()
        if self.process.poll() is None or fuse_connection(self.mountpoint):
            self.abort()
        self.process.wait()


@contextlib.contextmanager
def mounted(mountpoint: Path, address: str, *words: str) -> Iterator[Mount]:
    mount = Mount(mountpoint, address, *words)
    try:
        assert mount.process.poll() is None, mount.text()
        yield mount
    finally:
        mount.end()


@needs_fuse
@needs_root
@pytest.mark.fuse
@pytest.mark.root
@pytest.mark.parametrize("way", ["umount", "SIGINT", "SIGTERM"])
def test_mount(export: Path, way: str) -> None:
    with serving(export) as server, mounted(export.parent / "mnt", server.address) as mount:
        here = mount.mountpoint
        assert sorted(os.listdir(os.fsencode(here))) == sorted(os.listdir(os.fsencode(export)))
        assert (here / "link").read_bytes() == b"hello\n"
        data = os.urandom(3 << 20)
        (here / "new").write_bytes(data)
        assert (export / "new").read_bytes() == data
        (here / "new").rename(here / "d" / "moved")
        with open(os.fsencode(here) + b"/" + ODD, "rb") as file:
            assert file.read() == b"odd\n"
        (here / "d" / "moved").unlink()
        if way == "umount":
            subprocess.run(["umount", str(here)], check=True)
        else:
            mount.process.send_signal(getattr(signal, way))
        assert mount.process.wait(10) == 0
        assert not fuse_connection(here) and "Traceback" not in mount.text()
        assert os.listdir(here) == []
        wait_until(lambda: "has ended" in server.text(), "the server to see it")


@needs_fuse
@needs_root
@pytest.mark.fuse
@pytest.mark.root
def test_a_server_that_dies_under_a_mount(export: Path) -> None:
    with serving(export) as server, mounted(export.parent / "mnt", server.address) as mount:
        here = mount.mountpoint
        with (here / "f").open("rb") as file:
            server.stop(signal.SIGKILL)
            wait_until(lambda: "until then all is EIO" in mount.text(), "it to be noticed")
            start = time.monotonic()
            for touch in (
                lambda: os.listdir(here / "d"),
                lambda: (here / "other").write_bytes(b"x"),
                lambda: (here / "d" / "e" / "up").read_bytes(),
                lambda: os.fsync(file.fileno()),
            ):
                with pytest.raises(OSError, match="Input/output error"):
                    touch()
            assert time.monotonic() - start < 5
        assert fuse_connection(here)  # nothing gets written below it
        mount.process.terminate()
        assert mount.process.wait(10) == 1
        assert not fuse_connection(here) and os.listdir(here) == []


def test_mounts_that_cannot_be(export: Path) -> None:
    with serving(export) as server:
        for place, reason in ((export / "none", "No such file or directory"), (export / "f", "Not a directory")):
            done = run("mount", server.address, place, status=1)
            assert done.stderr.decode() == f"9p: mount {server.address} {place}: {reason}\n"


AS_A_USER = r"""
set -e
mknod "$1/fuse" c 10 229; chmod 666 "$1/fuse"; mount --bind "$1/fuse" /dev/fuse
exec setpriv --reuid 65534 --regid 65534 --clear-groups sh -c '
    python=$1 address=$2 there=$3
    "$python" -m multicall 9p mount -v "$address" "$there" 2>"$there.log" & pid=$!
    for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do grep -q ready "$there.log" && break; sleep 0.2; done
    cat "$there/f"; id -u
    fusermount3 -u "$there"; wait $pid; echo $?
' sh "$2" "$3" "$1/user/mnt"
"""


@needs_root
@pytest.mark.fuse
@pytest.mark.root
def test_mount_without_root(export: Path) -> None:
    """As nobody, by fusermount3, with a /dev/fuse as Debian has it: in a mount namespace of its own."""
    python = "/usr/bin/python3"
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())  # pytest's own are closed to others
    try:
        folder.chmod(0o755)
        # The checkout and its environment may be root's alone too.
        installed = Path(__import__("click").__file__).parent.parent
        for package in (TOP / "ninep", TOP / "multicall", installed / "click", installed / "pyfuse3"):
            shutil.copytree(package, folder / "packages" / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        environment = {**ENVIRONMENT, "PYTHONPATH": str(folder / "packages"), "PYTHONDONTWRITEBYTECODE": "1"}
        (folder / "user" / "mnt").mkdir(parents=True)
        for path in (folder / "user", folder / "user" / "mnt"):
            os.chown(path, 65534, 65534)
        (export / "f").chmod(0o644)
        export.chmod(0o755)
        with serving(export) as server:
            script = ["sh", "-c", AS_A_USER, "sh", str(folder), python, server.address]
            argv = ["timeout", "-k", "1", "30", "unshare", "-m", *script]
            done = subprocess.run(argv, env=environment, capture_output=True, cwd=folder, check=False)
        if b"mknod" in done.stderr:
            pytest.skip("device nodes cannot be made here")
        assert done.stdout.split() == [b"hello", b"65534", b"0"], done.stderr
    finally:
        shutil.rmtree(folder)


# diod


@contextlib.contextmanager
def diod(export: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A diod that exports a directory; its address. It has a folder to crash in."""
    path, folder = export.parent / "diod", export.parent / "diod.cwd"
    folder.mkdir()
    command = [DIOD, "-f", "-n", "-e", str(export), "-l", str(path), "-L", str(folder / "log"), "-U", "root", "-S"]
    process = subprocess.Popen(command, cwd=folder)
    try:

        def listening() -> bool:
            assert process.poll() is None
            with socket.socket(socket.AF_UNIX) as probe:
                return probe.connect_ex(str(path)) == 0

        wait_until(listening, "diod to listen")
        yield f"unix!{path}", process
    finally:
        process.kill()
        process.wait()


@needs_diod
@needs_root
@pytest.mark.interop
@pytest.mark.root
def test_diod_serves_us(export: Path) -> None:
    with diod(export) as (at, _):
        aname = ("-a", str(export))
        for msize in ("4096", "65536"):
            options = (*aname, "--msize", msize)
            assert run("ls", *options, at).stdout.splitlines() == [b"absolute", b"d", b"f", b"link", b"loop", ODD]
            assert run("ls", *options, "-l", at).stdout.count(b"\n") == 6
        with serving(export) as ours:  # the same file looks the same
            same = [run("stat", *aname, address, "f").stdout.partition(b" nlink ")[2] for address in (at, ours.address)]
            assert same[0] == same[1] != b""
        assert run("cat", *aname, at, "d/e/up", ODD).stdout == b"hello\nodd\n"
        data = os.urandom(2000000)
        run("write", *aname, at, "new", data=data)
        assert (export / "new").read_bytes() == data
        assert run("cat", *aname, at, "new").stdout == data
        run("write", *aname, at, "new", data=b"")
        assert (export / "new").read_bytes() == b""
        run("rm", *aname, at, "new")
        assert not (export / "new").exists()
        done = run("rm", *aname, at, "d", "nope", status=1)
        assert done.stderr.decode().splitlines() == [
            f"9p: rm {at} d: Directory not empty",
            f"9p: rm {at} nope: No such file or directory",
        ]
        assert run("ls", at, status=1).stderr.startswith(f"9p: attach {at}: ".encode())  # no tree of that name


@needs_diod
@needs_fuse
@needs_root
@pytest.mark.interop
@pytest.mark.fuse
@pytest.mark.root
def test_diod_mounted_and_killed(export: Path) -> None:
    with diod(export) as (at, process), mounted(export.parent / "mnt", at, "-a", str(export)) as mount:
        here = mount.mountpoint
        assert sorted(os.listdir(os.fsencode(here))) == sorted(os.listdir(os.fsencode(export)))
        (here / "new").write_bytes(b"x" * 300000)
        assert (export / "new").read_bytes() == (here / "new").read_bytes() == b"x" * 300000
        process.kill()
        wait_until(lambda: "until then all is EIO" in mount.text(), "it to be noticed")
        with pytest.raises(OSError, match="Input/output error"):
            os.listdir(here / "d")
        subprocess.run(["umount", str(here)], check=True)
        assert mount.process.wait(10) == 1


@needs_diod
@pytest.mark.interop
@pytest.mark.parametrize("network", ["tcp", "unix"])
def test_we_serve_diods_clients(export: Path, network: str) -> None:
    """diodls and diodcat. diodls -l also walks to "." (EINVAL from us: no protocol text has that name)."""
    address = "tcp!127.0.0.1!0" if network == "tcp" else f"unix!{export.parent}/sock"
    with serving(export, address=address) as server:
        _, host, *port = server.address.split("!")
        where = ":".join((host, *port))

        def tool(name: str, *words: str | bytes) -> bytes:
            program = shutil.which(name) or f"/usr/sbin/{name}"
            argv = [program, "-s", where, "-a", str(export), *words]
            return subprocess.run(argv, check=True, capture_output=True, timeout=20, cwd=export.parent).stdout

        assert set(tool("diodls").splitlines()) >= {b"d", b"f", b"link", ODD}
        assert tool("diodcat", "f", ODD) == b"hello\nodd\n"
