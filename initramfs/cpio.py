"""The newc archive an initramfs is: a writer that needs no root, and a reader.

Format: Linux Documentation/driver-api/early-userspace/buffer-format.rst. A header of 110 ASCII bytes (magic "070701",
then thirteen numbers of eight hex digits), the name with its NUL, zeros to a multiple of four, the contents, zeros to a
multiple of four; the entry "TRAILER!!!" ends it. Device nodes are only numbers in a header, so anybody can write them.

Same entries, same bytes: inode numbers count from 1 in the order of the entries, every time is the one the caller
gives, the owner is what the entry says (root unless told), the device is 0.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from initramfs.problem import Problem

MAGIC = b"070701"
MAGIC_CRC = b"070702"
HEADER_BYTES = 110
TRAILER = b"TRAILER!!!"
MAX_FILE_BYTES = 0xFFFFFFFF
"""A size is eight hex digits."""
MAX_PATH_BYTES = 4095
"""PATH_MAX without the NUL: the kernel skips entries with a longer name (init/initramfs.c)."""
COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class Entry:
    """A name of an archive. `mode` holds type and permissions; names are relative, bytes, without a leading slash.

    `content` is a file's bytes or a symbolic link's target. `source`, when given, is a path on this machine whose bytes
    are a file's contents instead, read when the archive is written. Entries of regular files with equal `link` (not
    None) are names of one file: hard links; give the contents with each of them.
    """

    name: bytes
    mode: int
    content: bytes = b""
    source: str | None = None
    link: int | None = None
    uid: int = 0
    gid: int = 0
    rdev: tuple[int, int] = (0, 0)

    def size(self) -> int:
        """The contents' size in bytes. Raises OSError when `source` cannot be looked at."""
        return len(self.content) if self.source is None else os.stat(self.source).st_size


def directory(name: bytes, mode: int = 0o755) -> Entry:
    """A directory."""
    return Entry(name, stat.S_IFDIR | mode)


def file(name: bytes, content: bytes, mode: int = 0o644) -> Entry:
    """A regular file."""
    return Entry(name, stat.S_IFREG | mode, content)


def symlink(name: bytes, target: bytes) -> Entry:
    """A symbolic link to `target`."""
    return Entry(name, stat.S_IFLNK | 0o777, target)


def character(name: bytes, major: int, minor: int, mode: int = 0o600) -> Entry:
    """A character device."""
    return Entry(name, stat.S_IFCHR | mode, rdev=(major, minor))


def _shown(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _check(entry: Entry, size: int) -> None:
    """Refuse what a kernel would skip, misplace or not understand. Raises Problem."""
    name = entry.name
    parts = name.split(b"/")
    if name != b"." and (not name or b"" in parts or b"." in parts or b".." in parts):
        raise Problem(f"archive {_shown(name)!r}: not a plain relative name")
    if b"\0" in name or b"\0" in (entry.content if stat.S_ISLNK(entry.mode) else b""):
        raise Problem(f"archive {_shown(name)!r}: a NUL in a name")
    if name == TRAILER:
        raise Problem(f"archive {TRAILER.decode()}: the name that ends an archive")
    if len(name) > MAX_PATH_BYTES:
        raise Problem(f"archive {_shown(name[:60])}...: a name of {len(name)} bytes, at most {MAX_PATH_BYTES} work")
    if stat.S_ISLNK(entry.mode) and not 0 < size <= MAX_PATH_BYTES:
        raise Problem(f"archive {_shown(name)}: a link target of {size} bytes, 1 to {MAX_PATH_BYTES} work")
    if size > MAX_FILE_BYTES:
        raise Problem(
            f"archive {_shown(name)}: {size} bytes, a newc archive holds files of less than 4 GiB",
            "leave it out of the image: it can be reached from the client at run time",
        )
    if size and not (stat.S_ISREG(entry.mode) or stat.S_ISLNK(entry.mode)):
        raise Problem(f"archive {_shown(name)}: contents in something that is neither a file nor a link")


def _header(entry: Entry, inode: int, links: int, mtime: int, size: int) -> bytes:
    numbers = (
        inode,
        entry.mode,
        entry.uid,
        entry.gid,
        links,
        mtime,
        size,
        0,
        0,
        *entry.rdev,
        len(entry.name) + 1,
        0,
    )
    return MAGIC + b"".join(b"%08X" % number for number in numbers)


def _padding(size: int) -> bytes:
    return bytes(-size % 4)


def write(entries: Sequence[Entry], out: BinaryIO, *, mtime: int = 0) -> int:
    """Write a whole archive; return its size in bytes. `mtime` is every entry's, in seconds since 1970.

    A directory must come before what is in it, as the kernel makes no parents. Raises Problem for what newc or the
    kernel cannot hold, OSError from `source` files and `out`.
    """
    remaining: dict[int, int] = {}
    for entry in entries:
        if entry.link is not None:
            if not stat.S_ISREG(entry.mode):
                raise Problem(f"archive {_shown(entry.name)}: only regular files have hard links here")
            remaining[entry.link] = remaining.get(entry.link, 0) + 1
    names = dict(remaining)
    inodes: dict[int, int] = {}
    seen: set[bytes] = set()
    total = inode = 0
    for entry in entries:
        size = entry.size()
        _check(entry, size)
        if entry.name in seen:
            raise Problem(f"archive {_shown(entry.name)}: named twice")
        seen.add(entry.name)
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        if entry.link is None or entry.link not in inodes:
            inode += 1
            number = inode
        else:
            number = inodes[entry.link]
        if entry.link is not None:
            inodes[entry.link] = number
            links = names[entry.link]
            remaining[entry.link] -= 1
            if remaining[entry.link]:
                size = 0  # only the last name carries the contents, as GNU cpio does it: readers of either order agree
        total += _write_one(entry, _header(entry, number, links, mtime, size), size, out)
    end = Entry(TRAILER, 0)
    return total + _write_one(end, _header(end, 0, 1, 0, 0), 0, out)


def _write_one(entry: Entry, header: bytes, size: int, out: BinaryIO) -> int:
    head = header + entry.name + b"\0"
    head += _padding(len(head))
    out.write(head)
    if size and entry.source is not None:
        left = size
        with open(entry.source, "rb") as file:
            while left:
                piece = file.read(min(left, COPY_BYTES))
                if not piece:
                    raise Problem(f"archive {entry.source}: became shorter while it was read")
                out.write(piece)
                left -= len(piece)
    elif size:
        out.write(entry.content)
    tail = _padding(size)
    out.write(tail)
    return len(head) + size + len(tail)


def with_parents(entries: Iterable[Entry]) -> list[Entry]:
    """Return the entries sorted so that parents come first, with the directories that were missing added (0755)."""
    by_name = {entry.name: entry for entry in entries}
    for name in list(by_name):
        parent = name.rpartition(b"/")[0]
        while parent and parent not in by_name:
            by_name[parent] = directory(parent)
            parent = parent.rpartition(b"/")[0]
    return [by_name[name] for name in sorted(by_name, key=lambda name: name.split(b"/"))]


def read(archive: BinaryIO) -> Iterator[Entry]:
    """Yield the entries of one archive, up to its trailer; contents in memory. Names of one file share a `link`.

    A leading "./" or "/" of a name is dropped, as the kernel does in effect. Hard links come as they lie in the
    archive: in GNU's order only the last name has the contents; `complete` gives them to all. Raises Problem when it is
    no newc archive or ends early.
    """
    while True:
        header = archive.read(HEADER_BYTES)
        if header[:6] not in (MAGIC, MAGIC_CRC) or len(header) < HEADER_BYTES:
            raise Problem("read archive: no newc header where one should be")
        try:
            numbers = [int(header[at : at + 8], 16) for at in range(6, HEADER_BYTES, 8)]
        except ValueError:
            raise Problem("read archive: a newc header that is not hexadecimal") from None
        inode, mode, uid, gid, links, _mtime, size, _major, _minor, rmajor, rminor, name_size, _sum = numbers
        if not 0 < name_size <= MAX_PATH_BYTES + 1:
            raise Problem(f"read archive: a name of {name_size} bytes")
        name = _take(archive, name_size, HEADER_BYTES + name_size).rstrip(b"\0")
        content = _take(archive, size, size)
        if name == TRAILER:
            return
        plain = name
        while plain.startswith((b"./", b"/")):
            plain = plain.lstrip(b"/").removeprefix(b"./")
        shared = inode if stat.S_ISREG(mode) and links > 1 else None
        yield Entry(plain or b".", mode, content, None, shared, uid, gid, (rmajor, rminor))


def _take(archive: BinaryIO, size: int, position: int) -> bytes:
    """Read `size` bytes and the zeros after them; `position` is what the padding counts from."""
    data = archive.read(size)
    padding = -position % 4
    if len(data) < size or len(archive.read(padding)) < padding:
        raise Problem("read archive: it ends in the middle of an entry")
    return data


def complete(entries: Iterable[Entry]) -> list[Entry]:
    """Give each name of a hard-linked file the contents that only one of them carries in an archive."""
    listed = list(entries)
    contents: dict[int, bytes] = {}
    for entry in listed:
        if entry.link is not None and entry.content:
            contents[entry.link] = entry.content
    return [
        entry if entry.link is None else Entry(**{**entry.__dict__, "content": contents.get(entry.link, b"")})
        for entry in listed
    ]
