"""The server as a client sees it on the wire: order, flushing, limits, and everything a hostile one may try."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ninep import message as m
from ninep import server
from ninep.codec import MSIZE_DEFAULT, Framer, decode, encode
from ninep.file import File
from ninep.localfs import LocalFile
from ninep.message import NOFID, NOTAG, Message
from ninep.stream import Stream, of_socket
from test_ninep_codec import messages, tags


class Wire:
    """A client that sends exactly what it is told to."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.framer = Framer(MSIZE_DEFAULT)
        self.queue: list[tuple[int, Message]] = []

    def send(self, *requests: tuple[int, Message]) -> None:
        self.stream.write(b"".join(encode(tag, request) for tag, request in requests))

    async def receive(self) -> tuple[int, Message] | None:
        while not self.queue:
            chunk = await asyncio.wait_for(self.stream.read(1 << 20), 10)
            if not chunk:
                return None
            self.queue += [decode(f) for f in self.framer.feed(chunk)]
        return self.queue.pop(0)

    async def rpc(self, request: Message, tag: int = 1) -> Any:
        self.send((tag, request))
        answer = await self.receive()
        assert answer is not None, f"connection closed instead of an answer to {request}"
        assert answer[0] == tag
        return answer[1]

    async def start(self, msize: int = MSIZE_DEFAULT) -> None:
        answer = await self.rpc(m.Tversion(msize, m.VERSION), NOTAG)
        assert answer == m.Rversion(min(msize, MSIZE_DEFAULT), m.VERSION)
        assert type(await self.rpc(m.Tattach(0, NOFID, b"me", b"", 0))) is m.Rattach

    async def fails(self, request: Message, *numbers: int) -> None:
        answer = await self.rpc(request)
        assert type(answer) is m.Rlerror and answer.ecode in numbers, f"{request}: {answer}"


Story = Callable[[Wire], Awaitable[None]]


def play(root: server.Root, story: Story, start: bool = True, **options: Any) -> None:
    """Run story against a server; whatever happened, the server must have ended well."""

    async def run() -> None:
        ours, theirs = socket.socketpair()
        serving = asyncio.create_task(server.serve(of_socket(theirs), root, **options))
        wire = Wire(of_socket(ours))
        if start:
            await wire.start()
        try:
            await story(wire)
        finally:
            wire.stream.close()
            await asyncio.wait_for(serving, 10)

    asyncio.run(run())


@pytest.fixture
def export(tmp_path: Path) -> LocalFile:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "f").write_bytes(b"0123456789")
    (tmp_path / "export" / "d").mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    return LocalFile.root(os.fsencode(tmp_path / "export"))


def test_version(export: LocalFile) -> None:
    async def story(wire: Wire) -> None:
        assert await wire.rpc(m.Tversion(8192, b"9P2000"), NOTAG) == m.Rversion(8192, b"unknown")
        assert await wire.rpc(m.Tversion(8192, b"9P2000.u"), NOTAG) == m.Rversion(8192, b"unknown")
        assert await wire.rpc(m.Tversion(4095, m.VERSION), NOTAG) == m.Rlerror(errno.EINVAL)
        assert await wire.rpc(m.Tversion(1 << 31, m.VERSION), NOTAG) == m.Rversion(65536, m.VERSION)
        await wire.start(8192)
        await wire.fails(m.Tattach(0, NOFID, b"", b"", 0), errno.EINVAL)
        assert await wire.rpc(m.Tversion(8192, m.VERSION), NOTAG) == m.Rversion(8192, m.VERSION)
        await wire.fails(m.Tgetattr(0, 0), errno.EBADF)  # a new version has let go of everything

    play(export, story, start=False, msize=65536)


def test_nothing_before_version(export: LocalFile) -> None:
    async def story(wire: Wire) -> None:
        wire.send((1, m.Tattach(0, NOFID, b"", b"", 0)))
        assert await wire.receive() is None

    async def unknown(wire: Wire) -> None:
        wire.stream.write(bytes.fromhex("07000000 c8 0100"))
        assert await wire.receive() is None

    play(export, story, start=False)
    play(export, unknown, start=False)


def test_what_is_not_there(export: LocalFile) -> None:
    async def story(wire: Wire) -> None:
        await wire.fails(m.Tauth(5, b"", b"", 0), errno.ENOENT)
        await wire.fails(m.Tattach(5, 0, b"", b"", 0), errno.EOPNOTSUPP)
        await wire.fails(m.Rclunk(), errno.EOPNOTSUPP)
        wire.stream.write(bytes.fromhex("07000000 c8 0100"))
        assert await wire.receive() == (1, m.Rlerror(errno.EOPNOTSUPP))
        for request in (m.Tread(9, 0, 1), m.Tclunk(9), m.Tremove(9), m.Twalk(9, 1, ()), m.Tlopen(9, 0)):
            await wire.fails(request, errno.EBADF)

    play(export, story)


def test_a_burst_is_answered_in_order_and_in_one_write(export: LocalFile) -> None:
    """Walk, getattr, open, read, clunk in one flight: what our client counts on."""

    async def story(wire: Wire) -> None:
        burst = [m.Twalk(0, 1, (b"f",)), m.Tgetattr(1, 0x7FF), m.Tlopen(1, 0), m.Tread(1, 2, 5), m.Tclunk(1)]
        wire.send(*enumerate(burst))
        chunk = await wire.stream.read(1 << 20)
        answers = [decode(f) for f in Framer(1 << 20).feed(chunk)]
        assert [tag for tag, _ in answers] == [0, 1, 2, 3, 4]
        assert [type(a) for _, a in answers] == [m.Rwalk, m.Rgetattr, m.Rlopen, m.Rread, m.Rclunk]
        assert answers[3][1] == m.Rread(b"23456")
        await wire.fails(m.Tgetattr(1, 0), errno.EBADF)

    play(export, story)


def test_walk(export: LocalFile) -> None:
    async def story(wire: Wire) -> None:
        answer = await wire.rpc(m.Twalk(0, 1, (b"d", b"nope")))
        assert type(answer) is m.Rwalk and len(answer.wqid) == 1
        await wire.fails(m.Tgetattr(1, 0), errno.EBADF)
        await wire.fails(m.Twalk(0, 1, (b"nope",)), errno.ENOENT)
        await wire.fails(m.Twalk(0, NOFID, ()), errno.EINVAL)
        await wire.rpc(m.Twalk(0, 1, ()))
        await wire.fails(m.Twalk(0, 1, ()), errno.EINVAL)
        assert len((await wire.rpc(m.Twalk(1, 1, (b"d",)))).wqid) == 1
        assert stat.S_ISDIR((await wire.rpc(m.Tgetattr(1, 0x7FF))).mode)
        await wire.fails(m.Twalk(0, 2, (b"d",) * 17), errno.EINVAL)

    play(export, story)


def test_no_way_out(export: LocalFile, tmp_path: Path) -> None:
    (tmp_path / "export" / "link").symlink_to(tmp_path)
    escapes = [(b"..", b"secret"), (b"d", b"..", b"..", b"secret"), (b"../secret",), (b"link", b"secret"), (b"/etc",)]
    escapes += [(os.fsencode(tmp_path / "secret"),), (b"d/../../secret",), (b"..\0",), (b".",), (b"",)]

    async def story(wire: Wire) -> None:
        for names in escapes:
            answer = await wire.rpc(m.Twalk(0, 1, names))
            assert type(answer) is m.Rlerror or len(answer.wqid) < len(names), names
            await wire.fails(m.Tgetattr(1, 0), errno.EBADF)
        await wire.rpc(m.Twalk(0, 2, (b"f",)))
        for bad in (b"../x", b"/tmp/x", b"", b".", b"..", b"a\0"):
            for request in (
                m.Tlcreate(0, bad, 2, 0o644, 0),
                m.Tmkdir(0, bad, 0o755, 0),
                m.Tsymlink(0, bad, b"x", 0),
                m.Tmknod(0, bad, 0o010644, 0, 0, 0),
                m.Tlink(0, 2, bad),
                m.Trename(2, 0, bad),
                m.Trenameat(0, b"f", 0, bad),
                m.Trenameat(0, bad, 0, b"x"),
                m.Tunlinkat(0, bad, 0),
            ):
                await wire.fails(request, errno.EINVAL)

    play(export, story)
    assert sorted(os.listdir(tmp_path)) == ["export", "secret"]


def test_counts_are_kept_to_msize(export: LocalFile, tmp_path: Path) -> None:
    (tmp_path / "export" / "big").write_bytes(b"x" * 100000)
    for i in range(300):
        (tmp_path / "export" / f"a-name-that-takes-some-room-{i}").touch()

    async def story(wire: Wire) -> None:
        await wire.start(4096)
        await wire.rpc(m.Twalk(0, 1, (b"big",)))
        await wire.rpc(m.Tlopen(1, 0))
        assert len((await wire.rpc(m.Tread(1, 0, 0xFFFFFFFF))).data) == 4096 - 11
        await wire.rpc(m.Twalk(0, 2, ()))
        await wire.rpc(m.Tlopen(2, m.O_DIRECTORY))
        assert 3000 < len((await wire.rpc(m.Treaddir(2, 0, 0xFFFFFFFF))).data) <= 4096 - 11
        for request in (m.Tread(1, 1 << 63, 1), m.Twrite(1, 1 << 63, b"x"), m.Treaddir(2, 1 << 63, 100)):
            await wire.fails(request, errno.EINVAL)
        await wire.rpc(m.Tsymlink(0, b"l", b"t" * 4070, 0))
        await wire.rpc(m.Twalk(0, 3, (b"l",)))
        assert len((await wire.rpc(m.Treadlink(3))).target) == 4070
        await wire.rpc(m.Tunlinkat(0, b"l", 0))
        wire.stream.write((4097).to_bytes(4, "little"))
        assert await wire.receive() is None

    play(export, story, start=False)


@pytest.mark.parametrize(
    "garbage", ["03000000", "00000000", "ffffffff", "0b000000 78 0100 0000", "0a000000 78 0100 000000", "GET / HTTP"]
)
def test_malformed_frames_close_the_connection(
    export: LocalFile, garbage: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(wire: Wire) -> None:
        wire.send((1, m.Tstatfs(0)))
        wire.stream.write(garbage.encode() if garbage.startswith("GET") else bytes.fromhex(garbage))
        answer = await wire.receive()
        assert answer is not None and type(answer[1]) is m.Rstatfs  # what came before is still answered
        if garbage.startswith("0b"):  # cut in the middle: the end of the stream is the error
            wire.stream.close()
        else:
            assert await wire.receive() is None

    with caplog.at_level(logging.WARNING, "ninep"):
        play(export, story)
    assert "9P connection closed: " in caplog.text and "Traceback" not in caplog.text


def test_remove_clunks_even_when_it_fails(export: LocalFile) -> None:
    async def story(wire: Wire) -> None:
        await wire.rpc(m.Twalk(0, 1, ()))
        await wire.fails(m.Tremove(1), errno.EBUSY)
        await wire.fails(m.Tgetattr(1, 0), errno.EBADF)
        await wire.rpc(m.Twalk(0, 1, (b"f",)))
        assert await wire.rpc(m.Tremove(1)) == m.Rremove()
        await wire.fails(m.Twalk(0, 1, (b"f",)), errno.ENOENT)

    play(export, story)


def test_xattrs_are_committed_by_clunk(export: LocalFile, tmp_path: Path) -> None:
    try:
        os.setxattr(tmp_path / "export" / "f", "user.x", b"1")
    except OSError as error:
        pytest.skip(f"no user attributes on this file system: {error}")

    async def story(wire: Wire) -> None:
        await wire.rpc(m.Twalk(0, 1, (b"f",)))
        await wire.fails(m.Txattrcreate(1, b"user.y", 65537, 0), errno.E2BIG)
        assert await wire.rpc(m.Txattrcreate(1, b"user.y", 4, 0)) == m.Rxattrcreate()
        await wire.fails(m.Txattrcreate(1, b"user.y", 4, 0), errno.EINVAL)
        assert await wire.rpc(m.Twrite(1, 0, b"ab")) == m.Rwrite(2)
        await wire.fails(m.Twrite(1, 0, b"ab"), errno.EINVAL)
        await wire.fails(m.Twrite(1, 2, b"abc"), errno.EINVAL)
        await wire.fails(m.Tgetattr(1, 0), errno.EOPNOTSUPP)
        await wire.fails(m.Twalk(1, 2, ()), errno.EOPNOTSUPP)
        assert "user.y" not in os.listxattr(tmp_path / "export" / "f")
        await wire.rpc(m.Twrite(1, 2, b"cd"))
        await wire.rpc(m.Tclunk(1))
        await wire.rpc(m.Twalk(0, 1, (b"f",)))
        assert await wire.rpc(m.Txattrwalk(1, 2, b"user.y")) == m.Rxattrwalk(4)
        assert await wire.rpc(m.Tread(2, 1, 10)) == m.Rread(b"bcd")
        await wire.fails(m.Txattrwalk(1, 3, b"user.nope"), errno.ENODATA)
        await wire.fails(m.Txattrwalk(1, 2, b"user.y"), errno.EINVAL)
        await wire.rpc(m.Tclunk(2))
        await wire.rpc(m.Txattrcreate(1, b"user.x", 0, m.XATTR_REPLACE))  # v9fs's way to remove one
        await wire.rpc(m.Tclunk(1))
        await wire.rpc(m.Twalk(0, 1, (b"f",)))
        await wire.rpc(m.Txattrcreate(1, b"user.z", 3, 0))
        await wire.fails(m.Tclunk(1), errno.EINVAL)  # not sent whole
        await wire.rpc(m.Twalk(0, 1, (b"f",)))
        await wire.rpc(m.Txattrcreate(1, b"user.z", 0, 0))  # and never clunked

    play(export, story)
    assert os.listxattr(tmp_path / "export" / "f") == ["user.y"]


def test_xattr_fids_are_bounded(export: LocalFile) -> None:
    async def story(wire: Wire) -> None:
        for i in range(server.XATTR_FIDS_MAX):
            await wire.rpc(m.Twalk(0, i + 1, (b"f",)))
            assert await wire.rpc(m.Txattrcreate(i + 1, b"user.x", 65536, 0)) == m.Rxattrcreate()
        await wire.rpc(m.Twalk(0, 9999, (b"f",)))
        await wire.fails(m.Txattrcreate(9999, b"user.x", 1, 0), errno.EMFILE)
        await wire.fails(m.Txattrwalk(0, 10000, b""), errno.EMFILE)
        await wire.fails(m.Tclunk(1), errno.EINVAL)
        assert await wire.rpc(m.Txattrcreate(9999, b"user.x", 1, 0)) == m.Rxattrcreate()

    play(export, story)


def test_fids_are_bounded(export: LocalFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FIDS_MAX", 10)

    async def story(wire: Wire) -> None:
        for i in range(1, 10):
            await wire.rpc(m.Twalk(0, i, ()))
        await wire.fails(m.Twalk(0, 10, ()), errno.EMFILE)
        await wire.rpc(m.Tclunk(3))
        assert type(await wire.rpc(m.Twalk(0, 10, ()))) is m.Rwalk

    play(export, story)


# Requests that wait


class Slow(File):
    """A file whose reads wait until they are let go."""

    def __init__(self) -> None:
        self.qid = m.Qid(0, 0, 1)
        self.reads: list[asyncio.Future[bytes]] = []
        self.log: list[str] = []

    async def walk(self, names: Any) -> Any:
        return [self.qid] * len(names), self

    async def read(self, offset: int, count: int) -> bytes:
        self.reads.append(asyncio.get_running_loop().create_future())
        try:
            return await self.reads[-1]
        except asyncio.CancelledError:
            self.log.append("cancelled")
            raise

    async def write(self, offset: int, data: Any) -> int:
        self.log.append("write")
        return len(data)

    async def fsync(self, datasync: bool) -> None:
        raise RuntimeError("a bug of ours")

    async def clunk(self) -> None:
        self.log.append("clunk")


def test_order_is_kept_on_a_fid_and_not_between_fids() -> None:
    slow = Slow()

    async def story(wire: Wire) -> None:
        await wire.rpc(m.Twalk(0, 1, ()))
        await wire.rpc(m.Twalk(0, 2, ()))
        wire.send((1, m.Tread(1, 0, 10)), (2, m.Twrite(1, 0, b"x")), (3, m.Twrite(2, 0, b"yy")), (4, m.Tclunk(1)))
        assert await wire.receive() == (3, m.Rwrite(2))
        assert slow.log == ["write"]
        slow.reads[0].set_result(b"done")
        assert [await wire.receive() for _ in range(3)] == [(1, m.Rread(b"done")), (2, m.Rwrite(1)), (4, m.Rclunk())]
        assert slow.log == ["write", "write", "clunk"]

    play(slow, story)


def test_flush() -> None:
    slow = Slow()

    async def story(wire: Wire) -> None:
        assert await wire.rpc(m.Tflush(77), 5) == m.Rflush()
        wire.send((1, m.Tread(0, 0, 10)), (2, m.Twrite(0, 0, b"x")), (3, m.Tflush(2)), (4, m.Tflush(1)))
        assert {tag for tag, _ in [await wire.receive() or (0, None) for _ in range(2)]} == {3, 4}
        assert slow.log == ["cancelled"]  # and no write: it was flushed while it waited
        wire.send((1, m.Tread(0, 0, 10)), (2, m.Twrite(0, 0, b"x")))
        await asyncio.sleep(0.01)
        slow.reads[-1].set_result(b"in time")
        await asyncio.sleep(0.01)
        wire.send((9, m.Tflush(1)))
        # the answer was on its way: it comes first
        assert [await wire.receive() for _ in range(3)] == [(1, m.Rread(b"in time")), (2, m.Rwrite(1)), (9, m.Rflush())]

    play(slow, story)


def test_clunk_is_not_flushed_away() -> None:
    slow = Slow()

    async def story(wire: Wire) -> None:
        await wire.rpc(m.Twalk(0, 1, ()))
        wire.send((1, m.Tread(1, 0, 10)), (2, m.Tclunk(1)), (3, m.Tflush(2)), (4, m.Tflush(1)))
        answers = [await wire.receive() for _ in range(3)]
        assert (4, m.Rflush()) in answers
        assert answers.index((2, m.Rclunk())) < answers.index((3, m.Rflush()))
        await wire.fails(m.Tread(1, 0, 1), errno.EBADF)

    play(slow, story)


def test_flushing_one_that_waits_lets_nobody_overtake() -> None:
    slow = Slow()

    async def story(wire: Wire) -> None:
        await wire.rpc(m.Twalk(0, 1, ()))
        wire.send((1, m.Tread(1, 0, 10)), (2, m.Twrite(1, 0, b"x")), (3, m.Tclunk(1)), (4, m.Tflush(2)))
        assert await wire.receive() == (4, m.Rflush())
        wire.send((5, m.Tgetattr(1, 0)))
        await asyncio.sleep(0.01)
        assert slow.log == []  # the clunk still waits for the read
        slow.reads[0].set_result(b"done")
        answers = [await wire.receive() for _ in range(3)]
        assert answers == [(1, m.Rread(b"done")), (3, m.Rclunk()), (5, m.Rlerror(errno.EBADF))]

    play(slow, story)


def test_a_tag_in_use_closes_the_connection() -> None:
    slow = Slow()

    async def story(wire: Wire) -> None:
        wire.send((1, m.Tread(0, 0, 10)), (1, m.Tread(0, 0, 10)))
        assert await wire.receive() is None

    play(slow, story)
    assert slow.log == ["cancelled", "clunk"]


def test_outstanding_requests_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "OUTSTANDING_MAX", 10)
    slow = Slow()

    async def story(wire: Wire) -> None:
        await wire.rpc(m.Twalk(0, 1, ()))
        wire.send(*((i, m.Tread(i % 2, 0, 10)) for i in range(12)))
        assert await wire.receive() == (10, m.Rlerror(errno.EAGAIN))
        assert await wire.receive() == (11, m.Rlerror(errno.EAGAIN))
        wire.send(*((100 + i, m.Tflush(0)) for i in range(20)))
        while (answer := await wire.receive()) is not None:
            assert type(answer[1]) is m.Rflush

    play(slow, story)


def test_a_clunk_is_never_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client takes the fid for gone whatever the answer, and would use the number again."""
    monkeypatch.setattr(server, "OUTSTANDING_MAX", 4)
    slow = Slow()

    async def story(wire: Wire) -> None:
        await wire.rpc(m.Twalk(0, 1, ()))
        wire.send(*((i, m.Tread(1, 0, 10)) for i in range(4)), (8, m.Tclunk(1)), (9, m.Tread(1, 0, 10)))
        assert await wire.receive() == (9, m.Rlerror(errno.EAGAIN))
        for i in (3, 1, 2):
            assert await wire.rpc(m.Tflush(i), 30) == m.Rflush()
        wire.send((20, m.Tflush(0)))
        assert {(await wire.receive() or (0,))[0] for _ in range(2)} == {8, 20}
        await wire.fails(m.Tread(1, 0, 1), errno.EBADF)
        wire.send(*((i, m.Tread(0, 0, 10)) for i in range(4)), *((i, m.Tremove(0)) for i in range(10, 20)))
        assert await wire.receive() is None

    play(slow, story)


def test_what_waiting_requests_hold_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand requests of a megabyte, or with answers of a megabyte, would be a gigabyte."""
    monkeypatch.setattr(server, "HELD_MAX", 100000)
    slow = Slow()

    async def story(wire: Wire) -> None:
        await wire.rpc(m.Twalk(0, 1, ()))
        wire.send((1, m.Tread(0, 0, 30000)), (2, m.Tread(1, 0, 30000)), (3, m.Tread(0, 0, 50000)))
        assert await wire.receive() == (3, m.Rlerror(errno.EAGAIN))
        wire.send((3, m.Twrite(0, 0, b"x" * 30000)))
        wire.send((4, m.Twrite(1, 0, b"x" * 30000)))
        assert await wire.receive() == (4, m.Rlerror(errno.EAGAIN))
        wire.send((4, m.Tflush(2)))
        assert await wire.receive() == (4, m.Rflush())
        wire.send((4, m.Tread(1, 0, 30000)), (5, m.Tflush(1)), (6, m.Tflush(4)))
        assert {(await wire.receive() or (0,))[0] for _ in range(3)} == {3, 5, 6}

    play(slow, story)


def test_a_frame_of_an_unknown_type_has_to_have_a_tag_of_its_own() -> None:
    async def story(wire: Wire) -> None:
        wire.send((1, m.Tread(0, 0, 10)))
        wire.stream.write(bytes.fromhex("07000000 c8 0100"))
        assert await wire.receive() is None

    play(Slow(), story)


def test_a_lock_is_waited_for(export: LocalFile, tmp_path: Path) -> None:
    """The answer comes when the lock is free; meanwhile its fid can be used, and a flush or a clunk ends it."""
    taken = LocalFile.root(os.fsencode(tmp_path / "export" / "f"))
    wr, un, block = m.LOCK_TYPE_WRLCK, m.LOCK_TYPE_UNLCK, m.LOCK_FLAGS_BLOCK

    async def story(wire: Wire) -> None:
        await wire.rpc(m.Twalk(0, 1, (b"f",)))
        await wire.rpc(m.Tlopen(1, m.O_RDWR))
        await taken.open(m.O_RDWR)
        assert await taken.lock(wr, 0, 0, 10, 1, b"") == m.LOCK_SUCCESS
        wait = m.Tlock(1, wr, block, 0, 10, 1, b"")
        assert (await wire.rpc(m.Tlock(1, wr, 0, 0, 10, 1, b""))).status == m.LOCK_BLOCKED
        wire.send((5, wait))
        assert (await wire.rpc(m.Tread(1, 0, 10))).data == b"0123456789"
        assert (await wire.rpc(m.Tlock(1, wr, 0, 20, 10, 1, b""))).status == m.LOCK_SUCCESS
        assert await taken.lock(un, 0, 0, 10, 1, b"") == m.LOCK_SUCCESS
        tag, answer = await wire.receive() or (0, None)
        assert (tag, answer) == (5, m.Rlock(m.LOCK_SUCCESS))
        assert (await wire.rpc(m.Tlock(1, un, 0, 0, 10, 1, b""))).status == m.LOCK_SUCCESS
        assert await taken.lock(wr, 0, 0, 10, 1, b"") == m.LOCK_SUCCESS
        wire.send((5, wait))
        await wire.rpc(m.Tflush(5), tag=6)
        wire.send((5, wait))
        await wire.rpc(m.Tclunk(1), tag=6)
        tag, answer = await wire.receive() or (0, None)
        assert (tag, answer) == (5, m.Rlerror(errno.EBADF))
        await taken.clunk()

    play(export, story)


def test_our_bugs_are_loud_and_not_fatal(caplog: pytest.LogCaptureFixture) -> None:
    async def story(wire: Wire) -> None:
        await wire.fails(m.Tfsync(0, 0), errno.EIO)
        assert await wire.rpc(m.Twrite(0, 0, b"x")) == m.Rwrite(1)

    play(Slow(), story)
    assert "our bug" in caplog.text and "a bug of ours" in caplog.text


def test_end_of_stream_lets_go_of_everything(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    os.mkfifo(tmp_path / "p")
    gc.collect()  # what earlier tests have not clunked
    before = len(os.listdir("/proc/self/fd"))
    root = LocalFile.root(os.fsencode(tmp_path))

    async def story(wire: Wire) -> None:
        for i in range(1, 50):
            await wire.rpc(m.Twalk(0, i, (b"f",)))
            await wire.rpc(m.Tlopen(i, 0))
        await wire.rpc(m.Twalk(0, 50, (b"p",)))
        wire.send((1, m.Tlopen(50, 0)))
        await asyncio.sleep(0.05)

    play(root, story)
    asyncio.run(root.clunk())
    for _ in range(100):
        if len(os.listdir("/proc/self/fd")) == before:
            break
        asyncio.run(asyncio.sleep(0.01))
    assert len(os.listdir("/proc/self/fd")) == before


def test_attach_by_function(export: LocalFile) -> None:
    seen = []

    def attach(request: m.Tattach) -> File:
        seen.append(request)
        if request.aname == b"no":
            raise OSError(errno.EACCES, "no")
        return Slow()

    async def story(wire: Wire) -> None:
        await wire.fails(m.Tattach(1, NOFID, b"me", b"no", 7), errno.EACCES)
        assert await wire.rpc(m.Tattach(1, NOFID, b"me", b"yes", 7)) == m.Rattach(m.Qid(0, 0, 1))

    play(attach, story)
    assert [(r.aname, r.n_uname) for r in seen] == [(b"", 0), (b"no", 7), (b"yes", 7)]


def test_trace_shows_both_directions(export: LocalFile) -> None:
    lines: list[str] = []

    async def story(wire: Wire) -> None:
        await wire.fails(m.Twalk(0, 1, (b"nope",)), errno.ENOENT)

    play(export, story, trace=lines.append)
    assert lines[-2:] == ["<- 1 Twalk fid 0 newfid 1 nwname 1 'nope'", "-> 1 Rlerror ENOENT"]


@given(st.lists(st.tuples(tags, messages), max_size=30), st.binary(max_size=40))
@settings(max_examples=150, deadline=None)
def test_any_messages_in_any_order(tmp_path_factory: pytest.TempPathFactory, sent: Any, tail: bytes) -> None:
    """Nothing valid or invalid takes the server down, makes it log a traceback, or reaches outside."""
    base = tmp_path_factory.mktemp("any")
    (base / "export").mkdir()
    (base / "export" / "f").touch()
    root = LocalFile.root(os.fsencode(base / "export"))
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger("ninep").addHandler(handler)

    async def story(wire: Wire) -> None:
        wire.send((1, m.Twalk(0, 1, (b"f",))), (1, m.Tlopen(1, 2)), *sent)
        wire.stream.write(tail)
        for _ in range(2):
            await wire.receive()

    try:
        play(root, story)
    finally:
        logging.getLogger("ninep").removeHandler(handler)
    assert [r.getMessage() for r in records if r.levelno >= logging.ERROR] == []
    assert os.listdir(base) == ["export"]
