"""Attributes of files as lines for people: ls -l's, and one that has everything. Pure."""

import os
import stat
import time
from collections.abc import Sequence

from ninep.message import Rgetattr

TIME_FORMAT = "%Y-%m-%d %H:%M:%S"


def shown_name(name: bytes) -> bytes:
    r"""A name that stays on its line and cannot command a terminal: control characters as \xHH, all else as it is."""
    if any(byte < 0x20 or byte == 0x7F for byte in name):
        return b"".join(b"\\x%02x" % byte if byte < 0x20 or byte == 0x7F else bytes((byte,)) for byte in name)
    return name


def shown_time(seconds: int, nanoseconds: int | None = None) -> str:
    """A time on the wire in this machine's zone; one that no calendar has, as its number."""
    if seconds >> 63:
        seconds -= 1 << 64
    try:
        text = time.strftime(TIME_FORMAT, time.localtime(seconds))
    except (OverflowError, OSError, ValueError):
        text = str(seconds)
    return text if nanoseconds is None else f"{text}.{nanoseconds:09d}"


def _size(r: Rgetattr) -> str:
    if stat.S_ISCHR(r.mode) or stat.S_ISBLK(r.mode):
        return f"{os.major(r.rdev)},{os.minor(r.rdev)}"
    return str(r.size)


def long_lines(files: Sequence[tuple[bytes, Rgetattr | OSError, bytes]]) -> list[bytes]:
    """A line for each (name, attributes, target of a symbolic link): mode, links, uid, gid, size, mtime, name.

    Users and groups are numbers: they are the server's, and have no names here. What could not be asked is "?".
    """
    rows = [
        ("??????????", "?", "?", "?", "?", "?")
        if isinstance(r, OSError)
        else (stat.filemode(r.mode), str(r.nlink), str(r.uid), str(r.gid), _size(r), shown_time(r.mtime_sec))
        for _, r, _ in files
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for (name, _, target), row in zip(files, rows, strict=True):
        columns = " ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        arrow = b" -> " + shown_name(target) if target else b""
        lines.append(columns.encode() + b" " + shown_name(name) + arrow)
    return lines


def stat_line(name: bytes, r: Rgetattr) -> bytes:
    """Everything that Rgetattr says, on one line: name last, as only it may hold blanks."""
    words = [
        f"{stat.filemode(r.mode)} {r.mode:06o}",
        f"qid {r.qid.path:#x}.{r.qid.version}.{r.qid.type:#04x}",
        f"nlink {r.nlink} uid {r.uid} gid {r.gid} size {r.size} blocks {r.blocks} blksize {r.blksize}",
    ]
    if stat.S_ISCHR(r.mode) or stat.S_ISBLK(r.mode):
        words.append(f"rdev {_size(r)}")
    words += [
        f"atime {shown_time(r.atime_sec, r.atime_nsec)}",
        f"mtime {shown_time(r.mtime_sec, r.mtime_nsec)}",
        f"ctime {shown_time(r.ctime_sec, r.ctime_nsec)}",
    ]
    return " ".join(words).encode() + b" " + shown_name(name)
