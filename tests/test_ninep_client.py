"""Our client against our server, against one that lies, against one that dies, and against diod."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import conformance
from ninep import client as client_module
from ninep import message as m
from ninep.client import Client
from ninep.codec import Framer, decode, encode
from ninep.file import File
from ninep.localfs import LocalFile
from ninep.message import NOTAG, TYPES, Message, Qid
from ninep.remote import RemoteFile
from ninep.server import serve
from ninep.stream import of_socket, of_streams
from test_ninep_codec import messages


@asynccontextmanager
async def connected(root: File, msize: int = 1 << 16, in_order: bool = False) -> AsyncIterator[Client]:
    ours, theirs = socket.socketpair()
    serving = asyncio.create_task(serve(of_socket(theirs), root))
    client = await Client.connect(of_socket(ours), msize=msize, in_order=in_order)
    try:
        yield client
    finally:
        await client.close()
        await serving


@pytest.mark.parametrize("in_order", [False, True], ids=["waiting", "in_order"])
@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda c: c.__name__)
def test_conformance(check: conformance.Check, tmp_path: Path, in_order: bool) -> None:
    async def run() -> None:
        local = LocalFile.root(os.fsencode(tmp_path))
        async with connected(local, in_order=in_order) as client:
            root = await client.attach()
            await check(root)
            await root.clunk()
            await asyncio.sleep(0.01)  # clunks that nobody waits for
            assert not client.pending, "requests left over"
            assert sorted(client.free_fids) == list(range(client.next_fid)), "fids left over"
            assert sorted(client.free_tags) == list(range(client.next_tag)), "tags left over"
        await local.clunk()

    asyncio.run(run())


def test_large_reads_are_split_and_pipelined(tmp_path: Path) -> None:
    block = os.urandom(1 << 20)
    (tmp_path / "f").write_bytes(block)

    async def run() -> None:
        async with connected(LocalFile.root(os.fsencode(tmp_path)), msize=4096 + 24) as client:
            most = 0

            def trace(line: str) -> None:
                nonlocal most
                most = max(most, len(client.pending))

            client.trace = trace
            file = await conformance.opened(await client.attach(), b"f", m.O_RDWR)
            assert await file.read(0, len(block)) == block
            assert await file.read(1, 10 << 20) == block[1:]
            assert most >= 8
            assert await file.write(5, block) == len(block)
            assert (await file.getattr()).size == len(block) + 5

    asyncio.run(run())
    assert (tmp_path / "f").read_bytes() == block[:5] + block


def test_requests_sent_in_one_turn_leave_in_one_write(tmp_path: Path) -> None:
    async def run() -> None:
        async with connected(LocalFile.root(os.fsencode(tmp_path))) as client:
            root = await client.attach()
            writes = 0
            write = client.stream.write

            def counted(data: bytes) -> None:
                nonlocal writes
                writes += 1
                write(data)

            client.stream.write = counted  # type: ignore[method-assign]
            await asyncio.gather(*(root.getattr() for _ in range(50)))
            assert writes == 1

    asyncio.run(run())


def test_what_follows_a_walk_is_sent_with_it(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")

    async def run() -> None:
        async with connected(LocalFile.root(os.fsencode(tmp_path)), in_order=True) as client:
            lines: list[str] = []
            root = await client.attach()
            client.trace = lines.append
            file, r = await root.walk_getattr(b"f")
            assert r.size == 1 and file.qid == r.qid
            opened = await root.walk_open((b"f",), m.O_RDONLY)
            assert bytes(await opened.read(0, 10)) == b"x"
            for call in (root.walk_getattr(b"nope"), root.walk_open((b"f", b"x"), 0), root.walk_open((b"f",), 3)):
                with pytest.raises(OSError):
                    await call
            assert [line[:2] for line in lines[:8]] == ["->", "->", "<-", "<-"] * 2

    asyncio.run(run())


@pytest.mark.parametrize("in_order", [False, True])
def test_cancelled_requests_give_back_tag_and_fid(tmp_path: Path, in_order: bool) -> None:
    """Cancelled at every turn of the loop that a request lasts, none is lost and none is given back twice."""
    os.mkfifo(tmp_path / "p")

    async def run() -> None:
        async with connected(LocalFile.root(os.fsencode(tmp_path)), in_order=in_order) as client:
            root = await client.attach()
            finished = 0
            for turns in range(30):
                for name in (b"p", b"nope"):
                    for call in (root.walk((name,)), root.walk_getattr(name)):
                        task = asyncio.create_task(call)
                        for _ in range(turns):
                            await asyncio.sleep(0)
                        task.cancel()
                        (result,) = await asyncio.gather(task, return_exceptions=True)
                        if isinstance(result, tuple):
                            finished += 1
                            await (result[0] if isinstance(result[0], File) else result[1]).clunk()
            assert 0 < finished < 60
            fifo = await conformance.at(root, b"p")
            opening = asyncio.create_task(fifo.open(m.O_RDONLY))
            await asyncio.sleep(0.02)
            opening.cancel()
            await asyncio.wait([opening])
            await fifo.clunk()
            await root.clunk()
            await asyncio.sleep(0.02)
            assert not client.pending
            assert sorted(client.free_fids) == list(range(client.next_fid))
            assert sorted(client.free_tags) == list(range(client.next_tag))

    asyncio.run(run())


def test_over_asyncio_streams(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 300000)

    async def run() -> None:
        root = LocalFile.root(os.fsencode(tmp_path))

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await serve(of_streams(reader, writer), root)

        server = await asyncio.start_unix_server(accept, str(tmp_path / "socket"))
        async with server:
            client = await Client.connect(of_streams(*await asyncio.open_unix_connection(str(tmp_path / "socket"))))
            assert len(await conformance.content(await client.attach(), b"f")) == 300000
            await client.close()
            await asyncio.sleep(0.01)

    asyncio.run(run())


# Servers that do not behave

Answers = Callable[[int, Message], bytes | None]


def lied_to(answers: Answers, story: Callable[[Client], Awaitable[None]]) -> None:
    """A client against a server that answers Tversion and Tattach well and the rest with what answers() gives it."""

    async def run() -> None:
        ours, theirs = socket.socketpair()
        wire = of_socket(theirs)

        async def lying() -> None:
            framer = Framer(1 << 20)
            while chunk := await wire.read(65536):
                for frame in framer.feed(chunk):
                    tag, request = decode(frame)
                    if isinstance(request, m.Tversion):
                        wire.write(encode(tag, m.Rversion(8192, m.VERSION)))
                    elif isinstance(request, m.Tattach):
                        wire.write(encode(tag, m.Rattach(Qid(0x80, 0, 1))))
                    else:
                        data = answers(tag, request)
                        if data is None:
                            wire.close()
                        else:
                            wire.write(data)

        server = asyncio.create_task(lying())
        client = await Client.connect(of_socket(ours))
        try:
            await asyncio.wait_for(story(client), 10)
        finally:
            await client.close()
            wire.close()
            await server

    asyncio.run(run())


def garbage(tag: int, request: Message) -> bytes:
    return b"\0\0\0\0\0\0\0\0"


LIES: dict[str, Answers] = {
    "another tag": lambda tag, _: encode(tag + 1000, m.Rlerror(1)),
    "another type": lambda tag, _: encode(tag, m.Rclunk()),
    "a request": lambda tag, _: encode(tag, m.Tclunk(1)),
    "an unknown type": lambda tag, _: bytes.fromhex("07000000c8") + tag.to_bytes(2, "little"),
    "more than asked": lambda tag, _: encode(tag, m.Rread(b"x" * 101)),
    "a frame over msize": lambda tag, _: (8193).to_bytes(4, "little"),
    "no frame": garbage,
    "the same twice": lambda tag, _: encode(tag, m.Rread(b"x")) * 2,
    "the end": lambda tag, _: None,
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_end_the_connection(lie: str, caplog: pytest.LogCaptureFixture) -> None:
    async def story(client: Client) -> None:
        file = await client.attach()
        calls = [asyncio.create_task(file.read(0, 100)) for _ in range(3)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        failed = [r for r in results if isinstance(r, BaseException)]
        assert failed
        assert all(isinstance(f, OSError) and f.errno == errno.ENOTCONN for f in failed), failed
        with conformance.fails(errno.ENOTCONN):
            await file.getattr()

    with caplog.at_level(logging.WARNING, "ninep"):
        lied_to(LIES[lie], story)
    assert "Traceback" not in caplog.text
    if lie != "the end":
        assert "9P connection closed: " in caplog.text


def test_lies_about_single_files() -> None:
    names = (b"ok", b"../up", b"a/b", b"", b"n\0l", b"..", b"x" * 256)
    entries = [m.Entry(Qid(0, 0, i), i, 8, n) for i, n in enumerate(names)]
    from ninep.codec import encode_entries

    def answers(tag: int, request: Message) -> bytes | None:
        if isinstance(request, m.Treaddir):
            return encode(tag, m.Rreaddir(encode_entries(entries)))
        if isinstance(request, m.Treadlink):
            return encode(tag, m.Rreadlink(b"a\0b"))
        if isinstance(request, m.Txattrwalk):
            return encode(tag, m.Rxattrwalk(1 << 60))
        if isinstance(request, m.Tgetattr):
            return encode(tag, m.Rlerror(ecodes.pop()))
        return encode(tag, m.Rclunk())

    ecodes = [0, 0xFFFFFFFF, 512]  # the last is ERESTARTSYS: FUSE has no answer with it, and its caller waits for ever

    async def story(client: Client) -> None:
        file = await client.attach()
        assert [e.name for e in await file.readdir(0, 4096)] == [b"ok", b".."]
        with conformance.fails(errno.EIO):
            await file.readlink()
        with conformance.fails(errno.E2BIG):
            await file.getxattr(b"user.x")
        for _ in range(3):
            with conformance.fails(errno.EIO):
                await file.getattr()

    lied_to(answers, story)


@given(st.lists(st.one_of(messages, st.binary(max_size=60))))
@settings(max_examples=150, deadline=None)
def test_any_answers(answers: list[Message | bytes]) -> None:
    """Whatever a server says, each call ends with an answer or an OSError, and nothing is logged as our bug."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = records.append  # type: ignore[method-assign]

    def next_answer(tag: int, request: Message) -> bytes | None:
        if not answers:
            return None
        answer = answers.pop()
        if isinstance(answer, bytes):
            return answer + b"\xff" * 8192  # which ends any frame, and is none
        # mostly of the right class, so that its fields are looked at
        expected = TYPES[request.number + 1]
        return encode(tag, answer) if isinstance(answer, expected | m.Rlerror) else encode(tag, m.Rlerror(5))

    async def story(client: Client) -> None:
        file = await client.attach()
        for call in (
            file.getattr(),
            file.walk((b"a", b"b")),
            file.walk_getattr(b"a"),
            file.read(0, 30000),
            file.write(0, b"x" * 30000),
            file.readdir(0, 8000),
            file.readlink(),
            file.getxattr(b"user.x"),
            file.setxattr(b"user.x", b"1", 0),
            file.statfs(),
            file.unlinkat(b"x", 0),
            file.renameat(b"x", file, b"y"),
            file.remove(),
            file.open(0),
            file.clunk(),
        ):
            with contextlib.suppress(OSError):
                await call

    logging.getLogger("ninep").addHandler(handler)
    try:
        lied_to(next_answer, story)
    finally:
        logging.getLogger("ninep").removeHandler(handler)
    assert [r.getMessage() for r in records] == []


@pytest.mark.parametrize(
    "answer", [m.Rversion(8192, b"unknown"), m.Rversion(100, m.VERSION), m.Rversion(1 << 30, m.VERSION), m.Rlerror(22)]
)
def test_versions_that_will_not_do(answer: Message) -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair()
        theirs.sendall(encode(NOTAG, answer))
        stream = of_socket(ours)
        with pytest.raises(OSError) as caught:
            await Client.connect(stream)
        assert caught.value.errno in (errno.EPROTO, errno.EPROTONOSUPPORT, errno.EINVAL)
        theirs.close()

    asyncio.run(run())


def test_a_server_that_never_answers_can_be_left() -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(Client.connect(of_socket(ours)), 0.05)
        theirs.close()

    asyncio.run(run())


def test_requests_left_unanswered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers neither a cancelled request nor its Tflush must not fill our memory, or take all tags."""
    monkeypatch.setattr(client_module, "TAGS_MAX", 100)

    async def story(client: Client) -> None:
        file = await client.attach()
        for _ in range(200):
            call = asyncio.create_task(file.getattr())
            await asyncio.sleep(0)
            call.cancel()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await call
        with conformance.fails(errno.ENOTCONN):
            await file.getattr()
        assert client.reason == "the server leaves 100 requests unanswered"
        assert not client.pending

    lied_to(lambda tag, request: b"", story)


def test_clunks_left_unanswered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "CLUNKS_WAITING_MAX", 1000)

    async def story(client: Client) -> None:
        root = await client.attach()
        for i in range(client_module.CLUNKS_MAX + 1000):
            _, file = await root.walk(())
            assert isinstance(file, RemoteFile)
            file.drop()
            assert sum(isinstance(p.request, m.Tclunk) for p in client.pending.values()) <= client_module.CLUNKS_MAX
            assert client.reason is None, i
        root.drop()
        assert client.reason == "the server leaves 256 Tclunks unanswered"
        await asyncio.sleep(0)
        assert not client.clunks or client.pending == {}
        with conformance.fails(errno.ENOTCONN):
            await root.clunk()

    lied_to(lambda tag, request: encode(tag, m.Rwalk(())) if isinstance(request, m.Twalk) else b"", story)


def test_thousands_of_files_are_let_go_at_once(tmp_path: Path) -> None:
    async def run() -> None:
        async with connected(LocalFile.root(os.fsencode(tmp_path))) as client:
            root = await client.attach()
            files = [(await root.walk(()))[1] for _ in range(3000)]
            for file in files:
                assert isinstance(file, RemoteFile)
                file.drop()
            assert len(client.pending) <= client_module.CLUNKS_MAX
            await root.clunk()
            assert not client.pending and not client.clunks
            assert sorted(client.free_fids) == list(range(client.next_fid)), "fids left over"

    asyncio.run(run())


@pytest.mark.parametrize("in_order", [False, True])
def test_attributes_that_cannot_be_keep_no_fid(in_order: bool) -> None:
    def answers(tag: int, request: Message) -> bytes:
        if isinstance(request, m.Twalk):
            return encode(tag, m.Rwalk((Qid(0, 0, 2),) * len(request.wname)))
        if isinstance(request, m.Tgetattr):
            return encode(tag, m.Rgetattr(0x7FF, Qid(0, 0, 2), 0o100644, 0, 0, 1, 0, 1 << 63, *[0] * 12))
        return encode(tag, m.Rclunk())

    async def story(client: Client) -> None:
        client.in_order = in_order
        root = await client.attach()
        with conformance.fails(errno.EIO):
            await root.walk_getattr(b"f")
        await root.clunk()
        assert sorted(client.free_fids) == list(range(client.next_fid))

    lied_to(answers, story)


def test_an_attribute_that_is_never_taken() -> None:
    def answers(tag: int, request: Message) -> bytes:
        if isinstance(request, m.Twalk):
            return encode(tag, m.Rwalk(()))
        return encode(tag, m.Rwrite(0) if isinstance(request, m.Twrite) else TYPES[request.number + 1]())

    async def story(client: Client) -> None:
        with conformance.fails(errno.EIO):
            await (await client.attach()).setxattr(b"user.x", b"1", 0)

    lied_to(answers, story)


def test_an_iounit_of_one_is_not_kept_to() -> None:
    sent: list[int] = []

    def answers(tag: int, request: Message) -> bytes:
        if isinstance(request, m.Twrite):
            sent.append(len(request.data))
            return encode(tag, m.Rwrite(len(request.data)))
        return encode(tag, m.Rlopen(Qid(0, 0, 1), 1))

    async def story(client: Client) -> None:
        file = await client.attach()
        await file.open(2)
        assert await file.write(0, b"x" * 30000) == 30000

    lied_to(answers, story)
    assert len(sent) == 4


def test_short_answers_are_asked_for_again() -> None:
    block = os.urandom(50000)
    reads: list[tuple[int, int]] = []

    def answers(tag: int, request: Message) -> bytes | None:
        if isinstance(request, m.Tread):
            reads.append((request.offset, request.count))
            count = request.count - 7 if request.count > 7 else request.count
            return encode(tag, m.Rread(block[request.offset : request.offset + count]))
        return encode(tag, m.Rlopen(Qid(0, 0, 1), 1000))

    async def story(client: Client) -> None:
        file = await client.attach()
        await file.open(0)
        assert await file.read(0, 40000) == block[:40000]
        assert max(count for _, count in reads) == 1000  # the iounit

    lied_to(answers, story)


# diod

DIOD = shutil.which("diod") or "/usr/sbin/diod"
# What diod 1.0.24 does otherwise than a local file system, so that it is seen when a newer one does better.
WITHOUT = {
    "the_root_is_a_wall": ".. in the root of the export leads out of it",
    "no_name_leaves_its_directory": "takes names such as . to its file system: EEXIST instead of EINVAL",
    "create_does_not_follow_links": "follows symbolic links in Tlcreate",
    "owners": "owner and setuid mode in one setattr do not both come out",
    "unlinked_files_live_on": "works on paths: ENOENT after unlinking",
    "directories_list_what_is_in_them": "an entry that does not fit is the end of the directory",
    "symbolic_links": "setattr follows them",
    "nodes": "opens device nodes",
    "renames": "works on paths: a fid below a renamed directory is lost",
    "extended_attributes": "an attribute without bytes is removed",
    "locks_keep_others_out": "every lock is one of the whole file",
    "fifos_wait_without_stopping_others": "open of a FIFO blocks its worker, and Tflush does not end that",
}


def diod_checks() -> list[object]:
    return [
        pytest.param(
            c,
            id=c.__name__,
            marks=pytest.mark.xfail(
                c.__name__ in WITHOUT,
                reason=WITHOUT.get(c.__name__, ""),
                strict=True,
                run="FIFO" not in WITHOUT.get(c.__name__, ""),
            ),
        )
        for c in conformance.CHECKS
    ]


@asynccontextmanager
async def diod(export: Path, socket_path: Path) -> AsyncIterator[Client]:
    command = [DIOD, "-f", "-n", "-e", str(export), "-l", str(socket_path), "-L", "stderr", "-U", "root", "-S"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, cwd=export.parent)
    try:
        deadline = time.monotonic() + 10
        while True:  # the socket is there a moment before diod listens on it
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(str(socket_path))
                break
            except OSError:
                sock.close()
                assert process.poll() is None, process.stderr.read()  # type: ignore[union-attr]
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)
        client = await Client.connect(of_socket(sock), msize=65536 + 24)
        yield client
        await client.close()
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()  # type: ignore[union-attr]
        (export.parent / "core").unlink(missing_ok=True)  # it crashes now and then when ended, and wants a core


@pytest.mark.interop
@pytest.mark.skipif(not Path(DIOD).exists(), reason="diod is not installed")
@pytest.mark.parametrize("check", diod_checks())
def test_diod(check: conformance.Check, tmp_path: Path) -> None:
    export = tmp_path / "export"
    export.mkdir()

    async def run() -> None:
        async with diod(export, tmp_path / "socket") as client:
            root = await client.attach(b"root", os.fsencode(export), 0)
            assert isinstance(root, RemoteFile)
            await check(root)

    asyncio.run(run())


def test_a_connection_that_is_over_keeps_no_tags() -> None:
    async def story() -> None:
        ours, theirs = socket.socketpair()
        serving = asyncio.create_task(serve(of_socket(theirs), LocalFile.root(b"/")))
        client = await Client.connect(of_socket(ours))
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        numbers = set()
        for _ in range(70_000):
            try:
                await client.rpc(m.Tgetattr(0, m.GETATTR_BASIC))
            except OSError as error:
                numbers.add(error.errno)
        assert numbers == {errno.ENOTCONN}
        await client.close()

    asyncio.run(story())
