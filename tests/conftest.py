"""What the tests share."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# What a person has in the environment must not decide a test.
for name in ("SSH_AUTH_SOCK", "PYTHONWARNINGS", "PYTHONPATH", "SHIV_ROOT"):
    os.environ.pop(name, None)

# A runner that was started in the background, or under nohup, ignores these, and so would every program of the tests.
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

from initramfs import demo, qemu  # noqa: E402
from rig import TOP, Cpud, QemuBoard  # noqa: E402


@pytest.fixture
def cpud(tmp_path: Path) -> Iterator[Cpud]:
    daemon = Cpud(tmp_path)
    yield daemon
    daemon.stop()


@pytest.fixture(scope="session")
def made() -> demo.Made:
    """The built board qemu-x86_64, its zipapp and its keys."""
    return demo.build("qemu-x86_64", TOP / "build", quiet=True)


@pytest.fixture(scope="session")
def board(made: demo.Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[QemuBoard]:
    """The board, booted once for all tests that leave it as it was."""
    with qemu.Board(made.profile, TOP / "build", port=demo.free_port()) as machine:
        machine.wait_ready(demo.BOOT_TIMEOUT_S)
        yield QemuBoard(made, machine, tmp_path_factory.mktemp("qemu"))
