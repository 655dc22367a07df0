"""Pumps never block the loop, never change a descriptor that somebody else has too, and lose nothing."""

import asyncio
import fcntl
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from multicall.lib import pump


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(story(), 20)

    asyncio.run(limited())


def test_a_slow_reader_pauses_the_source_and_gets_everything() -> None:
    async def story() -> None:
        out, into = os.pipe()
        os.set_blocking(into, False)
        flows: list[bool] = []
        writer = pump.Writer(into, nonblocking=True, owned=True, flow=flows.append)
        content = os.urandom(3 << 20)
        for start in range(0, len(content), 1 << 16):
            writer.write(content[start : start + (1 << 16)])
        assert flows == [False]
        writer.finish()
        received = bytearray()
        ended = asyncio.Event()

        def take(data: bytes) -> None:
            received.extend(data)
            if not data:
                ended.set()

        pump.Reader(out, take)
        await ended.wait()
        assert received == content
        assert flows == [False, True]
        os.close(out)

    run(story)


def test_a_shared_descriptor_keeps_its_flags_and_is_never_blocked_on() -> None:
    async def story() -> None:
        out, into = os.pipe()
        writer = pump.Writer(into, nonblocking=False)
        writer.write(bytes(1 << 20))  # a blocking write of this would never return
        assert not fcntl.fcntl(into, fcntl.F_GETFL) & os.O_NONBLOCK
        await asyncio.sleep(0.05)
        received: list[bytes] = []
        reader = pump.Reader(out, received.append)
        await writer.drained()
        while sum(map(len, received)) < 1 << 20:
            await asyncio.sleep(0.01)
        reader.stop()
        writer.close()
        for fd in (out, into):
            os.close(fd)

    run(story)


def test_private_opens_a_pipe_anew() -> None:
    out, into = os.pipe()
    mine, nonblocking = pump.private(into, os.O_WRONLY)
    assert nonblocking and mine != into
    assert fcntl.fcntl(mine, fcntl.F_GETFL) & os.O_NONBLOCK
    assert not fcntl.fcntl(into, fcntl.F_GETFL) & os.O_NONBLOCK
    for fd in (out, into, mine):
        os.close(fd)


def test_a_reader_that_has_gone_is_told_once() -> None:
    async def story() -> None:
        out, into = os.pipe()
        os.close(out)
        broken: list[OSError] = []
        writer = pump.Writer(into, nonblocking=True, owned=True, broken=broken.append)
        for _ in range(3):
            writer.write(b"x")
        await writer.drained()
        assert [type(error) for error in broken] == [BrokenPipeError]

    run(story)


def test_regular_files_and_dev_null_are_read_and_written(tmp_path: Path) -> None:
    async def story() -> None:
        source = tmp_path / "source"
        content = os.urandom(300_000)
        source.write_bytes(content)
        target = os.open(tmp_path / "target", os.O_WRONLY | os.O_CREAT)
        fd = os.open(source, os.O_RDONLY)
        null = os.open("/dev/null", os.O_RDONLY)
        writer = pump.Writer(target, nonblocking=False, owned=True)
        ended = [asyncio.Event(), asyncio.Event()]
        pump.Reader(fd, lambda data: writer.write(data) if data else ended[0].set())
        pump.Reader(null, lambda data: ended[1].set())
        for event in ended:
            await event.wait()
        writer.finish()
        assert (tmp_path / "target").read_bytes() == content
        for each in (fd, null):
            os.close(each)

    run(story)
