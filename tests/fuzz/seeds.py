"""Makes tests/fuzz/corpus from real messages: `python tests/fuzz/seeds.py`. Same code, same bytes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent.parent
if __name__ == "__main__":
    sys.path[:0] = [str(TOP), str(TOP / "tests")]

from fuzz import targets  # noqa: E402
from multicall.lib import contract, namespace  # noqa: E402
from ninep import message as m  # noqa: E402
from ninep.codec import decode, encode, encode_entries  # noqa: E402
from ninep.message import NOFID, NOTAG, TYPES, Entry, Message, Qid  # noqa: E402

CORPUS = Path(__file__).parent / "corpus"
QID = Qid(0x80, 1, 2)
ATTRIBUTES = m.Rgetattr(0x7FF, QID, 0o40755, 0, 0, 2, 0, 4096, 4096, 8, *[1] * 10)

STORIES: dict[str, list[Message]] = {
    "read": [m.Twalk(0, 1, (b"f",)), m.Tgetattr(1, 0x7FF), m.Tlopen(1, 0), m.Tread(1, 0, 100), m.Tclunk(1)],
    "list": [m.Twalk(0, 1, ()), m.Tlopen(1, m.O_DIRECTORY), m.Treaddir(1, 0, 100), m.Treaddir(1, 2, 100), m.Tremove(1)],
    "make": [
        m.Twalk(0, 1, ()),
        m.Tlcreate(1, b"new", 2, 0o644, 0),
        m.Twrite(1, 2, b"hello"),
        m.Tfsync(1, 1),
        m.Tsetattr(1, 8, 0, 0, 0, 3, 0, 0, 0, 0),
        m.Tunlinkat(0, b"new", 0),
        m.Tmkdir(0, b"e", 0o755, 0),
    ],
    "attributes": [
        m.Twalk(0, 1, (b"f",)),
        m.Txattrcreate(1, b"user.a", 2, 0),
        m.Twrite(1, 0, b"ab"),
        m.Tclunk(1),
        m.Twalk(0, 1, (b"f",)),
        m.Txattrwalk(1, 2, b"user.a"),
        m.Tread(2, 0, 10),
        m.Txattrwalk(1, 3, b""),
    ],
    "wait": [
        m.Twalk(0, 1, (b"stuck",)),
        m.Tlopen(1, 0),
        m.Tread(1, 0, 10),
        m.Tclunk(1),
        m.Tflush(2),
        m.Twalk(0, 2, (b"slow",)),
        m.Tlopen(2, 2),
        m.Twrite(2, 0, b"x"),
        m.Tclunk(2),
    ],
    "names": [
        m.Twalk(0, 1, (b"d", b"..", b"..", b"d", b"g")),
        m.Trenameat(0, b"f", 0, b"../x"),
        m.Tsymlink(0, b"l", b"/etc", 0),
        m.Tlink(0, 1, b"h"),
        m.Trename(1, 0, b"r"),
        m.Tmknod(0, b"n", 0o010644, 0, 0, 0),
        m.Treadlink(1),
        m.Tstatfs(0),
        m.Tlock(1, 0, 1, 0, 0, 7, b"me"),
        m.Tgetlock(1, 1, 0, 0, 7, b"me"),
        m.Tauth(9, b"", b"", 0),
    ],
    "again": [m.Twalk(0, 1, (b"stuck",)), m.Tlopen(1, 0), m.Tread(1, 0, 1), m.Tversion(4096, m.VERSION), m.Tclunk(1)],
}

# What a server says to the calls of targets.CALLS.
ANSWERS: dict[type[Message], Message] = {
    m.Tgetattr: ATTRIBUTES,
    m.Tstatfs: m.Rstatfs(m.V9FS_MAGIC, 4096, 9, 9, 9, 9, 9, 0, 255),
    m.Treadlink: m.Rreadlink(b"target"),
    m.Tlopen: m.Rlopen(QID, 0),
    m.Txattrwalk: m.Rxattrwalk(3),
    m.Tread: m.Rread(b"abc"),
    m.Twrite: m.Rwrite(4000),
    m.Treaddir: m.Rreaddir(encode_entries([Entry(QID, i, 8, b"n%d" % i) for i in (1, 2)])),
    m.Tlock: m.Rlock(0),
    m.Tgetlock: m.Rgetlock(2, 0, 0, 0, b""),
    m.Tmkdir: m.Rmkdir(QID),
}


class _Honest(targets._Liar):
    """Answers everything, and keeps the records that do so."""

    def __init__(self, way: int, errors: bool) -> None:
        super().__init__(bytes((way,)))
        self.script = bytearray((way,))
        self.records = self.honest(errors)

    def honest(self, errors: bool) -> Iterator[tuple[int, int, bytes]]:
        for _ in range(targets.RECORDS_MAX):
            record = (0, 0, b"")
            if self.asked:
                request = self.asked[0][1]
                if isinstance(request, m.Twalk):
                    answer: Message = m.Rwalk((QID,) * len(request.wname))
                elif isinstance(request, m.Tread | m.Treaddir) and request.offset:
                    answer = m.Rread(b"")
                else:
                    answer = ANSWERS.get(type(request)) or TYPES[request.number + 1]()
                record = (0, 0, encode(0, answer)[7:])
                if errors and not isinstance(request, m.Tflush):
                    record = (0x40, 5, b"")
            self.script += bytes((len(record[2]), *record[:2])) + record[2]
            yield record


def _session(way: int, errors: bool) -> bytes:
    server = _Honest(way, errors)
    targets._run(targets._ask(bytes((way,)), server))
    return bytes(server.script)


def _record(kind: int, tag: int, frame: bytes) -> bytes:
    return bytes((len(frame) - 7, kind, tag)) + frame[7:]


def corpus() -> dict[str, bytes]:
    """Path below CORPUS -> content."""
    found: dict[str, bytes] = {}
    for name, requests in STORIES.items():
        frames = [encode(i, r) for i, r in enumerate(requests)]
        found[f"codec/{name}"] = b"\x07" + encode(NOTAG, m.Tversion(8192, m.VERSION)) + b"".join(frames)
        found[f"server/{name}"] = b"\0" + b"".join(_record(f[4], i, f) for i, f in enumerate(frames))
    found["codec/answers"] = b"\x1e" + b"".join(encode(0, a) for a in ANSWERS.values())
    for way in range(8):  # in pieces, cancelling, in order
        found[f"client/good-{way}"] = _session(way, errors=False)
    found["client/errors"] = _session(0, errors=True)
    found["client/lies"] = b"\0" + _record(0x80 | 25, 0, encode(0, ATTRIBUTES)) + b"\x04\xff\0\0\0\0\0"
    found["codec/attach"] = b"\0" + encode(1, m.Tattach(0, NOFID, b"me", b"/", 1000))
    request = contract.Request([b"ls", b"-l", b"\xff"], {b"A": b"b"}, b"/", b"/tmp/cpu/x /x none bind 0 0\n", "ab12")
    found["request/plain"] = contract.encode_request(request)[4:]
    found["request/terminal"] = contract.encode_request(request._replace(terminal=contract.Terminal(b"vt100", 80, 25)))[
        4:
    ]
    found["request/reply"] = contract.encode_reply(contract.Reply("no", "why"))[4:]
    found["exec_string/ours"] = contract.exec_string([b"ls", b"it's", b'"', b"$x"], 37101)
    found["exec_string/local"] = contract.exec_string([b"ls", b""], None)
    found["exec_string/options"] = b'-d --port9p 7 ls \\\'a "b\\"c"'
    found["fstab/binds"] = namespace.fstab(namespace.parse(b"/lib:/a b=/c#d:/e\\\t"))
    found["fstab/mounts"] = (
        b"# x\n\nproc /proc proc defaults 0 0\ntmpfs\t/tm\\040p tmpfs size=1m,mode=1777\nbad\nx y z\n"
    )
    found["fstab/namespace"] = namespace.DEFAULT + b":/a=/b/../c"
    return found


def main() -> None:
    """Write them."""
    for name, content in corpus().items():
        path = CORPUS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


if __name__ == "__main__":
    assert decode(encode(0, ATTRIBUTES)) == (0, ATTRIBUTES)
    main()
