"""Several Files as one tree: of each name the first layer that has it, of directories all together.

What is written goes to the first layer, which has to be one that can be written; with any other, an archive for one,
writing is that layer's own error (EROFS). As overlayfs does it (Linux Documentation/filesystems/overlayfs.rst):

- A file of a lower layer is copied to the first one when it is opened for writing, linked, renamed, or its attributes
  change; with its parents, mode, times, extended attributes and, where this process may, owner. Opening it for reading
  copies nothing. Whoever has it open meanwhile reads the copy from then on. Its qid stays, and so do those of its
  other names: they are names of the copy.
  In its link count they are not, and what is left of them when the Union goes is the original.
- A name of a lower layer that is removed is whited out: hidden, in the memory of this Union. The layers below are never
  changed, so with the next Union it is there again. Made anew, a directory does not show what was below.
- Renaming a directory that is not in the first layer alone is EXDEV: what mv(1) then does is right.

A directory hides a lower file of its name and a file a lower directory. A link or a rename between this and other trees
is EXDEV. Locks are those of the layer that has the file. Layers must not lose or change files under the feet of the
Union; that the first one gets new ones is all right.

Each File here holds one of each layer that it is made of, and one more when it is open.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from ninep import message as m
from ninep.codec import entry_size
from ninep.file import File, check_name
from ninep.message import Entry, Qid, Rgetattr, Rgetlock, Rstatfs

COPY_SIZE = 1 << 20  # bytes copied at once
READDIR_SIZE = 65536
LAYERS_MAX = 127  # layers whose qids keep their numbers, with the layer's in front
# What a file's copy may go without: attributes that its layer does not take from us, or not from this user.
OPTIONAL = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EINVAL, errno.ENODATA)


class _Layered(NamedTuple):
    """A File of a layer, and the layer's number: 0 is the first."""

    layer: int
    file: File


class _State:
    """What the Files of one Union share."""

    def __init__(self) -> None:
        self.whiteouts: dict[int, set[bytes]] = {}  # by directory: names whose lower layers are hidden
        self.copies: dict[int, File] = {}  # by lower file: its copy, as long as somebody holds either
        self.origins: dict[int, int] = {}  # by copy: the lower file, whose qid it has
        self.linked: set[int] = set()  # lower files with other names, whose copy must be found from those
        self.users: dict[int, int] = {}
        self.hidden: set[bytes] = set()  # names of copies that are not complete
        self.copying = asyncio.Lock()  # one at a time: a copy makes its parents, too

    def number(self, layer: int, qid: Qid) -> int:
        """qid.path, unique over the layers. As in localfs: what does not fit is mixed to 63 bits."""
        if layer < LAYERS_MAX and qid.path < 1 << 56:
            return layer << 56 | qid.path
        return 1 << 63 | hash((layer, qid.path)) & (1 << 63) - 1

    def path(self, layer: int, qid: Qid) -> int:
        """The qid.path we give out: of a copy the original's."""
        number = self.number(layer, qid)
        return self.origins.get(number, number)

    def new(self, qid: Qid) -> Qid:
        """The qid of what has just been made in the first layer: no copy of anything, if its number once was."""
        number = self.number(0, qid)
        self.origins.pop(number, None)
        return Qid(qid.type, qid.version, number)


class _Place:
    """A name in the union, and what the layers have there. Shared by clones and children, let go with the last."""

    def __init__(self, state: _State, parent: _Place | None, name: bytes, stack: list[_Layered]) -> None:
        self.state = state
        self.parent = parent
        self.name = name
        self.stack = stack
        self.kind = stack[0].file.qid.type & (m.QTDIR | m.QTSYMLINK)
        self.path = state.path(stack[0].layer, stack[0].file.qid)
        self.holders = 1
        state.users[self.path] = state.users.get(self.path, 0) + 1
        if parent is not None:
            parent.holders += 1

    def files(self) -> list[_Layered]:
        """What there is, from the top; the copy when one has been made since the walk."""
        copy = self.state.copies.get(self.path)
        if copy is None or self.stack[0].layer == 0:
            return self.stack
        return [_Layered(0, copy), *(self.stack if self.kind & m.QTDIR else ())]

    def top(self) -> File:
        return self.files()[0].file

    def in_first(self) -> bool:
        return self.files()[0].layer == 0

    def qid(self, of: Qid) -> Qid:
        return Qid(of.type, of.version, self.path)

    def holds(self, place: _Place | None) -> bool:
        """Whether a place is this directory, or below it."""
        while place is not None and place.path != self.path:
            place = place.parent
        return place is not None

    def visible(self, name: bytes) -> list[_Layered]:
        """The directories to look a name up in."""
        files = self.files()
        hidden = name in self.state.whiteouts.get(self.path, ())
        return [f for f in files if f.layer == 0] if hidden else files

    async def find(self, name: bytes) -> _Place | None:
        """The place of a name in this directory; the caller's to release."""
        check_name(name)
        if not self.kind & m.QTDIR:
            raise OSError(errno.ENOTDIR, "not a directory")
        stack: list[_Layered] = []
        try:
            for layer, directory in self.visible(name):
                try:
                    _, file = await directory.walk((name,))
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                        raise
                    continue
                assert file is not None
                if stack and not file.qid.type & m.QTDIR:
                    await file.clunk()
                    break
                stack.append(_Layered(layer, file))
                if not file.qid.type & m.QTDIR:
                    break
        except BaseException:
            await _clunk(stack)
            raise
        return _Place(self.state, self, name, stack) if stack else None

    async def get(self, name: bytes) -> _Place:
        place = await self.find(name)
        if place is None:
            raise OSError(errno.ENOENT, "no such file")
        return place

    async def below(self, name: bytes) -> bool:
        """Whether a lower layer has a name that is not whited out."""
        for layer, directory in self.visible(name):
            if layer > 0:
                try:
                    _, file = await directory.walk((name,))
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                        raise
                    continue
                assert file is not None
                await file.clunk()
                return True
        return False

    def white_out(self, name: bytes) -> None:
        self.state.whiteouts.setdefault(self.path, set()).add(name)

    async def forget(self) -> None:
        """When what has just been removed was the last name of a copy, its number is free for another file."""
        file = self.top()
        copy = self.in_first() and self.state.number(0, file.qid) in self.state.origins
        if copy and (self.kind & m.QTDIR or (await file.getattr()).nlink == 0):
            self.state.new(file.qid)

    async def release(self) -> None:
        place: _Place | None = self
        while place is not None:
            place.holders -= 1
            if place.holders:
                return
            state, path = place.state, place.path
            state.users[path] -= 1
            files = place.stack
            if not state.users[path]:
                del state.users[path]
                if path in state.copies and path not in state.linked:
                    files = [*files, _Layered(0, state.copies.pop(path))]
            await _clunk(files)
            place = place.parent

    async def entries(self) -> list[Entry]:
        """All names but "." and "..", each once; offsets are those of the layers."""
        hidden = self.state.whiteouts.get(self.path, set())
        seen: set[bytes] = {b".", b".."}
        found: list[Entry] = []
        for layer, file in list(self.files()):
            directory = await file.walk_open((), m.O_RDONLY | m.O_DIRECTORY)
            try:
                offset = 0
                while part := await directory.readdir(offset, READDIR_SIZE):
                    offset = part[-1].offset
                    for entry in part:
                        name = entry.name
                        if name in seen or name in self.state.hidden or (layer > 0 and name in hidden):
                            continue
                        seen.add(name)
                        qid = entry.qid
                        found.append(entry._replace(qid=Qid(qid.type, qid.version, self.state.path(layer, qid))))
            finally:
                await directory.clunk()
        return found

    async def copy_up(self, data: bool = True) -> File:
        """The File of the first layer that this place is, made there if need be; without data, an empty one."""
        if not self.in_first():
            async with self.state.copying:
                await self._copy_up(data)
        return self.top()

    async def _copy_up(self, data: bool) -> None:
        if self.in_first():
            return
        assert self.parent is not None  # the root is in all layers
        here = await self.parent.find(self.name)
        try:
            if here is None or here.path != self.path:
                raise OSError(errno.ENOENT, "removed meanwhile")
        finally:
            if here is not None:
                await here.release()
        await self.parent._copy_up(False)
        directory = self.parent.top()
        lower = self.top()
        attributes = await lower.getattr()
        name = b".union-" + os.urandom(8).hex().encode()
        self.state.hidden.add(name)
        try:
            copy = await _make(directory, name, lower, attributes)
            try:
                # Who may not write to the copy will not truncate it either, and must find it whole.
                if stat.S_ISREG(attributes.mode) and (data or not attributes.mode & 0o200):
                    await _copy_data(lower, copy)
                await _copy_attributes(lower, copy, attributes)
                await directory.renameat(name, directory, self.name)
                # Found anew: File.renameat does not tell a File of the old name about its new one.
                _, moved = await directory.walk((self.name,))
            except BaseException:
                with suppress(OSError):  # what went wrong before is what to say
                    await directory.unlinkat(name, m.AT_REMOVEDIR if self.kind & m.QTDIR else 0)
                raise
            finally:
                await copy.clunk()
        finally:
            self.state.hidden.discard(name)
        assert moved is not None
        origin = self.path
        self.state.origins[self.state.number(0, moved.qid)] = origin
        if attributes.nlink > 1 and not self.kind & m.QTDIR:
            self.state.linked.add(origin)
        self.state.copies[origin] = moved

    async def named_in_first(self, directory: File) -> None:
        """Give a file that was copied up under another of its names this one, too."""
        copy = await self.copy_up()
        try:
            _, there = await directory.walk((self.name,))
        except FileNotFoundError:
            await directory.link(copy, self.name)
        else:
            assert there is not None
            await there.clunk()


async def _clunk(files: Sequence[_Layered]) -> None:
    for _, file in files:
        await file.clunk()


async def _make(directory: File, name: bytes, lower: File, attributes: Rgetattr) -> File:
    mode = attributes.mode
    if stat.S_ISDIR(mode):
        await directory.mkdir(name, 0o700, attributes.gid)
    elif stat.S_ISLNK(mode):
        await directory.symlink(name, await lower.readlink(), attributes.gid)
    else:
        kind = stat.S_IFMT(mode)
        await directory.mknod(name, kind | 0o600, os.major(attributes.rdev), os.minor(attributes.rdev), attributes.gid)
    _, copy = await directory.walk((name,))
    assert copy is not None
    return copy


async def _copy_data(lower: File, copy: File) -> None:
    """Copy what is read, zeros as holes."""
    reader = await lower.walk_open((), m.O_RDONLY)
    try:
        writer = await copy.walk_open((), m.O_WRONLY)
        try:
            offset = 0
            while piece := await reader.read(offset, COPY_SIZE):
                view = memoryview(piece)
                offset += len(view)
                if bytes(view) == bytes(len(view)):
                    continue
                done = 0
                while done < len(view):
                    done += await writer.write(offset - len(view) + done, view[done:])
            await writer.setattr(m.SETATTR_SIZE, size=offset)
        finally:
            await writer.clunk()
    finally:
        await reader.clunk()


async def _copy_attributes(lower: File, copy: File, attributes: Rgetattr) -> None:
    try:
        names = (await lower.listxattr()).split(b"\0")[:-1]
    except OSError as error:
        if error.errno not in OPTIONAL:
            raise
        names = []
    mode = attributes.mode & 0o7777
    try:
        await copy.setattr(m.SETATTR_UID | m.SETATTR_GID, uid=attributes.uid, gid=attributes.gid)
    except OSError as error:
        if error.errno not in OPTIONAL:
            raise
        mode &= 0o1777  # whose rights it would lend are others'
    for name in names:  # after the owner, whose change clears capabilities
        try:
            await copy.setxattr(name, await lower.getxattr(name), 0)
        except OSError as error:
            if error.errno not in OPTIONAL:
                raise
    if not stat.S_ISLNK(attributes.mode):
        await copy.setattr(m.SETATTR_MODE, mode=mode)
    times = m.SETATTR_ATIME | m.SETATTR_ATIME_SET | m.SETATTR_MTIME | m.SETATTR_MTIME_SET
    await copy.setattr(
        times,
        atime_ns=_nanoseconds(attributes.atime_sec, attributes.atime_nsec),
        mtime_ns=_nanoseconds(attributes.mtime_sec, attributes.mtime_nsec),
    )


def _nanoseconds(seconds: int, rest: int) -> int:
    return (seconds - (seconds >> 63 << 64)) * 1000000000 + rest


def _exdev() -> OSError:
    return OSError(errno.EXDEV, "not of the same union")


class UnionFile(File):
    """A file of a Union."""

    def __init__(self, place: _Place) -> None:
        self.place = place
        self.qid = place.qid(place.top().qid)
        self.handle: _Layered | None = None  # when open
        self.writable = False
        self.locked = False
        self.listing: list[Entry] = []

    async def walk(self, names: Sequence[bytes]) -> tuple[list[Qid], File | None]:
        place = self.place
        place.holders += 1
        qids: list[Qid] = []
        try:
            for name in names:
                if not place.kind & m.QTDIR:
                    raise OSError(errno.ENOTDIR, "not a directory")
                if name == b"..":
                    step = place.parent or place
                    step.holders += 1
                else:
                    step = await place.get(name)
                await place.release()
                place = step
                qids.append(place.qid(place.top().qid))
        except OSError:
            await place.release()
            if not qids:
                raise
            return qids, None
        except BaseException:
            await place.release()
            raise
        return qids, UnionFile(place)

    async def getattr(self, mask: int = m.GETATTR_BASIC) -> Rgetattr:
        handle = self.handle
        file = handle.file if handle is not None and handle.layer == 0 else self.place.top()
        answer = await file.getattr(mask)
        answer.qid = self.place.qid(answer.qid)
        if len(self.place.files()) > 1:
            answer.nlink = 1  # not counted, as in overlayfs: find(1) knows
        return answer

    async def setattr(
        self, valid: int, mode: int = 0, uid: int = 0, gid: int = 0, size: int = 0, atime_ns: int = 0, mtime_ns: int = 0
    ) -> None:
        if self.handle is not None and self.handle.layer == 0:
            file = self.handle.file
        else:
            if valid & m.SETATTR_SIZE and self.place.kind & m.QTDIR:
                raise OSError(errno.EISDIR, "a directory")
            if valid & m.SETATTR_MODE and self.place.kind & m.QTSYMLINK:
                raise OSError(errno.EOPNOTSUPP, "a symbolic link has no mode")
            file = await self.place.copy_up(not (valid & m.SETATTR_SIZE and size == 0))
        await file.setattr(valid, mode, uid, gid, size, atime_ns, mtime_ns)

    async def statfs(self) -> Rstatfs:
        """The first layer's, where what is new goes."""
        place = self.place
        while place.parent is not None:
            place = place.parent
        return await place.top().statfs()

    async def readlink(self) -> bytes:
        return await self.place.top().readlink()

    async def getxattr(self, name: bytes) -> bytes:
        return await self.place.top().getxattr(name)

    async def listxattr(self) -> bytes:
        return await self.place.top().listxattr()

    async def setxattr(self, name: bytes, value: bytes, flags: int) -> None:
        await (await self.place.copy_up()).setxattr(name, value, flags)

    async def removexattr(self, name: bytes) -> None:
        if not self.place.in_first():
            await self.place.top().getxattr(name)  # nothing is copied for what is not there
        await (await self.place.copy_up()).removexattr(name)

    # Open files

    async def open(self, flags: int) -> tuple[Qid, int]:
        if self.handle is not None:
            raise OSError(errno.EBUSY, "already open")
        await self._open(self.place, flags)
        return self.qid, 0

    async def _open(self, place: _Place, flags: int) -> None:
        writing = flags & m.O_ACCMODE != m.O_RDONLY or flags & m.O_TRUNC
        copying = writing and not place.kind and not flags & m.O_DIRECTORY and not place.in_first()
        if copying and stat.S_ISREG((await place.top().getattr()).mode):  # FIFOs are opened where they are
            await place.copy_up(not flags & m.O_TRUNC)
        layer, file = place.files()[0]
        handle = await file.walk_open((), flags)
        self.handle = _Layered(layer, handle)
        self.qid = place.qid(handle.qid)
        self.writable = bool(writing)

    async def create(self, name: bytes, flags: int, mode: int, gid: int) -> tuple[Qid, int]:
        if self.handle is not None:
            raise OSError(errno.EBUSY, "already open")
        place: _Place | None = None
        for _ in range(16):  # somebody may create and remove the name in turn
            place = await self.place.find(name)
            if place is None:
                directory = await self.place.copy_up()
                _, handle = await directory.walk(())
                assert handle is not None
                try:
                    await handle.create(name, flags | m.O_EXCL, mode, gid)
                except FileExistsError:
                    await handle.clunk()
                    if flags & m.O_EXCL:
                        raise
                    continue
                except BaseException:
                    await handle.clunk()
                    raise
                try:
                    _, file = await handle.walk(())
                except BaseException:
                    await handle.clunk()
                    raise
                assert file is not None
                self.place.state.new(file.qid)
                place = _Place(self.place.state, self.place, name, [_Layered(0, file)])
                self.handle = _Layered(0, handle)
                self.qid = place.qid(handle.qid)
                self.writable = flags & m.O_ACCMODE != m.O_RDONLY
            else:
                try:
                    if flags & m.O_EXCL:
                        raise FileExistsError(errno.EEXIST, "file exists")
                    await self._open(place, flags)
                except BaseException:
                    await place.release()
                    raise
            before, self.place = self.place, place
            await before.release()
            return self.qid, 0
        raise OSError(errno.EBUSY, "the name comes and goes")

    def _open_handle(self) -> File:
        if self.handle is None:
            raise OSError(errno.EBADF, "not open")
        return self.handle.file

    async def _current(self) -> File:
        """The open file; opened anew when it has been copied since."""
        handle = self._open_handle()
        if self.handle is not None and self.handle.layer > 0 and not self.place.kind and self.place.in_first():
            async with self.place.state.copying:
                if self.handle.layer > 0 and not self.locked:
                    try:
                        copy = await self.place.top().walk_open((), m.O_RDONLY)
                    except PermissionError:  # what is open stays so
                        return handle
                    self.handle = _Layered(0, copy)
                    await handle.clunk()
            handle = self.handle.file
        return handle

    async def read(self, offset: int, count: int) -> bytes | bytearray | memoryview:
        return await (await self._current()).read(offset, count)

    async def write(self, offset: int, data: bytes | bytearray | memoryview) -> int:
        return await self._open_handle().write(offset, data)

    async def fsync(self, datasync: bool) -> None:
        await self._open_handle().fsync(datasync)

    async def readdir(self, offset: int, count: int) -> list[Entry]:
        """The offsets are positions in what was there when it was read from the start: it is merged then."""
        self._open_handle()
        if not self.place.kind & m.QTDIR:
            raise OSError(errno.ENOTDIR, "not a directory")
        if offset == 0 or not self.listing:
            place = self.place
            up = place.parent or place
            listing = [Entry(place.qid(place.top().qid), 0, 4, b"."), Entry(up.qid(up.top().qid), 0, 4, b"..")]
            try:
                listing += await place.entries()
            except FileNotFoundError:  # the directory itself has been removed: empty
                pass
            self.listing = listing
        found: list[Entry] = []
        for at in range(offset, len(self.listing)):
            entry = self.listing[at]
            count -= entry_size(entry.name)
            if count < 0:
                if not found:
                    raise OSError(errno.EINVAL, "count is too small for an entry")
                break
            found.append(entry._replace(offset=at + 1))
        return found

    async def lock(self, type: int, flags: int, start: int, length: int, proc_id: int, client_id: bytes) -> int:
        handle = await self._current()
        self.locked = True
        return await handle.lock(type, flags, start, length, proc_id, client_id)

    async def getlock(self, type: int, start: int, length: int, proc_id: int, client_id: bytes) -> Rgetlock:
        return await (await self._current()).getlock(type, start, length, proc_id, client_id)

    async def clunk(self) -> None:
        handle, self.handle = self.handle, None
        self.listing = []
        try:
            if handle is not None:
                await handle.file.clunk()
        finally:
            place = self.place
            del self.place
            await place.release()

    # Directories

    async def _fresh(self, name: bytes) -> File:
        """This directory in the first layer, to make a name in that is in no layer."""
        await self._must_be_free(name)
        return await self.place.copy_up()

    async def _must_be_free(self, name: bytes) -> None:
        there = await self.place.find(name)
        if there is not None:
            await there.release()
            raise FileExistsError(errno.EEXIST, "file exists")

    async def symlink(self, name: bytes, target: bytes, gid: int) -> Qid:
        return self.place.state.new(await (await self._fresh(name)).symlink(name, target, gid))

    async def mknod(self, name: bytes, mode: int, major: int, minor: int, gid: int) -> Qid:
        return self.place.state.new(await (await self._fresh(name)).mknod(name, mode, major, minor, gid))

    async def mkdir(self, name: bytes, mode: int, gid: int) -> Qid:
        return self.place.state.new(await (await self._fresh(name)).mkdir(name, mode, gid))

    async def link(self, target: File, name: bytes) -> None:
        if not isinstance(target, UnionFile) or target.place.state is not self.place.state:
            raise _exdev()
        await self._must_be_free(name)
        if target.place.kind & m.QTDIR:
            raise OSError(errno.EPERM, "a directory")
        directory = await self.place.copy_up()
        await directory.link(await target.place.copy_up(), name)

    async def rename(self, directory: File, name: bytes) -> None:
        place = self.place
        parent = await self._still_there()
        try:
            await UnionFile(parent).renameat(place.name, directory, name)
        finally:
            await parent.release()
        assert isinstance(directory, UnionFile)
        if place.parent is not directory.place:
            before, place.parent = place.parent, directory.place
            directory.place.holders += 1
            if before is not None:
                await before.release()
        place.name = name

    async def _still_there(self) -> _Place:
        """The parent, held for the caller, if this file has its name there."""
        place = self.place
        if place.parent is None:
            raise OSError(errno.EBUSY, "the root")
        there = await place.parent.get(place.name)
        same = there.path == place.path
        await there.release()
        if not same:
            raise OSError(errno.ENOENT, "another file has the name now")
        place.parent.holders += 1
        return place.parent

    async def renameat(self, oldname: bytes, directory: File, newname: bytes) -> None:
        if not isinstance(directory, UnionFile) or directory.place.state is not self.place.state:
            raise _exdev()
        check_name(newname)
        old, new = self.place, directory.place
        source = await old.get(oldname)
        try:
            target = await new.find(newname)
            try:
                if target is not None:
                    if target.path == source.path:
                        return
                    if target.holds(old):
                        raise OSError(errno.ENOTEMPTY, "directory not empty")
                if source.holds(new):
                    raise OSError(errno.EINVAL, "a directory into itself")
                if target is not None:
                    _may_replace(source, target)
                    if target.kind & m.QTDIR and await target.entries():
                        raise OSError(errno.ENOTEMPTY, "directory not empty")
                if source.kind & m.QTDIR and source.files()[-1].layer > 0:
                    raise OSError(errno.EXDEV, "a directory with lower layers")
                await self._move(source, directory, newname)
            finally:
                if target is not None:
                    await target.release()
        finally:
            await source.release()

    async def _move(self, source: _Place, directory: UnionFile, newname: bytes) -> None:
        old, new = self.place, directory.place
        oldname = source.name
        await source.copy_up()
        to = await new.copy_up()
        at = await old.copy_up()
        await source.named_in_first(at)
        old_below, new_below = await old.below(oldname), await new.below(newname)
        await at.renameat(oldname, to, newname)
        if old_below:
            old.white_out(oldname)
        if new_below:
            new.white_out(newname)

    async def unlinkat(self, name: bytes, flags: int) -> None:
        place = await self.place.get(name)
        try:
            remove_directory = flags & m.AT_REMOVEDIR
            if remove_directory and not place.kind & m.QTDIR:
                raise OSError(errno.ENOTDIR, "not a directory")
            if not remove_directory and place.kind & m.QTDIR:
                raise OSError(errno.EISDIR, "a directory")
            if remove_directory and place.files()[-1].layer > 0 and await place.entries():
                raise OSError(errno.ENOTEMPTY, "directory not empty")
            below = await self.place.below(name)
            directory = await self.place.copy_up()
            try:
                await directory.unlinkat(name, flags)  # a first layer that cannot be written says so here
            except FileNotFoundError:
                if not below:
                    raise
            if below:
                self.place.white_out(name)
            await place.forget()
        finally:
            await place.release()

    async def remove(self) -> None:
        place = self.place
        parent = await self._still_there()
        try:
            await UnionFile(parent).unlinkat(place.name, m.AT_REMOVEDIR if place.kind & m.QTDIR else 0)
        finally:
            await parent.release()


def _may_replace(source: _Place, target: _Place) -> None:
    if source.kind & m.QTDIR and not target.kind & m.QTDIR:
        raise OSError(errno.ENOTDIR, "not a directory")
    if target.kind & m.QTDIR and not source.kind & m.QTDIR:
        raise OSError(errno.EISDIR, "a directory")


class Union(UnionFile):
    """The root of the layers' union. They are its own from now on: they are clunked with the last File of it.

    layers are roots (directories), the first in front; ValueError when there are none. See the module for what holds.
    """

    def __init__(self, layers: Sequence[File]) -> None:
        if not layers:
            raise ValueError("a union of nothing")
        super().__init__(_Place(_State(), None, b"", [_Layered(i, file) for i, file in enumerate(layers)]))
