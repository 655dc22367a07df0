"""What 9p's verbs do to one file of an attached tree: between it and standard output or input. OSError: the file's."""

import asyncio
import errno
import os
import stat
from collections.abc import Iterator

from multicall.lib import listing
from multicall.lib.attach import Tree, clunked
from multicall.lib.log import Problem, reason
from ninep import message as m
from ninep.file import File
from ninep.message import IOHDRSZ, Rgetattr

READDIR_SIZE = 65536  # bytes of entries asked for at once
ASKED_AT_ONCE = 64  # files whose attributes are asked for at the same time
WINDOWS = 8  # messages' worth of a regular file read or written in one call, so that ninep can pipeline
BLOCK_MAX = 8 << 20  # bytes of that


def _emit(data: bytes | bytearray | memoryview) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(1, view) :]
    except OSError as error:
        raise Problem(f"write standard output: {reason(error)}", status=1) from error


def _listed(name: bytes, above: bytes) -> bytes:
    return above.rstrip(b"/") + b"/" + name if above else name


async def _entries(tree: Tree, place: File) -> list[bytes]:
    names: list[bytes] = []
    offset = 0
    size = min(READDIR_SIZE, tree.client.msize - IOHDRSZ)  # diod refuses to fill a message to its last byte
    while entries := await place.readdir(offset, size):
        names += [entry.name for entry in entries if entry.name not in (b".", b"..")]
        offset = entries[-1].offset
    return sorted(names)


async def _attributes(place: File, name: bytes | None) -> tuple[Rgetattr | OSError, bytes]:
    """The attributes of place, or of a name in it, and a symbolic link's target."""
    try:
        if name is None:
            r = await place.getattr()
            return r, await place.readlink() if stat.S_ISLNK(r.mode) else b""
        file, r = await place.walk_getattr(name)
        try:
            return r, await file.readlink() if stat.S_ISLNK(r.mode) else b""
        finally:
            await file.clunk()
    except OSError as error:
        if name is None or error.errno == errno.ENOTCONN:
            raise
        return error, b""


async def list_names(tree: Tree, path: bytes, long: bool, itself: bool, prefixed: bool) -> None:
    """Print the names in a directory, sorted, with its path in front when `prefixed`; of other files the path.

    `itself`: of a directory too.
    """
    async with tree.at(path, follow=not (long or itself)) as place:
        if itself or not place.qid.type & m.QTDIR:
            shown = [(path or b"/", *await _attributes(place, None))]
        else:
            async with clunked(await place.walk_open((), m.O_RDONLY | m.O_DIRECTORY)) as directory:
                names = await _entries(tree, directory)
            above = path if prefixed else b""
            if not long:
                _emit(b"".join(listing.shown_name(_listed(name, above)) + b"\n" for name in names))
                return
            shown = []
            for at in range(0, len(names), ASKED_AT_ONCE):
                some = names[at : at + ASKED_AT_ONCE]
                answers = await asyncio.gather(*(_attributes(place, name) for name in some))
                shown += [(_listed(name, above), *answer) for name, answer in zip(some, answers, strict=True)]
    lines = listing.long_lines(shown) if long else [listing.shown_name(name) for name, _, _ in shown]
    _emit(b"".join(line + b"\n" for line in lines))


async def print_attributes(tree: Tree, path: bytes) -> None:
    """Print all attributes of a file on a line."""
    async with tree.at(path, follow=False) as place:
        _emit(listing.stat_line(path, await place.getattr()) + b"\n")


def _block(unit: int) -> int:
    """Bytes for one call on a regular file."""
    return max(unit, min(WINDOWS * unit, BLOCK_MAX))


async def copy_out(tree: Tree, path: bytes) -> None:
    """Write a file's content to standard output."""
    async with tree.at(path) as place:
        if place.qid.type & m.QTDIR:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        size = (await place.getattr()).size
        _, iounit = await place.open(m.O_RDONLY)
        unit = tree.client.msize - IOHDRSZ
        unit = min(iounit or unit, unit)
        # What has no size may be a stream: each answer is passed on as it comes.
        count = _block(unit) if size > unit else unit
        offset = 0
        while data := await place.read(offset, count):
            _emit(data)
            offset += len(data)


async def _open_for_writing(tree: Tree, path: bytes) -> File:
    try:
        place = await tree.find(path)
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        place, name = await tree.find_holder(path)
        await place.create(name, m.O_WRONLY | m.O_TRUNC, 0o666 & ~umask, os.getegid())
        return place
    await place.open(m.O_WRONLY | m.O_TRUNC)
    return place


def _input(size: int, lines: bool) -> Iterator[bytes]:
    """Standard input, in blocks as they come or line by line."""
    try:
        if lines:
            with open(0, "rb", closefd=False) as file:
                yield from file
        else:
            while block := os.read(0, size):
                yield block
    except OSError as error:
        raise Problem(f"read standard input: {reason(error)}", status=1) from error


async def copy_in(tree: Tree, path: bytes, lines: bool) -> None:
    """Write standard input to a file, created or emptied first; `lines`: each in a message of its own."""
    unit = tree.client.msize - IOHDRSZ
    is_regular = stat.S_ISREG(os.fstat(0).st_mode)
    async with clunked(await _open_for_writing(tree, path)) as place:
        offset = 0
        for block in _input(_block(unit) if is_regular else unit, lines):
            left = memoryview(block)
            while left:
                count = await place.write(offset, left)
                if not count:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                offset += count
                left = left[count:]


async def remove(tree: Tree, path: bytes) -> None:
    """Remove a file, or an empty directory."""
    async with tree.at(path, follow=False) as place:
        await place.remove()
