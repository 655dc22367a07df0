"""A 9P connection, seen from the side that wants files: tags, fids, many requests at a time. RemoteFile is a File.

Any number of tasks may use one Client. What a server answers is checked where it arrives: a message that is not the
answer to a request, more bytes than were asked for, or a name with a slash ends the connection. When the connection is
over, for whatever reason, every request under way and every later one is OSError(ENOTCONN).

Cancelling a task that waits for an answer sends Tflush; tag and fid are free again when Rflush has come.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from ninep import message as m
from ninep.codec import (
    HEADER_SIZE,
    MSIZE_DEFAULT,
    MSIZE_MIN,
    VERSION_SIZE,
    Framer,
    ProtocolError,
    decode,
    decode_entries,
    encode_into,
)
from ninep.file import File, check_name
from ninep.message import IOHDRSZ, Entry, Message, Qid, Request, Rgetattr, Rgetlock, Rstatfs
from ninep.stream import Stream

log = logging.getLogger("ninep")

R = TypeVar("R", bound=Message)

OUTSTANDING_MAX = 1000  # requests at one time; more wait for their turn. Below what our server (and others) bear
WINDOW = 8  # Treads or Twrites that one call keeps under way: enough to fill a long link with 1 MiB messages
READ_SIZE = 256 * 1024  # asked of the stream at once
OFFSET_MAX = (1 << 63) - 1
XATTR_SIZE_MAX = 65536  # linux/limits.h; what a server says is not believed beyond it


class _Pending:
    """A request under way. Its tag is taken until its answer, or when its waiter was cancelled until Rflush."""

    __slots__ = ("answered", "future", "made", "orphaned", "request")

    def __init__(self, request: Message, future: asyncio.Future[Message], made: int | None) -> None:
        self.request = request
        self.future = future
        self.made = made  # the fid that comes to be when it succeeds
        self.orphaned = False
        self.answered = False


class Client:
    """One connection. Made by connect(); close() ends it."""

    def __init__(self, stream: Stream, trace: Callable[[str], None] | None = None, in_order: bool = False) -> None:
        self.stream = stream
        self.in_order = in_order  # the server keeps the order of requests on a fid: they may be sent without waiting
        self.trace = trace
        self.msize = VERSION_SIZE  # of what we send; agreed by connect()
        self.framer = Framer()
        self.pending: dict[int, _Pending] = {}  # by tag
        self.free_tags: list[int] = []
        self.next_tag = 0
        self.free_fids: list[int] = []
        self.next_fid = 0
        self.lacking: set[type[Message]] = set()  # what the server has said it does not have
        self.slots = asyncio.Semaphore(OUTSTANDING_MAX)
        self.parts: list[bytes | bytearray | memoryview] = []
        self.reason: str | None = None  # why the connection is over
        self.reader: asyncio.Task[None] | None = None

    @classmethod
    async def connect(
        cls,
        stream: Stream,
        *,
        msize: int = MSIZE_DEFAULT,
        trace: Callable[[str], None] | None = None,
        in_order: bool = False,
    ) -> Client:
        """Agree on 9P2000.L and at most msize bytes a frame. OSError, with the reason as text, when that fails.

        The stream is the Client's from here on, and closed when this fails. in_order says that the server carries out
        requests on a fid in the order they came, as ninep.server does; others do not promise it. It saves round trips:
        what would wait for a walk is sent right behind it.
        """
        client = cls(stream, trace, in_order)
        client.reader = asyncio.ensure_future(client._run())
        try:
            answer = await client._rpc_tag(m.NOTAG, m.Tversion(msize, m.VERSION))
            if answer.version != m.VERSION:
                raise OSError(errno.EPROTONOSUPPORT, f"the server speaks {answer.version!r}, not 9P2000.L")
            if not MSIZE_MIN <= answer.msize <= msize:
                raise OSError(errno.EPROTO, f"asked for an msize of {msize}, the server answered {answer.msize}")
        except BaseException:
            await client.close()
            raise
        client.msize = client.framer.msize = answer.msize
        return client

    async def attach(self, uname: bytes = b"", aname: bytes = b"", n_uname: int = m.NO_UID) -> RemoteFile:
        """The root of the tree aname, as the user uname or n_uname."""
        fid = self.new_fid()
        answer = await self.rpc(m.Tattach(fid, m.NOFID, uname, aname, n_uname), made=fid)
        return RemoteFile(self, fid, answer.qid)

    async def close(self) -> None:
        """End the connection. What is under way fails; nothing is clunked, the server does that at the end."""
        self._fail("closed")
        if self.reader and self.reader is not asyncio.current_task():
            self.reader.cancel()
            await asyncio.wait([self.reader])

    # Requests

    async def rpc(self, request: Request[R], made: int | None = None) -> R:
        """Send request and return its answer. OSError when the server says so, or the connection is over.

        made: the fid that the request makes; it is given back when the request fails, clunked when nobody waits.
        """
        try:
            await self.slots.acquire()
        except asyncio.CancelledError:
            if made is not None:
                self.free_fids.append(made)
            raise
        try:
            return await self._rpc_tag(self._tag(), request, made)
        finally:
            self.slots.release()

    async def _rpc_tag(self, tag: int, request: Request[R], made: int | None = None) -> R:
        future = self._send(tag, request, made)
        try:
            return await future  # type: ignore[return-value]  # _arrived has compared the classes
        except asyncio.CancelledError:
            entry = self.pending.get(tag)
            if entry is not None and entry.future is future and self.reason is None:
                entry.orphaned = True
                self._send(self._tag(), m.Tflush(tag)).add_done_callback(_forget)
            elif made is not None and _has_made(request, future):
                self.clunk_soon(made)  # answered in the very turn of the loop in which its waiter was cancelled
            raise

    def _tag(self) -> int:
        if self.free_tags:
            return self.free_tags.pop()
        if self.next_tag >= m.NOTAG:
            raise OSError(errno.EAGAIN, "no free tag")
        self.next_tag += 1
        return self.next_tag - 1

    def _send(self, tag: int, request: Message, made: int | None = None) -> asyncio.Future[Message]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Message] = loop.create_future()
        if self.reason is not None:
            future.set_exception(OSError(errno.ENOTCONN, f"9P connection: {self.reason}"))
            return future
        start = len(self.parts)
        try:
            fits = encode_into(self.parts, tag, request) <= self.msize
        except ValueError:  # a string longer than its count can say
            fits = False
        if not fits:
            del self.parts[start:]
            self._free(tag, made)
            future.set_exception(OSError(errno.ENAMETOOLONG, "request larger than msize"))
            return future
        if self.trace:
            self.trace(f"-> {tag} {request!r}")
        self.pending[tag] = _Pending(request, future, made)
        if start == 0:
            loop.call_soon(self._write)  # what is sent in one turn of the loop goes out in one write
        return future

    def _free(self, tag: int, fid: int | None) -> None:
        if tag != m.NOTAG:
            self.free_tags.append(tag)
        if fid is not None:
            self.free_fids.append(fid)

    def _write(self) -> None:
        if self.parts:
            self.stream.write(b"".join(self.parts))
            self.parts.clear()

    # Answers

    async def _run(self) -> None:
        try:
            while chunk := await self.stream.read(READ_SIZE):
                for frame in self.framer.feed(chunk):
                    self._arrived(*decode(frame))
            reason = "the server closed it"
        except ProtocolError as error:
            reason = f"the server broke the protocol: {error}"
            log.warning("9P connection closed: %s", error)
        except OSError as error:
            reason = error.strerror or str(error)
        except asyncio.CancelledError:
            reason = "closed"
        except Exception:
            log.exception("9P client: our bug, connection closed")
            reason = "internal error"
        self._fail(reason)

    def _fail(self, reason: str) -> None:
        if self.reason is None:
            self.reason = reason
            self._write()
            self.stream.close()
        pending, self.pending = self.pending, {}
        for entry in pending.values():
            if not entry.future.done():
                entry.future.set_exception(OSError(errno.ENOTCONN, f"9P connection: {reason}"))
                if entry.orphaned:
                    _forget(entry.future)

    def _arrived(self, tag: int, answer: Message) -> None:
        if self.trace:
            self.trace(f"<- {tag} {answer!r}")
        entry = self.pending.get(tag)
        if entry is None or entry.answered:
            raise ProtocolError(f"{type(answer).__name__} for tag {tag}, which asked nothing")
        request, future = entry.request, entry.future
        made = entry.made
        error: OSError | None = None
        if type(answer) is m.Rlerror:
            if type(request) is m.Tflush:
                raise ProtocolError("Rlerror in answer to Tflush")  # it has no way to fail: Plan 9 manual, flush(5)
            error = _error(answer.ecode)
        elif answer.number != request.number + 1:
            raise ProtocolError(f"{type(answer).__name__} in answer to {type(request).__name__}")
        else:
            check = CHECKS.get(type(request))
            if check:
                check(request, answer)
            if made is not None and not _partial(request, answer):
                made = None  # it has become a fid: no longer ours to give back
        if entry.orphaned:
            # The number could mean two requests if the tag were free before Rflush has come.
            entry.answered = True
            if entry.made is not None and made is None:
                self.clunk_soon(entry.made)
            entry.made = made
            return
        del self.pending[tag]
        self._free(tag, made)
        if type(request) is m.Tflush:
            # Whatever answer the flushed request was to get has come before this.
            flushed = self.pending.pop(request.oldtag, None)
            if flushed is not None:
                self._free(request.oldtag, flushed.made)
        if future.done():  # cancelled, and its waiter has not come to say so
            if entry.made is not None and made is None:
                self.clunk_soon(entry.made)
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(answer)

    # Fids

    def new_fid(self) -> int:
        """A fid that nothing has. Whoever takes it gives it to rpc(made=...)."""
        if self.free_fids:
            return self.free_fids.pop()
        self.next_fid += 1
        return self.next_fid - 1

    def clunk_soon(self, fid: int) -> asyncio.Future[Message]:
        """Send Tclunk. Nobody has to wait: fid is free when it is answered, even by an error (clunk(5))."""
        return self._last(fid, m.Tclunk(fid))

    def remove_soon(self, fid: int) -> asyncio.Future[Message]:
        """Send Tremove, which is a clunk too."""
        return self._last(fid, m.Tremove(fid))

    def _last(self, fid: int, request: Message) -> asyncio.Future[Message]:
        future = self._send(self._tag(), request)
        future.add_done_callback(_forget)
        future.add_done_callback(lambda _: self.free_fids.append(fid))
        return future


def _has_made(request: Message, future: asyncio.Future[Any]) -> bool:
    """Whether a request that makes a fid has been answered, and has made it."""
    if not future.done() or future.cancelled() or future.exception() is not None:
        return False
    return not _partial(request, future.result())


def _partial(request: Message, answer: Message) -> bool:
    """Whether a Twalk was answered but did not make its newfid."""
    return type(request) is m.Twalk and len(answer.wqid) != len(request.wname)  # type: ignore[attr-defined]


def _forget(future: asyncio.Future[Message]) -> None:
    if not future.cancelled():
        future.exception()  # looked at: asyncio need not complain


def _error(number: int) -> OSError:
    if not 0 < number <= m.ERRNO_MAX:
        number = errno.EIO
    return OSError(number, errno.errorcode.get(number, str(number)))


def _check_walk(request: m.Twalk, answer: m.Rwalk) -> None:
    if len(answer.wqid) > len(request.wname) or (request.wname and not answer.wqid):
        raise ProtocolError(f"Rwalk of {len(answer.wqid)} qids for {len(request.wname)} names")


def _check_read(request: m.Tread, answer: m.Rread) -> None:
    if len(answer.data) > request.count:
        raise ProtocolError(f"Rread of {len(answer.data)} bytes, {request.count} were asked for")


def _check_write(request: m.Twrite, answer: m.Rwrite) -> None:
    if answer.count > len(request.data):
        raise ProtocolError(f"Rwrite of {answer.count} bytes, {len(request.data)} were sent")


def _check_readdir(request: m.Treaddir, answer: m.Rreaddir) -> None:
    if len(answer.data) > request.count:
        raise ProtocolError(f"Rreaddir of {len(answer.data)} bytes, {request.count} were asked for")


CHECKS: dict[type[Message], Callable[..., None]] = {
    m.Twalk: _check_walk,
    m.Tread: _check_read,
    m.Twrite: _check_write,
    m.Treaddir: _check_readdir,
}


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
        return file, _sane(answer)

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
            if _has_made(walk, walking):
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
        self.iounit = iounit
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
        answer = await self.client.rpc(m.Treaddir(self.fid, offset, min(count, self.client.msize - HEADER_SIZE - 4)))
        try:
            entries = decode_entries(answer.data)
        except ProtocolError as error:
            raise OSError(errno.EPROTO, str(error)) from error
        # A server must not make its client's programs write elsewhere: such a name is not let in.
        return [e for e in entries if e.name and b"/" not in e.name and b"\0" not in e.name and e.offset <= OFFSET_MAX]

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
                at += await other.write(at, value[at : at + other._unit()])
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


def _sane(r: Rgetattr) -> Rgetattr:
    """r, if a kernel can take it; EIO for numbers that no file has."""
    if max(r.size, r.blocks, r.blksize) > OFFSET_MAX or r.mode >> 16 or max(r.nlink, r.rdev) >> 32:
        raise OSError(errno.EIO, "attributes that cannot be")
    return r


async def _all(calls: list[Coroutine[Any, Any, R]]) -> list[R | BaseException]:
    return await asyncio.gather(*calls, return_exceptions=True)
