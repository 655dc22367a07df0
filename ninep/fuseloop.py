"""What pyfuse3 uses of trio, done with asyncio. Knows nothing of files, and does not import pyfuse3.

pyfuse3's own asyncio module does the same, but drops the exceptions of its tasks, and cannot tell when a request came.
"""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import Callable, Coroutine
from typing import Any


class ClosedResourceError(Exception):
    """What notify_closing() makes of a wait."""


class Nursery:
    """pyfuse3's worker tasks. The first exception ends them all and comes out; so does a cancellation."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Nursery:
        return self

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, Any]], *args: Any, name: str = "") -> None:
        self.tasks.add(asyncio.create_task(function(*args), name=name))

    async def __aexit__(self, *_error: object) -> None:
        try:
            while self.tasks:
                done, _pending = await asyncio.wait(self.tasks, return_when=asyncio.FIRST_COMPLETED)
                self.tasks -= done
                for task in done:
                    task.result()
        finally:
            for task in self.tasks:
                task.cancel()
            if self.tasks:
                await asyncio.wait(self.tasks)


class _Task:
    name = "ninep"


class Loop:
    """Takes the place of the trio module in pyfuse3. One for each mount.

    request_ns is when the request that is being handled was known to be there. pyfuse3 turns "set to now" into the
    time it reads after that; a time that a program has given can only have been read before, or lie in the future.
    """

    Lock = asyncio.Lock
    ClosedResourceError = ClosedResourceError
    open_nursery = Nursery

    def __init__(self) -> None:
        self.lowlevel = self.from_thread = self
        self.request_ns = 0
        self.mounted = False
        self.waiting: asyncio.Future[None] | None = None

    def current_trio_token(self) -> str:
        return "asyncio"

    def current_task(self) -> type[_Task]:
        return _Task

    def notify_closing(self, _fd: int) -> None:
        if self.waiting and not self.waiting.done():
            self.waiting.set_exception(ClosedResourceError())

    async def wait_readable(self, fd: int) -> None:
        """Return when there is a request, or the mount has gone. pyfuse3 calls this from one task at a time."""
        loop = asyncio.get_running_loop()
        pause_s = 0.001
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while True:
            state = poll.poll(0)
            if state:
                if state[0][1] & select.POLLIN or self.mounted:
                    break
                # An error and nothing to read: nobody has mounted the descriptor yet, and nothing tells when.
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 1.5, 0.02)
                continue
            self.waiting = loop.create_future()
            loop.add_reader(fd, self._readable)
            try:
                await self.waiting
            finally:
                self.waiting = None
                loop.remove_reader(fd)
        self.mounted = True
        self.request_ns = time.time_ns()

    def _readable(self) -> None:
        if self.waiting and not self.waiting.done():
            self.waiting.set_result(None)
