"""A board in QEMU: its command line, and a running one with a console to read, a port to ask and an end that is sure.

Always TCG: /dev/kvm being there does not mean that it can run a stock kernel.
"""

import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from initramfs import image
from initramfs.problem import Problem, reason
from initramfs.profile import Profile

CPUD_PORT = 17010
BANNER = b"SSH-2.0-"
PROBE_S = 3.0
"""How long one probe waits for the banner. QEMU's user network takes a connection at once, whether or not the board
listens, or is up at all; what comes back is what counts."""
PAUSE_S = 0.25
ECHO_S = 3.0
STOP_S = 5.0
TAIL_LINES = 15


class Machine(NamedTuple):
    """How QEMU is a board of an architecture. The processor is a plain one: without RDRAND, as old boards are."""

    program: str
    package: str
    arguments: Sequence[str]


MACHINES = {
    "amd64": Machine("qemu-system-x86_64", "qemu-system-x86", ("-machine", "pc", "-cpu", "qemu64", "-vga", "none")),
    "arm64": Machine("qemu-system-aarch64", "qemu-system-arm", ("-machine", "virt", "-cpu", "cortex-a72")),
    "armhf": Machine("qemu-system-arm", "qemu-system-arm", ("-machine", "virt", "-cpu", "cortex-a15")),
}


def command(
    board: Profile,
    build_dir: Path,
    *,
    port: int,
    memory_mb: int = 0,
    append: str = "",
    cpu: str = "",
    console: Path | None = None,
    monitor: Path | None = None,
    is_once: bool = False,
) -> list[str]:
    """Return the command that boots a built board; 127.0.0.1:`port` of this machine leads to its cpud.

    `memory_mb` is in MiB, the profile's by default. `append` goes behind the kernel's command line. Without `console`
    the serial line is the terminal (Ctrl-A x ends QEMU); with it, a unix socket at that path, its output logged beside
    it in console.log. `monitor` is a path for a QMP socket. With `is_once` a reboot or a panic ends QEMU. Raises
    Problem when the board is not built or QEMU not there.
    """
    kernel, archive = image.kernel_path(board, build_dir), image.archive_path(board, build_dir)
    for path in (kernel, archive):
        if not path.exists():
            raise Problem(f"boot {board.name}: {path} is not there", f"build.py build --board {board.name}")
    machine = MACHINES[board.architecture]
    program = shutil.which(machine.program)
    if program is None:
        raise Problem(f"boot {board.name}: there is no {machine.program}", f"install the package {machine.package}")
    line = [program, "-accel", "tcg", *machine.arguments, *(["-cpu", cpu] if cpu else [])]
    line += ["-m", str(memory_mb or board.memory_mib), "-nographic", "-no-user-config"]
    line += ["-kernel", str(kernel), "-initrd", str(archive), "-append", f"{board.cmdline} {append}".strip()]
    # Without its boot ROM, which would look for a kernel on the network first.
    line += ["-device", "virtio-net-pci,netdev=net0,romfile="]
    line += ["-netdev", f"user,id=net0,hostfwd=tcp:127.0.0.1:{port}-:{CPUD_PORT}"]
    line += ["-device", "virtio-rng-pci"]
    if console is not None:
        log = console.with_name("console.log")
        line += ["-chardev", f"socket,id=console,path={console},server=on,wait=off,logfile={log}"]
        line += ["-serial", "chardev:console", "-monitor", "none"]
    if monitor is not None:
        line += ["-qmp", f"unix:{monitor},server=on,wait=off"]
    return [*line, "-no-reboot"] if is_once else line


class Board:
    """A built board that runs while the context is entered. One thread uses it.

    Leaving ends QEMU whatever its state; for a clean end ask the board first: `power_off`, or a command of its own and
    `wait_off`. When this process dies, QEMU dies with it.
    """

    def __init__(
        self, board: Profile, build_dir: Path, *, port: int, memory_mb: int = 0, append: str = "", cpu: str = ""
    ) -> None:
        self.profile = board
        self.port = port
        self._folder = Path(tempfile.mkdtemp(prefix="pycpu-qemu-"))
        self._command = command(
            board,
            build_dir,
            port=port,
            memory_mb=memory_mb,
            append=append,
            cpu=cpu,
            console=self._folder / "console",
            monitor=self._folder / "monitor",
            is_once=True,
        )
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def pid(self) -> int:
        """QEMU's process, while it runs."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Switch the board on. Raises Problem."""
        guard = [path, "--pdeathsig", "KILL"] if (path := shutil.which("setpriv")) else []
        with open(self._folder / "qemu.log", "wb") as log:
            try:
                self._process = subprocess.Popen(
                    [*guard, *self._command], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
                )
            except OSError as error:
                raise Problem(f"run {self._command[0]}: {reason(error)}") from error

    def is_on(self) -> bool:
        """Whether QEMU runs."""
        return self._process is not None and self._process.poll() is None

    def console(self) -> str:
        """What the board has written to its serial console so far, and what QEMU itself said."""
        texts = []
        for name in ("qemu.log", "console.log"):
            with contextlib.suppress(OSError):
                texts.append((self._folder / name).read_bytes().decode("utf-8", "replace").replace("\r\n", "\n"))
        return "".join(texts)

    def type(self, text: str) -> None:
        """Type on the board's serial console. Returns when it is echoed, or after ECHO_S. Raises Problem."""
        try:
            with socket.socket(socket.AF_UNIX) as console:
                console.connect(str(self._folder / "console"))
                console.settimeout(ECHO_S)
                console.sendall(text.encode())
                # QEMU forgets what the serial port has not taken yet when its other end goes.
                left = len(text)
                with contextlib.suppress(TimeoutError):
                    while left > 0 and (echo := console.recv(left)):
                        left -= len(echo)
        except OSError as error:
            raise Problem(f"type on the console of {self.profile.name}: {reason(error)}") from error

    def _fail(self, message: str) -> Problem:
        tail = "\n".join(f"  | {line}" for line in self.console().splitlines()[-TAIL_LINES:])
        return Problem(f"{message}; the end of its console:\n{tail}")

    def wait_ready(self, timeout_s: float) -> float:
        """Wait until cpud has answered with its ssh banner; return the seconds it took. Raises Problem."""
        start = time.monotonic()
        while time.monotonic() < start + timeout_s:
            if not self.is_on():
                raise self._fail(f"board {self.profile.name}: it went off while starting")
            if self._probe():
                return time.monotonic() - start
            time.sleep(PAUSE_S)
        raise self._fail(f"board {self.profile.name}: cpud does not answer after {timeout_s:.0f} s")

    def _probe(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), PROBE_S) as sock:
                return sock.recv(len(BANNER), socket.MSG_WAITALL) == BANNER
        except OSError:
            return False

    def wait_console(self, text: str, timeout_s: float) -> None:
        """Wait until `text` is on the console. Raises Problem."""
        deadline = time.monotonic() + timeout_s
        while text not in self.console():
            if time.monotonic() > deadline or not self.is_on():
                raise self._fail(f"board {self.profile.name}: {text!r} did not appear")
            time.sleep(PAUSE_S)

    def wait_off(self, timeout_s: float) -> None:
        """Wait until the board has switched itself off. Raises Problem."""
        if self._process is None:
            return
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise self._fail(f"board {self.profile.name}: still on after {timeout_s:.0f} s") from None
        if status:
            raise self._fail(f"board {self.profile.name}: QEMU ended with status {status}")

    def power_off(self, timeout_s: float = 60) -> None:
        """Switch the board off from the shell on its console. Raises Problem."""
        self.type("\rpoweroff\r")
        self.wait_off(timeout_s)

    def stop(self) -> None:
        """Pull the plug: ask QEMU to end, else end its process."""
        if self._process is None or not self.is_on():
            return
        with contextlib.suppress(OSError):
            self._quit()
        for end in (None, self._process.terminate, self._process.kill):
            if end is not None:
                end()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_S)
                return

    def _quit(self) -> None:
        """Tell QEMU's monitor to end it (QMP: greeting, capabilities, then commands, a JSON object a line)."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(STOP_S)
            monitor.connect(str(self._folder / "monitor"))
            with monitor.makefile("rwb") as lines:
                lines.readline()
                for name in ("qmp_capabilities", "quit"):
                    lines.write(json.dumps({"execute": name}).encode() + b"\n")
                    lines.flush()
                    lines.readline()
