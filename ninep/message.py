"""THE TABLE: a class a message, whose annotated fields are its wire form, in order.

Every message is `size[4] type[1] tag[2]` and then its fields, little endian. The field kinds are below; `ninep.codec`
turns them into bytes and back. Sources: Plan 9 manual section 5, diod's protocol.md, Linux net/9p and fs/9p.
A T-message (request) is answered by the R-message of the next number, or by Rlerror.
"""

from __future__ import annotations

import errno
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, dataclass_transform

# Field kinds. The annotation's own word is the kind, so they are written as strings (from __future__ annotations).
u8 = int
u16 = int
u32 = int
u64 = int
Fid = int  # u32 that names a file of the connection: the server orders requests by these
Str = bytes  # len[2] and its bytes: not a path element
Name = bytes  # a Str that is one path element: checked at the server's edge
Names = tuple[bytes, ...]  # n[2] n*(Name)
Data = bytes | bytearray | memoryview  # count[4] and its bytes: the payload


class Qid(NamedTuple):
    """The server's identity of a file: type[1] version[4] path[8]. path is unique among the files of a server."""

    type: int
    version: int
    path: int


Qids = tuple[Qid, ...]  # n[2] n*(Qid)

VERSION = b"9P2000.L"
NOTAG = 0xFFFF
NOFID = 0xFFFFFFFF
NO_UID = 0xFFFFFFFF
MAX_NAMES = 16  # names in one Twalk (Plan 9 manual, walk(5))
IOHDRSZ = 24  # what a read or write costs beside its payload (Plan 9 fcall.h)
ERRNO_MAX = 511  # what is above, Linux keeps to itself (linux/errno.h): FUSE takes none of it for an answer

QTDIR, QTAPPEND, QTEXCL, QTAUTH, QTTMP, QTSYMLINK, QTFILE = 0x80, 0x40, 0x20, 0x08, 0x04, 0x02, 0x00

# Tgetattr's request mask, and Rgetattr's valid (Linux include/net/9p/9p.h)
GETATTR_MODE, GETATTR_NLINK, GETATTR_UID, GETATTR_GID, GETATTR_RDEV = 0x1, 0x2, 0x4, 0x8, 0x10
GETATTR_ATIME, GETATTR_MTIME, GETATTR_CTIME, GETATTR_INO, GETATTR_SIZE, GETATTR_BLOCKS = (
    0x20,
    0x40,
    0x80,
    0x100,
    0x200,
    0x400,
)
GETATTR_BASIC = 0x7FF

# Tsetattr's valid (Linux fs/9p/vfs_inode_dotl.c)
SETATTR_MODE, SETATTR_UID, SETATTR_GID, SETATTR_SIZE = 0x1, 0x2, 0x4, 0x8
SETATTR_ATIME, SETATTR_MTIME, SETATTR_CTIME, SETATTR_ATIME_SET, SETATTR_MTIME_SET = 0x10, 0x20, 0x40, 0x80, 0x100

AT_REMOVEDIR = 0x200  # Tunlinkat's flag

LOCK_TYPE_RDLCK, LOCK_TYPE_WRLCK, LOCK_TYPE_UNLCK = 0, 1, 2
LOCK_FLAGS_BLOCK, LOCK_FLAGS_RECLAIM = 1, 2
LOCK_SUCCESS, LOCK_BLOCKED, LOCK_ERROR, LOCK_GRACE = 0, 1, 2, 3

XATTR_CREATE, XATTR_REPLACE = 1, 2

V9FS_MAGIC = 0x01021997  # statfs type (linux/magic.h): tells programs such as tail that the file system is remote

# Open flags on the wire: Linux generic (octal x86), whatever the machines are.
O_ACCMODE, O_RDONLY, O_WRONLY, O_RDWR = 0o3, 0o0, 0o1, 0o2
O_CREAT, O_EXCL, O_NOCTTY, O_TRUNC, O_APPEND, O_NONBLOCK = 0o100, 0o200, 0o400, 0o1000, 0o2000, 0o4000
O_DSYNC, O_DIRECT, O_LARGEFILE, O_DIRECTORY, O_NOFOLLOW = 0o10000, 0o40000, 0o100000, 0o200000, 0o400000
O_NOATIME, O_CLOEXEC, O_SYNC = 0o1000000, 0o2000000, 0o4010000

TYPES: dict[int, type[Message]] = {}  # number -> class; filled by the classes below


@dataclass_transform()
class Message:
    """A 9P message. Construct with its fields in order or by name; two are equal when type and fields are."""

    number: ClassVar[int]
    fields: ClassVar[tuple[str, ...]] = ()
    kinds: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, number: int = 0) -> None:
        super().__init_subclass__()
        kinds = cls.__dict__.get("__annotations__", {})  # noqa: RUF063  (strings here; inspect costs 10 ms to import)
        cls.fields = tuple(kinds)
        cls.kinds = tuple(kinds.values())
        if number:
            cls.number = number
            TYPES[number] = cls

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if len(args) + len(kwargs) != len(self.fields):
            raise TypeError(f"{type(self).__name__} takes {', '.join(self.fields) or 'no fields'}")
        self.__dict__.update(zip(self.fields, args, strict=False))
        if kwargs:
            self.__dict__.update(kwargs)
            if len(self.__dict__) != len(self.fields) or not kwargs.keys() <= set(self.fields):
                raise TypeError(f"{type(self).__name__} takes {', '.join(self.fields)}")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """The trace form: the protocol's own words, payloads by their length."""
        return " ".join(
            [
                type(self).__name__,
                *(_words(n, k, getattr(self, n)) for n, k in zip(self.fields, self.kinds, strict=True)),
            ]
        )


def _words(field: str, kind: str, value: Any) -> str:
    if kind == "Data":
        return f"count {len(value)}"
    if kind in ("Str", "Name"):
        return f"{field} {_quote(value)}"
    if kind == "Names":
        return f"nwname {len(value)}" + "".join(f" {_quote(n)}" for n in value)
    if kind == "Qid":
        return f"{field} {_qid_words(value)}"
    if kind == "Qids":
        return f"nwqid {len(value)}" + "".join(f" {_qid_words(q)}" for q in value)
    if kind == "Fid" and value == NOFID:
        return f"{field} NOFID"
    if field == "ecode":
        return errno.errorcode.get(value, str(value))
    if field in ("mode", "flags"):
        return f"{field} {value:#o}"
    if field in ("valid", "request_mask"):
        return f"{field} {value:#x}"
    return f"{field} {value}"


def _quote(value: bytes) -> str:
    return "'" + repr(value)[2:-1] + "'"


def _qid_words(q: Qid) -> str:
    letters = "".join(
        letter
        for bit, letter in ((QTDIR, "d"), (QTAPPEND, "a"), (QTEXCL, "l"), (QTAUTH, "A"), (QTTMP, "t"), (QTSYMLINK, "L"))
        if q.type & bit
    )
    return f"({q.path:x} {q.version:x} {letters or '-'})"


R = TypeVar("R", bound=Message, covariant=True)


class Request(Message, Generic[R]):
    """A T-message; R is the class of its answer when it is not Rlerror."""


class Rlerror(Message, number=7):
    ecode: u32


class Rversion(Message, number=101):
    msize: u32
    version: Str


class Tversion(Request[Rversion], number=100):
    msize: u32
    version: Str


class Rauth(Message, number=103):
    aqid: Qid


class Tauth(Request[Rauth], number=102):
    afid: Fid
    uname: Str
    aname: Str
    n_uname: u32


class Rattach(Message, number=105):
    qid: Qid


class Tattach(Request[Rattach], number=104):
    fid: Fid
    afid: Fid
    uname: Str
    aname: Str
    n_uname: u32


class Rflush(Message, number=109):
    pass


class Tflush(Request[Rflush], number=108):
    oldtag: u16


class Rwalk(Message, number=111):
    wqid: Qids


class Twalk(Request[Rwalk], number=110):
    fid: Fid
    newfid: Fid
    wname: Names


class Rread(Message, number=117):
    data: Data


class Tread(Request[Rread], number=116):
    fid: Fid
    offset: u64
    count: u32


class Rwrite(Message, number=119):
    count: u32


class Twrite(Request[Rwrite], number=118):
    fid: Fid
    offset: u64
    data: Data


class Rclunk(Message, number=121):
    pass


class Tclunk(Request[Rclunk], number=120):
    fid: Fid


class Rremove(Message, number=123):
    pass


class Tremove(Request[Rremove], number=122):
    fid: Fid


class Rstatfs(Message, number=9):
    """Numbers of a file system: blocks of bsize bytes; bavail is what a person without privileges may use."""

    type: u32
    bsize: u32
    blocks: u64
    bfree: u64
    bavail: u64
    files: u64
    ffree: u64
    fsid: u64
    namelen: u32


class Tstatfs(Request[Rstatfs], number=8):
    fid: Fid


class Rlopen(Message, number=13):
    qid: Qid
    iounit: u32


class Tlopen(Request[Rlopen], number=12):
    fid: Fid
    flags: u32


class Rlcreate(Message, number=15):
    qid: Qid
    iounit: u32


class Tlcreate(Request[Rlcreate], number=14):
    fid: Fid
    name: Name
    flags: u32
    mode: u32
    gid: u32


class Rsymlink(Message, number=17):
    qid: Qid


class Tsymlink(Request[Rsymlink], number=16):
    dfid: Fid
    name: Name
    symtgt: Str
    gid: u32


class Rmknod(Message, number=19):
    qid: Qid


class Tmknod(Request[Rmknod], number=18):
    dfid: Fid
    name: Name
    mode: u32
    major: u32
    minor: u32
    gid: u32


class Rrename(Message, number=21):
    pass


class Trename(Request[Rrename], number=20):
    fid: Fid
    dfid: Fid
    name: Name


class Rreadlink(Message, number=23):
    target: Str


class Treadlink(Request[Rreadlink], number=22):
    fid: Fid


class Rgetattr(Message, number=25):
    """A file's attributes: sizes in bytes, blocks of 512 bytes, times in seconds and nanoseconds.

    rdev is in the kernel's new_encode_dev form, which st_rdev has too for the numbers Linux gives out.
    """

    valid: u64
    qid: Qid
    mode: u32
    uid: u32
    gid: u32
    nlink: u64
    rdev: u64
    size: u64
    blksize: u64
    blocks: u64
    atime_sec: u64
    atime_nsec: u64
    mtime_sec: u64
    mtime_nsec: u64
    ctime_sec: u64
    ctime_nsec: u64
    btime_sec: u64
    btime_nsec: u64
    gen: u64
    data_version: u64


class Tgetattr(Request[Rgetattr], number=24):
    fid: Fid
    request_mask: u64


class Rsetattr(Message, number=27):
    pass


class Tsetattr(Request[Rsetattr], number=26):
    fid: Fid
    valid: u32
    mode: u32
    uid: u32
    gid: u32
    size: u64
    atime_sec: u64
    atime_nsec: u64
    mtime_sec: u64
    mtime_nsec: u64


class Rxattrwalk(Message, number=31):
    size: u64


class Txattrwalk(Request[Rxattrwalk], number=30):
    fid: Fid
    newfid: Fid
    name: Str


class Rxattrcreate(Message, number=33):
    pass


class Txattrcreate(Request[Rxattrcreate], number=32):
    fid: Fid
    name: Str
    attr_size: u64
    flags: u32


class Rreaddir(Message, number=41):
    """data is entries, each `qid[13] offset[8] type[1] name[s]` (codec.encode_entries), whole ones only."""

    data: Data


class Treaddir(Request[Rreaddir], number=40):
    fid: Fid
    offset: u64
    count: u32


class Rfsync(Message, number=51):
    pass


class Tfsync(Request[Rfsync], number=50):
    fid: Fid
    datasync: u32


class Rlock(Message, number=53):
    status: u8


class Tlock(Request[Rlock], number=52):
    fid: Fid
    type: u8
    flags: u32
    start: u64
    length: u64
    proc_id: u32
    client_id: Str


class Rgetlock(Message, number=55):
    type: u8
    start: u64
    length: u64
    proc_id: u32
    client_id: Str


class Tgetlock(Request[Rgetlock], number=54):
    fid: Fid
    type: u8
    start: u64
    length: u64
    proc_id: u32
    client_id: Str


class Rlink(Message, number=71):
    pass


class Tlink(Request[Rlink], number=70):
    dfid: Fid
    fid: Fid
    name: Name


class Rmkdir(Message, number=73):
    qid: Qid


class Tmkdir(Request[Rmkdir], number=72):
    dfid: Fid
    name: Name
    mode: u32
    gid: u32


class Rrenameat(Message, number=75):
    pass


class Trenameat(Request[Rrenameat], number=74):
    olddirfid: Fid
    oldname: Name
    newdirfid: Fid
    newname: Name


class Runlinkat(Message, number=77):
    pass


class Tunlinkat(Request[Runlinkat], number=76):
    dirfid: Fid
    name: Name
    flags: u32


class Entry(NamedTuple):
    """One name of a directory, as Rreaddir carries it. offset is the cookie that continues after it; type is d_type."""

    qid: Qid
    offset: int
    type: int
    name: bytes
