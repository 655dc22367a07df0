"""What is fuzzed: a function of bytes for each thing that reads what a peer sends. Any exception is a finding.

The state machines' inputs are records, `length[1] kind[1] tag[1]` and length bytes, so that a mutation of one message
leaves the others what they are; the first byte says with how many bytes at a time they arrive.
"""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

from fuzz.stream import MemoryStream, no_errors_logged, turns
from fuzz.tree import MemoryFile, Tree
from multicall.lib import contract, namespace
from ninep import message as m
from ninep.client import Client
from ninep.codec import Framer, ProtocolError, UnknownMessage, decode, decode_entries, encode, encode_entries
from ninep.file import File
from ninep.message import NOFID, NOTAG, TYPES, Message
from ninep.server import serve

RECORDS_MAX = 200
RAW = 0xFF  # a record of this kind is sent as it is, without a header

trace: Callable[[str], object] = str.isascii  # of both ends: making a message's words is fuzzed, too

_loop: asyncio.AbstractEventLoop | None = None


def _run(story: Coroutine[Any, Any, None]) -> None:
    """Run story to its end in a loop that is kept, and let nothing of it be left over."""
    global _loop
    if _loop is None:
        _loop = asyncio.new_event_loop()
    failures: list[dict[str, Any]] = []
    _loop.set_exception_handler(lambda _, context: failures.append(context))
    with no_errors_logged(), warnings.catch_warnings():
        warnings.simplefilter("error")
        _loop.run_until_complete(story)
        _loop.run_until_complete(turns(2))
    assert not asyncio.all_tasks(_loop), "tasks left over"
    assert not failures, failures


def _records(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    for _ in range(RECORDS_MAX):
        if at + 3 > len(data):
            return
        end = at + 3 + data[at]
        yield data[at + 1], data[at + 2], data[at + 3 : end]
        at = end


def _frame(kind: int, tag: int, body: bytes) -> bytes:
    if kind == RAW:
        return body
    return (7 + len(body)).to_bytes(4, "little") + bytes((kind, tag, 0)) + body


def codec(data: bytes) -> None:
    """Framer, decode, encode, the trace form, a directory's entries: the same whatever the pieces."""
    step = data[0] % 61 + 1 if data else 1
    whole = _frames([data[1:]])
    assert whole == _frames([data[at : at + step] for at in range(1, len(data), step)])
    for frame in whole:
        try:
            tag, message = decode(frame)
        except ProtocolError:
            continue
        assert encode(tag, message) == frame
        assert repr(message).isascii()
        if isinstance(message, m.Rreaddir):
            try:
                entries = decode_entries(message.data)
            except ProtocolError:
                continue
            assert encode_entries(entries) == message.data


def _frames(chunks: list[bytes]) -> list[bytes]:
    framer = Framer()
    found: list[bytes] = []
    try:
        for chunk in chunks:
            found += map(bytes, framer.feed(chunk))
            assert len(framer._frame) <= framer.msize
    except ProtocolError:
        found.append(b"")
    return found


def server(data: bytes) -> None:
    """The server over a small tree: each request gets its answer or none, and nothing is left over."""
    if data:
        _run(_serve(data[0] % 61 + 1 if data[0] & 1 else 1 << 16, b"".join(_frame(*r) for r in _records(data[1:]))))


async def _serve(step: int, sent: bytes) -> None:
    sent = encode(NOTAG, m.Tversion(8192, m.VERSION)) + encode(0, m.Tattach(0, NOFID, b"", b"", 0)) + sent
    asked: dict[int, list[int]] = {}  # tag -> the types of its requests
    try:
        for frame in Framer(8192).feed(sent):
            asked.setdefault(int.from_bytes(frame[5:7], "little"), []).append(frame[4])
    except ProtocolError:
        pass
    tree = Tree()
    stream = MemoryStream()
    root = MemoryFile(tree)
    serving = asyncio.ensure_future(serve(stream, root, trace=trace))
    for at in range(0, len(sent), step):
        stream.feed(sent[at : at + step])
        await turns(3)
    stream.end()
    await asyncio.wait_for(serving, 5)
    await root.clunk()
    assert tree.in_use == 0, "Files that were not clunked"
    for frame in Framer(8192).feed(bytes(stream.sent)):
        tag, answer = decode(frame)
        kinds = asked.get(tag, [])
        assert kinds, f"{answer} to a tag that asked nothing"
        if isinstance(answer, m.Rlerror):
            assert 0 < answer.ecode < 512, answer
            kinds.pop(0)
        else:
            assert answer.number - 1 in kinds, f"{answer} to none of {kinds}"
            kinds.remove(answer.number - 1)


def client(data: bytes) -> None:
    """The client against scripted answers: each call returns or is an OSError, and nothing is left over."""
    if data:
        _run(_ask(data))


class _Liar(MemoryStream):
    """A server that answers, one record a read: what the kind of the record says."""

    def __init__(self, script: bytes) -> None:
        super().__init__()
        self.in_pieces = script[0] & 1
        self.records = _records(script[1:])
        self.framer = Framer(1 << 20)
        self.asked: list[tuple[int, Message]] = []

    def write(self, data: bytes) -> None:
        super().write(data)
        self.asked += [decode(frame) for frame in self.framer.feed(data)]

    async def read(self, n: int) -> bytes:
        while not self.incoming and not self.closed:
            await turns(3)
            data = self.answer()
            if data is None:
                self.ended = True
                break
            for at in range(0, len(data), 5) if self.in_pieces else (0,) if data else ():
                self.feed(data[at : at + 5] if self.in_pieces else data)
        return await super().read(n)

    def answer(self) -> bytes | None:
        if self.asked and isinstance(self.asked[0][1], m.Tversion | m.Tattach) and len(self.sent) < 60:
            tag, request = self.asked.pop(0)
            if isinstance(request, m.Tversion):
                return encode(tag, m.Rversion(4096, m.VERSION))
            return encode(tag, m.Rattach(m.Qid(0x80, 0, 1)))
        kind, number, body = next(self.records, (None, 0, b""))
        if kind is None:
            return None
        if kind & 0x80:
            return _frame(kind & 0x7F if kind != RAW else RAW, number, body)  # whatever: mostly a lie
        if not self.asked:
            return b""
        tag, request = self.asked.pop(number % len(self.asked))
        if kind & 0x40:
            return encode(tag, m.Rlerror(number))
        size = (7 + len(body)).to_bytes(4, "little")
        return size + bytes((request.number + 1,)) + tag.to_bytes(2, "little") + body


Call = Callable[[File], Awaitable[Any]]
CALLS: tuple[tuple[Call, ...], ...] = (
    (lambda f: f.getattr(), lambda f: f.statfs(), lambda f: f.readlink(), lambda f: f.walk_getattr(b"a")),
    (lambda f: f.walk((b"a",) * 20), lambda f: f.walk_open((b"a", b"b"), 0), lambda f: f.listxattr()),
    (lambda f: f.open(0), lambda f: f.getxattr(b"user.a"), lambda f: f.setxattr(b"user.a", b"x" * 5000, 0)),
    (lambda f: f.read(0, 20000), lambda f: f.write(0, b"x" * 20000), lambda f: f.readdir(0, 5000)),
    (lambda f: f.renameat(b"a", f, b"b"), lambda f: f.unlinkat(b"a", 0), lambda f: f.remove()),
    (lambda f: f.lock(0, 0, 0, 0, 0, b""), lambda f: f.getlock(0, 0, 0, 0, b""), lambda f: f.mkdir(b"a", 0, 0)),
    (lambda f: f.clunk(),),
)


async def _ask(script: bytes, stream: _Liar | None = None) -> None:
    stream = stream or _Liar(script)
    cancelling = script[0] & 2
    try:
        connection = await Client.connect(stream, msize=8192, in_order=bool(script[0] & 4), trace=trace)
        file = await connection.attach()
    except OSError:
        return
    for calls in CALLS:
        tasks = [asyncio.ensure_future(call(file)) for call in calls]
        if cancelling:
            await turns(4)
            tasks[0].cancel()
        for result in await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5):
            if isinstance(result, BaseException) and not isinstance(result, OSError | asyncio.CancelledError):
                raise result
            if isinstance(result, bytes | bytearray | memoryview):
                assert len(result) <= 65536
    await connection.close()
    assert not connection.pending
    assert len(set(connection.free_fids)) == len(connection.free_fids), "a fid is free twice"
    assert len(set(connection.free_tags)) == len(connection.free_tags), "a tag is free twice"


def request(data: bytes) -> None:
    """contract.decode_request, and FrameReader in front of it."""
    reader = contract.FrameReader()
    with contextlib.suppress(contract.ContractError):
        assert reader.feed(contract.frame(data)) == data
        found = contract.decode_request(data)
        again = contract.encode_request(found)
        assert contract.decode_request(again[4:]) == found
    with contextlib.suppress(contract.ContractError):
        contract.decode_reply(data)


def exec_string(data: bytes) -> None:
    """contract.parse_exec."""
    with contextlib.suppress(contract.ContractError):
        found = contract.parse_exec(data)
        assert contract.parse_exec(contract.exec_string(found.argv, found.port)) == found


def fstab(data: bytes) -> None:
    """namespace.parse_fstab and parse, the texts that come with a request."""
    mounts, complaints = namespace.parse_fstab(data)
    assert len(mounts) + len(complaints) <= data.count(b"\n") + 1
    for mount in mounts:
        assert namespace.unescape(namespace.escape(mount.target)) == mount.target
    with contextlib.suppress(namespace.NamespaceError):
        binds = namespace.parse(data)
        assert all(bind.board.startswith(b"/") and b"/../" not in bind.client + b"/" for bind in binds)
        again, complaints = namespace.parse_fstab(namespace.fstab(binds))
        assert not complaints
        assert [mount.target for mount in again] == [bind.board for bind in binds]


TARGETS: dict[str, Callable[[bytes], None]] = {
    "codec": codec,
    "server": server,
    "client": client,
    "request": request,
    "exec_string": exec_string,
    "fstab": fstab,
}

assert RAW not in TYPES and issubclass(UnknownMessage, ProtocolError)
