"""The reading half of what every File must do, on a tree that is given: for Files that cannot write, and all others.

TREE is planted into a File that can write, or written into an archive. READS are checks of a tree that has been
made so; WRITES are the calls that a read-only one refuses with EROFS: all that a File has for changing something.
"""

from __future__ import annotations

import errno
import io
import stat
import tarfile
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from conformance import GID, Check, at, content, entries, fails, names, opened
from ninep import message as m
from ninep.file import File


class Row(NamedTuple):
    name: bytes
    mode: int
    content: bytes = b""  # or a link's target
    mtime_ns: int = 1_600_000_000_000_000_000
    link: bytes = b""  # another name of this file
    rdev: tuple[int, int] = (0, 0)


D, F, L = stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK
BIG = bytes(range(256)) * 12289  # over 3 MiB
LONG = b"x" * 255
DEEP = [b"d%d" % i for i in range(40)]
MANY = [b"f%04d" % i for i in range(1000)]

TREE = [
    Row(b"a", D | 0o755),
    Row(b"a/b", D | 0o1777),
    Row(b"a/f", F | 0o640, b"12345", 1_234_567_890_000_000_000),
    Row(b"big", F | 0o644, BIG),
    Row(b"empty", F | 0o644),
    Row(b"setuid", F | 0o4751, b"x"),
    Row(b"none", F, b"y"),
    Row(b"other", F | 0o640, link=b"a/f"),
    Row(b"l", L | 0o777, b"a/f"),
    Row(b"out", L | 0o777, b"/"),
    Row(b"dots", L | 0o777, b"../../../../../.."),
    Row(b"strange", L | 0o777, b"\xff\xfe"),
    Row(b"long", L | 0o777, b"y" * 4000),
    Row(b"p", stat.S_IFIFO | 0o622),
    Row(LONG, F | 0o644, LONG),
    Row(b"\xff\xfe not utf-8", F | 0o644, b"bytes"),
    Row(b"new\nline", F | 0o644, b"nl"),
    *[Row(b"/".join([b"deep", *DEEP[:i]]), D | 0o755) for i in range(41)],
    Row(b"many", D | 0o755),
    *[Row(b"many/" + name, F | 0o644, name) for name in MANY],
]
TOP = {row.name for row in TREE if b"/" not in row.name}


async def plant(root: File, tree: list[Row] = TREE) -> None:
    """Make tree with a File that can write."""
    for row in tree:
        *path, name = row.name.split(b"/")
        parent = await at(root, *path)
        if row.link:
            target = await at(root, *row.link.split(b"/"))
            await parent.link(target, name)
            await target.clunk()
        elif stat.S_ISDIR(row.mode):
            await parent.mkdir(name, row.mode & 0o7777, GID)
        elif stat.S_ISLNK(row.mode):
            await parent.symlink(name, row.content, GID)
        else:
            await parent.mknod(name, row.mode, *row.rdev, GID)
        if stat.S_ISREG(row.mode) and row.content and not row.link:
            file = await at(parent, name)
            writer = await file.walk_open((), m.O_WRONLY) if row.mode & 0o200 else await _writable(file, row.mode)
            done = 0
            while done < len(row.content):
                done += await writer.write(done, row.content[done : done + (1 << 20)])
            await writer.clunk()
            await file.clunk()
        if not row.link:
            file = await at(parent, name)
            await file.setattr(m.SETATTR_MTIME | m.SETATTR_MTIME_SET, mtime_ns=row.mtime_ns)
            if not stat.S_ISLNK(row.mode):
                await file.setattr(m.SETATTR_MODE, mode=row.mode & 0o7777)
            await file.clunk()
        await parent.clunk()


async def _writable(file: File, mode: int) -> File:
    await file.setattr(m.SETATTR_MODE, mode=0o600)
    writer = await file.walk_open((), m.O_WRONLY)
    await file.setattr(m.SETATTR_MODE, mode=mode & 0o7777)
    return writer


def newc(tree: list[Row] = TREE, first: bool = False) -> bytes:
    """tree as a newc archive; data of hard links with the last name, as GNU cpio writes it, or with the first."""
    groups: dict[bytes, list[Row]] = {}
    for row in tree:
        groups.setdefault(row.link or row.name, []).append(row)
    inodes = {name: i for i, name in enumerate(groups, 1)}
    out = []

    def one(name: bytes, numbers: tuple[int, ...], data: bytes) -> None:
        inode, mode, links, mtime, major, minor = numbers
        fields = (inode, mode, 0, GID, links, mtime, len(data), 8, 1, major, minor, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08x" % f for f in fields) + name + b"\0"
        out.append(head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4))

    for row in tree:
        group = groups[row.link or row.name]
        data = group[0].content if row is group[0 if first else -1] else b""
        mtime = group[0].mtime_ns // 10**9
        one(row.name, (inodes[row.link or row.name], row.mode, len(group), mtime, *row.rdev), data)
    one(b"TRAILER!!!", (0, 0, 1, 0, 0, 0), b"")
    return b"".join(out)


TAR_TYPES = {D: tarfile.DIRTYPE, F: tarfile.REGTYPE, L: tarfile.SYMTYPE, stat.S_IFIFO: tarfile.FIFOTYPE}
TAR_TYPES |= {stat.S_IFCHR: tarfile.CHRTYPE, stat.S_IFBLK: tarfile.BLKTYPE}


def tar(tree: list[Row] = TREE, format: int = tarfile.PAX_FORMAT, pax: dict[str, str] | None = None) -> bytes:
    """tree as a tar archive; pax are headers of each member."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format, encoding="utf-8", errors="surrogateescape") as archive:
        for row in tree:
            info = tarfile.TarInfo(row.name.decode("utf-8", "surrogateescape"))
            info.mode, info.gid = row.mode & 0o7777, GID
            info.mtime = row.mtime_ns // 10**9
            info.type = TAR_TYPES[stat.S_IFMT(row.mode)]
            info.devmajor, info.devminor = row.rdev
            info.pax_headers = dict(pax or {})
            if row.link:
                info.type, info.linkname = tarfile.LNKTYPE, row.link.decode()
            elif info.type == tarfile.SYMTYPE:
                info.linkname = row.content.decode("utf-8", "surrogateescape")
            elif info.type == tarfile.REGTYPE:
                info.size = len(row.content)
            archive.addfile(info, io.BytesIO(row.content))
    return buffer.getvalue()


READS: list[Check] = []


def check(function: Check) -> Check:
    READS.append(function)
    return function


@check
async def walks(root: File) -> None:
    qids, other = await root.walk(())
    assert qids == [] and other is not None and other is not root and other.qid.path == root.qid.path
    a, b, f = await at(root, b"a"), await at(root, b"a", b"b"), await at(root, b"a", b"f")
    assert b.qid.type & m.QTDIR and not f.qid.type & m.QTDIR
    with fails(errno.ENOENT):
        await root.walk((b"nope", b"b"))
    qids, none = await root.walk((b"a", b"nope", b"x"))
    assert none is None and [q.path for q in qids] == [a.qid.path]
    for name in (b"x", b".."):
        with fails(errno.ENOTDIR):
            await f.walk((name,))
    qids, none = await root.walk((b"a", b"f", b".."))
    assert none is None and len(qids) == 2
    for bad in (b"", b".", b"a/b", b"/etc", b"a\0b"):
        with fails(errno.EINVAL, errno.ENOENT):
            await root.walk((bad,))
    with fails(errno.ENAMETOOLONG):
        await root.walk((b"x" * 256,))
    for file in (other, a, b, f):
        await file.clunk()


@check
async def the_root_is_a_wall(root: File) -> None:
    up = await at(root, b"..", b"..", b"a", b"..", b"..", b"..")
    assert up.qid.path == root.qid.path
    for link in (b"out", b"dots"):
        qids, none = await root.walk((link, b"etc"))
        assert none is None and len(qids) == 1 and qids[0].type & m.QTSYMLINK
    dots = next(e for e in await entries(root) if e.name == b"..")
    assert dots.type == 4
    deep = await at(root, b"deep", *DEEP)
    back = await at(deep, *[b".."] * 41)
    assert back.qid.path == root.qid.path
    qids, none = await root.walk([b"deep", *DEEP[:30], b"nope", b"x"])
    assert none is None and len(qids) == 31
    for file in (up, deep, back):
        await file.clunk()


@check
async def attributes(root: File) -> None:
    for row in TREE:
        if b"/" in row.name and not row.name.startswith(b"a/"):
            continue
        file = await at(root, *row.name.split(b"/"))
        r = await file.getattr()
        assert r.valid & m.GETATTR_BASIC == m.GETATTR_BASIC
        assert r.mode == row.mode, row.name
        assert (r.qid.path, r.qid.type, r.gid, r.rdev) == (file.qid.path, file.qid.type, GID, 0)
        if not row.link and not stat.S_ISDIR(row.mode):
            assert (r.size, r.mtime_sec, r.mtime_nsec) == (len(row.content), row.mtime_ns // 10**9, 0), row.name
            assert r.nlink == (2 if row.name == b"a/f" else 1)
        await file.clunk()
    r = await root.getattr()
    assert stat.S_ISDIR(r.mode) and r.qid.type & m.QTDIR
    f, r = await root.walk_getattr(b"other")
    g = await at(root, b"a", b"f")
    assert f.qid.path == g.qid.path and r.size == 5
    with fails(errno.ENOENT):
        await root.walk_getattr(b"nope")
    for file in (f, g):
        await file.clunk()


@check
async def reads(root: File) -> None:
    for row in TREE:
        if stat.S_ISREG(row.mode) and row.content is not BIG and not row.name.startswith(b"many"):
            file = await root.walk_open(row.name.split(b"/"), m.O_RDONLY)
            assert bytes(await file.read(0, 1 << 20)) == (row.content or (b"12345" if row.link else b""))
            await file.clunk()
    file = await opened(root, b"big")
    got = b""
    while part := await file.read(len(got), 1 << 20):
        got += part
    assert got == BIG
    for at_end in (len(BIG), len(BIG) + 5000):
        assert len(await file.read(at_end, 10)) == 0
    assert bytes(await file.read(len(BIG) - 3, 10)) == BIG[-3:]
    assert len(await file.read(0, 0)) == 0
    with fails(errno.EBADF):
        await file.write(0, b"x")
    with fails(errno.EBUSY, errno.EINVAL):
        await file.open(m.O_RDONLY)
    again = await file.walk_open((), m.O_RDONLY)
    assert bytes(await again.read(1, 2)) == BIG[1:3]
    await again.fsync(False)
    closed = await at(root, b"big")
    for call in (closed.read(0, 1), closed.write(0, b"x"), closed.fsync(False), closed.readdir(0, 4096)):
        with fails(errno.EBADF, errno.EINVAL):
            await call
    with fails(errno.ENOTDIR):
        await root.walk_open((b"big",), m.O_RDONLY | m.O_DIRECTORY)
    with fails(errno.ENOENT):
        await root.walk_open((b"nope",), m.O_RDONLY)
    for f in (file, again, closed):
        await f.clunk()


@check
async def links(root: File) -> None:
    for row in TREE:
        if stat.S_ISLNK(row.mode):
            link = await at(root, row.name)
            assert link.qid.type & m.QTSYMLINK and await link.readlink() == row.content
            with fails(errno.ELOOP):
                await link.open(m.O_RDONLY)
            await link.clunk()
    f = await at(root, b"empty")
    with fails(errno.EINVAL):
        await f.readlink()
    await f.clunk()


@check
async def directories(root: File) -> None:
    assert await names(root) == TOP
    found = {e.name: e for e in await entries(root)}
    types = {b"a": 4, b"l": 10, b"p": 1, b"big": 8, b".": 4}
    assert {n: found[n].type for n in types} == types
    for name in types.keys() - {b"."}:
        file = await at(root, name)
        assert found[name].qid.path == file.qid.path and found[name].qid.type == file.qid.type
        await file.clunk()
    assert found[b"."].qid.path == root.qid.path
    many = await at(root, b"many")
    listing = await entries(many, 700)
    assert len(listing) == 1002
    assert {e.name for e in listing} == {b".", b"..", *MANY}
    directory = await at(many)
    await directory.open(m.O_RDONLY | m.O_DIRECTORY)
    with fails(errno.EINVAL):
        await directory.readdir(0, 20)
    await directory.readdir(0, 8192)
    part = await directory.readdir(listing[500].offset, 2000)  # a cookie is good for going back to
    assert part[0].name == listing[501].name
    assert await directory.readdir(listing[-1].offset, 2000) == []
    with fails(errno.EISDIR):
        await directory.read(0, 10)
    with fails(errno.EISDIR):
        await many.open(m.O_RDWR)
    for file in (many, directory):
        await file.clunk()


@check
async def qids_tell_files_apart(root: File) -> None:
    many = await at(root, b"many")
    dots = {e.name: e.qid.path for e in await entries(many)}
    assert (dots[b"."], dots[b".."]) == (many.qid.path, root.qid.path)
    paths = {e.qid.path for e in await entries(many)} | {e.qid.path for e in await entries(root)}
    assert len(paths) == len(MANY) + len(TOP) + 1  # ".." of root and many is the root
    await many.clunk()


@check
async def attributes_of_others_and_numbers(root: File) -> None:
    f = await at(root, b"big")
    with fails(errno.ENODATA, errno.EOPNOTSUPP):
        await f.getxattr(b"user.nope")
    assert b"user.nope" not in (await f.listxattr()).split(b"\0")
    await f.clunk()
    r = await root.statfs()
    assert r.blocks >= r.bfree >= 0 and r.blocks > 0 and r.bsize >= 512 and r.namelen == 255


@check
async def locks_for_reading(root: File) -> None:
    one, two = [await opened(root, b"big") for _ in range(2)]
    for file in (one, two):
        assert await file.lock(m.LOCK_TYPE_RDLCK, 0, 0, 5, 1, b"x") == m.LOCK_SUCCESS
    assert (await two.getlock(m.LOCK_TYPE_RDLCK, 0, 5, 1, b"x")).type == m.LOCK_TYPE_UNLCK
    assert await one.lock(m.LOCK_TYPE_UNLCK, 0, 0, 5, 1, b"x") == m.LOCK_SUCCESS
    for file in (one, two):
        await file.clunk()


async def _rmdir(root: File) -> None:
    a = await at(root, b"a")
    try:
        await a.unlinkat(b"b", m.AT_REMOVEDIR)
    finally:
        await a.clunk()


Write = Callable[[File, File], Awaitable[object]]
WRITES: dict[str, Write] = {  # given the root and its file "big"
    "open for writing": lambda root, f: f.open(m.O_WRONLY),
    "open for both": lambda root, f: f.open(m.O_RDWR),
    "open and truncate": lambda root, f: f.open(m.O_RDONLY | m.O_TRUNC),
    "create": lambda root, f: root.create(b"new", m.O_RDWR, 0o644, GID),
    "create exclusively": lambda root, f: root.create(b"new", m.O_RDWR | m.O_EXCL, 0o644, GID),
    "create what is there": lambda root, f: root.create(b"big", m.O_RDWR, 0o644, GID),
    "chmod": lambda root, f: f.setattr(m.SETATTR_MODE, mode=0o600),
    "chown": lambda root, f: f.setattr(m.SETATTR_UID, uid=1),
    "truncate": lambda root, f: f.setattr(m.SETATTR_SIZE, size=0),
    "utimes": lambda root, f: f.setattr(m.SETATTR_MTIME),
    "symlink": lambda root, f: root.symlink(b"new", b"t", GID),
    "mknod": lambda root, f: root.mknod(b"new", stat.S_IFREG | 0o600, 0, 0, GID),
    "mkdir": lambda root, f: root.mkdir(b"new", 0o755, GID),
    "link": lambda root, f: root.link(f, b"new"),
    "rename": lambda root, f: f.rename(root, b"new"),
    "renameat": lambda root, f: root.renameat(b"big", root, b"new"),
    "unlinkat": lambda root, f: root.unlinkat(b"big", 0),
    "rmdir": lambda root, f: _rmdir(root),
    "remove": lambda root, f: f.remove(),
    "setxattr": lambda root, f: f.setxattr(b"user.a", b"x", 0),
    "removexattr": lambda root, f: f.removexattr(b"user.a"),
}


async def refuses_to_write(root: File) -> None:
    """All of WRITES are EROFS, and nothing has changed."""
    for name, write in WRITES.items():
        top, file = await at(root), await at(root, b"big")
        # What is not there cannot be removed: both are true.
        with fails(errno.EROFS, *([errno.ENODATA] if name == "removexattr" else [])):
            await write(top, file)
            raise AssertionError(name)
        for f in (top, file):
            await f.clunk()
    assert await names(root) == TOP
    assert await content(root, b"setuid") == b"x"
