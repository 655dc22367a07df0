"""The table, the codec and the Framer: known bytes, every message there and back, and what must be refused."""

from __future__ import annotations

import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ninep import codec, message
from ninep.codec import Framer, ProtocolError, decode, encode
from ninep.message import (
    NOFID,
    NOTAG,
    TYPES,
    Entry,
    Message,
    Qid,
    Request,
    Rgetattr,
    Rlerror,
    Rread,
    Rversion,
    Rwalk,
    Tattach,
    Tclunk,
    Tlcreate,
    Tread,
    Tversion,
    Twalk,
    Twrite,
)

QID = Qid(0x80, 0x11223344, 0x0102030405060708)
QID_HEX = "80 44332211 0807060504030201"

# Written by hand from the manual pages and diod's protocol.md.
VECTORS: list[tuple[int, Message, str]] = [
    (NOTAG, Tversion(8192, b"9P2000.L"), "15000000 64 ffff 00200000 0800 3950323030302e4c"),
    (NOTAG, Rversion(8192, b"9P2000.L"), "15000000 65 ffff 00200000 0800 3950323030302e4c"),
    (1, Tattach(0, NOFID, b"me", b"", 1000), "19000000 68 0100 00000000 ffffffff 0200 6d65 0000 e8030000"),
    (2, Twalk(0, 1, (b"usr", b"x")), "19000000 6e 0200 00000000 01000000 0200 0300 757372 0100 78"),
    (2, Twalk(0, 1, ()), "11000000 6e 0200 00000000 01000000 0000"),
    (2, Rwalk((QID, QID)), f"23000000 6f 0200 0200 {QID_HEX} {QID_HEX}"),
    (3, Tread(1, 0x100000000, 16), "17000000 74 0300 01000000 0000000001000000 10000000"),
    (3, Rread(b"abc"), "0e000000 75 0300 03000000 616263"),
    (3, Twrite(1, 2, b"abc"), "1a000000 76 0300 01000000 0200000000000000 03000000 616263"),
    (4, Tclunk(7), "0b000000 78 0400 07000000"),
    (5, Rlerror(2), "0b000000 07 0500 02000000"),
    (6, Tlcreate(1, b"f", 0o2, 0o644, 5), "1a000000 0e 0600 01000000 0100 66 02000000 a4010000 05000000"),
    (
        7,
        Rgetattr(0x7FF, QID, 0o40755, 1, 2, *range(3, 18)),
        f"a0000000 19 0700 ff07000000000000 {QID_HEX} ed410000 01000000 02000000"
        + "".join(f" {i:02x}00000000000000" for i in range(3, 18)),
    ),
]

U = {"u8": 8, "u16": 16, "u32": 32, "Fid": 32, "u64": 64}


def values(kind: str) -> st.SearchStrategy[Any]:
    qid = st.builds(Qid, st.integers(0, 255), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
    if kind in U:
        return st.integers(0, 2 ** U[kind] - 1)
    return {
        "Qid": qid,
        "Str": st.binary(max_size=300),
        "Name": st.binary(max_size=300),
        "Names": st.lists(st.binary(max_size=20), max_size=16).map(tuple),
        "Qids": st.lists(qid, max_size=16).map(tuple),
        "Data": st.binary(max_size=2000),
    }[kind]


messages = st.sampled_from(sorted(TYPES.values(), key=lambda c: c.number)).flatmap(
    lambda cls: st.tuples(*map(values, cls.kinds)).map(lambda v: cls(*v))
)
tags = st.integers(0, 0xFFFF)


@pytest.mark.parametrize(("tag", "msg", "text"), VECTORS, ids=lambda v: type(v).__name__)
def test_vectors(tag: int, msg: Message, text: str) -> None:
    frame = bytes.fromhex(text)
    assert encode(tag, msg).hex() == frame.hex()
    assert decode(frame) == (tag, msg)


def test_the_table_is_complete() -> None:
    """Every T-message of 9P2000.L has its R-message at the next number, and each field a kind the codec knows."""
    requests = {c.number for c in TYPES.values() if issubclass(c, Request)}
    answers = {c.number for c in TYPES.values() if not issubclass(c, Request)}
    assert answers == {n + 1 for n in requests} | {7}
    words = "version auth attach flush walk read write clunk remove statfs lopen lcreate symlink mknod rename readlink "
    words += "getattr setattr xattrwalk xattrcreate readdir fsync lock getlock link mkdir renameat unlinkat"
    assert {c.__name__ for c in TYPES.values()} == {k + w for w in words.split() for k in "TR"} | {"Rlerror"}
    for cls in TYPES.values():
        assert set(cls.kinds) <= {*U, "Qid", "Str", "Name", "Names", "Qids", "Data"}, cls


@given(tags, messages)
@settings(max_examples=600, deadline=None)
def test_there_and_back(tag: int, msg: Message) -> None:
    frame = encode(tag, msg)
    assert decode(frame) == (tag, msg)
    assert len(frame) == int.from_bytes(frame[:4], "little")
    assert type(msg).__name__ in repr(msg)
    assert all(c in string.printable for c in repr(msg)) and "\n" not in repr(msg)


@given(tags, messages, st.data())
@settings(max_examples=400, deadline=None)
def test_cut_or_lengthened_frames_are_refused(tag: int, msg: Message, data: st.DataObject) -> None:
    frame = encode(tag, msg)
    cut = data.draw(st.integers(0, len(frame) - 1))
    for bad in (frame[:cut], frame + b"\0"):
        with pytest.raises(ProtocolError):
            decode(bad)
        if len(bad) >= 4:
            with pytest.raises(ProtocolError):
                decode(len(bad).to_bytes(4, "little") + bad[4:])


@given(st.binary(max_size=200))
@settings(max_examples=500, deadline=None)
def test_any_bytes_are_a_message_or_a_protocol_error(body: bytes) -> None:
    for frame in (body, (len(body) + 4).to_bytes(4, "little") + body):
        try:
            tag, msg = decode(frame)
        except ProtocolError:
            continue
        assert encode(tag, msg) == frame


def test_values_that_do_not_fit() -> None:
    for msg in (Tread(-1, 0, 0), Tread(0, 1 << 64, 0), Twalk(0, 0, (b"x" * 65536,))):
        with pytest.raises(ValueError, match=type(msg).__name__):
            encode(0, msg)


def test_messages_take_their_fields_and_no_others() -> None:
    assert Tread(1, offset=2, count=3) == Tread(1, 2, 3) != Tread(1, 2, 4)
    for args, kwargs in (((1, 2), {}), ((1, 2, 3, 4), {}), ((1, 2), {"fid": 3}), ((1, 2), {"nope": 3})):
        with pytest.raises(TypeError, match="fid, offset, count"):
            Tread(*args, **kwargs)


def test_trace_form() -> None:
    assert repr(Twalk(1, 2, (b"usr", b"b\xff'"))).startswith("Twalk fid 1 newfid 2 nwname 2 'usr' 'b\\xff")
    assert repr(Rlerror(2)) == "Rlerror ENOENT"
    assert repr(Rread(b"x" * 1000)) == "Rread count 1000"
    assert repr(Rwalk((Qid(0x80, 1, 0xABC),))) == "Rwalk nwqid 1 (abc 1 d)"
    assert "afid NOFID" in repr(Tattach(0, NOFID, b"", b"", 0))


@given(st.lists(st.tuples(tags, messages), max_size=8), st.lists(st.integers(1, 3000), min_size=1, max_size=20))
@settings(max_examples=200, deadline=None)
def test_framer_whatever_the_pieces(sent: list[tuple[int, Message]], sizes: list[int]) -> None:
    stream = b"".join(encode(*s) for s in sent)
    framer = Framer(1 << 16)
    got = []
    at = turn = 0
    while at < len(stream):
        size = sizes[turn % len(sizes)]
        got += [decode(f) for f in framer.feed(stream[at : at + size])]
        at += size
        turn += 1
    assert got == sent and not framer.pending


def test_framer_byte_at_a_time() -> None:
    stream = b"".join(encode(tag, msg) for tag, msg, _ in VECTORS)
    framer = Framer()
    got = []
    for i in range(len(stream)):
        got += [decode(f) for f in framer.feed(stream[i : i + 1])]
    assert got == [(tag, msg) for tag, msg, _ in VECTORS]


@pytest.mark.parametrize("size", [0, 3, 6, 8193, 0x7FFFFFFF, 0xFFFFFFFF])
def test_framer_refuses_a_size_when_it_sees_it(size: int) -> None:
    framer = Framer(8192)
    good = encode(1, Tclunk(1))
    frames = framer.feed(good + size.to_bytes(4, "little"))
    assert next(frames) == good
    with pytest.raises(ProtocolError, match=str(size)):
        next(frames)


def test_framer_keeps_no_more_than_a_frame() -> None:
    framer = Framer(8192)
    list(framer.feed((8192).to_bytes(4, "little")))
    for _ in range(100):
        list(framer.feed(b"x" * 81))
    assert framer.pending and len(framer._frame) == 8192


def test_framer_follows_msize_within_a_chunk() -> None:
    """A client may send its first big request right behind the Tversion."""
    framer = Framer(100)
    frames = framer.feed(encode(NOTAG, Tversion(8192, b"9P2000.L")) + encode(1, Twrite(0, 0, b"x" * 1000)))
    next(frames)
    framer.msize = 8192
    assert decode(next(frames))[1] == Twrite(0, 0, b"x" * 1000)


def test_payloads_are_not_copied() -> None:
    frame = encode(1, Twrite(1, 0, b"x" * 100))
    (view,) = Framer().feed(frame)
    payload = decode(view)[1].data  # type: ignore[attr-defined]
    assert isinstance(payload, memoryview) and payload.obj is frame


@given(
    st.lists(st.builds(Entry, values("Qid"), st.integers(0, 2**64 - 1), st.integers(0, 255), st.binary(max_size=255)))
)
def test_entries_there_and_back(entries: list[Entry]) -> None:
    payload = codec.encode_entries(entries)
    assert len(payload) == sum(codec.entry_size(e.name) for e in entries)
    assert codec.decode_entries(payload) == entries
    if entries:
        with pytest.raises(ProtocolError):
            codec.decode_entries(payload[:-1] if entries[-1].name else payload[:-3])


def test_unknown_types_keep_their_tag() -> None:
    with pytest.raises(codec.UnknownMessage) as caught:
        decode(bytes.fromhex("07000000 c8 0900"))
    assert caught.value.tag == 9


def test_import_stays_cheap() -> None:
    """The table must not pull in what a board would wait for."""
    import subprocess
    import sys

    code = "import sys; import ninep.codec; print(*(set(sys.modules) & {'dataclasses', 'inspect', 'asyncio', 'enum'}))"
    out = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert not set(out.stdout.split()) & {"dataclasses", "inspect", "asyncio"}
    assert message.MAX_NAMES == 16
