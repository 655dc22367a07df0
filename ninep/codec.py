"""Messages to bytes and back, and bytes into frames. No I/O, no state but the Framer's buffer.

Rules: a frame's size is checked before anything of it is kept; every count and length inside is checked against the
frame; bytes left over are an error. Whatever is wrong with the bytes is a ProtocolError: the peer's fault.
Payloads (kind `Data`) come out as views into the bytes that were fed, so that they are not copied on their way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Any

from ninep.message import TYPES, Entry, Message, Qid

HEADER_SIZE = 7  # size[4] type[1] tag[2]
MSIZE_MIN = 4096  # below it a directory entry with a 255-byte name, or a path, may not fit
MSIZE_DEFAULT = (1 << 20) + 24  # a payload of 2^20, a power of two, and the header of a read or write
MSIZE_MAX = MSIZE_DEFAULT
VERSION_SIZE = 8192  # the largest frame before an msize is agreed: a Tversion is a few dozen bytes

_HEADER = Struct("<IBH")
_SIZE = Struct("<I")
_U16 = Struct("<H")
_U32 = Struct("<I")
_QID = Struct("<BIQ")
_ENTRY = Struct("<BIQQBH")
_LETTERS = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "Fid": "I", "Qid": "BIQ"}


class ProtocolError(Exception):
    """The peer sent something that is not 9P2000.L; the connection cannot go on. The text says what."""


class UnknownMessage(ProtocolError):
    """A whole frame with a type number that is not in the table: a server can say so and go on."""

    def __init__(self, number: int, tag: int) -> None:
        super().__init__(f"message type {number} is not 9P2000.L")
        self.tag = tag


class _Run:
    """Neighbouring fields of fixed size, packed and unpacked in one go."""

    def __init__(self, fields: list[str], kinds: list[str]) -> None:
        self.fields = tuple(fields)
        self.struct = Struct("<" + "".join(_LETTERS[k] for k in kinds))
        self.size = self.struct.size
        self.qids = [i for i, k in enumerate(kinds) if k == "Qid"]

    def pack(self, values: dict[str, Any]) -> bytes:
        if not self.qids:
            return self.struct.pack(*[values[f] for f in self.fields])
        flat: list[int] = []
        for i, f in enumerate(self.fields):
            if i in self.qids:
                flat += values[f]
            else:
                flat.append(values[f])
        return self.struct.pack(*flat)

    def unpack(self, frame: memoryview, at: int, values: dict[str, Any]) -> None:
        numbers: Iterable[Any] = self.struct.unpack_from(frame, at)
        if self.qids:
            flat = list(numbers)
            for i in self.qids:  # ascending: each replacement leaves the next index right
                flat[i : i + 3] = [Qid(*flat[i : i + 3])]
            numbers = flat
        values.update(zip(self.fields, numbers, strict=True))


_Step = _Run | tuple[str, str]  # a run of fixed fields, or (field, kind) of one of variable size
_plans: dict[type[Message], tuple[_Step, ...]] = {}


def _plan(cls: type[Message]) -> tuple[_Step, ...]:
    """How to code cls, made at its first use: 62 of them at import would cost milliseconds on a board."""
    steps: list[_Step] = []
    fields: list[str] = []
    kinds: list[str] = []
    for field, kind in zip(cls.fields, cls.kinds, strict=True):
        if kind in _LETTERS:
            fields.append(field)
            kinds.append(kind)
            continue
        if fields:
            steps.append(_Run(fields, kinds))
            fields, kinds = [], []
        steps.append((field, kind))
    if fields:
        steps.append(_Run(fields, kinds))
    plan = _plans[cls] = tuple(steps)
    return plan


def encode_into(parts: list[bytes | bytearray | memoryview], tag: int, message: Message) -> int:
    """Append the frame's pieces to parts, payload uncopied; return the frame's size in bytes.

    Join parts before anything else touches a payload's buffer. A value that does not fit its field is ValueError.
    """
    cls = type(message)
    values = message.__dict__
    body: list[bytes | bytearray | memoryview] = []
    try:
        for step in _plans.get(cls) or _plan(cls):
            if type(step) is _Run:
                body.append(step.pack(values))
                continue
            field, kind = step  # type: ignore[misc]
            value = values[field]
            if kind == "Data":
                body.append(_U32.pack(len(value)))
                body.append(value)
            elif kind == "Names":
                body.append(_U16.pack(len(value)))
                for item in value:
                    body += (_U16.pack(len(item)), item)
            elif kind == "Qids":
                body.append(_U16.pack(len(value)))
                body += [_QID.pack(*item) for item in value]
            else:
                body += (_U16.pack(len(value)), value)
        size = HEADER_SIZE
        for piece in body:
            size += len(piece)
        parts.append(_HEADER.pack(size, cls.number, tag))
    except Exception as error:  # struct.error has no module-independent name worth importing
        raise ValueError(f"{message!r}: {error}") from error
    parts += body
    return size


def encode(tag: int, message: Message) -> bytes:
    """The whole frame."""
    parts: list[bytes | bytearray | memoryview] = []
    encode_into(parts, tag, message)
    return b"".join(parts)


def decode(frame: bytes | bytearray | memoryview) -> tuple[int, Message]:
    """(tag, message) of one whole frame, as Framer gives it. Payloads are views into frame. ProtocolError."""
    frame = memoryview(frame)
    length = len(frame)
    if length < HEADER_SIZE:
        raise ProtocolError(f"a frame of {length} bytes has no header")
    size, number, tag = _HEADER.unpack_from(frame)
    if size != length:
        raise ProtocolError(f"a frame of {length} bytes says size {size}")
    cls = TYPES.get(number)
    if cls is None:
        raise UnknownMessage(number, tag)
    message = cls.__new__(cls)
    values = message.__dict__
    at = HEADER_SIZE
    for step in _plans.get(cls) or _plan(cls):
        if type(step) is _Run:
            end = at + step.size
            if end > length:
                raise ProtocolError(f"{cls.__name__} ends inside {'/'.join(step.fields)}")
            step.unpack(frame, at, values)
            at = end
        else:
            field, kind = step  # type: ignore[misc]
            at = _take(frame, at, length, values, field, kind, cls.__name__)
    if at != length:
        raise ProtocolError(f"{cls.__name__} has {length - at} bytes too many")
    return tag, message


def _take(frame: memoryview, at: int, length: int, values: dict[str, Any], field: str, kind: str, of: str) -> int:
    """Decode one field of variable size into values; return where it ends."""
    start = at + (4 if kind == "Data" else 2)
    if start > length:
        raise ProtocolError(f"{of} ends inside {field}")
    if kind == "Data":
        end = start + _U32.unpack_from(frame, at)[0]
        value: Any = frame[start:end]
    elif kind == "Names":
        found = []
        end = start
        for _ in range(_U16.unpack_from(frame, at)[0]):  # each turn needs two bytes of the frame: bounded by it
            if end + 2 > length:
                raise ProtocolError(f"{of} ends inside {field}")
            start = end + 2
            end = start + _U16.unpack_from(frame, end)[0]
            found.append(bytes(frame[start:end]))
        value = tuple(found)
    elif kind == "Qids":
        end = start + _QID.size * _U16.unpack_from(frame, at)[0]
        if end <= length:
            value = tuple(map(Qid._make, _QID.iter_unpack(frame[start:end])))
    else:
        end = start + _U16.unpack_from(frame, at)[0]
        value = bytes(frame[start:end])
    if end > length:
        raise ProtocolError(f"{of} ends inside {field}")
    values[field] = value
    return int(end)


class Framer:
    """Bytes in, frames out. Keeps at most one frame, of at most msize bytes; a larger size is refused when seen.

    msize may be changed between two feeds, when a version has been agreed. After ProtocolError it is of no more use.
    """

    def __init__(self, msize: int = VERSION_SIZE) -> None:
        self.msize = msize
        self._head = b""  # fewer than 4 bytes: not even the size
        self._frame = bytearray()  # a frame whose size is known, being filled
        self._have = 0

    def feed(self, chunk: bytes | memoryview) -> Iterator[memoryview]:
        """Yield every frame that chunk completes. Take them all: the rest of chunk is read as the iterator goes on."""
        view = memoryview(chunk)
        if self._head:
            view = memoryview(self._head + bytes(view))
            self._head = b""
        at = 0
        if self._frame:
            at = min(len(self._frame) - self._have, len(view))
            self._frame[self._have : self._have + at] = view[:at]
            self._have += at
            if self._have < len(self._frame):
                return
            frame, self._frame, self._have = self._frame, bytearray(), 0
            yield memoryview(frame)
        end = len(view)
        while at + 4 <= end:
            size = _SIZE.unpack_from(view, at)[0]
            if not HEADER_SIZE <= size <= self.msize:
                raise ProtocolError(f"frame of {size} bytes, msize is {self.msize}")
            if at + size > end:
                # Its own buffer, filled in place: one copy however many chunks it comes in, and no more than msize.
                self._frame = bytearray(size)
                self._have = end - at
                self._frame[: self._have] = view[at:]
                return
            yield view[at : at + size]
            at += size
        self._head = bytes(view[at:])

    @property
    def pending(self) -> bool:
        """Whether a frame has begun and not ended: true at the end of a stream means it was cut."""
        return bool(self._head or self._frame)


def entry_size(name: bytes) -> int:
    """How many bytes of Rreaddir's payload an entry of that name takes."""
    return _ENTRY.size + len(name)


def encode_entries(entries: Iterable[Entry]) -> bytes:
    """Rreaddir's payload."""
    return b"".join([_ENTRY.pack(*e[0], e[1], e[2], len(e[3])) + e[3] for e in entries])


def decode_entries(payload: bytes | bytearray | memoryview) -> list[Entry]:
    """The entries of Rreaddir's payload. ProtocolError when it does not end at the end of one."""
    view = memoryview(payload)
    entries = []
    at = 0
    while at < len(view):
        if at + _ENTRY.size > len(view):
            raise ProtocolError("Rreaddir ends inside an entry")
        kind, version, path, offset, dtype, length = _ENTRY.unpack_from(view, at)
        at += _ENTRY.size
        if at + length > len(view):
            raise ProtocolError("Rreaddir ends inside a name")
        entries.append(Entry(Qid(kind, version, path), offset, dtype, bytes(view[at : at + length])))
        at += length
    return entries
