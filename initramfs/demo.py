"""The demo: build, boot, run this machine's flashrom on the board, compare, switch off. Each step says what it took.

It is also how the tests and `build.py run` get at a built board: `build` makes everything a client needs to log in.
"""

import filecmp
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from initramfs import image, payload, profile, qemu, report
from initramfs.problem import Problem

CHIP = "W25Q128FV"
CHIP_BYTES = 16 << 20
BOOT_TIMEOUT_S = 240.0
"""A TCG boot takes half a minute on an idle machine and several times that on a busy one."""


class Made(NamedTuple):
    """A built board and what logs in to it."""

    profile: profile.Profile
    folder: Path
    cpu: Path
    key: Path
    host_key: Path
    report: report.Report

    def cpu_command(self, port: int, *words: str, options: Sequence[str] = ()) -> list[str]:
        """The command line that runs `words` on the board behind this machine's `port`."""
        login = ["-key", str(self.key), "-hk", f"{self.host_key}.pub"]
        return [str(self.cpu), *login, "-sp", str(port), *options, "127.0.0.1", *words]

    def how_to_connect(self, port: int) -> str:
        """What to type on another terminal."""
        return "on another terminal:\n  " + " ".join(self.cpu_command(port, "COMMAND"))


def make_key(path: Path, comment: str) -> None:
    """Make an ed25519 key pair without a passphrase at `path`, once. For this build only: it never leaves build/."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise Problem("make a key: there is no ssh-keygen", "install openssh-client") from error
    except subprocess.CalledProcessError as error:
        raise Problem(f"make a key in {path}: {error.stderr.strip()}") from error


def user_keys() -> list[str]:
    """The public keys of the person who builds: what ~/.ssh has."""
    return [path.read_text().strip() for path in sorted((Path.home() / ".ssh").glob("id_*.pub"))]


def build(board: str, build_dir: Path, *, quiet: bool = False) -> Made:
    """Build everything for a board: zipapp, kernel, initramfs, keys. What is up to date is not made again."""
    wanted = profile.load(board)
    folder = build_dir / wanted.name
    key, host_key = build_dir / "id", folder / "host_key"
    make_key(key, "pycpu build")
    make_key(host_key, wanted.name)
    with step("build cpu.pyz", quiet=quiet):
        payload.build_zipapp(build_dir / "cpu.pyz")
    with step(f"build the image of {wanted.name}", quiet=quiet) as say:
        keys = [*user_keys(), Path(f"{key}.pub").read_text().strip()]
        made = image.build(wanted, build_dir, authorized_keys=keys, progress=say)
    if not quiet:
        sys.stdout.write(made.text())
        sys.stdout.flush()
    return Made(wanted, folder, build_dir / "bin" / "cpu", key, host_key, made)


class Say:
    """Shows what a step is doing; on a terminal in place, elsewhere a line each time it changes."""

    def __init__(self, title: str, quiet: bool) -> None:
        self._title = title
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._detail = ""
        self._start = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)
        if self._terminal and not quiet:
            self._thread.start()

    def __call__(self, detail: str) -> None:
        """Say what is being done now."""
        self._detail = detail
        if not self._terminal and not self._quiet:
            sys.stderr.write(f"  {self._title}: {detail}\n")

    def _tick(self) -> None:
        while not self._ended.wait(0.2):
            seconds = time.monotonic() - self._start
            sys.stderr.write(f"\r\x1b[K  {self._title} ... {seconds:.0f} s {self._detail[:60]}")
            sys.stderr.flush()

    def end(self, word: str) -> None:
        """The step is over."""
        self._ended.set()
        if self._quiet:
            return
        if self._terminal:
            self._thread.join()
            sys.stderr.write("\r\x1b[K")
        sys.stderr.write(f"{word} {self._title} ({time.monotonic() - self._start:.1f} s)\n")


@contextmanager
def step(title: str, *, quiet: bool = False) -> Iterator[Say]:
    """A step of the demo: what it is, how long it took, whether it came to its end."""
    say = Say(title, quiet)
    try:
        yield say
    except BaseException:
        say.end("failed:")
        raise
    say.end("done:")


def free_port() -> int:
    """A port of this machine that nothing listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def run(board: str, build_dir: Path) -> None:
    """The demo. Raises Problem when any part of it is not as it should be."""
    made = build(board, build_dir)
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="pycpu-demo-") as name:
        folder = Path(name)
        (folder / "chip.bin").write_bytes(os.urandom(CHIP_BYTES))
        with qemu.Board(made.profile, build_dir, port=port) as machine:
            with step(f"boot {made.profile.name} in QEMU until cpud answers"):
                machine.wait_ready(BOOT_TIMEOUT_S)
            command = made.cpu_command(port, "flashrom", "-p", f"dummy:emulate={CHIP},image=chip.bin", "-r", "rom.img")
            sys.stderr.write(f"  in {folder}: {' '.join(command)}\n")
            with step("run flashrom on the board"):
                _flashrom(command, folder)
            _compare(folder)
            with step("switch the board off"):
                # The board may be gone before it can say so: its end is what counts, and the next line waits for it.
                goodbye = made.cpu_command(port, "poweroff", options=["-9p=false"])
                subprocess.run(goodbye, check=False, capture_output=True)
                machine.wait_off(60)
    sys.stderr.write("the demo is complete: the board ran this machine's flashrom, its result is here\n")


def _flashrom(command: Sequence[str], folder: Path) -> None:
    # flashrom is in sbin, which an ordinary user's PATH may not name.
    path = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"
    result = subprocess.run(command, cwd=folder, env={**os.environ, "PATH": path}, check=False, stdout=sys.stderr)
    if result.returncode:
        raise Problem(f"flashrom on the board ended with status {result.returncode}")


def _compare(folder: Path) -> None:
    """Check that what flashrom wrote here is what the chip holds, byte for byte, and say so."""
    rom, chip = folder / "rom.img", folder / "chip.bin"
    if not rom.exists():
        raise Problem(f"{rom} did not appear")
    if not filecmp.cmp(rom, chip, shallow=False):
        raise Problem(f"{rom} ({rom.stat().st_size} bytes) differs from {chip} ({CHIP_BYTES} bytes)")
    sys.stderr.write(f"done: rom.img ({rom.stat().st_size} bytes) is byte for byte chip.bin ({CHIP_BYTES} bytes)\n")
