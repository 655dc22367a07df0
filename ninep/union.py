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

import errno
import stat
from collections.abc import Sequence

from ninep import message as m
from ninep.codec import entry_size
from ninep.file import File, check_name
from ninep.message import Entry, Qid, Rgetattr, Rgetlock, Rstatfs
from ninep.unionplace import Layered, Place, State


def _exdev() -> OSError:
    return OSError(errno.EXDEV, "not of the same union")


class UnionFile(File):
    """A file of a Union."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.qid = place.qid(place.top().qid)
        self.handle: Layered | None = None  # when open
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

    async def _open(self, place: Place, flags: int) -> None:
        writing = flags & m.O_ACCMODE != m.O_RDONLY or flags & m.O_TRUNC
        copying = writing and not place.kind and not flags & m.O_DIRECTORY and not place.in_first()
        if copying and stat.S_ISREG((await place.top().getattr()).mode):  # FIFOs are opened where they are
            await place.copy_up(not flags & m.O_TRUNC)
        layer, file = place.files()[0]
        handle = await file.walk_open((), flags)
        self.handle = Layered(layer, handle)
        self.qid = place.qid(handle.qid)
        self.writable = bool(writing)

    async def create(self, name: bytes, flags: int, mode: int, gid: int) -> tuple[Qid, int]:
        if self.handle is not None:
            raise OSError(errno.EBUSY, "already open")
        place: Place | None = None
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
                place = Place(self.place.state, self.place, name, [Layered(0, file)])
                self.handle = Layered(0, handle)
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
                    self.handle = Layered(0, copy)
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
        await directory.link(await target.place.named_in_first(), name)

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

    async def _still_there(self) -> Place:
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

    async def _move(self, source: Place, directory: UnionFile, newname: bytes) -> None:
        old, new = self.place, directory.place
        oldname = source.name
        await source.named_in_first()
        to = await new.copy_up()
        at = await old.copy_up()
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


def _may_replace(source: Place, target: Place) -> None:
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
        super().__init__(Place(State(), None, b"", [Layered(i, file) for i, file in enumerate(layers)]))
