"""The client's terminal: raw while the command has one of its own, its size, and ssh's escapes."""

import fcntl
import os
import struct
import termios
import tty
from collections.abc import Callable

from multicall.lib import contract

ESCAPES = """\r
Supported escape sequences:\r
 ~.   - end this session\r
 ~~   - send a tilde\r
 ~?   - this text\r
(only at the beginning of a line)\r
"""


def size(fd: int) -> tuple[int, int]:
    """Columns and rows of a terminal; 80 by 24 where it does not know."""
    try:
        rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
    except OSError:
        return 80, 24
    return columns or 80, rows or 24


def describe(fd: int) -> contract.Terminal:
    """This terminal, as the board is told of it."""
    return contract.Terminal(os.environb.get(b"TERM", b"dumb"), *size(fd))


class Raw:
    """A context in which the terminal behind `fd` hands over every key as it is; it is put back in any case."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved: list[object] | None = None

    def __enter__(self) -> "Raw":
        try:
            self._saved = termios.tcgetattr(self._fd)
            tty.setraw(self._fd, termios.TCSADRAIN)
        except termios.error:
            self._saved = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._saved is not None:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)  # type: ignore[arg-type]


class Escape:
    """Takes ssh's escapes out of what is typed (ssh(1), "ESCAPE CHARACTERS")."""

    def __init__(self, end: Callable[[], None], show: Callable[[str], None]) -> None:
        self._end = end
        self._show = show
        self._at_start = True
        self._tilde = False

    def feed(self, typed: bytes) -> bytes:
        """Return what of the typed bytes is for the command."""
        passed = bytearray()
        for index in range(len(typed)):
            key = typed[index : index + 1]
            if self._tilde:
                self._tilde = False
                if key == b".":
                    self._end()
                    return bytes(passed)
                if key == b"?":
                    self._show(ESCAPES)
                    self._at_start = True
                    continue
                passed += b"" if key == b"~" else b"~"
            elif self._at_start and key == b"~":
                self._tilde = True
                continue
            passed += key
            self._at_start = key in b"\r\n"
        return bytes(passed)
