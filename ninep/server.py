"""A 9P connection, seen from the side that has the files: fids, tags, and one handler a T-message.

A request is answered inline: its handler is driven by the reading loop itself, and only when it has to wait does it
become a task. All answers to one read of the stream leave in one write.

Order: requests that name a common fid are carried out in the order they came, so a client may send Twalk, Tgetattr,
Tlopen and Tread in one go; only a Tlock that waits lets later ones pass. Requests on different fids may overtake each
other. Rflush goes out after whatever answer the flushed request still got.

Nothing a client sends ends the process: an OSError is Rlerror, a malformed frame ends the connection with the reason in
the log, anything else is our bug, answered EIO and logged with its traceback.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from typing import Any

from ninep import message as m
from ninep.codec import (
    HEADER_SIZE,
    MSIZE_DEFAULT,
    MSIZE_MAX,
    MSIZE_MIN,
    Framer,
    ProtocolError,
    UnknownMessage,
    decode,
    encode_entries,
    encode_into,
)
from ninep.file import File, check_name
from ninep.message import Message
from ninep.stream import Stream

log = logging.getLogger("ninep")

FIDS_MAX = 1 << 17  # a kernel keeps a fid for each name it caches: 100,000 of a big tree; about 100 MB at worst
XATTR_FIDS_MAX = 256  # each holds an attribute's value
XATTR_SIZE_MAX = 65536  # linux/limits.h, for one value and for a list of names
OUTSTANDING_MAX = 1024  # requests that wait at one time: each is a task
HELD_MAX = 256 << 20  # bytes of those, their answers' too: OUTSTANDING_MAX of what one read of the stream brings
READ_SIZE = 256 * 1024  # asked of the stream at once: its buffers are of this order
FLUSH_SIZE = 512 * 1024  # answers kept before they are written, however many requests one read brought
OFFSET_MAX = (1 << 63) - 1  # off_t
LOCK_PAUSE_S = 0.25  # between two tries to get a lock: how late it may come, against four system calls a second

Root = File | Callable[[m.Tattach], File]
Trace = Callable[[str], None]


async def serve(stream: Stream, root: Root, *, msize: int = MSIZE_DEFAULT, trace: Trace | None = None) -> None:
    """Serve one connection until its stream ends, the client breaks the protocol, or this task is cancelled.

    root: what an attach gives: a File (each attach gets a clone; the caller keeps it), or a function of the Tattach
    that returns a new File (the connection's to clunk) or raises OSError. msize: the largest frame agreed to, bytes.
    trace: called with a line for every message. At the end every fid is clunked and the stream closed.
    """
    connection = _Connection(stream, root, min(msize, MSIZE_MAX), trace)
    try:
        await connection.run()
    except ProtocolError as error:
        log.warning("9P connection closed: %s", error)
    except OSError as error:
        log.info("9P connection lost: %s", error)
    finally:
        connection.write()
        stream.close()
        await connection.reset()


class _XattrRead(File):
    """The fid that Txattrwalk makes: the attribute's value as it was then."""

    def __init__(self, value: bytes) -> None:
        self.value = value

    async def read(self, offset: int, count: int) -> bytes:
        return self.value[offset : offset + count]

    async def clunk(self) -> None:
        self.value = b""


class _XattrWrite(File):
    """What Txattrcreate makes of a fid: collects the value, sets it when clunked."""

    def __init__(self, file: File, name: bytes, size: int, flags: int) -> None:
        self.file = file
        self.name = name
        self.value = bytearray(size)
        self.written = 0
        self.flags = flags

    async def write(self, offset: int, data: bytes | bytearray | memoryview) -> int:
        if offset != self.written or offset + len(data) > len(self.value):
            raise OSError(errno.EINVAL, "not the next bytes of the attribute")
        self.value[offset : offset + len(data)] = data
        self.written += len(data)
        return len(data)

    async def clunk(self) -> None:
        try:
            if self.written != len(self.value):
                raise OSError(errno.EINVAL, "the attribute's value was not sent whole")
            # The protocol has no message to remove one; the kernel's v9fs means it by this.
            if not self.value and self.flags == m.XATTR_REPLACE:
                await self.file.removexattr(self.name)
            else:
                await self.file.setxattr(self.name, bytes(self.value), self.flags)
        finally:
            await self.file.clunk()


@types.coroutine
def _resume(coroutine: Coroutine[Any, Any, Message], waited: Any) -> Generator[Any, Any, Message]:
    """Go on, in a task, with a coroutine that was started outside one and has yielded `waited`."""
    while True:
        try:
            sent = yield waited
        except BaseException as error:  # a cancellation, mostly: the coroutine's to deal with
            failure: BaseException | None = error
        else:
            failure = None
        try:
            waited = coroutine.send(sent) if failure is None else coroutine.throw(failure)
        except StopIteration as stop:
            result: Message = stop.value
            return result


async def _in_task(coroutine: Coroutine[Any, Any, Message], waited: Any) -> Message:
    return await _resume(coroutine, waited)


async def _after(earlier: Sequence[asyncio.Future[Any]], coroutine: Coroutine[Any, Any, Message]) -> Message:
    try:
        await asyncio.wait(earlier)
    except BaseException:
        coroutine.close()
        raise
    return await coroutine


class _Connection:
    def __init__(self, stream: Stream, root: Root, msize: int, trace: Trace | None) -> None:
        self.stream = stream
        self.root = root
        self.msize_max = max(msize, MSIZE_MIN)
        self.msize = 0  # agreed by Tversion; 0 before
        self.trace = trace
        self.framer = Framer()
        self.fids: dict[int, File] = {}
        self.xattr_fids = 0
        self.tasks: dict[int, asyncio.Task[Message]] = {}  # by tag: requests that wait
        self.requests: dict[int, Message] = {}  # the same tags'
        self.held = 0  # bytes: what they keep from being freed, and what they may answer
        self.last: dict[int, asyncio.Future[None]] = {}  # by fid: done when the newest of them and all before it are
        self.parts: list[bytes | bytearray | memoryview] = []  # answers to be written
        self.size = 0
        self.batching = False

    # Requests in, answers out

    async def run(self) -> None:
        while chunk := await self.stream.read(READ_SIZE):
            self.batching = True
            for frame in self.framer.feed(chunk):
                try:
                    tag, request = decode(frame)
                except UnknownMessage as error:
                    self.check_tag(error.tag, str(error))
                    self.reply(error.tag, m.Rlerror(errno.EOPNOTSUPP))
                    continue
                if self.trace:
                    self.trace(f"<- {tag} {request!r}")
                if type(request) is m.Tversion:
                    self.reply(tag, await self.version(request))
                else:
                    self.accept(tag, request, len(frame))
                if self.size >= FLUSH_SIZE:
                    self.write()
                    await self.stream.drain()
            self.batching = False
            self.write()
            await self.stream.drain()
        if self.framer.pending:
            raise ProtocolError("the stream ended inside a frame")

    def check_tag(self, tag: int, what: str) -> None:
        if tag in self.tasks:
            raise ProtocolError(f"tag {tag} is already in use")
        if not self.msize:
            raise ProtocolError(f"{what} before Tversion")

    def accept(self, tag: int, request: Message, size: int) -> None:
        """Answer a request, or start the task that will. size: its frame's, in bytes."""
        cls = type(request)
        self.check_tag(tag, cls.__name__)
        if cls is m.Tflush:
            task = self.tasks.get(request.oldtag)  # type: ignore[attr-defined]
            if task is None:
                self.reply(tag, m.Rflush())
                return
            if len(self.tasks) >= 2 * OUTSTANDING_MAX:
                raise ProtocolError(TOO_MANY)
            if type(self.requests[request.oldtag]) not in UNCANCELLABLE:  # type: ignore[attr-defined]
                # Not at once: a task cancelled before its first step would not come to tell its handler.
                asyncio.get_running_loop().call_soon(task.cancel)
            coroutine = _rflush()
            self.start(tag, request, size, (), (), _after([task], coroutine), coroutine)
            return
        fids = [getattr(request, field) for field in _fid_fields(cls)]
        coroutine = self.answer(request)
        earlier = [self.last[fid] for fid in fids if fid in self.last] if self.last else []
        if not earlier:
            try:
                waited = coroutine.send(None)
            except StopIteration as stop:
                self.reply(tag, stop.value)
                return
            work = _in_task(coroutine, waited)
            if cls is m.Twrite:
                size = max(size, len(request.data.obj))  # type: ignore[attr-defined]  # all of what was read with it
        else:
            work = _after(earlier, coroutine)
            if cls is m.Twrite:
                request.data = bytes(request.data)  # type: ignore[attr-defined]  # and let go of what was read with it
        if cls is m.Tlock and request.flags & m.LOCK_FLAGS_BLOCK:  # type: ignore[attr-defined]
            fids = []  # nothing waits for it: whoever has the lock may give it up on this very fid
        if cls is m.Tread or cls is m.Treaddir:
            size += self.clip(request.count)  # type: ignore[attr-defined]
        if cls not in UNCANCELLABLE:
            refused = len(self.tasks) >= OUTSTANDING_MAX or self.held + size > HELD_MAX
        else:  # there is no refusing these: the fid must be gone whatever is answered (clunk(5))
            refused = len(self.tasks) >= 2 * OUTSTANDING_MAX
        if refused:
            work.close()
            coroutine.close()
            if cls in UNCANCELLABLE:
                raise ProtocolError(TOO_MANY)
            self.reply(tag, m.Rlerror(errno.EAGAIN))
        else:
            self.start(tag, request, size, fids, earlier, work, coroutine)

    def start(
        self,
        tag: int,
        request: Message,
        size: int,
        fids: Sequence[int],
        earlier: Sequence[asyncio.Future[None]],
        work: Coroutine[Any, Any, Message],
        inner: Coroutine[Any, Any, Message],
    ) -> None:
        task = asyncio.ensure_future(work)
        over: asyncio.Future[None] = task.get_loop().create_future()
        self.tasks[tag] = task
        self.requests[tag] = request
        self.held += size
        for fid in fids:
            self.last[fid] = over

        def finished(_: object) -> None:
            inner.close()  # a task cancelled before its first step has not come to it
            del self.tasks[tag], self.requests[tag]
            self.held -= size
            for before in earlier:
                before.add_done_callback(settle)
            settle()
            if not task.cancelled():
                self.reply(tag, task.result())

        def settle(_: object = None) -> None:
            # One that was flushed before its turn lets nobody past those it has waited for.
            if over.done() or not all(before.done() for before in earlier):
                return
            over.set_result(None)
            for fid in fids:
                if self.last.get(fid) is over:
                    del self.last[fid]

        task.add_done_callback(finished)

    async def answer(self, request: Message) -> Message:
        """The one place where results and exceptions become answers."""
        cls = type(request)
        try:
            handler = HANDLERS.get(cls)
            if handler is None:
                return m.Rlerror(errno.EOPNOTSUPP)
            for field in _name_fields(cls):
                check_name(getattr(request, field))
            return await handler(self, request)
        except OSError as error:
            return m.Rlerror(error.errno or errno.EIO)
        except Exception:
            log.exception("9P server: our bug, answered EIO: %r", request)
            return m.Rlerror(errno.EIO)

    def reply(self, tag: int, message: Message) -> None:
        if self.trace:
            self.trace(f"-> {tag} {message!r}")
        start = len(self.parts)
        try:
            size = encode_into(self.parts, tag, message)
        except ValueError:
            log.exception("9P server: our bug, answered EIO")
            size = encode_into(self.parts, tag, m.Rlerror(errno.EIO))
        if size > self.msize > 0:
            del self.parts[start:]
            size = encode_into(self.parts, tag, m.Rlerror(errno.EMSGSIZE))
        self.size += size
        if not self.batching and start == 0:
            # Tasks end one by one: what ends in this turn of the loop goes out together.
            asyncio.get_running_loop().call_soon(self.write)

    def write(self) -> None:
        if self.parts:
            self.stream.write(b"".join(self.parts))
            self.parts.clear()
            self.size = 0

    async def reset(self) -> None:
        """Stop everything that waits and let go of every file."""
        tasks = list(self.tasks.values())
        if tasks:
            await asyncio.sleep(0)  # as in accept(): let each take its first step
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await asyncio.sleep(0)  # their callbacks empty the tables
        self.last.clear()
        fids, self.fids = list(self.fids.values()), {}
        self.xattr_fids = 0
        for file in fids:
            try:
                await (file.file if isinstance(file, _XattrWrite) else file).clunk()
            except OSError as error:
                log.info("clunk at the end of a 9P connection: %s", error)
            except Exception:
                log.exception("9P server: our bug, at the end of a connection")

    # Fids

    def file(self, fid: int) -> File:
        try:
            return self.fids[fid]
        except KeyError:
            raise OSError(errno.EBADF, "no such fid") from None

    def check_new(self, fid: int) -> None:
        if fid in self.fids or fid == m.NOFID:
            raise OSError(errno.EINVAL, "fid in use")
        if len(self.fids) >= FIDS_MAX:
            raise OSError(errno.EMFILE, "too many fids")

    def pop(self, fid: int) -> File:
        file = self.file(fid)
        del self.fids[fid]
        if isinstance(file, _XattrRead | _XattrWrite):
            self.xattr_fids -= 1
        return file

    def count_xattr(self, size: int) -> None:
        if size > XATTR_SIZE_MAX:
            raise OSError(errno.E2BIG, "attribute too big")
        if self.xattr_fids >= XATTR_FIDS_MAX:
            raise OSError(errno.EMFILE, "too many attributes at one time")

    def clip(self, count: int) -> int:
        """A payload that fits: Rread and Rreaddir are a header and count[4] around it."""
        return min(count, self.msize - HEADER_SIZE - 4)

    # A handler each

    async def version(self, r: m.Tversion) -> Message:
        await self.reset()
        if r.msize < MSIZE_MIN:
            return m.Rlerror(errno.EINVAL)
        msize = min(r.msize, self.msize_max)
        if r.version != m.VERSION:
            self.msize = 0
            return m.Rversion(msize, b"unknown")
        self.msize = self.framer.msize = msize
        return m.Rversion(msize, m.VERSION)

    async def auth(self, r: m.Tauth) -> Message:
        # diod's clients take ENOENT alone for "none needed"; the kernel's does not ask.
        raise OSError(errno.ENOENT, "no authentication here: the transport has done it")

    async def attach(self, r: m.Tattach) -> Message:
        self.check_new(r.fid)
        if r.afid != m.NOFID:
            raise OSError(errno.EOPNOTSUPP, "no authentication here")
        file: File | None
        if isinstance(self.root, File):
            _, file = await self.root.walk(())
        else:
            file = self.root(r)
        assert file is not None
        self.fids[r.fid] = file
        return m.Rattach(file.qid)

    async def walk(self, r: m.Twalk) -> Message:
        file = self.file(r.fid)
        if r.newfid != r.fid:
            self.check_new(r.newfid)
        if len(r.wname) > m.MAX_NAMES:
            raise OSError(errno.EINVAL, "too many names")
        for name in r.wname:
            if name != b"..":
                check_name(name)
        qids, new = await file.walk(r.wname)
        if new is not None:
            self.fids[r.newfid] = new
            if r.newfid == r.fid:
                await file.clunk()
        return m.Rwalk(tuple(qids))

    async def lopen(self, r: m.Tlopen) -> Message:
        return m.Rlopen(*await self.file(r.fid).open(r.flags))

    async def lcreate(self, r: m.Tlcreate) -> Message:
        return m.Rlcreate(*await self.file(r.fid).create(r.name, r.flags, r.mode, r.gid))

    async def read(self, r: m.Tread) -> Message:
        if r.offset > OFFSET_MAX:
            raise OSError(errno.EINVAL, "negative offset")
        return m.Rread(await self.file(r.fid).read(r.offset, self.clip(r.count)))

    async def write_data(self, r: m.Twrite) -> Message:
        if r.offset > OFFSET_MAX:
            raise OSError(errno.EINVAL, "negative offset")
        return m.Rwrite(await self.file(r.fid).write(r.offset, r.data))

    async def readdir(self, r: m.Treaddir) -> Message:
        if r.offset > OFFSET_MAX:
            raise OSError(errno.EINVAL, "negative offset")
        return m.Rreaddir(encode_entries(await self.file(r.fid).readdir(r.offset, self.clip(r.count))))

    async def clunk(self, r: m.Tclunk) -> Message:
        await self.pop(r.fid).clunk()
        return m.Rclunk()

    async def remove(self, r: m.Tremove) -> Message:
        file = self.pop(r.fid)
        try:
            await file.remove()
        finally:
            await file.clunk()
        return m.Rremove()

    async def getattr(self, r: m.Tgetattr) -> Message:
        return await self.file(r.fid).getattr(r.request_mask)

    async def setattr(self, r: m.Tsetattr) -> Message:
        if r.size > OFFSET_MAX and r.valid & m.SETATTR_SIZE:
            raise OSError(errno.EINVAL, "negative size")
        await self.file(r.fid).setattr(
            r.valid,
            r.mode,
            r.uid,
            r.gid,
            r.size,
            _signed(r.atime_sec) * 1000000000 + r.atime_nsec,
            _signed(r.mtime_sec) * 1000000000 + r.mtime_nsec,
        )
        return m.Rsetattr()

    async def statfs(self, r: m.Tstatfs) -> Message:
        return await self.file(r.fid).statfs()

    async def readlink(self, r: m.Treadlink) -> Message:
        return m.Rreadlink(await self.file(r.fid).readlink())

    async def symlink(self, r: m.Tsymlink) -> Message:
        return m.Rsymlink(await self.file(r.dfid).symlink(r.name, r.symtgt, r.gid))

    async def mknod(self, r: m.Tmknod) -> Message:
        return m.Rmknod(await self.file(r.dfid).mknod(r.name, r.mode & 0o177777, r.major, r.minor, r.gid))

    async def mkdir(self, r: m.Tmkdir) -> Message:
        return m.Rmkdir(await self.file(r.dfid).mkdir(r.name, r.mode, r.gid))

    async def link(self, r: m.Tlink) -> Message:
        await self.file(r.dfid).link(self.file(r.fid), r.name)
        return m.Rlink()

    async def rename(self, r: m.Trename) -> Message:
        await self.file(r.fid).rename(self.file(r.dfid), r.name)
        return m.Rrename()

    async def renameat(self, r: m.Trenameat) -> Message:
        await self.file(r.olddirfid).renameat(r.oldname, self.file(r.newdirfid), r.newname)
        return m.Rrenameat()

    async def unlinkat(self, r: m.Tunlinkat) -> Message:
        await self.file(r.dirfid).unlinkat(r.name, r.flags)
        return m.Runlinkat()

    async def fsync(self, r: m.Tfsync) -> Message:
        await self.file(r.fid).fsync(bool(r.datasync))
        return m.Rfsync()

    async def xattrwalk(self, r: m.Txattrwalk) -> Message:
        file = self.file(r.fid)
        self.check_new(r.newfid)
        self.count_xattr(0)
        value = await (file.getxattr(r.name) if r.name else file.listxattr())
        self.count_xattr(len(value))
        self.xattr_fids += 1
        self.fids[r.newfid] = _XattrRead(value)
        return m.Rxattrwalk(len(value))

    async def xattrcreate(self, r: m.Txattrcreate) -> Message:
        file = self.file(r.fid)
        if isinstance(file, _XattrRead | _XattrWrite):
            raise OSError(errno.EINVAL, "not a file's fid")
        self.count_xattr(r.attr_size)
        self.xattr_fids += 1
        self.fids[r.fid] = _XattrWrite(file, r.name, r.attr_size, r.flags)
        return m.Rxattrcreate()

    async def lock(self, r: m.Tlock) -> Message:
        """One that may block is answered when it is had: v9fs, told that it is BLOCKED, asks again after 30 s."""
        file = self.file(r.fid)
        pause_s = 0.002
        while True:
            status = await file.lock(r.type, r.flags, r.start, r.length, r.proc_id, r.client_id)
            if status != m.LOCK_BLOCKED or not r.flags & m.LOCK_FLAGS_BLOCK:
                return m.Rlock(status)
            # Nothing tells when a lock is given up but a thread that waits for it, and that could not be stopped.
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, LOCK_PAUSE_S)
            if self.fids.get(r.fid) is not file:
                raise OSError(errno.EBADF, "closed meanwhile")

    async def getlock(self, r: m.Tgetlock) -> Message:
        return await self.file(r.fid).getlock(r.type, r.start, r.length, r.proc_id, r.client_id)


async def _rflush() -> Message:
    return m.Rflush()


def _signed(seconds: int) -> int:
    return seconds - (1 << 64) if seconds >> 63 else seconds


_fields: dict[type[Message], tuple[tuple[str, ...], tuple[str, ...]]] = {}


def _field_kinds(cls: type[Message]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    by_kind = list(zip(cls.fields, cls.kinds, strict=True))
    found = _fields[cls] = (tuple(f for f, k in by_kind if k == "Fid"), tuple(f for f, k in by_kind if k == "Name"))
    return found


def _fid_fields(cls: type[Message]) -> tuple[str, ...]:
    return (_fields.get(cls) or _field_kinds(cls))[0]


def _name_fields(cls: type[Message]) -> tuple[str, ...]:
    return (_fields.get(cls) or _field_kinds(cls))[1]


TOO_MANY = "more flushes and clunks than requests outstanding"
UNCANCELLABLE: tuple[type[Message], ...] = (m.Tclunk, m.Tremove, m.Tflush)  # what they let go of must be let go

HANDLERS: dict[type[Message], Callable[[_Connection, Any], Awaitable[Message]]] = {
    m.Tauth: _Connection.auth,
    m.Tattach: _Connection.attach,
    m.Twalk: _Connection.walk,
    m.Tread: _Connection.read,
    m.Twrite: _Connection.write_data,
    m.Tclunk: _Connection.clunk,
    m.Tremove: _Connection.remove,
    m.Tstatfs: _Connection.statfs,
    m.Tlopen: _Connection.lopen,
    m.Tlcreate: _Connection.lcreate,
    m.Tsymlink: _Connection.symlink,
    m.Tmknod: _Connection.mknod,
    m.Trename: _Connection.rename,
    m.Treadlink: _Connection.readlink,
    m.Tgetattr: _Connection.getattr,
    m.Tsetattr: _Connection.setattr,
    m.Txattrwalk: _Connection.xattrwalk,
    m.Txattrcreate: _Connection.xattrcreate,
    m.Treaddir: _Connection.readdir,
    m.Tfsync: _Connection.fsync,
    m.Tlock: _Connection.lock,
    m.Tgetlock: _Connection.getlock,
    m.Tlink: _Connection.link,
    m.Tmkdir: _Connection.mkdir,
    m.Trenameat: _Connection.renameat,
    m.Tunlinkat: _Connection.unlinkat,
}
