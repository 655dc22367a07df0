"""A ninep.stream.Stream without a socket, so that a run of it depends on nothing but its input."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class MemoryStream:
    """What feed() gives is read; what is written is collected in sent. The peer reads at once, whatever is written."""

    def __init__(self) -> None:
        self.incoming: deque[bytes] = deque()
        self.sent = bytearray()
        self.ended = self.closed = False
        self.wake: asyncio.Future[None] | None = None

    def feed(self, data: bytes) -> None:
        if data:
            self.incoming.append(data)
        self._wake()

    def end(self) -> None:
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        if self.wake and not self.wake.done():
            self.wake.set_result(None)

    async def read(self, n: int) -> bytes:
        while not self.closed:
            if self.incoming:
                data = self.incoming.popleft()
                if len(data) > n:
                    self.incoming.appendleft(data[n:])
                return data[:n]
            if self.ended:
                break
            self.wake = asyncio.get_running_loop().create_future()
            await self.wake
        return b""

    def write(self, data: bytes) -> None:
        if not self.closed:
            self.sent += data

    async def drain(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True
        self._wake()


async def turns(count: int = 20) -> None:
    """Let everything go on that can go on by itself."""
    for _ in range(count):
        await asyncio.sleep(0)


@contextmanager
def no_errors_logged() -> Iterator[None]:
    """Fail when ninep logs at ERROR meanwhile: it does so for its own bugs only."""
    records: list[str] = []
    handler = logging.Handler(logging.ERROR)
    formatter = logging.Formatter()
    handler.emit = lambda record: records.append(formatter.format(record))  # type: ignore[method-assign]
    logger = logging.getLogger("ninep")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
    assert not records, "\n".join(records)
