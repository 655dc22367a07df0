"""What a transport is: an ordered stream of bytes both ways. The only place that knows about sockets."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

CHUNK_SIZE = 256 * 1024  # read from a socket at once
LINGER_S = 30.0  # how long a closed socket goes on sending what was queued, to a peer that may never read it
HIGH_WATER = 1 << 20  # bytes queued before drain() waits: one message of the largest msize


class Stream(Protocol):
    """An ordered, reliable stream of bytes. One task reads; write() may be called from anywhere in the loop."""

    async def read(self, n: int) -> bytes:
        """At most n bytes, as soon as there are any; b"" at the end of the stream. OSError on failure."""

    def write(self, data: bytes) -> None:
        """Queue data; never blocks and never raises for a stream that has ended (read() tells that)."""

    async def drain(self) -> None:
        """Return when the queue is short enough to go on writing. OSError when the transport failed."""

    def close(self) -> None:
        """Close both directions, after what is queued where the transport can; a pending read() returns b""."""


@contextlib.contextmanager
def _as_oserror() -> Iterator[None]:
    """asyncssh has exceptions of its own for a connection that broke."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise ConnectionError(errno.ECONNABORTED, str(error)) from error


class _Pair:
    """A reader and a writer with asyncio's method names, as a Stream."""

    def __init__(self, reader: Any, writer: Any) -> None:
        self.reader = reader
        self.writer = writer
        self.closed = False

    async def read(self, n: int) -> bytes:
        with _as_oserror():
            data: bytes = await self.reader.read(n)
        return data

    def write(self, data: bytes) -> None:
        if not self.closed and not self.writer.is_closing():
            with contextlib.suppress(Exception):  # it has just ended: read() tells that
                self.writer.write(data)

    async def drain(self) -> None:
        with _as_oserror():
            await self.writer.drain()

    def close(self) -> None:
        self.closed = True
        self.writer.close()


def of_streams(reader: Any, writer: Any) -> Stream:
    """A Stream over a reader and a writer of asyncio or asyncssh (opened for bytes). Closing closes the writer."""
    return _Pair(reader, writer)


class _Socket:
    """A connected stream socket, read and written directly: asyncio's transports cost a copy and a callback more.

    The loop watches it all the time, and not from read to read: that would be two system calls a request.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.loop = asyncio.get_running_loop()
        self.queue: deque[memoryview] = deque()
        self.queued = 0
        self.error: OSError | None = None
        self.waiters: list[asyncio.Future[None]] = []
        self.arrived: bytes | None = None  # read and not taken yet; b"" is the end
        self.read_error: OSError | None = None
        self.reading: asyncio.Future[None] | None = None
        self.watching = True
        self.closed = False
        self.loop.add_reader(sock.fileno(), self._readable)

    async def read(self, n: int) -> bytes:
        if self.arrived is None and not self.closed:
            if not self.watching:
                self.watching = True
                self.loop.add_reader(self.sock.fileno(), self._readable)
            self.reading = self.loop.create_future()
            try:
                await self.reading
            finally:
                self.reading = None
        if self.read_error is not None:
            raise self.read_error
        data = self.arrived
        if not data or self.closed:
            return b""
        if len(data) > n:
            self.arrived = data[n:]
            return data[:n]
        self.arrived = None
        return data

    def _readable(self) -> None:
        if self.arrived is not None:  # nobody takes it: the socket's own buffer is to keep the rest
            self._unwatch()
            return
        try:
            self.arrived = self.sock.recv(CHUNK_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.read_error = error
            self.arrived = b""
        if not self.arrived:
            self._unwatch()
        if self.reading and not self.reading.done():
            self.reading.set_result(None)

    def _unwatch(self) -> None:
        if self.watching:
            self.watching = False
            self.loop.remove_reader(self.sock.fileno())

    def write(self, data: bytes) -> None:
        if self.closed or self.error or not data:
            return
        view = memoryview(data)
        if not self.queue:
            view = view[self._send(view) :]
            if not view or self.error:
                return
            self.loop.add_writer(self.sock.fileno(), self._writable)
        self.queue.append(view)
        self.queued += len(view)

    def _send(self, view: memoryview) -> int:
        try:
            return self.sock.send(view, socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            self.error = error
            return 0

    def _writable(self) -> None:
        while self.queue and not self.error:
            head = self.queue[0]
            sent = self._send(head)
            self.queued -= sent
            if sent < len(head):
                self.queue[0] = head[sent:]
                break
            self.queue.popleft()
        if self.error or not self.queue:
            self.loop.remove_writer(self.sock.fileno())
            self.queue.clear()
        if self.error or self.closed or self.queued <= HIGH_WATER // 2:
            self._wake()
        if self.closed and (self.error or not self.queue):
            self.sock.close()

    def _wake(self) -> None:
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def drain(self) -> None:
        while self.queued > HIGH_WATER and not self.error and not self.closed:
            waiter: asyncio.Future[None] = self.loop.create_future()
            self.waiters.append(waiter)
            await waiter
        if self.error:
            raise self.error

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._unwatch()
        if self.reading and not self.reading.done():
            self.reading.set_result(None)
        self._wake()
        if not self.queue:
            self.sock.close()
        else:  # _writable closes it when the queue has gone out
            self.loop.call_later(LINGER_S, self._abandon)

    def _abandon(self) -> None:
        if self.queue:
            self.error = TimeoutError(errno.ETIMEDOUT, "the peer does not read")
            self._writable()


def of_socket(sock: socket.socket) -> Stream:
    """A Stream over a connected stream socket, which it owns from here on and makes non-blocking.

    To be called inside the running loop that will use it.
    """
    return _Socket(sock)
