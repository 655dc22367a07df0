"""A newc cpio or tar archive as read-only Files.

open_archive() reads the headers once and keeps a node for each file; data is read from the archive's own descriptor
when it is asked for. A compressed archive is unpacked once, to an unlinked file. One file may hold several cpio
archives, compressed or not, one behind the other with zeros between, as a boot loader may give to the kernel: later
entries win.

An archive is served as what extracting it would leave: names are relative to the root whatever they begin with, a
parent that is a symbolic link leads on inside the archive, missing parents are made up (0755, root's), a later entry of
a name replaces the earlier one. ".." in a name is refused, and with it the archive: nothing is skipped in silence.

Whatever would change something is EROFS. Files hold no descriptor of their own; the archive's are closed when the last
File of it is let go of. Nothing here awaits.
"""

from __future__ import annotations

import errno
import os
import stat
from bisect import bisect_right
from collections.abc import Sequence

from ninep import message as m
from ninep import newc, unpack
from ninep.codec import entry_size
from ninep.file import NAME_MAX, File, check_name
from ninep.member import PATH_MAX, ArchiveError, Extent, Member, Part, Source
from ninep.message import Entry, Qid, Rgetattr, Rgetlock, Rstatfs

__all__ = ["ArchiveError", "ArchiveFile", "open_archive"]

NODES_MAX = 1 << 20  # files of one archive: about 500 bytes of memory each, and a short name can ask for 2000 parents
ATTRIBUTES_MAX = 64 << 20  # bytes of all link targets and extended attributes together
LINKS_MAX = 40  # symbolic links in one name (linux/namei.h)
FOLLOWED_MAX = 1 << 24  # names in the targets of all links followed: a short name can ask for 40 long ones
BLOCK_SIZE = 4096
U64 = 0xFFFFFFFFFFFFFFFF


class _Node:
    """A file of the archive. Hard links are one node under several names."""

    __slots__ = ("children", "data", "member", "nlink", "number", "parent", "size")

    def __init__(self, number: int, member: Member, parent: _Node | None) -> None:
        self.number = number
        self.member = member
        self.parent = parent  # of a directory; None for the root
        self.children: dict[bytes, _Node] | None = {} if stat.S_ISDIR(member.mode) else None
        self.nlink = 2 if stat.S_ISDIR(member.mode) else 1
        self.size = len(member.target) if stat.S_ISLNK(member.mode) else member.size
        self.data: tuple[Extent, ...] = member.data

    @property
    def qid(self) -> Qid:
        kind = stat.S_IFMT(self.member.mode)
        bits = m.QTDIR if kind == stat.S_IFDIR else m.QTSYMLINK if kind == stat.S_IFLNK else m.QTFILE
        return Qid(bits, ((self.member.mtime_ns >> 10) ^ (self.size << 8)) & 0xFFFFFFFF, self.number)


def _made_up(where: int) -> Member:
    return Member(b"", stat.S_IFDIR | 0o755, 0, 0, 0, where)


class _Tree:
    """Members become a tree. Numbers count up in the order of the archive: the same archive has the same qids."""

    def __init__(self) -> None:
        self.count = 0
        self.attributes = 0
        self.root = self._node(_made_up(0), None)
        self.links: dict[tuple[int, ...], _Node] = {}
        self.data_size = 0
        self.followed = 0

    def _node(self, member: Member, parent: _Node | None) -> _Node:
        self.count += 1
        if self.count > NODES_MAX:
            raise ArchiveError(f"more than {NODES_MAX} files", member.where)
        return _Node(self.count, member, parent)

    def add(self, member: Member) -> None:
        where = member.where
        self._check(member)
        self.data_size += sum(extent.size for extent in member.data)
        parts = _split(member.name, where)
        link = member.link
        member = member._replace(name=b"", link=None)  # up to 4 KiB each that nobody asks for any more
        if not parts:
            if not stat.S_ISDIR(member.mode):
                raise ArchiveError("the root is not a directory", where)
            self.root.member = member
            return
        parent = self._directory(parts[:-1], where)
        assert parent.children is not None
        name = parts[-1]
        there = parent.children.get(name)
        if stat.S_ISDIR(member.mode):
            if there is not None and there.children is not None:
                there.member = member
                return
            node = self._node(member, parent)
        else:
            node = self._file(member, link)
            if node is there:
                node.nlink -= 1
                return
        if there is not None:
            del parent.children[name]  # the last one wins, and comes last
            there.nlink -= 1
            parent.nlink -= there.children is not None
        parent.children[name] = node
        parent.nlink += node.children is not None

    def _file(self, member: Member, link: bytes | tuple[int, ...] | None) -> _Node:
        """The node of a member that is not a directory: one that is there already when it is a hard link."""
        if link is None:
            return self._node(member, None)
        if isinstance(link, bytes):
            node = self._find(link, member.where)
            if node is None or node.children is not None:
                raise ArchiveError("a hard link to what is not there", member.where)
        else:
            known = self.links.get(link)
            if known is None or stat.S_IFMT(known.member.mode) != stat.S_IFMT(member.mode):
                node = self.links[link] = self._node(member, None)
                return node
            node = known
            node.member = member if not stat.S_ISLNK(member.mode) else node.member
            if member.data:  # GNU cpio writes them with the last name, others with the first or with each
                node.size, node.data = member.size, member.data
        node.nlink += 1
        return node

    def _check(self, member: Member) -> None:
        if b"\0" in member.name or b"\0" in member.target or any(not k or b"\0" in k for k in member.xattrs):
            raise ArchiveError("a NUL in a name", member.where)
        if len(member.name) > PATH_MAX or len(member.target) > PATH_MAX:
            raise ArchiveError(f"a path of more than {PATH_MAX} bytes", member.where)
        if stat.S_ISLNK(member.mode) and not member.target:
            raise ArchiveError("a symbolic link to nowhere", member.where)
        if stat.S_IFMT(member.mode) not in TYPES:
            raise ArchiveError(f"a file of unknown type {member.mode:#o}", member.where)
        if not (0 <= member.rdev[0] < 1 << 12 and 0 <= member.rdev[1] < 1 << 20):
            raise ArchiveError("an impossible device number", member.where)
        self.attributes += (
            len(member.target)
            + 100 * (len(member.data) - 1)
            + sum(len(k) + len(v) + 64 for k, v in member.xattrs.items())
        )
        if self.attributes > ATTRIBUTES_MAX:
            raise ArchiveError(f"more than {ATTRIBUTES_MAX} bytes of attributes", member.where)

    def _directory(self, parts: list[bytes], where: int) -> _Node:
        """The directory of that name: links are followed, what is missing is made up."""
        node = self.root
        todo = parts[::-1]
        links = 0
        while todo:
            name = todo.pop()
            if name == b"..":  # of a link's target
                node = node.parent or node
                continue
            assert node.children is not None
            child = node.children.get(name)
            if child is None:
                child = node.children[name] = self._node(_made_up(where), node)
                node.nlink += 1
            elif stat.S_ISLNK(child.member.mode):
                links += 1
                if links > LINKS_MAX:
                    raise ArchiveError("too many symbolic links in a name", where)
                if child.member.target.startswith(b"/"):
                    node = self.root
                target = [part for part in child.member.target.split(b"/") if part not in (b"", b".")]
                self.followed += len(target)
                if self.followed > FOLLOWED_MAX or any(len(part) > NAME_MAX for part in target):
                    raise ArchiveError("a name through a link that leads nowhere", where)
                todo += reversed(target)
                continue
            if child.children is None:
                raise ArchiveError("a name below what is not a directory", where)
            node = child
        return node

    def _find(self, name: bytes, where: int) -> _Node | None:
        """What a name stands for, the last link not followed; nothing is made up."""
        parts = _split(name, where)
        if not parts:
            return self.root
        before = self.count
        directory = self._directory(parts[:-1], where)
        if self.count != before:
            raise ArchiveError("a hard link to what is not there", where)
        assert directory.children is not None
        return directory.children.get(parts[-1])


TYPES = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)


def _split(name: bytes, where: int) -> list[bytes]:
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise ArchiveError("a name with '..'", where)
    if any(len(part) > NAME_MAX for part in parts):
        raise ArchiveError(f"a file name of more than {NAME_MAX} bytes", where)
    return parts


def _load(source: Source, tree: _Tree) -> None:
    whole = Part(source.fd, 0, source.size)
    position = whole.skip_zeros(0, newc.PADDING_MAX)
    archives = 0
    if position == whole.end or _is_tar(whole) or not _is_segment(whole, position):
        _tar(whole, tree)
        return
    while position < whole.end:
        if whole.peek(position, 6) in newc.MAGICS:
            position = _cpio(whole, position, archives, tree)
        elif unpack.find_format(whole.peek(position, 16)):
            inner, position = unpack.unpack(whole, position, source.unpacked_fd())
            at = inner.skip_zeros(inner.start, newc.PADDING_MAX)
            if inner.peek(at, 6) not in newc.MAGICS or _is_tar(inner):
                if archives or whole.skip_zeros(position, newc.PADDING_MAX) < whole.end:
                    raise ArchiveError("neither a cpio archive nor the only one", position)
                _tar(inner, tree)
                return
            while at < inner.end:
                at = inner.skip_zeros(_cpio(inner, at, archives, tree), newc.PADDING_MAX)
                archives += 1
        else:
            raise ArchiveError("neither a cpio archive nor a compressed one", position)
        archives += 1
        position = whole.skip_zeros(position, newc.PADDING_MAX)


def _is_segment(part: Part, position: int) -> bool:
    return part.peek(position, 6) in newc.MAGICS or unpack.find_format(part.peek(position, 16)) is not None


def _is_tar(part: Part) -> bool:
    """Whether a part begins with a tar header, by its checksum: the name in front may look like any magic."""
    block = part.peek(part.start, 512)
    try:
        wanted = int(block[148:156].strip(b" \0"), 8)
    except ValueError:
        return False
    return wanted == sum(block) - sum(block[148:156]) + 8 * 0x20


def _cpio(part: Part, position: int, number: int, tree: _Tree) -> int:
    if (position - part.start) % 4:
        raise ArchiveError("a cpio archive that does not begin at a multiple of four", position)
    reader = newc.read(part, position, number)
    while True:
        try:
            member = next(reader)
        except StopIteration as end:
            tree.links.clear()
            after: int = end.value
            return after
        tree.add(member)


def _tar(part: Part, tree: _Tree) -> None:
    magic = part.peek(part.start, 6)
    if magic in (b"070707", b"") or magic[:2] in (b"\xc7\x71", b"\x71\xc7"):
        raise ArchiveError("a cpio archive of an old format: only newc is read" if magic else "an empty file")
    from ninep import tarball

    for member in tarball.read(part):
        tree.add(member)


class _Archive:
    """What the Files of one archive share."""

    def __init__(self, source: Source, tree: _Tree) -> None:
        self.source = source
        self.root = tree.root
        self.count = tree.count
        self.blocks = -(-max(tree.data_size, 1) // BLOCK_SIZE)


def open_archive(path: bytes | str) -> ArchiveFile:
    """The root of the archive at path: newc cpio or tar, plain or compressed with gzip, bzip2, xz or lzma.

    Reads all of its headers before it returns, without awaiting: 30 us for each member, and as long as unpacking takes;
    unpacked data goes where TMPDIR says, unlinked, at most unpack.UNPACKED_MAX bytes. ArchiveError (an OSError) says
    what is wrong with it and where; OSError when it cannot be opened or, compressed, unpacked. The archive must not
    change while it is served.
    """
    tree = _Tree()
    try:
        source = Source(path)
        _load(source, tree)
    except ArchiveError as error:
        error.filename = path
        raise
    archive = _Archive(source, tree)
    return ArchiveFile(archive, tree.root)


def _read_only() -> OSError:
    return OSError(errno.EROFS, "read-only file system")


class ArchiveFile(File):
    """A file of an archive."""

    def __init__(self, archive: _Archive, node: _Node) -> None:
        self.archive = archive
        self.node = node
        self.qid = node.qid
        self.opened = False
        self.listing: list[tuple[bytes, _Node]] = []  # of an open directory

    async def walk(self, names: Sequence[bytes]) -> tuple[list[Qid], File | None]:
        node = self.node
        qids: list[Qid] = []
        for name in names:
            try:
                node = _step(node, name)
            except OSError:
                if not qids:
                    raise
                return qids, None
            qids.append(node.qid)
        return qids, ArchiveFile(self.archive, node)

    async def getattr(self, mask: int = m.GETATTR_BASIC) -> Rgetattr:
        node = self.node
        member = node.member
        atime = member.mtime_ns if member.atime_ns is None else member.atime_ns
        ctime = member.mtime_ns if member.ctime_ns is None else member.ctime_ns
        return Rgetattr(
            m.GETATTR_BASIC,
            self.qid,
            member.mode,
            member.uid,
            member.gid,
            node.nlink,
            os.makedev(*member.rdev) if stat.S_IFMT(member.mode) in (stat.S_IFCHR, stat.S_IFBLK) else 0,
            node.size,
            BLOCK_SIZE,
            sum(-(-extent.size // 512) for extent in node.data),
            *_time(atime),
            *_time(member.mtime_ns),
            *_time(ctime),
            0,
            0,
            0,
            0,
        )

    async def statfs(self) -> Rstatfs:
        archive = self.archive
        return Rstatfs(m.V9FS_MAGIC, BLOCK_SIZE, archive.blocks, 0, 0, archive.count, 0, 0, NAME_MAX)

    async def readlink(self) -> bytes:
        if not stat.S_ISLNK(self.node.member.mode):
            raise OSError(errno.EINVAL, "not a symbolic link")
        return self.node.member.target

    async def getxattr(self, name: bytes) -> bytes:
        try:
            return self.node.member.xattrs[name]
        except KeyError:
            raise OSError(errno.ENODATA, "no such attribute") from None

    async def listxattr(self) -> bytes:
        return b"".join(name + b"\0" for name in self.node.member.xattrs)

    async def open(self, flags: int) -> tuple[Qid, int]:
        if self.opened:
            raise OSError(errno.EBUSY, "already open")
        kind = stat.S_IFMT(self.node.member.mode)
        writing = flags & m.O_ACCMODE != m.O_RDONLY or flags & m.O_TRUNC
        if kind == stat.S_IFLNK:
            raise OSError(errno.ELOOP, "a symbolic link")
        if kind == stat.S_IFDIR and writing:
            raise OSError(errno.EISDIR, "a directory")
        if kind != stat.S_IFDIR and flags & m.O_DIRECTORY:
            raise OSError(errno.ENOTDIR, "not a directory")
        if kind not in (stat.S_IFDIR, stat.S_IFREG):
            raise OSError(errno.EACCES, "FIFOs, sockets and devices of an archive are not opened")
        if writing:
            raise _read_only()
        self.opened = True
        if self.node.children is not None:
            self.listing = [(b".", self.node), (b"..", self.node.parent or self.node), *self.node.children.items()]
        return self.qid, 0

    async def read(self, offset: int, count: int) -> bytes:
        self._must_be_open()
        node = self.node
        if node.children is not None:
            raise OSError(errno.EISDIR, "a directory")
        count = min(count, node.size - offset)
        if count <= 0:
            return b""
        at = bisect_right(node.data, offset, key=lambda extent: extent.start) - 1
        if at >= 0 and offset + count <= node.data[at].start + node.data[at].size:  # nearly always: one piece
            return self._pread(node.data[at], offset, count)
        pieces = []
        at = max(at, 0)
        while count > 0:
            while at < len(node.data) and node.data[at].start + node.data[at].size <= offset:
                at += 1
            extent = node.data[at] if at < len(node.data) else None
            if extent is not None and extent.start <= offset:
                piece = self._pread(extent, offset, min(count, extent.start + extent.size - offset))
            else:
                piece = bytes(min(count, extent.start - offset) if extent is not None else count)
            pieces.append(piece)
            offset += len(piece)
            count -= len(piece)
        return b"".join(pieces)

    def _pread(self, extent: Extent, offset: int, count: int) -> bytes:
        found = os.pread(extent.fd, count, extent.at + offset - extent.start)
        if len(found) < count:
            raise OSError(errno.EIO, "the archive has become shorter")
        return found

    def _must_be_open(self) -> None:
        if not self.opened:
            raise OSError(errno.EBADF, "not open")

    async def readdir(self, offset: int, count: int) -> list[Entry]:
        """The offsets are positions: an archive does not change."""
        self._must_be_open()
        if self.node.children is None:
            raise OSError(errno.ENOTDIR, "not a directory")
        found: list[Entry] = []
        for at in range(offset, len(self.listing)):
            name, child = self.listing[at]
            count -= entry_size(name)
            if count < 0:
                if not found:
                    raise OSError(errno.EINVAL, "count is too small for an entry")
                break
            found.append(Entry(child.qid, at + 1, stat.S_IFMT(child.member.mode) >> 12, name))
        return found

    async def fsync(self, datasync: bool) -> None:
        self._must_be_open()

    async def lock(self, type: int, flags: int, start: int, length: int, proc_id: int, client_id: bytes) -> int:
        """Nobody can have it open for writing: whoever wants to read may, a lock for writing is EBADF."""
        self._must_be_open()
        if type == m.LOCK_TYPE_WRLCK:
            raise OSError(errno.EBADF, "not open for writing")
        return m.LOCK_SUCCESS

    async def getlock(self, type: int, start: int, length: int, proc_id: int, client_id: bytes) -> Rgetlock:
        self._must_be_open()
        return Rgetlock(m.LOCK_TYPE_UNLCK, start, length, proc_id, client_id)

    async def clunk(self) -> None:
        self.opened = False
        self.listing = []

    # What changes something

    async def write(self, offset: int, data: bytes | bytearray | memoryview) -> int:
        raise OSError(errno.EBADF, "not open for writing")

    async def create(self, name: bytes, flags: int, mode: int, gid: int) -> tuple[Qid, int]:
        """What is there is opened, as create() has it; nothing new is made."""
        child = self.node.children.get(check_name(name)) if self.node.children is not None else None
        if self.opened:
            raise OSError(errno.EBUSY, "already open")
        if child is None:
            raise _read_only()
        if flags & m.O_EXCL:
            raise OSError(errno.EEXIST, "file exists")
        there = ArchiveFile(self.archive, child)
        answer = await there.open(flags)
        self.node, self.qid, self.opened, self.listing = child, there.qid, True, there.listing
        return answer

    async def setattr(
        self, valid: int, mode: int = 0, uid: int = 0, gid: int = 0, size: int = 0, atime_ns: int = 0, mtime_ns: int = 0
    ) -> None:
        raise _read_only()

    async def symlink(self, name: bytes, target: bytes, gid: int) -> Qid:
        raise _read_only()

    async def mknod(self, name: bytes, mode: int, major: int, minor: int, gid: int) -> Qid:
        raise _read_only()

    async def mkdir(self, name: bytes, mode: int, gid: int) -> Qid:
        raise _read_only()

    async def link(self, target: File, name: bytes) -> None:
        raise _read_only()

    async def rename(self, directory: File, name: bytes) -> None:
        raise _read_only()

    async def renameat(self, oldname: bytes, directory: File, newname: bytes) -> None:
        raise _read_only()

    async def unlinkat(self, name: bytes, flags: int) -> None:
        raise _read_only()

    async def remove(self) -> None:
        raise _read_only()

    async def setxattr(self, name: bytes, value: bytes, flags: int) -> None:
        raise _read_only()

    async def removexattr(self, name: bytes) -> None:
        raise _read_only()


def _step(node: _Node, name: bytes) -> _Node:
    if node.children is None:
        raise OSError(errno.ENOTDIR, "not a directory")
    if name == b"..":
        return node.parent or node
    child = node.children.get(check_name(name))
    if child is None:
        raise OSError(errno.ENOENT, "no such file")
    return child


def _time(nanoseconds: int) -> tuple[int, int]:
    """Seconds and nanoseconds as on the wire: before 1970 in two's complement."""
    return nanoseconds // 1000000000 & U64, nanoseconds % 1000000000
