"""Waiting for FIFOs without stopping the loop: the one kind of local file whose calls can block for good."""

from __future__ import annotations

import asyncio
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

    When cancelled we play the other end for a moment, which lets the thread go.
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
    def __init__(self, path: bytes, flags: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[int] = self.loop.create_future()
        self.abandoned = False
        self.flags = flags
        # Ways to the FIFO of the thread's own and of abandon()'s: the caller may close its at any time.
        self.there = os.open(path, os.O_PATH | os.O_CLOEXEC)
        _opens.add(self)
        self.thread = threading.Thread(target=self.work, args=(os.dup(self.there),), daemon=True, name="ninep-fifo")
        self.thread.start()

    def work(self, there: int) -> None:
        handle, error = -1, None
        try:
            handle = os.open(b"/proc/self/fd/%d" % there, self.flags)
            os.set_blocking(handle, False)
        except OSError as failure:
            error = failure
        os.close(there)
        _opens.discard(self)
        if not self.abandoned:
            try:
                self.loop.call_soon_threadsafe(self.settle, handle, error)
                return
            except RuntimeError:  # the loop has ended
                pass
        if handle >= 0:
            os.close(handle)

    def settle(self, handle: int, error: OSError | None) -> None:
        if self.abandoned or self.future.done():
            if handle >= 0:
                os.close(handle)
            return
        os.close(self.there)
        if error is None:
            self.future.set_result(handle)
        else:
            self.future.set_exception(error)

    def abandon(self) -> None:
        if self.future.done() and not self.future.cancelled():  # settled already: nobody takes what it got
            if self.future.exception() is None:
                os.close(self.future.result())
            return
        self.abandoned = True
        self.release()

    def release(self) -> None:
        """Be the other end, again and again: the thread may not have come to its open() yet."""
        if self.thread.is_alive():
            os.close(os.open(b"/proc/self/fd/%d" % self.there, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
            self.thread.join(0.001)
        if self.thread.is_alive():
            self.loop.call_later(0.05, self.release)
        else:
            os.close(self.there)
