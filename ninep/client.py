"""A 9P connection, seen from the side that wants files: tags, fids, many requests at a time.

Any number of tasks may use one Client. What a server answers is checked where it arrives: a message that is not the
answer to a request, or more than was asked for, ends the connection. When that is over, for whatever reason, every
request under way and every later one is OSError(ENOTCONN).

Cancelling a task that waits for an answer sends Tflush; tag and fid are free again when Rflush has come.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from ninep import message as m
from ninep.codec import (
    MSIZE_DEFAULT,
    MSIZE_MIN,
    VERSION_SIZE,
    Framer,
    ProtocolError,
    decode,
    encode_into,
)
from ninep.message import Message, Request
from ninep.remote import RemoteFile
from ninep.stream import Stream

log = logging.getLogger("ninep")

R = TypeVar("R", bound=Message)

OUTSTANDING_MAX = 1000  # requests at one time; more wait for their turn. Below what our server (and others) bear
TAGS_MAX = 4096  # requests without an answer, the flushed ones too: who leaves so many is no server
CLUNKS_MAX = 256  # Tclunks at one time; more wait. A cache lets go of thousands of files at once
CLUNKS_WAITING_MAX = 1 << 15  # of those that wait. More than a FUSE mount keeps open: who leaves so many is no server
READ_SIZE = 256 * 1024  # asked of the stream at once


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
        self.clunking = 0
        self.clunks: deque[tuple[Message, asyncio.Future[Message]]] = deque()  # that wait for their turn
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
            elif made is not None and self.has_made(request, future):
                self.clunk_soon(made)  # answered in the very turn of the loop in which its waiter was cancelled
            raise

    def _tag(self) -> int:
        if self.free_tags:
            return self.free_tags.pop()
        if self.next_tag >= TAGS_MAX:
            self._fail(f"the server leaves {TAGS_MAX} requests unanswered")
            return m.NOTAG  # which _send() does not come to use
        self.next_tag += 1
        return self.next_tag - 1

    def _send(
        self, tag: int, request: Message, made: int | None = None, future: asyncio.Future[Message] | None = None
    ) -> asyncio.Future[Message]:
        loop = asyncio.get_running_loop()
        if future is None:
            future = loop.create_future()
        if self.reason is not None:
            self._free(tag, made)
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

    @staticmethod
    def has_made(request: Message, future: asyncio.Future[Any]) -> bool:
        """Whether a request that makes a fid has been answered, and has made it."""
        if not future.done() or future.cancelled() or future.exception() is not None:
            return False
        return not _partial(request, future.result())

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
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        future.add_done_callback(_forget)
        future.add_done_callback(lambda _: self.free_fids.append(fid))
        if self.clunking < CLUNKS_MAX or self.reason is not None:
            self._clunk(request, future)
        else:
            self.clunks.append((request, future))
            if len(self.clunks) > CLUNKS_WAITING_MAX:
                self._fail(f"the server leaves {CLUNKS_MAX} Tclunks unanswered")
        return future

    def _clunk(self, request: Message, future: asyncio.Future[Message]) -> None:
        self.clunking += 1
        future.add_done_callback(self._clunked)
        self._send(self._tag(), request, None, future)

    def _clunked(self, _: object) -> None:
        self.clunking -= 1
        while self.clunks and self.clunking < CLUNKS_MAX:
            request, future = self.clunks.popleft()
            if not future.done():
                self._clunk(request, future)


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
