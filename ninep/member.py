"""What the readers of archive formats hand to ninep.archive: an archive's error, its bytes, its members."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Mapping
from typing import NamedTuple

PATH_MAX = 4095  # bytes of a path or a link's target, without the NUL (linux/limits.h)


class ArchiveError(OSError):
    """An archive that cannot be served: what is wrong with it, and where (a byte offset). errno is EINVAL."""

    def __init__(self, what: str, where: int | None = None) -> None:
        super().__init__(errno.EINVAL, what if where is None else f"{what}, at byte {where}")


class Extent(NamedTuple):
    """size bytes of a file, from its byte start on, which lie at byte at of descriptor fd."""

    start: int
    size: int
    fd: int
    at: int


class Member(NamedTuple):
    """One entry of an archive, as it lies there: its name unchecked, its numbers in range.

    link is what the names of one file have in common: bytes, the name of an earlier member (tar), or a tuple that
    equals the others' (newc). data are the extents that are not zeros, in order.
    """

    name: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    where: int
    size: int = 0
    data: tuple[Extent, ...] = ()
    rdev: tuple[int, int] = (0, 0)
    target: bytes = b""
    link: bytes | tuple[int, ...] | None = None
    xattrs: Mapping[bytes, bytes] = {}
    atime_ns: int | None = None
    ctime_ns: int | None = None


class Source:
    """An archive's bytes: the file itself, and an unlinked file for what had to be unpacked. Closed when let go of."""

    def __init__(self, path: bytes | str) -> None:
        self.fd = self.unpacked = -1
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would wait for its writer
        kind = stat.S_IFMT(os.fstat(self.fd).st_mode)
        if kind not in (stat.S_IFREG, stat.S_IFBLK):
            raise ArchiveError("neither a file nor a block device")
        self.size = os.lseek(self.fd, 0, os.SEEK_END)  # a block device has one, too

    def __del__(self) -> None:
        for fd in (self.fd, self.unpacked):
            if fd >= 0:
                os.close(fd)

    def unpacked_fd(self) -> int:
        """The file for unpacked data. On disk, since an archive may be larger than memory; where, TMPDIR says."""
        if self.unpacked < 0:
            with tempfile.TemporaryFile() as file:
                self.unpacked = os.dup(file.fileno())
        return self.unpacked


class Part(NamedTuple):
    """The bytes from start to end of a descriptor."""

    fd: int
    start: int
    end: int

    def take(self, position: int, count: int, what: str) -> bytes:
        """Exactly count bytes from position on. ArchiveError when the part is shorter."""
        if position + count > self.end:
            raise ArchiveError(f"{what} is cut short", position)
        found = os.pread(self.fd, count, position)
        if len(found) < count:
            raise ArchiveError(f"{what} is cut short", position)
        return found

    def peek(self, position: int, count: int) -> bytes:
        """Up to count bytes from position on."""
        return os.pread(self.fd, max(0, min(count, self.end - position)), position)

    def skip_zeros(self, position: int, limit: int) -> int:
        """The position of the next byte that is not zero, or the end. ArchiveError after limit zeros."""
        last = position + limit
        while position < self.end:
            piece = self.peek(position, 65536)
            rest = piece.lstrip(b"\0")
            position += len(piece) - len(rest)
            if rest or not piece:
                break
            if position > last:
                raise ArchiveError("too many zeros", position)
        return position
