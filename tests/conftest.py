"""What the tests share."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# What a person has in the environment must not decide a test.
for name in ("SSH_AUTH_SOCK", "PYTHONWARNINGS", "PYTHONPATH", "SHIV_ROOT"):
    os.environ.pop(name, None)

from rig import Cpud  # noqa: E402


@pytest.fixture
def cpud(tmp_path: Path) -> Iterator[Cpud]:
    daemon = Cpud(tmp_path)
    yield daemon
    daemon.stop()
