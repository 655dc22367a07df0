"""The tar formats, read by the standard library's tarfile under guard.

tarfile trusts what it reads: it takes headers of any size into memory, goes where a negative size sends it, and ends
quietly at a damaged header. What it reads from here is bounded, each step must go forward, and the end must look like
one. Of the data it reads nothing: only where the data lies is asked.
"""

from __future__ import annotations

import re
import stat
import tarfile
from collections.abc import Iterator
from typing import IO, cast

from ninep.member import ArchiveError, Extent, Member, Part

BLOCK = 512
HEADER_MAX = 256 << 10  # bytes of one member's headers: a name, a target and extended attributes of 64 KiB fit
PAX_KEYS_MAX = 1024  # keywords in force for one member: each is copied for each member
# tarfile's patterns look at a run of digits once for each digit in some releases (CVE-2024-6232).
DIGITS = re.compile(rb"[0-9]{1025}")
NUMBER = re.compile(r"(-?)([0-9]{1,12})(?:\.([0-9]*))?")
XATTR = "SCHILY.xattr."
NOBODY = 65534  # stands for a number that is no uid, as the kernel's overflowuid does

KINDS = {
    tarfile.DIRTYPE: stat.S_IFDIR,
    b"D": stat.S_IFDIR,  # GNU incremental: a directory, its list of names as data
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.LNKTYPE: stat.S_IFREG,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}  # whatever is not here is a regular file, as POSIX has it
SKIPPED = (b"V", b"N")  # GNU: a volume's label, old long names


class _Guard:
    """The file tarfile reads from."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.position = 0
        self.left = HEADER_MAX
        self.ends = 0  # reads at the end: a map of a sparse file is looked for there for ever

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> int:
        if position < 0:
            raise ArchiveError("a tar header leads to before the archive", self.part.start + self.position)
        self.position = position
        return position

    def read(self, count: int) -> bytes:
        at = self.part.start + self.position
        if not 0 <= count <= self.left:
            raise ArchiveError(f"a tar header of more than {HEADER_MAX} bytes", at)
        found = self.part.peek(at, count)
        if count > BLOCK and DIGITS.search(found):
            raise ArchiveError("a tar header with a number of more than 1024 digits", at)
        if count and not found:
            self.ends += 1
            if self.ends > 100:
                raise ArchiveError("a tar header is cut short", at)
        self.position += len(found)
        self.left -= len(found)
        return found

    def close(self) -> None:
        pass


def read(part: Part) -> Iterator[Member]:
    """Yield the members of the tar archive that part is. ArchiveError when it is none, damaged, or ends early."""
    guard = _Guard(part)
    before = 0
    tar: tarfile.TarFile | None = None
    while True:
        guard.left = HEADER_MAX
        at = part.start + before
        try:
            if tar is None:
                tar = tarfile.TarFile(fileobj=cast(IO[bytes], guard), encoding="utf-8", errors="surrogateescape")
            info = tar.next()
        except ArchiveError:
            raise
        except tarfile.ReadError as error:
            if part.end > part.start and not part.peek(part.start, BLOCK).strip(b"\0"):
                return  # begins with the mark of the end: empty
            what = "a damaged tar archive" if before else "neither a newc cpio nor a tar archive"
            raise ArchiveError(f"{what} ({error})", at) from None
        except (tarfile.TarError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError) as error:
            raise ArchiveError(f"a damaged tar header ({error})", at) from None
        except RecursionError:
            raise ArchiveError("too many extended tar headers", at) from None
        tar.members = []  # type: ignore[attr-defined]  # or it would remember all of them
        if info is None:
            break
        if tar.offset <= before:  # CVE-2025-8194
            raise ArchiveError("a tar header with a negative size", at)
        before = tar.offset
        if info.type not in SKIPPED:
            yield _member(part, info)
    end = part.peek(part.start + before, BLOCK)
    if not end:
        raise ArchiveError("the tar archive has no end: cut short", part.start + before)
    if len(end) < BLOCK or end.strip(b"\0"):
        raise ArchiveError("a damaged tar header", part.start + before)


def _member(part: Part, info: tarfile.TarInfo) -> Member:
    where = part.start + info.offset
    pax = info.pax_headers
    if len(pax) > PAX_KEYS_MAX:
        raise ArchiveError(f"more than {PAX_KEYS_MAX} extended tar keywords", where)
    if info.type == b"M":
        raise ArchiveError("a part of a tar archive of several volumes", where)
    kind = KINDS.get(info.type, stat.S_IFREG)
    regular = kind == stat.S_IFREG and info.type != tarfile.LNKTYPE
    size = info.size if regular else 0
    if not 0 <= size < 1 << 63:
        raise ArchiveError("a tar member of an impossible size", where)
    return Member(
        _bytes(info.name),
        kind | info.mode & 0o7777,
        info.uid if 0 <= info.uid < 0xFFFFFFFF else NOBODY,
        info.gid if 0 <= info.gid < 0xFFFFFFFF else NOBODY,
        _nanoseconds(pax.get("mtime"), info.mtime, where) or 0,
        where,
        size,
        _extents(part, info, where) if regular else (),
        (info.devmajor, info.devminor) if kind in (stat.S_IFCHR, stat.S_IFBLK) else (0, 0),
        _bytes(info.linkname) if kind == stat.S_IFLNK else b"",
        _bytes(info.linkname) if info.type == tarfile.LNKTYPE else None,
        {_bytes(key[len(XATTR) :]): _bytes(value) for key, value in pax.items() if key.startswith(XATTR)},
        _nanoseconds(pax.get("atime"), None, where),
        _nanoseconds(pax.get("ctime"), None, where),
    )


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _nanoseconds(text: str | None, plain: float | None, where: int) -> int | None:
    """A pax time, exactly; the header's own where there is none."""
    if text is None:
        if plain is None:
            return None
        text = str(int(plain))
    found = NUMBER.fullmatch(text)
    if not found:
        raise ArchiveError("a tar member of an impossible time", where)
    sign, seconds, fraction = found.groups()
    nanoseconds = int(seconds) * 1000000000 + int((fraction or "")[:9].ljust(9, "0"))
    return -nanoseconds if sign else nanoseconds


def _extents(part: Part, info: tarfile.TarInfo, where: int) -> tuple[Extent, ...]:
    """Where a member's data lies: in one piece, or as the map of a sparse file says."""
    sparse: list[tuple[int, int]] | None = info.sparse  # type: ignore[assignment]  # typeshed has the flag of a header
    pieces = [(0, info.size)] if sparse is None else sparse
    at = part.start + info.offset_data
    end = 0
    extents = []
    for start, size in pieces:
        if size < 0 or start < end or start + size > info.size:
            raise ArchiveError("a sparse tar member with an impossible map", where)
        if at + size > part.end:
            raise ArchiveError("the contents are cut short", at)
        end = start + size
        if size:
            extents.append(Extent(start, size, part.fd, at))
        at += size
    return tuple(extents)
