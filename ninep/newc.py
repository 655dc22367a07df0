"""The newc cpio format, read as the kernel reads an initramfs.

Format: Linux Documentation/driver-api/early-userspace/buffer-format.rst and init/initramfs.c. A header of 110 ASCII
bytes (magic, thirteen numbers of eight hex digits), the name with its NUL, the contents; header with name, and
contents, are each padded to a multiple of four. An entry "TRAILER!!!" ends an archive, and with it the meaning of
inode numbers; zeros may follow, and then another archive.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Generator

from ninep.member import PATH_MAX, ArchiveError, Extent, Member, Part

MAGICS = (b"070701", b"070702")  # the second has a checksum, which the kernel ignores, too
HEADER_SIZE = 110
HEXADECIMAL = re.compile(rb"[0-9A-Fa-f]*")
TRAILER = b"TRAILER!!!"
PADDING_MAX = 16 << 20  # zeros between archives: boot loaders pad to pages, disks to their blocks


def read(part: Part, position: int, number: int) -> Generator[Member, None, int]:
    """Yield the members of the archive at position; return where the bytes after its trailer begin.

    number tells the archives of one file apart. Offsets count from where the part starts. ArchiveError when it is
    damaged or ends early.
    """
    while True:
        where = position
        header = part.take(position, HEADER_SIZE, "a cpio header")
        if header[:6] not in MAGICS:
            raise ArchiveError("not a cpio header", where)
        if not HEXADECIMAL.fullmatch(header, 6):  # int() takes signs, underscores and spaces
            raise ArchiveError("a cpio header that is not hexadecimal", where)
        fields = [int(header[at : at + 8], 16) for at in range(6, HEADER_SIZE, 8)]
        inode, mode, uid, gid, links, mtime, size, major, minor, rmajor, rminor, name_size, _ = fields
        if not 1 < name_size <= PATH_MAX + 1:
            raise ArchiveError(f"a name of {name_size} bytes", where)
        name = part.take(position + HEADER_SIZE, name_size, "a name")
        if name[-1]:
            raise ArchiveError("a name without an end", where)
        name = name[:-1]
        position += HEADER_SIZE + name_size
        position += -(position - part.start) % 4
        if position + size > part.end:
            raise ArchiveError("the contents are cut short", position)
        at = position
        position += size
        position += -(position - part.start) % 4
        if name == TRAILER:
            return min(position, part.end)
        mode &= 0xFFFF
        kind = stat.S_IFMT(mode)
        target = b""
        data: tuple[Extent, ...] = ()
        if kind == stat.S_IFLNK:
            if not 0 < size <= PATH_MAX:
                raise ArchiveError(f"a link's target of {size} bytes", where)
            target = part.take(at, size, "a link's target")
        elif kind == stat.S_IFREG:
            data = (Extent(0, size, part.fd, at),) if size else ()
        link = (number, major, minor, inode) if links > 1 and kind != stat.S_IFDIR else None
        size = size if kind in (stat.S_IFREG, stat.S_IFLNK) else 0
        yield Member(name, mode, uid, gid, mtime * 1000000000, where, size, data, (rmajor, rminor), target, link)
