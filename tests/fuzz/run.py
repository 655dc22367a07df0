"""Fuzz one target: `python tests/fuzz/run.py TARGET [libFuzzer's options and corpus folders]`.

A finding is written to the folder of -artifact_prefix; once understood it belongs into tests/fuzz/crashers/TARGET.
`python tests/fuzz/run.py TARGET FILE` replays one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

TOP = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(TOP), str(TOP / "tests")]

with atheris.instrument_imports(include=["ninep", "multicall", "shlex"], exclude=["ninep.fuse"]):
    from fuzz import targets


def main(argv: list[str]) -> None:
    """Never returns: libFuzzer ends the process."""
    target = targets.TARGETS[argv[1]]
    atheris.Setup([argv[0], *argv[2:]], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
