"""Both ends of a 9P connection against peers that may do anything, in any order, with what that does kept count of.

The server's machine knows which requests are without an answer and which fids there are; the export lies beside files
that must be neither read nor written nor named. The client's knows what it was asked, and answers as it likes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import shutil
import stat
import tempfile
import time
import warnings
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fuzz.stream import MemoryStream, no_errors_logged, turns
from ninep import message as m
from ninep import server
from ninep.client import Client
from ninep.codec import Framer, decode, decode_entries, encode
from ninep.localfs import LocalFile
from ninep.message import NOFID, NOTAG, TYPES, Message, Request
from ninep.remote import RemoteFile
from test_ninep_codec import values

T = TypeVar("T")

MSIZE = 8192
DEADLINE_S = 5.0  # for what a thread (opening a FIFO) or a call of the system has to do
LIMITS = {"FIDS_MAX": 8, "OUTSTANDING_MAX": 6, "XATTR_FIDS_MAX": 2, "HELD_MAX": 60000}  # small, so that they are met
TAGS = st.integers(0, 9)
JUNK = [bytes.fromhex(j) for j in ("00000000", "ffffffff", "07000000 c8 0100", "08000000 78 0100 00")]
SECRET = b"nobody was to read this"
OUTSIDE = b"named-outside-only"

FIDS = st.sampled_from([0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 77, NOFID])
NAMES = st.sampled_from(
    [
        *b"f d d g p new out up .. . ../outside /etc out/canary canary user.x trusted.y \xff\xfe".split(b" "),
        *(b"", b"n" * 255, b"n" * 256, b"a\0b"),
    ]
)
NUMBERS: dict[str, list[int]] = {
    "count": [0, 1, 24, 100, 4096, 0xFFFFFFFF],
    "offset": [0, 0, 1, 5, 1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 1],
    "flags": [0, 0, 1, 2, 0o1002, 0o2001, 0o4000, m.O_DIRECTORY, m.AT_REMOVEDIR, 3, 0xFFFFFFFF],
    "mode": [0o644, 0o755, 0, 0o4751, 0o010644, 0o140755, 0o060600, 0o020600, 0o120777, 0xFFFFFFFF],
    "valid": [0, 1, 2, 4, 8, 0x10, 0x1B0, 0x1FF, 0xFFFFFFFF],
    "size": [0, 5, 4096, 1 << 40, (1 << 63) - 1, 1 << 63],
    "attr_size": [0, 3, 65536, 65537, 1 << 60],
    "afid": [NOFID, NOFID, 0],
    "uid": [0, 12345, 0xFFFFFFFF],
    "gid": [0, 12345, 0xFFFFFFFF],
    "oldtag": list(range(10)),
    "type": [0, 1, 2, 3, 255],
    "major": [0, 1, 1 << 20],
    "minor": [0, 3, 1 << 20],
}


def _value(field: str, kind: str) -> st.SearchStrategy[Any]:
    if field in NUMBERS:
        return st.sampled_from(NUMBERS[field])
    if kind == "Fid":
        return FIDS
    if kind in ("Name", "Str"):
        return NAMES
    if kind == "Names":
        return st.lists(NAMES | st.just(OUTSIDE), max_size=4).map(tuple) | st.just((b"d",) * 17)
    if kind == "Data":
        return st.sampled_from([b"", b"abc", b"x" * 3000])  # which goes into the smallest msize
    return values(kind)


def _of(cls: type[Message]) -> st.SearchStrategy[Message]:
    return st.tuples(*map(_value, cls.fields, cls.kinds)).map(lambda v: cls(*v))


COMMON = [m.Twalk] * 8 + [m.Tlopen] * 4 + [m.Tread, m.Twrite, m.Treaddir, m.Tclunk, m.Tattach, m.Txattrwalk] * 2
REQUESTS = [c for c in TYPES.values() if issubclass(c, Request) and c is not m.Tversion]
ANY = st.sampled_from([*COMMON, *REQUESTS, *REQUESTS, m.Rclunk]).flatmap(_of)


class _Machine(RuleBasedStateMachine):
    """A loop of its own, and the log watched."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.failures: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.failures.append(context))
        self.cleanup = contextlib.ExitStack()
        self.cleanup.enter_context(no_errors_logged())
        self.cleanup.enter_context(warnings.catch_warnings())
        warnings.simplefilter("error")
        self.stream = MemoryStream()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    def wait_for(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not what():
            assert time.monotonic() < deadline, "it does not end"
            self.run(asyncio.sleep(0.005))
            self.receive()

    def receive(self) -> None:
        raise NotImplementedError

    def teardown(self) -> None:
        try:
            self.finish()
            self.run(turns())
            assert not asyncio.all_tasks(self.loop), "tasks left over"
            assert not self.failures, self.failures
        finally:
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.run(turns())
            self.cleanup.close()
            self.loop.close()

    def finish(self) -> None:
        raise NotImplementedError


class ServerMachine(_Machine):
    def __init__(self) -> None:
        super().__init__()
        for name, value in LIMITS.items():
            self.cleanup.callback(setattr, server, name, getattr(server, name))
            setattr(server, name, value)
        self.base = Path(tempfile.mkdtemp(prefix="ninep-"))
        self.cleanup.callback(_remove, self.base)
        self.export = self.base / "export"
        outside = self.base / "outside"
        for directory in (outside, self.export, self.export / "d", self.export / "d" / "d"):
            directory.mkdir()
        (outside / os.fsdecode(OUTSIDE)).touch()
        (outside / "canary").write_bytes(SECRET)
        (self.export / "f").write_bytes(b"0123456789")
        (self.export / "d" / "g").write_bytes(b"g")
        (self.export / "out").symlink_to("../outside")
        (self.export / "up").symlink_to(self.base)
        os.mkfifo(self.export / "p")
        self.before = _seen(outside)
        self.outside_inodes = {path.stat().st_ino for path in (self.base, outside, *outside.iterdir())}
        self.descriptors = len(os.listdir("/proc/self/fd"))
        self.root = LocalFile.root(os.fsencode(self.export))
        self.connect()

    def connect(self) -> None:
        self.stream = MemoryStream()
        self.framer = Framer(MSIZE)
        self.asked: dict[int, list[Message]] = {}  # by tag: requests without an answer
        self.order: list[tuple[int, Message]] = []  # all that was asked on this connection, with the tags
        self.flushed: dict[int, list[int]] = {}  # by id of a Tflush: the ids of what has no answer after its own
        self.fids: set[int] = set()
        self.may_close = False
        self.serving = self.loop.create_task(server.serve(self.stream, self.root, msize=MSIZE, trace=str.isascii))
        self.send((NOTAG, m.Tversion(MSIZE, m.VERSION)))
        self.send((0, m.Tattach(0, NOFID, b"me", b"", 0)))
        assert self.fids == {0}

    def send(self, *requests: tuple[int, Message]) -> None:
        for tag, request in requests:
            # The same tag twice may come to a server that has answered the first one meanwhile, or not.
            self.may_close |= tag in self.asked
            if isinstance(request, m.Tflush):
                self.flushed[id(request)] = list(map(id, self.asked.get(request.oldtag, ())))
            self.asked.setdefault(tag, []).append(request)
            self.order.append((tag, request))
        self.may_close |= sum(map(len, self.asked.values())) >= 2 * LIMITS["OUTSTANDING_MAX"]
        self.stream.feed(b"".join(encode(*r) for r in requests))
        self.receive()

    def receive(self) -> None:
        self.run(turns())
        data, self.stream.sent = bytes(self.stream.sent), bytearray()
        assert SECRET not in data and OUTSIDE not in data, "something of outside"
        for frame in self.framer.feed(data):
            self.answered(*decode(frame))
        if self.serving.done():
            assert self.serving.exception() is None
            assert self.may_close or self.stream.ended, "closed for no reason"
            self.connect()

    def answered(self, tag: int, answer: Message) -> None:
        requests = self.asked.get(tag)
        assert requests, f"{answer} to a tag that asked nothing"
        request = requests.pop(0)
        if not requests:
            del self.asked[tag]
        error = answer.ecode if isinstance(answer, m.Rlerror) else 0
        if isinstance(answer, m.Rlerror):
            assert error in errno.errorcode, f"{request}: {answer}"
        else:
            assert answer.number == request.number + 1, f"{request}: {answer}"
        if error != errno.EAGAIN:
            self.in_order(request)
        assert error != errno.EAGAIN or not isinstance(request, m.Tclunk | m.Tremove), "a clunk was refused"
        self.known_fids(request, error)
        if isinstance(request, m.Tclunk | m.Tremove):
            self.fids.discard(request.fid)  # even on error
        elif isinstance(request, m.Tflush):
            flushed = self.flushed.pop(id(request))
            left = [r for r in self.asked.get(request.oldtag, ()) if id(r) not in flushed]
            self.asked[request.oldtag] = left
            if not left:
                del self.asked[request.oldtag]
        elif isinstance(request, m.Tversion):
            self.asked.clear()
            self.fids.clear()
            if isinstance(answer, m.Rversion):
                self.may_close = answer.version != m.VERSION
        elif isinstance(answer, m.Rattach):
            self.fids.add(request.fid)  # type: ignore[attr-defined]
        elif isinstance(answer, m.Rxattrwalk) or (
            isinstance(request, m.Twalk) and isinstance(answer, m.Rwalk) and len(answer.wqid) == len(request.wname)
        ):
            self.fids.add(request.newfid)  # type: ignore[attr-defined]
        self.known_files(answer)
        assert len(self.fids) <= LIMITS["FIDS_MAX"]

    def in_order(self, request: Message) -> None:
        """What was asked before on the same fid has its answer, or was flushed."""
        mine = _fids(request)
        for tag, earlier in self.order:
            if earlier is request:
                break
            if mine & _fids(earlier) and any(r is earlier for r in self.asked.get(tag, ())):
                raise AssertionError(f"{request} before {earlier}")
        waiting = {id(r) for requests in self.asked.values() for r in requests}
        self.order = [(tag, r) for tag, r in self.order if id(r) in waiting]

    def known_fids(self, request: Message, error: int) -> None:
        """EBADF is for the fids that are not there, EINVAL for those that are."""
        for field, kind in zip(request.fields, request.kinds, strict=True):
            fid = getattr(request, field)
            if kind != "Fid" or field == "afid":
                continue
            if field == "newfid" or isinstance(request, m.Tattach):
                assert error or fid not in self.fids or fid == request.fid, request  # type: ignore[attr-defined]
            else:
                assert error or fid in self.fids, f"{request} went well"
        if isinstance(request, m.Tclunk | m.Tremove | m.Tgetattr):
            assert request.fid not in self.fids or error != errno.EBADF, request

    def known_files(self, answer: Message) -> None:
        """No qid is of a file outside, for which its inode number is in it (localfs)."""
        qids = [getattr(answer, f) for f, k in zip(answer.fields, answer.kinds, strict=True) if k == "Qid"]
        if isinstance(answer, m.Rwalk):
            qids += answer.wqid
        elif isinstance(answer, m.Rreaddir):
            qids += [entry.qid for entry in decode_entries(answer.data)]
        for qid in qids:
            assert qid.path & (1 << 48) - 1 not in self.outside_inodes, answer

    @rule(requests=st.lists(st.tuples(TAGS, ANY), min_size=1, max_size=5))
    def requests(self, requests: list[tuple[int, Message]]) -> None:
        self.send(*requests)

    @rule(fid=st.integers(1, 4), name=st.sampled_from([b"f", b"d", b"p", b"out"]), flags=st.sampled_from([0, 1, 2]))
    def open_one(self, fid: int, name: bytes, flags: int) -> None:
        used = set(self.asked)
        tags = [tag for tag in range(20, 40) if tag not in used]
        self.send((tags[0], m.Twalk(0, fid, (name,))), (tags[1], m.Tlopen(fid, flags)), (tags[2], m.Tread(fid, 0, 99)))

    @rule(fid=st.integers(1, 4), more=st.lists(ANY, max_size=3), flushed=st.integers(0, 9))
    def queue_up(self, fid: int, more: list[Message], flushed: int) -> None:
        """Behind a read that waits for what comes through a FIFO."""
        tags = [tag for tag in range(60, 90) if tag not in self.asked]
        requests = [m.Twalk(0, fid, (b"p",)), m.Tlopen(fid, 2), m.Tread(fid, 0, 99), m.Tgetattr(fid, 0), m.Tclunk(fid)]
        self.send(*zip(tags, requests + more, strict=False))
        self.send((95, m.Tflush(tags[flushed])))

    @rule(at=st.integers(0, 99), tag=st.integers(40, 49))
    def flush(self, at: int, tag: int) -> None:
        # Not drawn from what is asked: that depends on threads (opening FIFOs), and a machine must not.
        waiting = sorted(self.asked) or [99]
        self.send((tag, m.Tflush(waiting[at % len(waiting)])))

    @rule(
        msize=st.sampled_from([MSIZE, MSIZE, MSIZE, 4096, 4095, 0]),
        version=st.sampled_from([m.VERSION, m.VERSION, m.VERSION, b"9P2000", b""]),
    )
    def version(self, msize: int, version: bytes) -> None:
        self.send((NOTAG, m.Tversion(msize, version)))
        assert NOTAG not in self.asked, "Tversion has to be answered at once"
        if not self.may_close:
            self.send((0, m.Tattach(0, NOFID, b"", b"", 0)))

    @rule(junk=st.sampled_from(JUNK))
    def junk(self, junk: bytes) -> None:
        self.asked.setdefault(1, [])
        if junk[4:5] == b"\xc8":  # whole, of an unknown type
            self.may_close |= bool(self.asked[1])
            self.asked[1].append(m.Rclunk())  # what it is does not matter: EOPNOTSUPP
        else:
            self.may_close = True
        self.asked = {tag: requests for tag, requests in self.asked.items() if requests}
        self.stream.feed(junk)
        self.receive()

    @rule(cut=st.booleans())
    def hang_up(self, cut: bool) -> None:
        self.stream.feed(b"\x07\0" if cut else b"")
        self.stream.end()
        self.wait_for(lambda: not self.stream.ended)

    @rule(what=st.integers(0, 7))
    def somebody_else(self, what: int) -> None:
        """What other programs of the machine do meanwhile."""
        d, f, p, new = (self.export / name for name in ("d", "f", "p", "new"))
        with contextlib.suppress(OSError):
            if what == 0:
                d.rename(self.export / "e")
            elif what == 1:
                (self.export / "e").rename(d)
            elif what == 2:
                d.rename(self.export / "e")
                d.symlink_to("../outside")
            elif what == 3:
                d.unlink()
            elif what == 4:
                f.unlink()
            elif what == 5:
                f.write_bytes(b"again") if stat.S_ISREG(f.lstat().st_mode) else None
            elif what == 6:
                new.symlink_to("../outside/canary")
            elif stat.S_ISFIFO(p.lstat().st_mode):
                fifo = os.open(p, os.O_RDWR | os.O_NONBLOCK)
                self.cleanup.callback(os.close, fifo)
                self.descriptors += 1
                os.write(fifo, b"into the pipe")
                self.run(asyncio.sleep(0.01))
        self.receive()

    @invariant()
    def limits_hold(self) -> None:
        waiting = [r for requests in self.asked.values() for r in requests]
        refusable = [r for r in waiting if not isinstance(r, m.Tflush | m.Tclunk | m.Tremove)]
        assert len(refusable) <= LIMITS["OUTSTANDING_MAX"], waiting
        assert not self.failures, self.failures

    def finish(self) -> None:
        deadline = time.monotonic() + 2 * DEADLINE_S
        while self.asked:  # whatever waits, ends when it is flushed
            assert time.monotonic() < deadline, self.asked
            tag = next(iter(self.asked))
            serving = self.serving
            self.send((max(self.asked) + 1000, m.Tflush(tag)))
            self.wait_for(lambda: tag not in self.asked or self.serving is not serving)  # noqa: B023
        self.send((NOTAG, m.Tversion(MSIZE, m.VERSION))) if self.may_close else None
        for fid in range(10):
            serving = self.serving
            there = fid in self.fids
            self.send((1, m.Tgetattr(fid, 0)))
            assert 1 not in self.asked and self.serving is serving and there == (fid in self.fids)
        self.stream.ended = True
        self.stream.feed(b"")
        self.run(asyncio.wait_for(self.serving, DEADLINE_S))
        self.run(self.root.clunk())
        del self.root
        deadline = time.monotonic() + DEADLINE_S
        while len(os.listdir("/proc/self/fd")) > self.descriptors:  # a thread that opens a FIFO may still have one
            assert time.monotonic() < deadline, "descriptors left over"
            gc.collect()
            self.run(asyncio.sleep(0.01))
        assert _seen(self.base / "outside") == self.before


def _fids(request: Message) -> set[int]:
    return {getattr(request, f) for f, k in zip(request.fields, request.kinds, strict=True) if k == "Fid"}


def _seen(directory: Path) -> list[tuple[str, Any]]:
    """All there is to see of a directory and its files; reading changes none of it, but for times of access."""
    found: list[tuple[str, Any]] = []
    for path in (directory, *sorted(directory.iterdir())):
        s = path.lstat()
        found.append((path.name, (s.st_mode, s.st_uid, s.st_gid, s.st_nlink, s.st_size, s.st_mtime_ns, s.st_ctime_ns)))
        if path.is_file():
            found.append(("content", path.read_bytes()))
    return found


def _remove(base: Path) -> None:
    for directory, names, _ in os.walk(base):
        for name in (".", *names):
            if not os.path.islink(os.path.join(directory, name)):
                os.chmod(os.path.join(directory, name), 0o700)
    shutil.rmtree(base)


TestServer = ServerMachine.TestCase
TestServer.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


# The client


def _answer(request: Message) -> st.SearchStrategy[Message]:
    """An answer of the right class; mostly one that a server could give."""
    cls = TYPES[request.number + 1]
    if isinstance(request, m.Twalk):
        qids = values("Qid")
        names = len(request.wname)
        return st.lists(qids, min_size=min(names, 1), max_size=names).map(lambda q: m.Rwalk(tuple(q))) | st.lists(
            qids, min_size=names, max_size=names
        ).map(lambda q: m.Rwalk(tuple(q)))
    if isinstance(request, m.Tread):
        return st.binary(max_size=min(request.count, 60)).map(m.Rread)
    if isinstance(request, m.Twrite):
        return st.integers(0, len(request.data)).map(m.Rwrite)
    if isinstance(request, m.Txattrwalk):
        return st.sampled_from([0, 3, 100, 65536, 65537, 1 << 63]).map(m.Rxattrwalk)
    return st.tuples(*map(values, cls.kinds)).map(lambda v: cls(*v))


Call = Callable[[RemoteFile], Awaitable[Any]]
CALLS: dict[str, Call] = {
    "walk": lambda f: f.walk((b"a", b"b")),
    "clone": lambda f: f.walk(()),
    "walk far": lambda f: f.walk((b"a",) * 20),
    "walk_getattr": lambda f: f.walk_getattr(b"a"),
    "walk_open": lambda f: f.walk_open((b"a",), 0),
    "open": lambda f: f.open(0),
    "getattr": lambda f: f.getattr(),
    "read": lambda f: f.read(0, 20000),
    "write": lambda f: f.write(0, b"x" * 20000),
    "readdir": lambda f: f.readdir(0, 5000),
    "getxattr": lambda f: f.getxattr(b"user.x"),
    "setxattr": lambda f: f.setxattr(b"user.x", b"x" * 9000, 0),
    "renameat": lambda f: f.renameat(b"a", f, b"b"),
    "unlinkat": lambda f: f.unlinkat(b"a", 0),
    "remove": lambda f: f.remove(),
    "clunk": lambda f: f.clunk(),
}


class ClientMachine(_Machine):
    @initialize(in_order=st.booleans())
    def connect(self, in_order: bool) -> None:
        self.framer = Framer(1 << 20)
        self.asked: list[tuple[int, Message]] = []
        self.calls: dict[asyncio.Future[Any], str] = {}
        self.cancelled: set[asyncio.Future[Any]] = set()
        self.lied = False
        connecting = self.loop.create_task(Client.connect(self.stream, msize=MSIZE, in_order=in_order))
        self.stream.feed(encode(NOTAG, m.Rversion(MSIZE, m.VERSION)))
        self.client = self.run(asyncio.wait_for(connecting, DEADLINE_S))
        attaching = self.loop.create_task(self.client.attach())
        self.receive()
        self.asked.clear()
        self.stream.feed(encode(0, m.Rattach(m.Qid(0x80, 0, 1))))
        self.files = [self.run(asyncio.wait_for(attaching, DEADLINE_S))]

    def receive(self) -> None:
        self.run(turns())
        data, self.stream.sent = bytes(self.stream.sent), bytearray()
        self.asked += [decode(frame) for frame in self.framer.feed(data)]
        for call in [c for c in self.calls if c.done()]:
            self.ended(call, self.calls.pop(call))

    def ended(self, call: asyncio.Future[Any], name: str) -> None:
        if call.cancelled():
            assert call in self.cancelled, f"{name} was cancelled by nobody"
        elif (error := call.exception()) is not None:
            assert isinstance(error, OSError), f"{name}: {error!r}"
            assert error.errno in errno.errorcode or 0 < (error.errno or 0) <= m.ERRNO_MAX
            assert error.errno != errno.ENOTCONN or self.client.reason or self.asked is not None
        else:
            result = call.result()
            if isinstance(result, bytes | bytearray | memoryview):
                assert len(result) <= 65536
            found = result if isinstance(result, tuple) else (result,)
            self.files += [f for f in found if isinstance(f, RemoteFile)]

    @rule(name=st.sampled_from(sorted(CALLS)), at=st.integers(0, 99))
    @precondition(lambda self: self.files and len(self.calls) < 12)
    def call(self, name: str, at: int) -> None:
        file = self.files[at % len(self.files)]
        if name == "clunk":
            self.files.remove(file)
        self.calls[asyncio.ensure_future(CALLS[name](file), loop=self.loop)] = name
        self.receive()

    @rule(at=st.integers(0, 99), soon=st.booleans())
    @precondition(lambda self: self.calls)
    def cancel(self, at: int, soon: bool) -> None:
        call = list(self.calls)[at % len(self.calls)]
        self.cancelled.add(call)
        call.cancel()
        if not soon:
            self.receive()

    def take(self, at: int) -> tuple[int, Message]:
        tag, request = self.asked.pop(at % len(self.asked))
        if isinstance(request, m.Tflush):  # after Rflush the other has no answer any more
            self.asked = [a for a in self.asked if a[0] != request.oldtag or isinstance(a[1], m.Tflush)]
        return tag, request

    @rule(data=st.data(), at=st.integers(0, 99), cut=st.integers(0, 12))
    @precondition(lambda self: self.asked)
    def answer(self, data: st.DataObject, at: int, cut: int) -> None:
        tag, request = self.take(at)
        good = _answer(request)
        answer = data.draw(good if isinstance(request, m.Tflush) else good | good | st.builds(m.Rlerror, _ERRORS))
        frame = encode(tag, answer)
        self.stream.feed(frame[:cut])
        if cut % 2:
            self.run(turns(2))
        self.stream.feed(frame[cut:])
        self.receive()
        assert self.lied or self.client.reason is None, self.client.reason

    @rule()
    def end(self) -> None:
        if self.client.reason is not None:  # there is always this rule, but a good server does not do it
            self.stream.end()
            self.receive()

    @rule(at=st.integers(0, 99), lie=st.integers(0, 8))
    @precondition(lambda self: self.asked)
    def lie(self, at: int, lie: int) -> None:
        if lie < 7:  # mostly not: the connection is over then
            return
        self.lied = True
        tag, _ = self.take(at)
        lies = (encode((tag + 999) % NOTAG, m.Rclunk()), encode(tag, m.Rversion(1, b"")), b"\0\0\0\0", b"\xff" * 9)
        self.stream.feed(lies[at % len(lies)])
        self.receive()
        assert self.client.reason is not None
        assert not self.calls, f"{list(self.calls.values())} do not end"

    @invariant()
    def bounded(self) -> None:
        if not hasattr(self, "client"):
            return
        assert not self.failures, self.failures
        if self.client.reason is None:
            tags = {tag for tag, _ in self.asked}
            waiting = {t for t, entry in self.client.pending.items() if not entry.answered}
            assert tags <= waiting, (waiting, tags)  # more: what was cancelled and is not sent yet
        assert len(self.client.free_fids) <= self.client.next_fid
        assert len(self.client.free_tags) <= self.client.next_tag

    def finish(self) -> None:
        if not hasattr(self, "client"):
            return
        self.receive()
        turn = 0
        while self.calls or self.asked or self.files:  # a server that can do nothing, but says so
            turn += 1
            assert turn < 2000, f"{list(self.calls.values())} do not end"
            if self.asked:
                tag, request = self.take(0)
                answer = m.Rflush() if isinstance(request, m.Tflush) else m.Rlerror(errno.EIO)
                self.stream.feed(encode(tag, answer))
            elif self.files:
                self.loop.call_soon(self.files.pop().drop)
            self.receive()
            if self.client.reason is not None:
                self.asked.clear()
                self.files.clear()
                assert not self.calls, f"{list(self.calls.values())} do not end"
        if self.client.reason is None:
            assert not self.client.pending
            assert sorted(self.client.free_fids) == list(range(self.client.next_fid)), "fids left over"
            assert sorted(self.client.free_tags) == list(range(self.client.next_tag)), "tags left over"
        self.run(self.client.close())


_ERRORS = st.sampled_from([errno.EIO, errno.ENOENT, errno.EOPNOTSUPP, 0, 512, 0xFFFFFFFF])

TestClient = ClientMachine.TestCase
TestClient.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
