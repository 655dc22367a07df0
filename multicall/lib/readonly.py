"""Any File as one that nobody can change: what would change it is EROFS, as on a file system that is mounted so."""

import errno
import os
from collections.abc import Sequence

from ninep import message as m
from ninep.file import File
from ninep.message import GETATTR_BASIC, Entry, Qid, Rgetattr, Rgetlock, Rstatfs


def _refused() -> OSError:
    return OSError(errno.EROFS, os.strerror(errno.EROFS))


class ReadOnly(File):
    """A File that passes on what reads. It owns `file`: clunking this one clunks that one."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.qid = file.qid

    async def walk(self, names: Sequence[bytes]) -> tuple[list[Qid], File | None]:
        qids, file = await self.file.walk(names)
        return qids, None if file is None else ReadOnly(file)

    async def walk_getattr(self, name: bytes, mask: int = GETATTR_BASIC) -> tuple[File, Rgetattr]:
        file, attributes = await self.file.walk_getattr(name, mask)
        return ReadOnly(file), attributes

    async def walk_open(self, names: Sequence[bytes], flags: int) -> File:
        return ReadOnly(await self.file.walk_open(names, _reading(flags)))

    async def open(self, flags: int) -> tuple[Qid, int]:
        opened = await self.file.open(_reading(flags))
        self.qid = self.file.qid
        return opened

    async def create(self, name: bytes, flags: int, mode: int, gid: int) -> tuple[Qid, int]:
        raise _refused()

    async def read(self, offset: int, count: int) -> bytes | bytearray | memoryview:
        return await self.file.read(offset, count)

    async def write(self, offset: int, data: bytes | bytearray | memoryview) -> int:
        raise OSError(errno.EBADF, "not open for writing")

    async def readdir(self, offset: int, count: int) -> list[Entry]:
        return await self.file.readdir(offset, count)

    async def getattr(self, mask: int = GETATTR_BASIC) -> Rgetattr:
        return await self.file.getattr(mask)

    async def setattr(
        self, valid: int, mode: int = 0, uid: int = 0, gid: int = 0, size: int = 0, atime_ns: int = 0, mtime_ns: int = 0
    ) -> None:
        raise _refused()

    async def statfs(self) -> Rstatfs:
        return await self.file.statfs()

    async def readlink(self) -> bytes:
        return await self.file.readlink()

    async def symlink(self, name: bytes, target: bytes, gid: int) -> Qid:
        raise _refused()

    async def mknod(self, name: bytes, mode: int, major: int, minor: int, gid: int) -> Qid:
        raise _refused()

    async def mkdir(self, name: bytes, mode: int, gid: int) -> Qid:
        raise _refused()

    async def link(self, target: File, name: bytes) -> None:
        raise _refused()

    async def rename(self, directory: File, name: bytes) -> None:
        raise _refused()

    async def renameat(self, oldname: bytes, directory: File, newname: bytes) -> None:
        raise _refused()

    async def unlinkat(self, name: bytes, flags: int) -> None:
        raise _refused()

    async def remove(self) -> None:
        raise _refused()

    async def fsync(self, datasync: bool) -> None:
        await self.file.fsync(datasync)

    async def getxattr(self, name: bytes) -> bytes:
        return await self.file.getxattr(name)

    async def listxattr(self) -> bytes:
        return await self.file.listxattr()

    async def setxattr(self, name: bytes, value: bytes, flags: int) -> None:
        raise _refused()

    async def removexattr(self, name: bytes) -> None:
        raise _refused()

    async def lock(self, type: int, flags: int, start: int, length: int, proc_id: int, client_id: bytes) -> int:
        return await self.file.lock(type, flags, start, length, proc_id, client_id)

    async def getlock(self, type: int, start: int, length: int, proc_id: int, client_id: bytes) -> Rgetlock:
        return await self.file.getlock(type, start, length, proc_id, client_id)

    async def clunk(self) -> None:
        await self.file.clunk()


def _reading(flags: int) -> int:
    """Open flags, if they only read."""
    if flags & m.O_ACCMODE != m.O_RDONLY or flags & m.O_TRUNC:
        raise _refused()
    return flags
