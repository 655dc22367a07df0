"""Streams over sockets whose other end does not do its part."""

import asyncio
import socket

import pytest

from ninep import stream


def test_a_peer_that_never_reads_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "LINGER_S", 0.05)

    async def run() -> None:
        ours, theirs = socket.socketpair()
        mine = stream.of_socket(ours)
        mine.write(b"x" * (8 << 20))
        mine.close()
        await asyncio.sleep(0.02)
        assert ours.fileno() >= 0  # what is queued may still go
        await asyncio.sleep(0.1)
        assert ours.fileno() < 0
        theirs.close()

    asyncio.run(run())
