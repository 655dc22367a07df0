"""Archives as Files: the reading half of the conformance suite, what formats there are, and what hostile ones get."""

from __future__ import annotations

import asyncio
import bz2
import errno
import gzip
import lzma
import os
import resource
import shutil
import socket
import stat
import struct
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import conformance
import conformance_reading as reading
from conformance import at, content, entries, fails, names
from conformance_reading import D, F, L, Row, newc, tar
from ninep import archive as a
from ninep import message as m
from ninep import unpack
from ninep.client import Client
from ninep.file import File
from ninep.localfs import LocalFile
from ninep.server import serve
from ninep.stream import of_socket

FORMATS = {
    "newc": newc(),
    "newc with data first": newc(first=True),
    "newc.gz": gzip.compress(newc(), 1),
    "newc.xz": lzma.compress(newc(), preset=0),
    "pax": tar(),
    "gnu": tar(format=tarfile.GNU_FORMAT),
    "pax.gz": gzip.compress(tar(), 1),
    "pax.bz2": bz2.compress(tar(), 1),
    "pax.xz": lzma.compress(tar(), preset=0),
    "pax.lzma": lzma.compress(tar(), lzma.FORMAT_ALONE, preset=0),
}


def opened(folder: Path, data: bytes) -> a.ArchiveFile:
    path = folder / "archive"
    path.write_bytes(data)
    return a.open_archive(os.fsencode(path))


@pytest.fixture(scope="module", params=FORMATS)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("archive") / "archive"
    file.write_bytes(FORMATS[request.param])
    return file


@pytest.mark.parametrize("check", reading.READS, ids=lambda c: c.__name__)
def test_conformance(check: conformance.Check, path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    root: a.ArchiveFile | None = a.open_archive(str(path))
    asyncio.run(check(root))  # type: ignore[arg-type]
    root = None
    assert len(os.listdir("/proc/self/fd")) == before


def test_nothing_is_written(path: Path) -> None:
    before = path.read_bytes()
    asyncio.run(reading.refuses_to_write(a.open_archive(str(path))))
    assert path.read_bytes() == before


WRITE_NOTHING = {"walk_clones", "numbers_of_the_file_system"}


@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda c: c.__name__)
def test_the_writing_half_is_erofs(check: conformance.Check, tmp_path: Path) -> None:
    """Each check of the whole suite passes, or stops at the first thing it makes: with EROFS and nothing else."""

    async def run() -> None:
        root = opened(tmp_path, newc([]))
        if check.__name__ in WRITE_NOTHING:
            await check(root)
        else:
            with fails(errno.EROFS):
                await check(root)

    asyncio.run(run())


@pytest.mark.parametrize("check", reading.READS, ids=lambda c: c.__name__)
def test_the_reading_half_is_true_of_local_files(check: conformance.Check, tmp_path: Path) -> None:
    async def run() -> None:
        root = LocalFile.root(os.fsencode(tmp_path))
        await reading.plant(root)
        await check(root)
        await root.clunk()

    asyncio.run(run())


@pytest.mark.parametrize("data", [newc(), tar()], ids=["newc", "tar"])
def test_over_9p(data: bytes, tmp_path: Path) -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair()
        server = asyncio.create_task(serve(of_socket(theirs), opened(tmp_path, data)))
        client = await Client.connect(of_socket(ours))
        root = await client.attach()
        for check in reading.READS:
            await check(root)
        await reading.refuses_to_write(root)
        await root.clunk()
        await client.close()
        await server

    asyncio.run(run())


def test_the_order_of_an_archive_makes_its_qids(tmp_path: Path) -> None:
    one, two = [opened(tmp_path, data) for data in (newc(), newc())]
    asyncio.run(_same(one, two))


async def _same(one: File, two: File) -> None:
    assert [e.qid for e in await entries(one)] == [e.qid for e in await entries(two)]


def test_device_nodes_sockets_and_owners(tmp_path: Path) -> None:
    tree = [
        Row(b"c", stat.S_IFCHR | 0o666, rdev=(1, 3)),
        Row(b"b", stat.S_IFBLK | 0o660, rdev=(259, 300)),
    ]

    async def run(root: File) -> None:
        for name, kind, rdev in ((b"c", stat.S_IFCHR, (1, 3)), (b"b", stat.S_IFBLK, (259, 300))):
            file = await at(root, name)
            r = await file.getattr()
            assert (stat.S_IFMT(r.mode), os.major(r.rdev), os.minor(r.rdev)) == (kind, *rdev)
            with fails(errno.EACCES):
                await file.open(m.O_RDONLY)

    for data in (newc([*tree, Row(b"s", stat.S_IFSOCK | 0o600)]), tar(tree)):
        asyncio.run(run(opened(tmp_path, data)))


def test_names(tmp_path: Path) -> None:
    """Absolute and dotted names are names below the root; parents are made up; the last of a name wins."""
    tree = [
        Row(b".", D | 0o700),
        Row(b"/etc/hosts", F | 0o644, b"1"),
        Row(b"./etc//./hosts", F | 0o600, b"22"),
        Row(b"usr/lib", D | 0o711),
        Row(b"lib", L | 0o777, b"/usr/lib"),
        Row(b"usr/lib64", L | 0o777, b"./../usr/lib"),
        Row(b"lib/modules/x", F | 0o644, b"x"),
        Row(b"usr/lib64/y", F | 0o644, b"y"),
        Row(b"usr/lib", D | 0o755),
        Row(b"was-a-file", F | 0o644, b"z"),
        Row(b"was-a-file", D | 0o755),
        Row(b"was-a-dir/in/it", F | 0o644, b"z"),
        Row(b"was-a-dir", F | 0o644, b"file"),
    ]

    async def run(root: File) -> None:
        assert await names(root) == {b"etc", b"usr", b"lib", b"was-a-file", b"was-a-dir"}
        etc, lib = await at(root, b"etc"), await at(root, b"usr", b"lib")
        assert await content(etc, b"hosts") == b"22"
        assert stat.S_IMODE((await etc.getattr()).mode) == 0o755
        assert stat.S_IMODE((await root.getattr()).mode) == 0o700
        assert await names(lib) == {b"modules", b"y"}
        assert stat.S_IMODE((await lib.getattr()).mode) == 0o755
        assert (await lib.getattr()).nlink == 3
        assert (await root.getattr()).nlink == 5
        assert await content(root, b"was-a-dir") == b"file"
        listing = await entries(root)
        assert len({e.name for e in listing}) == len(listing)

    for data in (newc(tree), tar(tree)):
        asyncio.run(run(opened(tmp_path, data)))


def test_archives_behind_each_other(tmp_path: Path) -> None:
    """As the kernel reads them: plain and compressed in any order, zeros between, inode numbers of their own."""
    one = newc([Row(b"kernel/x86", D | 0o755), Row(b"f", F | 0o644, b"1"), Row(b"g", F | 0o644, link=b"f")])
    two = newc([Row(b"h", F | 0o644, b"2"), Row(b"i", F | 0o644, link=b"h"), Row(b"f", F | 0o600, b"new")])
    three = newc([Row(b"j", F | 0o644, b"3" * 100)])

    async def run(root: File) -> None:
        assert await names(root) == {b"kernel", b"f", b"g", b"h", b"i", b"j"}
        assert [await content(root, n) for n in (b"f", b"g", b"h", b"i", b"j")] == [
            b"new",
            b"1",
            b"2",
            b"2",
            b"3" * 100,
        ]
        g = await at(root, b"g")
        assert (await g.getattr()).nlink == 1

    for data in (
        one + two + three,
        one + bytes(512) + gzip.compress(two) + bytes(37) + lzma.compress(three) + bytes(4096),
        gzip.compress(one + bytes(512) + two) + lzma.compress(three),
        gzip.compress(one) + gzip.compress(two) + three
        if len(gzip.compress(one) + gzip.compress(two)) % 4 == 0
        else gzip.compress(one) + gzip.compress(two) + bytes(-len(gzip.compress(one) + gzip.compress(two)) % 4) + three,
    ):
        asyncio.run(run(opened(tmp_path, data)))
    with pytest.raises(a.ArchiveError, match="neither a cpio archive nor"):
        opened(tmp_path, one + b"junk")


def test_extended_attributes_and_exact_times(tmp_path: Path) -> None:
    value = b"\1\0\0\2\xff=\n".decode("utf-8", "surrogateescape")
    pax = {
        "SCHILY.xattr.user.a": "b",
        "SCHILY.xattr.security.capability": value,
        "mtime": "-1.5",
        "atime": "7.000000001",
    }

    async def run() -> None:
        root = opened(tmp_path, tar([Row(b"f", F | 0o644)], pax=pax))
        f = await at(root, b"f")
        assert set((await f.listxattr()).split(b"\0")) == {b"user.a", b"security.capability", b""}
        assert await f.getxattr(b"security.capability") == b"\1\0\0\2\xff=\n"
        with fails(errno.ENODATA):
            await f.getxattr(b"user.b")
        r = await f.getattr()
        assert (r.mtime_sec, r.mtime_nsec) == ((1 << 64) - 2, 500_000_000)
        assert (r.atime_sec, r.atime_nsec) == (7, 1)

    asyncio.run(run())


@pytest.mark.interop
@pytest.mark.skipif(not shutil.which("tar"), reason="GNU tar is not installed")
@pytest.mark.parametrize("options", [["--format=gnu"], ["--format=posix"], ["--format=posix", "--sparse-version=0.1"]])
def test_sparse_files_of_gnu_tar(options: list[str], tmp_path: Path) -> None:
    expected = bytearray(20 << 20)
    with open(tmp_path / "holes", "wb") as file:
        for i in range(60):  # more than one header has room for
            file.seek(i * 300_001)
            file.write(b"data %d" % i)
            expected[i * 300_001 : i * 300_001 + len(b"data %d" % i)] = b"data %d" % i
        file.truncate(len(expected))
    subprocess.run(["tar", "-cSf", "t.tar", *options, "holes"], cwd=tmp_path, check=True)

    async def run() -> None:
        root = a.open_archive(str(tmp_path / "t.tar"))
        file = await conformance.opened(root, b"holes")
        r = await file.getattr()
        assert r.size == len(expected) and r.blocks * 512 < 1 << 20
        got = b""
        while part := await file.read(len(got), 1_000_003):
            got += part
        assert got == expected

    asyncio.run(run())


@pytest.mark.interop
@pytest.mark.skipif(not shutil.which("cpio"), reason="GNU cpio is not installed")
def test_gnu_cpio(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "d").mkdir(parents=True)
    (tree / "d" / "f").write_bytes(b"content")
    os.link(tree / "d" / "f", tree / "g")
    os.symlink("d/f", tree / "l")
    with open(tmp_path / "archive", "wb") as out:
        names_in = b"\0".join([b".", b"d", b"d/f", b"g", b"l"])
        subprocess.run(["cpio", "-o0", "-Hnewc", "--quiet"], input=names_in, stdout=out, cwd=tree, check=True)

    async def run() -> None:
        root = a.open_archive(str(tmp_path / "archive"))
        assert await names(root) == {b"d", b"g", b"l"}
        assert await content(root, b"g") == b"content"
        g, f = await at(root, b"g"), await at(root, b"d", b"f")
        assert g.qid == f.qid and (await g.getattr()).nlink == 2

    asyncio.run(run())


# Hostile archives


def header(name: bytes, **fields: int) -> bytes:
    """One newc header, whatever it says."""
    order = ("ino", "mode", "uid", "gid", "nlink", "mtime", "size", "maj", "min", "rmaj", "rmin", "namesize", "check")
    values = {"mode": F | 0o644, "nlink": 1, "namesize": len(name) + 1} | fields
    head = b"070701" + b"".join(b"%08x" % values.get(field, 0) for field in order) + name + b"\0"
    return head + bytes(-len(head) % 4)


END = header(b"TRAILER!!!", mode=0)


def pax_record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    while len(b"%d" % length) + len(key) + len(value) + 3 != length:
        length = len(b"%d" % length) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (length, key, value)


def block(name: bytes, type: bytes = b"0", size: int | bytes = 0, link: bytes = b"") -> bytes:
    """One tar header, its checksum right."""
    field = size if isinstance(size, bytes) else b"%011o\0" % size
    head = bytearray(name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + field + b"%011o\0" % 0)
    head += b" " * 8 + type + link.ljust(100, b"\0") + b"ustar\x0000"
    head += bytes(512 - len(head))
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def pax(records: bytes, type: bytes = b"x") -> bytes:
    return block(b"pax", type, len(records)) + padded(records)


NEGATIVE = b"\xff" * 8 + struct.pack(">i", -512)
ZEROS = bytes(1024)

HOSTILE = {
    "empty": b"",
    "text": b"This is not an archive, however long it may be. " * 20,
    "short": b"07",
    "old cpio": b"070707" + b"0" * 100,
    "zstd": b"\x28\xb5\x2f\xfd" + bytes(100),
    "up": header(b"../etc/passwd") + END,
    "up in the middle": header(b"a/../../b") + END,
    "root is a file": header(b"/") + END,
    "long name": header(b"x" * 256) + END,
    "long path": header(b"x/" * 2048 + b"y") + END,
    "name of 4 GiB": header(b"x", namesize=0xFFFFFFFF) + END,
    "no name": header(b"", namesize=1) + END,
    "no name at all": header(b"x", namesize=0) + END,
    "NUL": header(b"a\0b") + END,
    "unended name": header(b"abcdef", namesize=3) + END,
    "not hexadecimal": header(b"x").replace(b"0", b"z", 30) + END,
    "underscores": header(b"x")[:6] + b"0_000001" + header(b"x")[14:] + END,
    "signs": header(b"x")[:6] + b"-0000001" + header(b"x")[14:] + END,
    "contents of 4 GiB": header(b"x", size=0xFFFFFFFF) + END,
    "link of 4 GiB": header(b"x", mode=L | 0o777, size=0xFFFFFFF0) + END,
    "link to nowhere": header(b"x", mode=L | 0o777) + END,
    "link with NUL": header(b"x", mode=L | 0o777, size=4) + b"a\0bc" + END,
    "no type": header(b"x", mode=0o644) + END,
    "device number": header(b"x", mode=stat.S_IFCHR, rmaj=0xFFFFFFFF) + END,
    "below a file": header(b"x") + header(b"x/y") + END,
    "links in a circle": header(b"x", mode=L, size=4) + b"./y\0"[:3] + b"/" + header(b"y", mode=L, size=4) + b".//x"
    + header(b"x/z") + END,
    "no trailer": header(b"x"),
    "cut": newc()[:-100],
    "junk behind": newc([]) + b"\1\2\3\4",
    "unaligned": newc([]) + b"\0" + newc([]),
    "tar up": tar([Row(b"../x", F)]),
    "tar long name": tar([Row(b"x" * 256, F)]),
    "tar link to nowhere": block(b"x", b"1", link=b"nope") + ZEROS,
    "tar link to what would be made up": block(b"x", b"1", link=b"no/pe") + ZEROS,
    "tar link to a directory": block(b"d/", b"5") + block(b"x", b"1", link=b"d") + ZEROS,
    "tar negative": block(b"x", size=NEGATIVE) + ZEROS,
    "tar negative by pax": pax(pax_record(b"size", b"-1024")) + block(b"x") + ZEROS,
    "tar negative long name": block(b"x", b"L", NEGATIVE) + ZEROS,
    "tar large": block(b"x", size=b"\x80" + b"\xff" * 11) + ZEROS,
    "tar huge pax": block(b"x", b"x", size=1 << 33) + ZEROS,
    "tar huge long name": block(b"x", b"L", size=1 << 33) + ZEROS,
    "tar nested": pax(pax_record(b"comment", b"x")) * 3000 + block(b"x") + ZEROS,
    "tar digits": pax(b"1" * 200_000) + block(b"x") + ZEROS,
    "tar digits in a name": pax(b"1 hdrcharset=" + b"12" * 100_000) + block(b"x") + ZEROS,
    "tar keys": pax(b"".join(pax_record(b"k%d" % i, b"v") for i in range(5000)), b"g") + block(b"x") + ZEROS,
    "tar time": pax(pax_record(b"mtime", b"nan")) + block(b"x") + ZEROS,
    "tar time far": pax(pax_record(b"mtime", b"1e300")) + block(b"x") + ZEROS,
    "tar sparse to the end": pax(
        pax_record(b"GNU.sparse.major", b"1") + pax_record(b"GNU.sparse.minor", b"0")
    ) + block(b"x", size=512) + b"9999999\n".ljust(512, b"1"),
    "tar sparse backwards": pax(
        pax_record(b"GNU.sparse.map", b"10,5,0,5") + pax_record(b"GNU.sparse.size", b"100")
    ) + block(b"x", size=512) + bytes(512) + ZEROS,
    "tar sparse beyond": pax(
        pax_record(b"GNU.sparse.map", b"0,99999999") + pax_record(b"GNU.sparse.size", b"100000000")
    ) + block(b"x", size=512) + bytes(512) + ZEROS,
    "tar NUL": pax(pax_record(b"path", b"a\0b")) + block(b"x") + ZEROS,
    "tar damaged": block(b"x") + b"\1" * 512 + ZEROS,
    "tar without end": block(b"x") + block(b"y"),
    "tar cut in data": tar([Row(b"x", F, b"1" * 5000)])[:2000],
    "tar volume": block(b"x", b"M") + ZEROS,
    "gzip cut": gzip.compress(tar())[:-1000],
    "gzip damaged": gzip.compress(b"x" * 1000)[:20] + b"\xff" * 30,
    "gzip of text": gzip.compress(b"text" * 200),
    "gzip of nothing": gzip.compress(b""),
    "gzip of gzip": gzip.compress(gzip.compress(newc())),
    "xz cut": lzma.compress(newc())[:-20],
    "xz damaged": lzma.compress(newc())[:50] + b"\0" * 100,
    "bzip2 damaged": b"BZh9" + b"\1" * 100,
    "lzma damaged": b"]\0\0\0\4" + b"\xff" * 100,
    "tar behind cpio": newc([]) + gzip.compress(tar()),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile(what: str, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    began = time.monotonic()
    with pytest.raises(a.ArchiveError) as caught:
        opened(tmp_path, HOSTILE[what])
    assert caught.value.errno == errno.EINVAL and str(tmp_path / "archive") in str(caught.value)
    assert caught.value.strerror
    assert time.monotonic() - began < 10
    del caught
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(a.ArchiveError, match="neither a file nor"):
            a.open_archive(str(path))
    with pytest.raises(FileNotFoundError):
        a.open_archive(os.fsencode(tmp_path / "nope"))


def test_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "UNPACKED_MAX", 1 << 20)
    with pytest.raises(a.ArchiveError, match="unpacks to more"):
        opened(tmp_path, gzip.compress(bytes(2 << 20)))
    with pytest.raises(a.ArchiveError, match="unpacks to more"):
        opened(tmp_path, lzma.compress(bytes(2 << 20)))
    monkeypatch.setattr(a, "NODES_MAX", 100)
    with pytest.raises(a.ArchiveError, match="more than 100 files"):
        opened(tmp_path, newc([Row(b"x/" * 60 + b"%d" % i, F) for i in range(3)] + [Row(b"y/" * 60, D)]))
    monkeypatch.setattr(a, "ATTRIBUTES_MAX", 1000)
    with pytest.raises(a.ArchiveError, match="more than 1000 bytes"):
        opened(tmp_path, newc([Row(b"x", L, b"y" * 900), Row(b"y", L, b"y" * 900)]))
    with pytest.raises(a.ArchiveError, match="damaged xz data: Memory"):
        filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 16 << 20}]
        monkeypatch.setattr(unpack, "MEMORY_MAX", 1 << 20)
        opened(tmp_path, lzma.compress(b"x", filters=filters))


def test_a_large_archive_stays_on_disk(tmp_path: Path) -> None:
    """A file of 1 GiB, sparse on this disk, costs no memory, and its end can be read."""
    size = 1 << 30
    with open(tmp_path / "archive", "wb") as file:
        file.write(header(b"big", size=size))
        file.seek(size - 3, os.SEEK_CUR)
        file.write(b"end" + END)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    async def run() -> None:
        root = a.open_archive(str(tmp_path / "archive"))
        big = await conformance.opened(root, b"big")
        assert bytes(await big.read(size - 5, 100)) == b"\0\0end"

    asyncio.run(run())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_an_archive_that_becomes_shorter_is_eio(tmp_path: Path) -> None:
    async def run() -> None:
        root = opened(tmp_path, newc([Row(b"f", F | 0o644, b"x" * 10000)]))
        os.truncate(tmp_path / "archive", 200)
        with fails(errno.EIO):
            await content(root, b"f")
            await content(root, b"f")

    asyncio.run(run())


async def everything(directory: File, depth: int = 0) -> int:
    """Visit and read all of a tree; returns how many files."""
    count = 0
    for entry in await entries(directory):
        if entry.name in (b".", b".."):
            continue
        file, r = await directory.walk_getattr(entry.name)
        count += 1
        if stat.S_ISDIR(r.mode):
            if depth < 50:
                count += await everything(file, depth + 1)
        elif stat.S_ISLNK(r.mode):
            assert len(await file.readlink()) > 0
        elif stat.S_ISREG(r.mode):
            await file.open(m.O_RDONLY)
            offset = 0
            while (part := await file.read(offset, 65536)) and offset < 1 << 20:
                offset += len(part)
            assert offset == min(r.size, offset)
        await file.listxattr()
    return count


SMALL = [
    Row(b"a", D | 0o755),
    Row(b"a/f", F | 0o644, b"content" * 50),
    Row(b"g", F | 0o644, link=b"a/f"),
    Row(b"l", L | 0o777, b"a"),
    Row(b"l/h", F | 0o600, b"through a link"),
    Row(b"n" * 150, F | 0o600, b"long"),
]
SEEDS = [
    newc(SMALL),
    tar(SMALL),
    tar(SMALL, tarfile.GNU_FORMAT),
    tar(SMALL, pax={"SCHILY.xattr.user.a": "b", "GNU.sparse.map": "0,3,5,2", "GNU.sparse.size": "400"}),
    gzip.compress(newc(SMALL)) + newc(SMALL),
    lzma.compress(tar(SMALL)),
]


def survives(folder: Path, data: bytes) -> None:
    """An ArchiveError, or a tree that can be gone through from end to end."""
    try:
        root = opened(folder, data)
    except a.ArchiveError:
        return
    try:
        asyncio.run(everything(root))
    except OSError as error:
        assert error.errno == errno.EIO


@settings(max_examples=300, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), seed=st.sampled_from(SEEDS))
def test_mutated(tmp_path: Path, seed: bytes, data: st.DataObject) -> None:
    changed = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(changed)))
        piece = data.draw(st.binary(max_size=12) | st.sampled_from([b"0", b"7", b"f", b"/", b"\0", b"..", b"\xff" * 8]))
        kept = data.draw(st.integers(0, 12))
        changed[at : at + kept] = piece if data.draw(st.booleans()) else piece.ljust(kept, b"0")[:kept]
    survives(tmp_path, bytes(changed))


@settings(max_examples=150, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1), seed=st.sampled_from(SEEDS[:4]))
def test_cut_short_is_an_error(tmp_path: Path, seed: bytes, cut: float) -> None:
    size = int(cut * len(seed.rstrip(b"\0")))
    with pytest.raises(a.ArchiveError):
        opened(tmp_path, seed[:size])


CPIO_FIELDS = st.integers(0, 0xFFFFFFFF) | st.integers(0, 20) | st.sampled_from([F, D, L, stat.S_IFCHR])
NAMES = st.text("ab/.", max_size=8).map(str.encode) | st.binary(max_size=20)
CPIO_MEMBERS = st.builds(
    lambda name, mode, nlink, ino, size, data: (
        header(name, mode=mode, nlink=nlink, ino=ino, size=len(data) if size is None else size)
        + data
        + bytes(-len(data) % 4)
    ),
    NAMES,
    st.sampled_from([F, D, L, stat.S_IFIFO, stat.S_IFCHR]) | CPIO_FIELDS,
    st.integers(0, 3),
    st.integers(0, 3),
    st.none() | CPIO_FIELDS,
    st.binary(max_size=20),
)
TAR_MEMBERS = st.builds(
    lambda name, type, data, link, size: (
        block(name[:100], type, len(data) if size is None else size, link) + padded(data)
    ),
    NAMES,
    st.sampled_from([bytes([c]) for c in b"0125346x7LKgSDVMX"]),
    st.binary(max_size=30) | st.builds(pax_record, st.sampled_from([b"path", b"size", b"mtime", b"uid"]), NAMES),
    NAMES,
    st.none() | st.none() | st.integers(0, 1 << 30) | st.binary(min_size=12, max_size=12),
)  # fmt: skip


@settings(max_examples=300, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(members=st.lists(CPIO_MEMBERS, max_size=8).map(b"".join).map(lambda b: b + END)
       | st.lists(TAR_MEMBERS, max_size=8).map(b"".join).map(lambda b: b + ZEROS)
       | st.binary(max_size=600))  # fmt: skip
def test_made_up(tmp_path: Path, members: bytes) -> None:
    survives(tmp_path, members)
