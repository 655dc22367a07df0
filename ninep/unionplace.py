"""A place in a union: what the layers have of a name, and how a lower file comes to be in the first layer.

What it means for those who use the tree is said in ninep.union.
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
from ninep.file import File, check_name
from ninep.message import Entry, Qid, Rgetattr

COPY_SIZE = 1 << 20  # bytes copied at once
READDIR_SIZE = 65536
LAYERS_MAX = 127  # layers whose qids keep their numbers, with the layer's in front
# What a file's copy may go without: attributes that its layer does not take from us, or not from this user.
OPTIONAL = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EINVAL, errno.ENODATA)


class Layered(NamedTuple):
    """A File of a layer, and the layer's number: 0 is the first."""

    layer: int
    file: File


class State:
    """What the places of one union share."""

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


class Place:
    """A name in the union, and what the layers have there. Shared by clones and children, let go with the last."""

    def __init__(self, state: State, parent: Place | None, name: bytes, stack: list[Layered]) -> None:
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

    def files(self) -> list[Layered]:
        """What there is, from the top; the copy when one has been made since the walk."""
        copy = self.state.copies.get(self.path)
        if copy is None or self.stack[0].layer == 0:
            return self.stack
        return [Layered(0, copy), *(self.stack if self.kind & m.QTDIR else ())]

    def top(self) -> File:
        return self.files()[0].file

    def in_first(self) -> bool:
        return self.files()[0].layer == 0

    def qid(self, of: Qid) -> Qid:
        return Qid(of.type, of.version, self.path)

    def holds(self, place: Place | None) -> bool:
        """Whether a place is this directory, or below it."""
        while place is not None and place.path != self.path:
            place = place.parent
        return place is not None

    def visible(self, name: bytes) -> list[Layered]:
        """The directories to look a name up in."""
        files = self.files()
        hidden = name in self.state.whiteouts.get(self.path, ())
        return [f for f in files if f.layer == 0] if hidden else files

    async def find(self, name: bytes) -> Place | None:
        """The place of a name in this directory; the caller's to release."""
        check_name(name)
        if not self.kind & m.QTDIR:
            raise OSError(errno.ENOTDIR, "not a directory")
        stack: list[Layered] = []
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
                stack.append(Layered(layer, file))
                if not file.qid.type & m.QTDIR:
                    break
        except BaseException:
            await clunk_all(stack)
            raise
        return Place(self.state, self, name, stack) if stack else None

    async def get(self, name: bytes) -> Place:
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
        place: Place | None = self
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
                    files = [*files, Layered(0, state.copies.pop(path))]
            await clunk_all(files)
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

    async def _still_there(self) -> bool:
        """Whether the name still is this file's."""
        assert self.parent is not None  # the root is in all layers
        here = await self.parent.find(self.name)
        if here is None:
            return False
        await here.release()
        return here.path == self.path

    async def _copy_up(self, data: bool) -> None:
        if self.in_first():
            return
        if not await self._still_there():
            raise OSError(errno.ENOENT, "removed meanwhile")
        assert self.parent is not None
        await self.parent._copy_up(False)
        await self._copy(self.top(), data)

    async def _copy(self, source: File, data: bool) -> None:
        """Make a copy of source under this name in the first layer, which has the directory; it is the file then."""
        assert self.parent is not None
        directory = self.parent.top()
        attributes = await source.getattr()
        name = b".union-" + os.urandom(8).hex().encode()
        self.state.hidden.add(name)
        try:
            copy = await _make(directory, name, source, attributes)
            try:
                # Who may not write to the copy will not truncate it either, and must find it whole.
                if stat.S_ISREG(attributes.mode) and (data or not attributes.mode & 0o200):
                    await _copy_data(source, copy)
                await _copy_attributes(source, copy, attributes)
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
        self.state.origins[self.state.number(0, moved.qid)] = self.path
        if attributes.nlink > 1 and not self.kind & m.QTDIR:
            self.state.linked.add(self.path)
        before = self.state.copies.get(self.path)
        self.state.copies[self.path] = moved
        if before is not None:
            await before.clunk()

    async def named_in_first(self) -> File:
        """copy_up(), and a file that was copied under another of its names has this one there, too."""
        await self.copy_up()
        if self.stack[0].layer > 0 and self.path in self.state.linked:
            async with self.state.copying:
                if await self._still_there():
                    await self._name()
        return self.top()

    async def _name(self) -> None:
        assert self.parent is not None
        await self.parent._copy_up(False)
        directory = self.parent.top()
        try:
            _, there = await directory.walk((self.name,))
        except FileNotFoundError:
            try:
                await directory.link(self.top(), self.name)
            except FileNotFoundError:  # the name it was copied under is gone, and a file without any gets no new one
                await self._copy(self.top(), True)
        else:
            assert there is not None
            await there.clunk()


async def clunk_all(files: Sequence[Layered]) -> None:
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
