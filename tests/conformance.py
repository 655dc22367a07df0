"""What every File must do. Each check gets the root of an empty, writable tree and leaves what it likes in it.

A check is an `async def` of one argument, named after what it checks. Implementations run all of CHECKS; what one
cannot do (archives cannot write, FUSE has no Tremove) it names in its own test file, with the reason.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from ninep import message as m
from ninep.codec import entry_size
from ninep.file import File
from ninep.message import Entry

GID = os.getgid()
Check = Callable[[File], Awaitable[None]]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    CHECKS.append(function)
    return function


@contextmanager
def fails(*numbers: int) -> Iterator[None]:
    """The body must raise OSError with one of these errnos."""
    try:
        yield
    except OSError as error:
        assert error.errno in numbers, f"{error!r}, expected {[errno.errorcode[n] for n in numbers]}"
    else:
        raise AssertionError(f"no error, expected {[errno.errorcode[n] for n in numbers]}")


async def at(root: File, *names: bytes) -> File:
    qids, file = await root.walk(names)
    assert file is not None, f"{names} ended after {len(qids)}"
    assert len(qids) == len(names)
    return file


async def opened(root: File, name: bytes, flags: int = m.O_RDONLY) -> File:
    file = await at(root, name)
    try:
        await file.open(flags)
    except BaseException:
        await file.clunk()
        raise
    return file


async def made(root: File, name: bytes, content: bytes = b"", mode: int = 0o644) -> None:
    file = await at(root)
    await file.create(name, m.O_RDWR | m.O_EXCL, mode, GID)
    assert not content or await file.write(0, content) == len(content)
    await file.clunk()


async def content(root: File, name: bytes) -> bytes:
    file = await opened(root, name)
    data = bytes(await file.read(0, 1 << 20))
    await file.clunk()
    return data


async def entries(root: File, count: int = 8192) -> list[Entry]:
    directory = await at(root)
    await directory.open(m.O_RDONLY | m.O_DIRECTORY)
    found: list[Entry] = []
    while part := await directory.readdir(found[-1].offset if found else 0, count):
        assert sum(entry_size(e.name) for e in part) <= count
        found += part
    await directory.clunk()
    return found


async def names(root: File) -> set[bytes]:
    return {e.name for e in await entries(root)} - {b".", b".."}


@check
async def walk_clones(root: File) -> None:
    qids, other = await root.walk(())
    assert qids == [] and other is not None and other is not root and other.qid.path == root.qid.path
    await other.clunk()
    await root.getattr()


@check
async def walk_goes_down_and_stops_where_it_must(root: File) -> None:
    await root.mkdir(b"a", 0o755, GID)
    a = await at(root, b"a")
    await a.mkdir(b"b", 0o755, GID)
    await made(a, b"f")
    b = await at(root, b"a", b"b")
    assert b.qid.type & m.QTDIR
    with fails(errno.ENOENT):
        await root.walk((b"nope", b"b"))
    qids, none = await root.walk((b"a", b"nope", b"x"))
    assert none is None and [q.path for q in qids] == [a.qid.path]
    f = await at(a, b"f")
    assert not f.qid.type & m.QTDIR
    with fails(errno.ENOTDIR):
        await f.walk((b"x",))
    with fails(errno.ENOTDIR):
        await f.walk((b"..",))
    qids, none = await root.walk((b"a", b"f", b".."))
    assert none is None and len(qids) == 2
    for file in (a, b, f):
        await file.clunk()


@check
async def the_root_is_a_wall(root: File) -> None:
    await root.mkdir(b"a", 0o755, GID)
    up = await at(root, b"..", b"..", b"a", b"..", b"..", b"..")
    assert up.qid.path == root.qid.path
    await up.clunk()
    await root.symlink(b"out", b"/", GID)
    await root.symlink(b"dots", b"../../../../../..", GID)
    for link in (b"out", b"dots"):
        qids, none = await root.walk((link, b"etc"))
        assert none is None and len(qids) == 1 and qids[0].type & m.QTSYMLINK
    assert (await names(root)) == {b"a", b"out", b"dots"}
    dots = next(e for e in await entries(root) if e.name == b"..")
    assert dots.type == 4


@check
async def walks_of_many_names(root: File) -> None:
    path = []
    here = await at(root)
    for i in range(40):
        name = b"d%d" % i
        await here.mkdir(name, 0o755, GID)
        path.append(name)
        below = await at(here, name)
        await here.clunk()
        here = below
    deep = await at(root, *path)
    assert deep.qid.path == here.qid.path
    up = await at(deep, *[b".."] * 40)
    assert up.qid.path == root.qid.path
    qids, none = await root.walk([*path[:30], b"nope", b"x"])
    assert none is None and len(qids) == 30
    for file in (here, deep, up):
        await file.clunk()


@check
async def no_name_leaves_its_directory(root: File) -> None:
    await made(root, b"f")
    f, creating = await at(root, b"f"), await at(root)
    for bad in (b"", b".", b"..", b"a/b", b"/etc/x", b"../x", b"a\0b"):
        for call in (
            root.mkdir(bad, 0o755, GID),
            root.symlink(bad, b"t", GID),
            root.mknod(bad, stat.S_IFIFO | 0o600, 0, 0, GID),
            root.link(f, bad),
            root.unlinkat(bad, 0),
            root.unlinkat(bad, m.AT_REMOVEDIR),
            root.renameat(bad, root, b"x"),
            root.renameat(b"f", root, bad),
            creating.create(bad, m.O_RDWR, 0o644, GID),
        ):
            with fails(errno.EINVAL, errno.ENOENT):
                await call
        if bad != b"..":
            with fails(errno.EINVAL, errno.ENOENT):
                await root.walk((bad,))
    await f.clunk()
    await creating.clunk()
    assert await names(root) == {b"f"}


@check
async def names_are_bytes_of_up_to_255(root: File) -> None:
    for name in (b"x" * 255, b"\xff\xfe not utf-8", b"new\nline", b" ", b"-rf", "\u00e9".encode()):
        await made(root, name, name)
        assert await content(root, name) == name
    assert len(await names(root)) == 6
    with fails(errno.ENAMETOOLONG):
        await root.mkdir(b"x" * 256, 0o755, GID)
    with fails(errno.ENAMETOOLONG):
        await root.walk((b"x" * 256,))


@check
async def modes_are_taken_as_they_come(root: File) -> None:
    before = os.umask(0o077)
    try:
        for mode in (0o666, 0o4751, 0o2755, 0o400, 0o7777, 0):
            await made(root, b"f%o" % mode, mode=mode)
        await root.mkdir(b"d1777", 0o1777, GID)
        await root.mknod(b"p622", stat.S_IFIFO | 0o622, 0, 0, GID)
    finally:
        assert os.umask(before) == 0o077
    for entry in await names(root):
        file = await at(root, entry)
        assert stat.S_IMODE((await file.getattr()).mode) == int(entry[1:], 8), entry
        await file.clunk()


@check
async def create_opens_and_keeps_to_its_flags(root: File) -> None:
    file = await at(root)
    qid, _ = await file.create(b"f", m.O_RDWR | m.O_EXCL, 0o400, GID)
    assert qid == file.qid and qid.path != root.qid.path
    assert await file.write(0, b"hello") == 5
    assert bytes(await file.read(1, 100)) == b"ello"
    await file.clunk()
    again = await at(root)
    with fails(errno.EEXIST):
        await again.create(b"f", m.O_RDWR | m.O_EXCL, 0o644, GID)
    other, _ = await again.create(b"f", m.O_RDONLY, 0o644, GID)
    assert other.path == qid.path
    assert bytes(await again.read(0, 100)) == b"hello"
    await again.clunk()
    truncating = await at(root)
    await truncating.create(b"g", m.O_RDWR, 0o644, GID)
    await truncating.write(0, b"xyz")
    with fails(errno.EBUSY, errno.EINVAL):
        await truncating.create(b"h", m.O_RDWR, 0o644, GID)
    await truncating.clunk()
    third = await at(root)
    await third.create(b"g", m.O_RDWR | m.O_TRUNC, 0o644, GID)
    assert (await third.getattr()).size == 0
    await third.clunk()


@check
async def create_does_not_follow_links(root: File) -> None:
    await root.symlink(b"dangling", b"target", GID)
    await made(root, b"f", b"x")
    await root.symlink(b"link", b"f", GID)
    for name in (b"dangling", b"link"):
        file = await at(root)
        with fails(errno.ELOOP, errno.EEXIST):
            await file.create(name, m.O_RDWR | m.O_TRUNC, 0o644, GID)
        await file.clunk()
    link = await at(root, b"link")
    with fails(errno.ELOOP):
        await link.open(m.O_RDONLY)
    await link.clunk()
    assert await names(root) == {b"dangling", b"f", b"link"}
    assert await content(root, b"f") == b"x"


@check
async def reads_and_writes(root: File) -> None:
    block = os.urandom(3 * 1024 * 1024 + 17)
    await made(root, b"f")
    file = await opened(root, b"f", m.O_RDWR)
    done = 0
    while done < len(block):
        done += await file.write(done, memoryview(block)[done:])
    got = b""
    while part := await file.read(len(got), len(block)):
        got += part
    assert got == block
    assert len(await file.read(len(block), 10)) == 0
    assert len(await file.read(len(block) + 5000, 10)) == 0
    assert bytes(await file.read(len(block) - 3, 10)) == block[-3:]
    assert len(await file.read(0, 0)) == 0
    await file.clunk()
    reader = await opened(root, b"f", m.O_RDONLY)
    with fails(errno.EBADF):
        await reader.write(0, b"x")
    with fails(errno.EBUSY, errno.EINVAL):
        await reader.open(m.O_RDONLY)
    await reader.clunk()
    writer = await opened(root, b"f", m.O_WRONLY)
    with fails(errno.EBADF):
        await writer.read(0, 1)
    await writer.clunk()
    closed = await at(root, b"f")
    for call in (closed.read(0, 1), closed.write(0, b"x"), closed.fsync(False), closed.readdir(0, 4096)):
        with fails(errno.EBADF, errno.EINVAL):
            await call
    await closed.clunk()


@check
async def append_and_truncate(root: File) -> None:
    await made(root, b"f", b"abc")
    one = await opened(root, b"f", m.O_WRONLY | m.O_APPEND)
    two = await opened(root, b"f", m.O_WRONLY | m.O_APPEND)
    await one.write(0, b"1")
    await two.write(0, b"2")
    await one.write(0, b"3")
    assert await content(root, b"f") == b"abc123"
    await one.clunk()
    await two.clunk()
    cut = await opened(root, b"f", m.O_RDWR | m.O_TRUNC)
    assert (await cut.getattr()).size == 0
    await cut.clunk()


@check
async def files_over_4_gib_and_holes(root: File) -> None:
    await made(root, b"f")
    file = await opened(root, b"f", m.O_RDWR)
    far = (5 << 30) + 1
    assert await file.write(far, b"end") == 3
    r = await file.getattr()
    assert r.size == far + 3 and r.blocks * 512 < 1 << 20
    assert bytes(await file.read(far - 2, 10)) == b"\0\0end"
    await file.setattr(m.SETATTR_SIZE, size=6 << 30)
    assert (await file.getattr()).size == 6 << 30
    await file.clunk()


@check
async def attributes_are_those_of_the_file(root: File) -> None:
    await made(root, b"f", b"12345", 0o640)
    before = time.time()
    file = await at(root, b"f")
    r = await file.getattr()
    assert r.valid & m.GETATTR_BASIC == m.GETATTR_BASIC
    assert stat.S_ISREG(r.mode) and stat.S_IMODE(r.mode) == 0o640
    assert (r.size, r.nlink, r.uid, r.gid, r.rdev) == (5, 1, os.geteuid(), GID, 0)
    assert abs(r.mtime_sec - before) < 60 and r.mtime_nsec < 1000000000
    assert r.qid.path == file.qid.path
    await file.clunk()
    r = await root.getattr()
    assert stat.S_ISDIR(r.mode) and r.qid.type & m.QTDIR
    again, r = await root.walk_getattr(b"f")
    assert r.size == 5
    await again.clunk()
    with fails(errno.ENOENT):
        await root.walk_getattr(b"nope")
    twice = await root.walk_open((b"f",), m.O_RDONLY)
    assert bytes(await twice.read(0, 10)) == b"12345"
    once_more = await twice.walk_open((), m.O_RDWR)
    assert await once_more.write(0, b"9") == 1 and bytes(await twice.read(0, 10)) == b"92345"
    with fails(errno.ENOENT):
        await root.walk_open((b"nope",), m.O_RDONLY)
    with fails(errno.ENOTDIR):
        await root.walk_open((b"f",), m.O_RDONLY | m.O_DIRECTORY)
    await twice.clunk()
    await once_more.clunk()


@check
async def attributes_can_be_set(root: File) -> None:
    await made(root, b"f", b"12345")
    file = await at(root, b"f")
    await file.setattr(m.SETATTR_MODE, mode=0o4711)
    assert stat.S_IMODE((await file.getattr()).mode) == 0o4711
    await file.setattr(m.SETATTR_SIZE, size=3)
    assert (await file.getattr()).size == 3
    await file.setattr(m.SETATTR_SIZE, size=10)
    both = m.SETATTR_ATIME | m.SETATTR_ATIME_SET | m.SETATTR_MTIME | m.SETATTR_MTIME_SET
    await file.setattr(both, atime_ns=1_000_000_000, mtime_ns=2_000_000_000)
    r = await file.getattr()
    assert (r.atime_sec, r.mtime_sec) == (1, 2)
    await file.setattr(m.SETATTR_MTIME | m.SETATTR_MTIME_SET, mtime_ns=5_000_000_000)
    r = await file.getattr()
    assert (r.atime_sec, r.mtime_sec) == (1, 5)
    now = time.time()
    await file.setattr(m.SETATTR_ATIME)
    r = await file.getattr()
    assert abs(r.atime_sec - now) < 60 and r.mtime_sec == 5
    await file.setattr(m.SETATTR_CTIME)
    await file.setattr(0)
    with fails(errno.EISDIR):
        await root.setattr(m.SETATTR_SIZE, size=0)
    await file.clunk()


@check
async def times_have_nanoseconds_and_may_be_before_1970(root: File) -> None:
    await made(root, b"f")
    file = await at(root, b"f")
    both = m.SETATTR_ATIME | m.SETATTR_ATIME_SET | m.SETATTR_MTIME | m.SETATTR_MTIME_SET
    await file.setattr(both, atime_ns=1_000_000_001, mtime_ns=-5_000_000_000 + 7)
    r = await file.getattr()
    assert (r.atime_sec, r.atime_nsec, r.mtime_sec, r.mtime_nsec) == (1, 1, (1 << 64) - 5, 7)
    await file.clunk()


@check
async def an_open_file_needs_no_permission_of_its_name(root: File) -> None:
    file = await at(root)
    await file.create(b"f", m.O_RDWR | m.O_EXCL, 0, GID)
    await file.write(0, b"12345")
    await file.setattr(m.SETATTR_SIZE, size=2)
    assert bytes(await file.read(0, 10)) == b"12"
    await file.clunk()


@check
async def owners(root: File) -> None:
    await made(root, b"f", mode=0o6755)
    await root.symlink(b"l", b"nowhere", GID)
    file = await at(root, b"f")
    link = await at(root, b"l")
    if os.geteuid() == 0:
        await file.setattr(m.SETATTR_UID | m.SETATTR_GID | m.SETATTR_MODE, uid=12345, gid=54321, mode=0o6755)
        r = await file.getattr()
        assert (r.uid, r.gid, stat.S_IMODE(r.mode)) == (12345, 54321, 0o6755)
        await link.setattr(m.SETATTR_UID, uid=7)
        assert (await link.getattr()).uid == 7
        await file.setattr(m.SETATTR_UID, uid=0)
        group = await at(root)
        await group.create(b"g", m.O_RDWR | m.O_EXCL, 0o644, 54321)
        assert (await group.getattr()).gid in (54321, GID)
        await group.clunk()
    else:
        with fails(errno.EPERM):
            await file.setattr(m.SETATTR_UID, uid=0)
    await file.clunk()
    await link.clunk()


@check
async def unlinked_files_live_on(root: File) -> None:
    await made(root, b"f", b"123")
    file = await opened(root, b"f", m.O_RDWR)
    await root.unlinkat(b"f", 0)
    assert await names(root) == set()
    r = await file.getattr()
    assert (r.nlink, r.size) == (0, 3)
    await file.write(3, b"456")
    assert bytes(await file.read(0, 10)) == b"123456"
    await file.setattr(m.SETATTR_MODE | m.SETATTR_SIZE, mode=0o600, size=1)
    assert (await file.getattr()).size == 1
    await file.fsync(False)
    await file.clunk()


@check
async def directories_list_what_is_in_them(root: File) -> None:
    await made(root, b"f")
    await root.mkdir(b"d", 0o755, GID)
    await root.symlink(b"l", b"f", GID)
    await root.mknod(b"p", stat.S_IFIFO | 0o600, 0, 0, GID)
    found = {e.name: e for e in await entries(root)}
    assert found.keys() == {b".", b"..", b"f", b"d", b"l", b"p"}
    assert [found[n].type for n in (b"f", b"d", b"l", b"p", b".")] == [8, 4, 10, 1, 4]
    for name in (b"f", b"d", b"l", b"p"):
        file = await at(root, name)
        assert found[name].qid.path == file.qid.path and found[name].qid.type == file.qid.type
        await file.clunk()
    assert found[b"."].qid.path == root.qid.path
    directory = await at(root)
    await directory.open(m.O_RDONLY)
    with fails(errno.EINVAL):
        await directory.readdir(0, 20)
    one = await directory.readdir(0, 8192)
    assert {e.name for e in await directory.readdir(0, 8192)} == {e.name for e in one}  # and from the start again
    with fails(errno.EISDIR):
        await directory.read(0, 10)
    await directory.clunk()
    again = await at(root)
    with fails(errno.EISDIR):
        await again.open(m.O_RDWR)
    await again.clunk()
    f = await at(root, b"f")
    with fails(errno.ENOTDIR):
        await f.open(m.O_RDONLY | m.O_DIRECTORY)
    await f.clunk()


@check
async def directories_that_change_while_being_read(root: File) -> None:
    stay = {b"stay%03d" % i for i in range(300)}
    go = {b"go%03d" % i for i in range(300)}
    for name in stay | go:
        await made(root, name)
    directory = await at(root)
    await directory.open(m.O_RDONLY | m.O_DIRECTORY)
    seen: list[bytes] = []
    offset = turn = 0
    leaving = sorted(go)
    while part := await directory.readdir(offset, 700):
        seen += [e.name for e in part]
        offset = part[-1].offset
        for _ in range(10):
            if leaving:
                await root.unlinkat(leaving.pop(), 0)
        await made(root, b"new%03d" % turn)
        turn += 1
        assert turn < 1000
    await directory.clunk()
    assert len([n for n in seen if n in stay]) == len(stay)
    assert len(seen) == len(set(seen))
    # A cookie is good for going back to, too.
    listing = await entries(root)
    middle = len(listing) // 2
    directory = await at(root)
    await directory.open(m.O_RDONLY | m.O_DIRECTORY)
    await directory.readdir(0, 8192)
    part = await directory.readdir(listing[middle].offset, 2000)
    assert part[0].name == listing[middle + 1].name
    await directory.clunk()


@check
async def symbolic_links(root: File) -> None:
    for target in (b"f", b"/absolute/../path", b"\xff\xfe", b"x" * 4000):
        name = b"l%d" % len(target)
        await root.symlink(name, target, GID)
        link = await at(root, name)
        assert link.qid.type & m.QTSYMLINK
        assert await link.readlink() == target
        r = await link.getattr()
        assert stat.S_ISLNK(r.mode) and r.size == len(target)
        with fails(errno.EOPNOTSUPP):
            await link.setattr(m.SETATTR_MODE, mode=0o600)
        await link.setattr(m.SETATTR_MTIME | m.SETATTR_MTIME_SET, mtime_ns=5_000_000_000)
        assert (await link.getattr()).mtime_sec == 5
        await link.clunk()
    with fails(errno.EEXIST):
        await root.symlink(b"l1", b"x", GID)
    await made(root, b"f")
    f = await at(root, b"f")
    with fails(errno.EINVAL):
        await f.readlink()
    await f.clunk()


@check
async def nodes(root: File) -> None:
    await root.mknod(b"p", stat.S_IFIFO | 0o640, 0, 0, GID)
    await root.mknod(b"s", stat.S_IFSOCK | 0o600, 0, 0, GID)
    await root.mknod(b"r", stat.S_IFREG | 0o600, 0, 0, GID)
    kinds = {b"p": stat.S_IFIFO, b"s": stat.S_IFSOCK, b"r": stat.S_IFREG}
    if os.geteuid() == 0:
        await root.mknod(b"c", stat.S_IFCHR | 0o666, 1, 3, GID)
        await root.mknod(b"b", stat.S_IFBLK | 0o666, 259, 300, GID)
        kinds |= {b"c": stat.S_IFCHR, b"b": stat.S_IFBLK}
    else:
        with fails(errno.EPERM):
            await root.mknod(b"c", stat.S_IFCHR | 0o666, 1, 3, GID)
    for name, kind in kinds.items():
        file = await at(root, name)
        r = await file.getattr()
        assert stat.S_IFMT(r.mode) == kind
        if name in (b"c", b"b"):
            assert (os.major(r.rdev), os.minor(r.rdev)) == ((1, 3) if name == b"c" else (259, 300))
        if name in (b"c", b"b", b"s"):
            with fails(errno.EACCES, errno.ENXIO, errno.ENODEV):
                await file.open(m.O_RDONLY)
        await file.clunk()
    with fails(errno.EEXIST):
        await root.mknod(b"p", stat.S_IFIFO | 0o640, 0, 0, GID)
    if b"c" in kinds:
        creating = await at(root)
        with fails(errno.EACCES, errno.ENXIO, errno.EEXIST):
            await creating.create(b"c", m.O_RDWR, 0o644, GID)
        await creating.clunk()


@check
async def hard_links(root: File) -> None:
    await made(root, b"f", b"x")
    await root.symlink(b"l", b"nowhere", GID)
    await root.mkdir(b"d", 0o755, GID)
    f, link, d = [await at(root, n) for n in (b"f", b"l", b"d")]
    await d.link(f, b"g")
    await d.link(link, b"m")
    g, other = [await at(d, n) for n in (b"g", b"m")]
    assert g.qid.path == f.qid.path and (await g.getattr()).nlink == 2
    assert await other.readlink() == b"nowhere"
    with fails(errno.EEXIST):
        await d.link(f, b"g")
    with fails(errno.EPERM):
        await root.link(d, b"e")
    await root.unlinkat(b"f", 0)
    assert (await g.getattr()).nlink == 1
    assert await content(d, b"g") == b"x"
    for file in (f, link, d, g, other):
        await file.clunk()


@check
async def renames(root: File) -> None:
    await made(root, b"a", b"a")
    await made(root, b"b", b"b")
    await root.mkdir(b"d", 0o755, GID)
    await root.mkdir(b"e", 0o755, GID)
    d, e = await at(root, b"d"), await at(root, b"e")
    await root.renameat(b"a", root, b"b")
    assert await content(root, b"b") == b"a"
    await root.renameat(b"b", d, b"c")
    assert await content(d, b"c") == b"a"
    with fails(errno.ENOTEMPTY, errno.EEXIST):
        await root.renameat(b"e", root, b"d")
    with fails(errno.EINVAL):
        await root.renameat(b"d", d, b"inside")
    with fails(errno.ENOENT):
        await root.renameat(b"nope", root, b"x")
    with fails(errno.EISDIR):
        await d.renameat(b"c", root, b"e")
    with fails(errno.ENOTDIR):
        await root.renameat(b"e", d, b"c")
    await root.renameat(b"e", d, b"e")
    assert await names(root) == {b"d"} and await names(d) == {b"c", b"e"}
    await e.mkdir(b"still-works", 0o755, GID)
    for file in (d, e):
        await file.clunk()


@check
async def renames_of_a_place(root: File) -> None:
    await made(root, b"a", b"a")
    await root.mkdir(b"d", 0o755, GID)
    a, d = await at(root, b"a"), await at(root, b"d")
    await a.rename(d, b"b")
    assert await content(d, b"b") == b"a"
    await a.rename(root, b"c")
    assert await names(root) == {b"c", b"d"}
    await root.unlinkat(b"c", 0)
    with fails(errno.ENOENT):
        await a.rename(d, b"x")
    await a.clunk()
    await d.clunk()


@check
async def removals(root: File) -> None:
    await made(root, b"f")
    await root.mkdir(b"d", 0o755, GID)
    d = await at(root, b"d")
    await made(d, b"x")
    with fails(errno.ENOTEMPTY):
        await root.unlinkat(b"d", m.AT_REMOVEDIR)
    with fails(errno.EISDIR):
        await root.unlinkat(b"d", 0)
    with fails(errno.ENOTDIR):
        await root.unlinkat(b"f", m.AT_REMOVEDIR)
    with fails(errno.ENOENT):
        await root.unlinkat(b"nope", 0)
    await d.unlinkat(b"x", 0)
    await root.unlinkat(b"d", m.AT_REMOVEDIR)
    with fails(errno.ENOENT):
        await d.mkdir(b"y", 0o755, GID)
    await d.clunk()
    assert await names(root) == {b"f"}


@check
async def removals_of_a_place(root: File) -> None:
    await made(root, b"f")
    await root.mkdir(b"d", 0o755, GID)
    for name in (b"f", b"d"):
        file = await at(root, name)
        await file.remove()
        await file.clunk()
    assert await names(root) == set()


@check
async def extended_attributes(root: File) -> None:
    await made(root, b"f")
    f = await at(root, b"f")
    with fails(errno.ENODATA, errno.EOPNOTSUPP):
        await f.getxattr(b"user.nope")
    try:
        await f.setxattr(b"user.a", b"1\0\xff", 0)
    except OSError as error:
        assert error.errno == errno.EOPNOTSUPP  # the file system under the test has none
        await f.clunk()
        return
    await f.setxattr(b"user.empty", b"", 0)
    await f.setxattr(b"user.big", b"x" * 3000, 0)
    assert await f.getxattr(b"user.a") == b"1\0\xff"
    assert await f.getxattr(b"user.empty") == b""
    assert await f.getxattr(b"user.big") == b"x" * 3000
    listed = await f.listxattr()
    assert listed.endswith(b"\0") and {b"user.a", b"user.empty", b"user.big"} <= set(listed.split(b"\0"))
    with fails(errno.EEXIST):
        await f.setxattr(b"user.a", b"2", m.XATTR_CREATE)
    with fails(errno.ENODATA):
        await f.setxattr(b"user.b", b"2", m.XATTR_REPLACE)
    await f.setxattr(b"user.a", b"2", m.XATTR_REPLACE)
    assert await f.getxattr(b"user.a") == b"2"
    await f.removexattr(b"user.a")
    with fails(errno.ENODATA):
        await f.getxattr(b"user.a")
    with fails(errno.ENODATA):
        await f.removexattr(b"user.a")
    await f.clunk()


@check
async def locks_keep_others_out(root: File) -> None:
    await made(root, b"f", b"0123456789")
    one, two = [await opened(root, b"f", m.O_RDWR) for _ in range(2)]
    rd, wr, un = m.LOCK_TYPE_RDLCK, m.LOCK_TYPE_WRLCK, m.LOCK_TYPE_UNLCK
    assert await one.lock(wr, 0, 0, 5, 1, b"one") == m.LOCK_SUCCESS
    assert await two.lock(wr, 0, 4, 1, 2, b"two") == m.LOCK_BLOCKED
    assert await two.lock(rd, 0, 0, 0, 2, b"two") == m.LOCK_BLOCKED
    assert await two.lock(wr, 0, 5, 5, 2, b"two") == m.LOCK_SUCCESS
    held = await two.getlock(wr, 0, 0, 2, b"two")
    assert (held.type, held.start, held.length) == (wr, 0, 5)
    assert (await two.getlock(wr, 20, 5, 2, b"two")).type == un
    assert await one.lock(un, 0, 0, 5, 1, b"one") == m.LOCK_SUCCESS
    assert await two.lock(rd, 0, 0, 5, 2, b"two") == m.LOCK_SUCCESS
    assert await one.lock(rd, 0, 0, 5, 1, b"one") == m.LOCK_SUCCESS
    await two.clunk()
    assert await one.lock(wr, 0, 0, 0, 1, b"one") == m.LOCK_SUCCESS
    await one.clunk()


@check
async def numbers_of_the_file_system(root: File) -> None:
    r = await root.statfs()
    assert r.blocks >= r.bfree >= 0 and r.blocks > 0 and r.bsize >= 512 and r.namelen == 255


@check
async def fsync_of_files_and_directories(root: File) -> None:
    await made(root, b"f", b"x")
    file = await opened(root, b"f", m.O_RDWR)
    await file.fsync(True)
    await file.fsync(False)
    await file.clunk()
    directory = await at(root)
    await directory.open(m.O_RDONLY | m.O_DIRECTORY)
    await directory.fsync(False)
    await directory.clunk()


@check
async def fifos_wait_without_stopping_others(root: File) -> None:
    await root.mknod(b"p", stat.S_IFIFO | 0o600, 0, 0, GID)
    reader, writer = await at(root, b"p"), await at(root, b"p")
    opening = asyncio.create_task(reader.open(m.O_RDONLY))
    await asyncio.sleep(0.02)
    assert not opening.done()
    await root.getattr()
    await writer.open(m.O_WRONLY)
    await opening
    reading = asyncio.create_task(reader.read(0, 100))
    await asyncio.sleep(0.02)
    assert not reading.done()
    await root.getattr()
    await writer.write(0, b"through")
    assert bytes(await reading) == b"through"
    await writer.clunk()
    assert len(await reader.read(0, 100)) == 0
    await reader.clunk()
    # One that nobody ever comes to can be given up.
    lonely = await at(root, b"p")
    opening = asyncio.create_task(lonely.open(m.O_RDONLY))
    await asyncio.sleep(0.02)
    opening.cancel()
    await asyncio.wait([opening], timeout=5)
    assert opening.cancelled()
    await lonely.clunk()


@check
async def many_at_once(root: File) -> None:
    async def one(i: int) -> None:
        name = b"f%d" % i
        await made(root, name, name * 100)
        assert await content(root, name) == name * 100
        await root.renameat(name, root, b"g%d" % i)
        if i % 2:
            await root.unlinkat(b"g%d" % i, 0)

    await asyncio.gather(*(one(i) for i in range(100)))
    assert await names(root) == {b"g%d" % i for i in range(0, 100, 2)}


@check
async def qids_tell_files_apart(root: File) -> None:
    for i in range(50):
        await made(root, b"f%d" % i)
    paths = set()
    for i in range(50):
        file = await at(root, b"f%d" % i)
        paths.add(file.qid.path)
        await file.clunk()
    assert len(paths) == 50
