"""What the tests work with: where things are, and processes that are sure to end."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from initramfs import demo, qemu
from initramfs.demo import free_port

TOP = Path(__file__).resolve().parent.parent
PROGRAM = [sys.executable, "-m", "multicall"]


def wait_until(true: Callable[[], object], what: str, timeout_s: float = 20) -> None:
    """Poll for a state that has no descriptor to wait on."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for: {what}"
        time.sleep(0.02)


class Running(subprocess.Popen[bytes]):
    """A process whose context ends with it: when the test has failed it is killed, and not waited for in vain."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind:
            self.kill()
        super().__exit__(kind, error, trace)


class Clients:
    """Runs cpu against a board that a subclass has: it says how (argv), where (folder) and in which environment."""

    folder: Path

    def argv(self, *words: str, options: tuple[str, ...] = ()) -> list[str]:
        raise NotImplementedError

    def environment(self, **more: str) -> dict[str, str]:
        raise NotImplementedError

    def cpu(
        self,
        *words: str,
        options: tuple[str, ...] = (),
        cwd: Path | None = None,
        input: bytes | None = b"",
        timeout_s: float = 110,
        **environment: str,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end."""
        return subprocess.run(
            self.argv(*words, options=options),
            cwd=cwd or self.folder,
            input=input,
            capture_output=True,
            env=self.environment(**environment),
            timeout=timeout_s,
            check=False,
        )

    def start_cpu(self, *words: str, options: tuple[str, ...] = ()) -> "Running":
        """Start a command, with pipes for all three."""
        return Running(
            self.argv(*words, options=options),
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


class Cpud(Clients):
    """A cpud of this machine on a free port, with a key of its own, and a HOME for its clients."""

    def __init__(self, folder: Path, *arguments: str, port: str | None = None, network: str = "tcp") -> None:
        self.folder = folder
        self.port = port or str(free_port())
        self.network = network
        self.home = folder / "home"
        (self.home / ".ssh").mkdir(parents=True, mode=0o700)
        self.key = folder / "id"
        if not self.key.exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key], check=True)
        self.log = folder / "cpud.log"
        self.arguments = arguments
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            before = log.tell()
            self.process = subprocess.Popen(
                [
                    *PROGRAM,
                    "cpud",
                    "-pk",
                    f"{self.key}.pub",
                    "-hk",
                    self.folder / "hk",
                    "-sp",
                    self.port,
                    "-net",
                    self.network,
                    *self.arguments,
                ],
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=TOP,
            )
        wait_until(
            lambda: b"listening on" in self.log.read_bytes()[before:] or self.process.poll() is not None,
            "cpud to listen",
        )
        assert self.process.poll() is None, self.log.read_text()

    def environment(self, **more: str) -> dict[str, str]:
        return {**os.environ, "HOME": str(self.home), "PYTHONPATH": str(TOP), **more}

    def argv(self, *words: str, host: str = "127.0.0.1", options: tuple[str, ...] = ()) -> list[str]:
        port = [] if self.network == "unix" else ["-sp", self.port]
        host = self.port if self.network == "unix" else host
        return [*PROGRAM, "cpu", *port, "-net", self.network, "-key", str(self.key), *options, host, *words]

    def connections(self) -> list[int]:
        """The processes that serve a connection now."""
        return children(self.process.pid)

    def wait_quiet(self, timeout_s: float = 20) -> None:
        wait_until(lambda: not self.connections(), "the connections' processes to end", timeout_s)

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class QemuBoard(Clients):
    """A board that runs in QEMU, and clients of it from the built zipapp."""

    def __init__(self, made: demo.Made, machine: qemu.Board, folder: Path) -> None:
        self.made = made
        self.machine = machine
        self.folder = folder
        self.home = folder / "home"
        (self.home / ".ssh").mkdir(parents=True, mode=0o700)

    def environment(self, **more: str) -> dict[str, str]:
        path = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
        shiv = {"SHIV_ROOT": str(self.made.cpu.parent.parent / "shiv")}
        return {**os.environ, "HOME": str(self.home), "PATH": path, **shiv, **more}

    def argv(self, *words: str, options: tuple[str, ...] = ()) -> list[str]:
        return self.made.cpu_command(self.machine.port, *words, options=options)

    def on_board(self, script: str) -> str:
        """What the board's own shell says to a script, without a namespace."""
        result = self.cpu("sh", "-c", script, options=("-9p=false",))
        assert result.returncode == 0, result.stderr.decode()
        return result.stdout.decode()


def children(pid: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as stat:
                fields = stat.read().rpartition(b")")[2].split()
                if int(fields[1]) == pid and fields[0] != b"Z":
                    found.append(int(name))
    return found


def running(marker: str) -> list[int]:
    """The processes with this text in their command line."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as line:
                if marker.encode() in line.read():
                    found.append(int(name))
    return found
