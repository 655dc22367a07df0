"""QEMU as a board: its command line, and what is told when a board does not do what is waited for."""

import dataclasses
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from initramfs import compress, cpio, demo, image, profile, qemu
from initramfs.problem import Problem

TOP = Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.qemu, pytest.mark.timeout(200)]

Maker = Callable[[str], profile.Profile]


@pytest.fixture
def small(made: demo.Made, tmp_path: Path) -> Maker:
    """Make a board that boots in a few seconds: the kernel, busybox, and a script as its init."""
    packed = image.archive_path(made.profile, TOP / "build").read_bytes()
    wanted = [b"bin/busybox", b"dev/console", b"dev/null"]
    kept = [entry for entry in cpio.read(io.BytesIO(compress.unpack(packed))) if entry.name in wanted]

    def make(script: str) -> profile.Profile:
        board = dataclasses.replace(made.profile, name="small", compressor="raw")
        (tmp_path / "small").mkdir()
        text = f"#!/bin/busybox sh\nexport PATH=/bin\n{script}\n"
        entries = [*kept, cpio.symlink(b"bin/sh", b"busybox"), cpio.file(b"init", text.encode(), 0o755)]
        with image.archive_path(board, tmp_path).open("wb") as out:
            cpio.write(cpio.with_parents(entries), out)
        shutil.copy(image.kernel_path(made.profile, TOP / "build"), image.kernel_path(board, tmp_path))
        return board

    return make


def test_a_board_can_be_read_typed_at_and_switched_off(small: Maker, tmp_path: Path) -> None:
    board = small('echo ready\nread word\necho "got $word"\nbusybox poweroff -f')
    with qemu.Board(board, tmp_path, port=demo.free_port()) as machine:
        machine.wait_console("ready", 90)
        machine.type("hello\r")
        machine.wait_off(60)
        assert "got hello" in machine.console()
        assert not machine.is_on()


def test_a_board_that_dies_while_starting_is_told_with_its_last_words(small: Maker, tmp_path: Path) -> None:
    board = small("echo these are the last words\nbusybox poweroff -f")
    with qemu.Board(board, tmp_path, port=demo.free_port()) as machine:
        with pytest.raises(Problem, match="it went off while starting; the end of its console:") as told:
            machine.wait_ready(90)
        assert "these are the last words" in str(told.value)


def test_a_connection_is_not_readiness_and_leaving_ends_it(small: Maker, tmp_path: Path) -> None:
    board = small("echo up\nwhile :; do busybox sleep 1; done")
    with qemu.Board(board, tmp_path, port=demo.free_port()) as machine:
        machine.wait_console("up", 90)
        with pytest.raises(Problem, match="cpud does not answer after 1 s"):
            machine.wait_ready(1)
        with pytest.raises(Problem, match="still on after 1 s"):
            machine.wait_off(1)
        pid = machine.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_command_line_is_for_any_machine(made: demo.Made) -> None:
    line = qemu.command(made.profile, TOP / "build", port=12345, memory_mb=300)
    text = " ".join(line)
    assert "-accel tcg" in text
    assert "hostfwd=tcp:127.0.0.1:12345-:17010" in text
    assert "-m 300" in text
    assert "kvm" not in text


def test_what_is_not_built_is_told(tmp_path: Path) -> None:
    board = profile.load("qemu-x86_64")
    with pytest.raises(Problem, match=r"vmlinuz is not there\nhint: build.py build --board qemu-x86_64"):
        qemu.command(board, tmp_path, port=1)
