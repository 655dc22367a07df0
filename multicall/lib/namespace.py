"""Namespaces as text: u-root/cpu's `-namespace` strings and fstab(5). Pure: nothing here touches a file system.

On the board the client's tree lies on CLIENT_TREE; a bind is an fstab line whose source is below it.
"""

import posixpath
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

CLIENT_TREE = b"/tmp/cpu"
DEFAULT = b"/lib:/lib64:/usr:/bin:/etc:/home"


class NamespaceError(ValueError):
    """A namespace string or fstab line that cannot be read; the message names the element."""


class Bind(NamedTuple):
    """`client` of the client's tree appears at `board` on the board. Both are absolute."""

    board: bytes
    client: bytes


class Mount(NamedTuple):
    """A line of fstab(5): what, where, which type, which options; `line` is its number from 1."""

    source: bytes
    target: bytes
    fstype: bytes
    options: Sequence[bytes]
    line: int = 0


def parse(text: bytes) -> list[Bind]:
    """Read `board_path[=client_path]:...`; "" and "none" are no binds at all; a leading "+" adds to the default.

    Raises NamespaceError that names the element: empty elements and empty or relative sides are errors, as u-root/cpu
    has it.
    """
    if text in (b"", b"none"):
        return []
    if text.startswith(b"+"):
        return parse(DEFAULT) + (parse(text[1:]) if text[1:] else [])
    return [_element(element, text) for element in text.split(b":")]


def _element(element: bytes, text: bytes) -> Bind:
    board, equals, client = element.partition(b"=")
    if not equals:
        client = board
    shown = element.decode(errors="replace")
    if not element:
        raise NamespaceError(f"namespace {text.decode(errors='replace')!r}: an element is empty")
    if not board or not client:
        raise NamespaceError(f"namespace element {shown!r}: one side is empty")
    for side in (board, client):
        if not side.startswith(b"/"):
            raise NamespaceError(f"namespace element {shown!r}: {side.decode(errors='replace')!r} is not absolute")
    return Bind(normal(board), normal(client))


def normal(path: bytes) -> bytes:
    """An absolute path without "..", "." or doubled slashes, by its text alone."""
    return b"/" + posixpath.normpath(path).lstrip(b"/")


def covers(binds: Iterable[Bind], path: bytes) -> bool:
    """Whether the client's `path` is seen on the board at its own place through one of these binds."""
    path = normal(path)
    seen = False
    for board, client in binds:
        if path == board or path.startswith(board.rstrip(b"/") + b"/"):
            seen = board == client
    return seen


def fstab(binds: Iterable[Bind]) -> bytes:
    """The binds as fstab(5) lines."""
    return b"".join(
        b"%s %s none defaults,bind 0 0\n" % (escape(CLIENT_TREE + client), escape(board)) for board, client in binds
    )


_ESCAPED = {b" ": b"\\040", b"\t": b"\\011", b"\n": b"\\012", b"\\": b"\\134", b"#": b"\\043"}


def escape(field: bytes) -> bytes:
    """Write a field of fstab(5): blanks, newlines, backslashes and number signs as octal."""
    return b"".join(_ESCAPED.get(field[i : i + 1], field[i : i + 1]) for i in range(len(field)))


def unescape(field: bytes) -> bytes:
    r"""Read a field of fstab(5): \ and three octal digits are a byte, any other backslash is itself."""
    parts = field.split(b"\\")
    read = [parts[0]]
    for part in parts[1:]:
        digits = part[:3]
        if len(digits) == 3 and all(digit in b"01234567" for digit in digits) and int(digits, 8) < 256:
            read.append(bytes([int(digits, 8)]) + part[3:])
        else:
            read.append(b"\\" + part)
    return b"".join(read)


def parse_fstab(text: bytes) -> tuple[list[Mount], list[str]]:
    """Read fstab(5) text as util-linux does: comments, blank lines, 3 to 6 fields, escapes.

    Returns the mounts in order and one complaint for each line that is not one: a bad line never stops the others.
    """
    mounts: list[Mount] = []
    complaints: list[str] = []
    for number, line in enumerate(text.split(b"\n"), 1):
        fields = re.split(rb"[ \t]+", line.strip(b" \t\r")) if line.strip(b" \t\r") else []
        if not fields or fields[0].startswith(b"#"):
            continue
        if len(fields) < 3:
            shown = line.decode(errors="replace")
            complaints.append(f"fstab line {number}: {shown!r}: needs source, mount point and type")
            continue
        source, target, fstype = (unescape(field) for field in fields[:3])
        options = unescape(fields[3]).split(b",") if len(fields) > 3 else [b"defaults"]
        if not target.startswith(b"/") and fstype != b"swap":
            complaints.append(f"fstab line {number}: mount point {target.decode(errors='replace')!r} is not absolute")
            continue
        mounts.append(Mount(source, target, fstype, [option for option in options if option], number))
    return mounts, complaints
