"""Bytes between file descriptors and a channel, without ever blocking the loop that also serves 9P.

A descriptor that somebody else shares (the user's terminal, a pipe from the shell) must not be made non-blocking: the
flag belongs to the open file, not to us. So `private` opens it anew where it can, and where it cannot the pumps only do
what poll said would not block.
"""

import asyncio
import os
import select
import stat
from collections.abc import Callable

CHUNK = 64 << 10
SHARED_CHUNK = select.PIPE_BUF
"""What a pipe takes without blocking once poll calls it writable (pipe(7))."""

LOW_BYTES, HIGH_BYTES = 64 << 10, 256 << 10
"""A writer asks its source to pause above the second and to go on below the first."""


def private(fd: int, flags: int) -> tuple[int, bool]:
    """Return a descriptor for the file behind `fd` that is ours to make non-blocking, and whether it is so.

    The caller owns a descriptor that differs from `fd`.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or (stat.S_ISCHR(mode) and os.isatty(fd)):
        try:
            return os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), True
        except OSError:
            pass
    return fd, False


def pollable(fd: int) -> bool:
    """Whether the loop can wait for `fd`: epoll refuses regular files, which never block for long (epoll_ctl(2))."""
    poll = select.epoll()
    try:
        poll.register(fd, 0)
    except PermissionError:
        return False
    finally:
        poll.close()
    return True


class Reader:
    """Reads a descriptor and hands over what comes, b"" once at the end or on an error. `fd` stays the caller's."""

    def __init__(self, fd: int, received: Callable[[bytes], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd = fd
        self._received = received
        self._waits = pollable(fd)
        self._handle: asyncio.Handle | None = None
        self.ended = False
        self._running = False
        self.resume()

    def resume(self) -> None:
        """Go on reading."""
        if self.ended or self._running:
            return
        self._running = True
        if self._waits:
            self._loop.add_reader(self._fd, self._read)
        else:
            self._handle = self._loop.call_soon(self._read)

    def pause(self) -> None:
        """Read no more until `resume`."""
        if not self._running:
            return
        self._running = False
        if self._waits:
            self._loop.remove_reader(self._fd)
        elif self._handle:
            self._handle.cancel()

    def _read(self) -> None:
        try:
            data = os.read(self._fd, CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""  # EIO is how a terminal says that its other side is gone
        if not data:
            self.stop()
        self._received(data)
        if self._running and not self._waits:
            self._handle = self._loop.call_soon(self._read)

    def drain(self) -> None:
        """Hand over, now, what can be read without waiting. For a descriptor that is non-blocking."""
        while not self.ended:
            try:
                data = os.read(self._fd, CHUNK)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.stop()
            self._received(data)

    def stop(self) -> None:
        """Read no more, ever. The descriptor may be closed after."""
        self.pause()
        self.ended = True


class Writer:
    """Writes to a descriptor in the order given, from a buffer. Owns `fd` when `owned`; closes it after `finish`.

    `flow(False)` is called when the source should pause, `flow(True)` when it may go on; `broken(error)` once, when the
    other side is gone or the disk is full: from then on what is written is dropped.
    """

    def __init__(
        self,
        fd: int,
        *,
        nonblocking: bool,
        owned: bool = False,
        flow: Callable[[bool], None] | None = None,
        broken: Callable[[OSError], None] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd = fd
        self._owned = owned
        self._chunk = CHUNK if nonblocking else SHARED_CHUNK
        self._waits = pollable(fd)
        self._buffer = bytearray()
        self._flow = flow
        self._broken = broken
        self._paused = False
        self._waiting = False
        self._finishing = False
        self._closed = False
        self._dead = False
        self._idle = asyncio.Event()
        self._idle.set()

    def write(self, data: bytes) -> None:
        """Queue bytes. Never blocks."""
        if self._dead or self._finishing or not data:
            return
        self._buffer += data
        self._idle.clear()
        if not self._waiting:
            self._write()
        if len(self._buffer) > HIGH_BYTES and not self._paused and self._flow:
            self._paused = True
            self._flow(False)

    def _write(self) -> None:
        try:
            while self._buffer:
                with memoryview(self._buffer) as view:
                    count = os.write(self._fd, view[: self._chunk if self._waits else len(view)])
                del self._buffer[:count]
                if self._waits and self._chunk == SHARED_CHUNK:
                    break  # a second write might block: ask poll first
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self._fail(error)
            return
        self._after()

    def _after(self) -> None:
        want = bool(self._buffer)
        if want and not self._waiting:
            self._waiting = True
            self._loop.add_writer(self._fd, self._write)
        elif not want and self._waiting:
            self._waiting = False
            self._loop.remove_writer(self._fd)
        if self._paused and len(self._buffer) < LOW_BYTES:
            self._paused = False
            if self._flow:
                self._flow(True)
        if not want:
            self._idle.set()
            if self._finishing:
                self.close()

    def _fail(self, error: OSError) -> None:
        self._dead = True
        self._buffer.clear()
        self._after()
        self.close()
        if self._broken:
            self._broken(error)

    def finish(self) -> None:
        """Write out what is queued, then close the descriptor if it is owned."""
        self._finishing = True
        if not self._buffer:
            self.close()

    async def drained(self) -> None:
        """Wait until everything queued is written or the other side is gone."""
        await self._idle.wait()

    def close(self) -> None:
        """Drop what is queued; close the descriptor if it is owned."""
        if self._closed:
            return
        self._closed = True
        self._dead = True
        self._buffer.clear()
        if self._waiting:
            self._waiting = False
            self._loop.remove_writer(self._fd)
        self._idle.set()
        if self._owned:
            os.close(self._fd)
