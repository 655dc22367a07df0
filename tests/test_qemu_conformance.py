"""The conformance suite on a board, through a stock kernel's 9P client and through our FUSE there."""

import os
from pathlib import Path

import pytest

import conformance
from rig import TOP, QemuBoard

pytestmark = [pytest.mark.qemu, pytest.mark.slow, pytest.mark.timeout(900)]

# What a mount cannot do whatever our server does, with the reason.
EXCEPTIONS: dict[str, dict[str, str]] = {
    "9p": {
        "times_have_nanoseconds_and_may_be_before_1970": "Linux 6.1's v9fs sends whole seconds, and none below 0",
    },
    "fuse": {},
}


@pytest.mark.parametrize("mount", ["9p", "fuse"])
def test_conformance(board: QemuBoard, tmp_path: Path, mount: str) -> None:
    script = str(TOP / "tests/on_board_conformance.py")
    folder = f"/tmp/cpu{tmp_path}"
    result = board.cpu(
        "python3", "-B", script, folder, cwd=TOP, options=("--mount", mount), timeout_s=880, PYTHONUNBUFFERED="1"
    )
    answers = dict(line.split(": ") for line in result.stdout.decode().splitlines())
    assert list(answers) == [check.__name__ for check in conformance.CHECKS], result.stderr.decode()
    failed = {name for name, answer in answers.items() if answer != "ok"}
    assert failed == set(EXCEPTIONS[mount]), result.stderr.decode()
    assert os.path.isdir(tmp_path / conformance.CHECKS[0].__name__)
