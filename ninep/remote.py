"""A fid of a connection as a File.

The values in a server's answers are checked here: what no file can have is EIO, and an entry whose name is no name is
left out of its directory.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ninep import message as m
from ninep.codec import ProtocolError, decode_entries
from ninep.file import NAME_MAX, File, check_name
from ninep.message import IOHDRSZ, Entry, Message, Qid, Request, Rgetattr, Rgetlock, Rstatfs

if TYPE_CHECKING:
    from ninep.client import Client

R = TypeVar("R", bound=Message)

WINDOW = 8  # Treads or Twrites that one call keeps under way: enough to fill a long link with 1 MiB messages
IOUNIT_MIN = 512  # the smallest block of a disk; a server that says less would have a message sent for each byte
OFFSET_MAX = (1 << 63) - 1
XATTR_SIZE_MAX = 65536  # linux/limits.h; what a server says is not believed beyond it


class RemoteFile(File):
    """A fid of a Client. Not clunked by itself when it is dropped: whoever has it does that, with clunk() or drop()."""

    def __init__(self, client: Client, fid: int, qid: Qid) -> None:
        self.client = client
        self.fid = fid
        self.qid = qid
        self.iounit = 0  # the most bytes of one Tread or Twrite; 0: what msize allows
        self.appends = False  # its writes must not overtake each other

    def drop(self) -> None:
        """clunk() without waiting for the answer, and without its error."""
        self.client.clunk_soon(self.fid)

    async def walk(self, names: Sequence[bytes]) -> tuple[list[Qid], File | None]:
        client = self.client
        fid = client.new_fid()
        qids: list[Qid] = []
        start = self.fid
        names = tuple(names)
        while True:
            step = names[len(qids) : len(qids) + m.MAX_NAMES]
            first = start != fid
            try:
                answer = await client.rpc(m.Twalk(start, fid, step), made=fid if first else None)
            except BaseException as error:
                if first:
                    raise
                client.clunk_soon(fid)
                if not isinstance(error, OSError):
                    raise
                return qids, None
            qids += answer.wqid
            if len(answer.wqid) < len(step):
                if not first:
                    client.clunk_soon(fid)
                return qids, None
            if len(qids) == len(names):
                return qids, RemoteFile(client, fid, qids[-1] if qids else self.qid)
            start = fid

    async def walk_getattr(self, name: bytes, mask: int = m.GETATTR_BASIC) -> tuple[File, Rgetattr]:
        if not self.client.in_order:
            return await super().walk_getattr(name, mask)
        file, answer = await self._walk_and((name,), lambda fid: m.Tgetattr(fid, mask))
        try:
            return file, _sane(answer)
        except OSError:
            file.drop()
            raise

    async def walk_open(self, names: Sequence[bytes], flags: int) -> File:
        names = tuple(names)
        if not self.client.in_order or len(names) > m.MAX_NAMES:
            return await super().walk_open(names, flags)
        file, answer = await self._walk_and(names, lambda fid: m.Tlopen(fid, flags))
        file._opened(flags, answer.qid, answer.iounit)
        return file

    async def _walk_and(self, names: tuple[bytes, ...], then: Callable[[int], Request[R]]) -> tuple[RemoteFile, R]:
        """A Twalk, and right behind it a request on the fid it is to make. The File and that one's answer."""
        client = self.client
        fid = client.new_fid()
        walk = m.Twalk(self.fid, fid, names)
        walking = asyncio.ensure_future(client.rpc(walk, made=fid))
        following = asyncio.ensure_future(client.rpc(then(fid)))
        try:
            await asyncio.wait([walking, following])
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # a task cancelled before its first step would not give back its fid
            if client.has_made(walk, walking):
                client.clunk_soon(fid)
            walking.cancel()
            following.cancel()
            await asyncio.wait([walking, following])
            raise
        failure = following.exception()  # of a walk that failed, it is of no interest
        qids = walking.result().wqid
        if len(qids) < len(names):
            raise OSError(errno.ENOENT, "no such file")
        file = RemoteFile(client, fid, qids[-1] if qids else self.qid)
        if failure is not None:
            file.drop()
            raise failure
        return file, following.result()

    async def open(self, flags: int) -> tuple[Qid, int]:
        answer = await self.client.rpc(m.Tlopen(self.fid, flags))
        return self._opened(flags, answer.qid, answer.iounit)

    async def create(self, name: bytes, flags: int, mode: int, gid: int) -> tuple[Qid, int]:
        answer = await self.client.rpc(m.Tlcreate(self.fid, name, flags, mode, gid))
        return self._opened(flags, answer.qid, answer.iounit)

    def _opened(self, flags: int, qid: Qid, iounit: int) -> tuple[Qid, int]:
        self.qid = qid
        self.iounit = iounit if iounit >= IOUNIT_MIN else 0
        self.appends = bool(flags & m.O_APPEND)
        return qid, iounit

    def _unit(self) -> int:
        most = self.client.msize - IOHDRSZ
        return min(self.iounit or most, most)

    async def read(self, offset: int, count: int) -> bytes | bytearray | memoryview:
        unit = self._unit()
        if count <= unit:
            return (await self.client.rpc(m.Tread(self.fid, offset, count))).data
        result = bytearray()
        while len(result) < count:
            # A window of Treads; what follows a short one is asked for again, and nothing follows an empty one.
            first = offset + len(result)
            end = min(offset + count, first + WINDOW * unit)
            answers = await _all(
                [self.client.rpc(m.Tread(self.fid, at, min(unit, end - at))) for at in range(first, end, unit)]
            )
            for at, answer in zip(range(first, end, unit), answers, strict=True):
                if isinstance(answer, BaseException):
                    if result:
                        return result
                    raise answer
                result += answer.data
                if len(answer.data) < min(unit, end - at):
                    break
            if not isinstance(answer, BaseException) and not len(answer.data):
                break
        return result

    async def write(self, offset: int, data: bytes | bytearray | memoryview) -> int:
        unit = self._unit()
        size = len(data)
        if size <= unit:
            return (await self.client.rpc(m.Twrite(self.fid, offset, data))).count
        view = memoryview(data)
        done = 0
        window = unit * (1 if self.appends and not self.client.in_order else WINDOW)
        while done < size:
            end = min(size, done + window)
            pieces = [view[at : min(end, at + unit)] for at in range(done, end, unit)]
            answers = await _all(
                [self.client.rpc(m.Twrite(self.fid, offset + done + i * unit, piece)) for i, piece in enumerate(pieces)]
            )
            for piece, answer in zip(pieces, answers, strict=True):
                if isinstance(answer, BaseException):
                    if done:
                        return done
                    raise answer
                done += answer.count
                if answer.count < len(piece):
                    return done
            await self.client.stream.drain()
        return done

    async def readdir(self, offset: int, count: int) -> list[Entry]:
        answer = await self.client.rpc(m.Treaddir(self.fid, offset, min(count, self.client.msize - IOHDRSZ)))
        try:
            entries = decode_entries(answer.data)
        except ProtocolError as error:
            raise OSError(errno.EPROTO, str(error)) from error
        # A server must not make its client's programs write elsewhere: such a name is not let in.
        return [e for e in entries if _is_name(e.name) and e.offset <= OFFSET_MAX]

    async def getattr(self, mask: int = m.GETATTR_BASIC) -> Rgetattr:
        return _sane(await self.client.rpc(m.Tgetattr(self.fid, mask)))

    async def setattr(
        self, valid: int, mode: int = 0, uid: int = 0, gid: int = 0, size: int = 0, atime_ns: int = 0, mtime_ns: int = 0
    ) -> None:
        atime, anano = divmod(atime_ns, 1000000000)
        mtime, mnano = divmod(mtime_ns, 1000000000)
        u64 = 0xFFFFFFFFFFFFFFFF
        await self.client.rpc(m.Tsetattr(self.fid, valid, mode, uid, gid, size, atime & u64, anano, mtime & u64, mnano))

    async def statfs(self) -> Rstatfs:
        return await self.client.rpc(m.Tstatfs(self.fid))

    async def readlink(self) -> bytes:
        target = (await self.client.rpc(m.Treadlink(self.fid))).target
        if not target or b"\0" in target:
            raise OSError(errno.EIO, "not a link's target")
        return target

    async def symlink(self, name: bytes, target: bytes, gid: int) -> Qid:
        return (await self.client.rpc(m.Tsymlink(self.fid, name, target, gid))).qid

    async def mknod(self, name: bytes, mode: int, major: int, minor: int, gid: int) -> Qid:
        return (await self.client.rpc(m.Tmknod(self.fid, name, mode, major, minor, gid))).qid

    async def mkdir(self, name: bytes, mode: int, gid: int) -> Qid:
        return (await self.client.rpc(m.Tmkdir(self.fid, name, mode, gid))).qid

    def _fid_of(self, other: File) -> int:
        if not isinstance(other, RemoteFile) or other.client is not self.client:
            raise OSError(errno.EXDEV, "not of the same connection")
        return other.fid

    async def link(self, target: File, name: bytes) -> None:
        await self.client.rpc(m.Tlink(self.fid, self._fid_of(target), name))

    async def rename(self, directory: File, name: bytes) -> None:
        await self.client.rpc(m.Trename(self.fid, self._fid_of(directory), name))

    async def renameat(self, oldname: bytes, directory: File, newname: bytes) -> None:
        if m.Trenameat not in self.client.lacking:
            try:
                await self.client.rpc(m.Trenameat(self.fid, oldname, self._fid_of(directory), newname))
                return
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                self.client.lacking.add(m.Trenameat)
        place = await self._entry(oldname)
        try:
            await place.rename(directory, newname)
        finally:
            place.drop()

    async def unlinkat(self, name: bytes, flags: int) -> None:
        if m.Tunlinkat not in self.client.lacking:
            try:
                await self.client.rpc(m.Tunlinkat(self.fid, name, flags))
                return
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                self.client.lacking.add(m.Tunlinkat)
        place = await self._entry(name)
        try:
            if flags & m.AT_REMOVEDIR and not place.qid.type & m.QTDIR:
                raise OSError(errno.ENOTDIR, "not a directory")
            if place.qid.type & m.QTDIR and not flags & m.AT_REMOVEDIR:
                raise OSError(errno.EISDIR, "a directory")
        except OSError:
            place.drop()
            raise
        await place._remove()

    async def _entry(self, name: bytes) -> RemoteFile:
        """The place of a name, for servers (diod is one) that have Tremove and Trename and not their newer kin."""
        _, place = await self.walk((check_name(name),))
        assert isinstance(place, RemoteFile)  # one name is there, or an error
        return place

    async def remove(self) -> None:
        # Tremove lets go of its fid whatever comes of it, and this File is to stay: so a second fid of the same place.
        _, other = await self.walk(())
        assert isinstance(other, RemoteFile)
        await other._remove()

    async def _remove(self) -> None:
        await asyncio.shield(self.client.remove_soon(self.fid))

    async def fsync(self, datasync: bool) -> None:
        await self.client.rpc(m.Tfsync(self.fid, int(datasync)))

    async def _xattr(self, name: bytes) -> bytes:
        client = self.client
        fid = client.new_fid()
        answer = await client.rpc(m.Txattrwalk(self.fid, fid, name), made=fid)
        value = RemoteFile(client, fid, self.qid)
        try:
            if answer.size > XATTR_SIZE_MAX:
                raise OSError(errno.E2BIG, "attribute too big")
            result = bytearray()
            while len(result) < answer.size:
                piece = await value.read(len(result), min(answer.size - len(result), value._unit()))
                if not len(piece):
                    break
                result += piece
            return bytes(result)
        finally:
            value.drop()

    async def getxattr(self, name: bytes) -> bytes:
        if not name:
            raise OSError(errno.EINVAL, "an attribute has a name")
        return await self._xattr(name)

    async def listxattr(self) -> bytes:
        return await self._xattr(b"")

    async def setxattr(self, name: bytes, value: bytes, flags: int) -> None:
        _, other = await self.walk(())  # Txattrcreate turns its fid into the attribute's
        assert isinstance(other, RemoteFile)
        try:
            await self.client.rpc(m.Txattrcreate(other.fid, name, len(value), flags))
            at = 0
            while at < len(value):
                count = await other.write(at, value[at : at + other._unit()])
                if not count:
                    raise OSError(errno.EIO, "the server takes nothing of the attribute")
                at += count
        except BaseException:
            other.drop()
            raise
        await other.clunk()

    async def removexattr(self, name: bytes) -> None:
        await self.setxattr(name, b"", m.XATTR_REPLACE)

    async def lock(self, type: int, flags: int, start: int, length: int, proc_id: int, client_id: bytes) -> int:
        return (await self.client.rpc(m.Tlock(self.fid, type, flags, start, length, proc_id, client_id))).status

    async def getlock(self, type: int, start: int, length: int, proc_id: int, client_id: bytes) -> Rgetlock:
        return await self.client.rpc(m.Tgetlock(self.fid, type, start, length, proc_id, client_id))

    async def clunk(self) -> None:
        await asyncio.shield(self.client.clunk_soon(self.fid))


def _is_name(name: bytes) -> bool:
    return 0 < len(name) <= NAME_MAX and b"/" not in name and b"\0" not in name


def _sane(r: Rgetattr) -> Rgetattr:
    """r, if a kernel can take it; EIO for numbers that no file has."""
    if max(r.size, r.blocks, r.blksize) > OFFSET_MAX or r.mode >> 16 or max(r.nlink, r.rdev) >> 32:
        raise OSError(errno.EIO, "attributes that cannot be")
    return r


async def _all(calls: list[Coroutine[Any, Any, R]]) -> list[R | BaseException]:
    return await asyncio.gather(*calls, return_exceptions=True)
