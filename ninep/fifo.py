"""Waiting for FIFOs without stopping the loop: the one kind of local file whose calls can block for good."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading

OPENS_MAX = 64  # threads waiting for the other end of a FIFO; beyond it EAGAIN

_opens: set[object] = set()


async def readable(handle: int) -> None:
    """Wait until a non-blocking descriptor can be read. EPERM for one that nothing can wait for."""
    await _ready(handle, write=False)


async def writable(handle: int) -> None:
    """Wait until a non-blocking descriptor can be written. EPERM for one that nothing can wait for."""
    await _ready(handle, write=True)


async def _ready(handle: int, write: bool) -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    mine = os.dup(handle)  # a loop has one waiter for each descriptor, and several may wait for one FIFO
    try:
        if write:
            loop.add_writer(mine, _settle, future)
        else:
            loop.add_reader(mine, _settle, future)
        await future
    finally:
        if write:
            loop.remove_writer(mine)
        else:
            loop.remove_reader(mine)
        os.close(mine)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def open_fifo(path: bytes, flags: int) -> int:
    """open(2) of a FIFO, in a thread until the other end comes; then a non-blocking descriptor, the caller's.

    When cancelled we play the other end until the thread has let go.
    """
    if len(_opens) >= OPENS_MAX:
        raise BlockingIOError(errno.EAGAIN, "too many FIFOs are being opened")
    opening = _Opening(path, flags)
    try:
        return await opening.future
    except BaseException:  # cancelled, or closed by a server that never came to run it
        opening.abandon()
        raise


class _Opening:
    """One open(2) in its thread. Whoever comes last, the thread or abandon(), closes everything."""

    def __init__(self, path: bytes, flags: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[int] = self.loop.create_future()
        self.flags = flags
        self.lock = threading.Lock()  # over all that follows
        self.ended = False  # the thread has its answer
        self.abandoned = False
        self.error: OSError | None = None
        # A way to the FIFO that stays ours: the caller may close its own at any time.
        self.held = [os.open(path, os.O_PATH | os.O_CLOEXEC)]
        self.there = self.held[0]
        _opens.add(self)
        threading.Thread(target=self.work, daemon=True, name="ninep-fifo").start()

    def work(self) -> None:
        handle, error = -1, None
        try:
            handle = os.open(b"/proc/self/fd/%d" % self.there, self.flags)
            os.set_blocking(handle, False)
        except OSError as failure:
            error = failure
        _opens.discard(self)
        with self.lock:
            self.ended = True
            self.error = error
            if handle >= 0:
                self.held.append(handle)
            if self.abandoned:
                self.close()
                return
        try:
            self.loop.call_soon_threadsafe(self.settle)
        except RuntimeError:  # the loop has ended
            with self.lock:
                self.close()

    def settle(self) -> None:
        with self.lock:
            if self.abandoned or self.future.done():  # cancelled: abandon() is about to be called
                return
            handle = self.held.pop() if self.error is None else -1
            self.close()
        if self.error is None:
            self.future.set_result(handle)
        else:
            self.future.set_exception(self.error)

    def abandon(self) -> None:
        if self.future.done() and not self.future.cancelled():  # settled already: nobody takes what it got
            if self.future.exception() is None:
                os.close(self.future.result())
            return
        with self.lock:
            self.abandoned = True
            if self.ended:
                self.close()
                return
            # Be the other end for as long as it takes: the thread may not have come to its open() yet.
            flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
            with contextlib.suppress(OSError):
                self.held.append(os.open(b"/proc/self/fd/%d" % self.there, flags))

    def close(self) -> None:
        while self.held:
            os.close(self.held.pop())
