"""Compressed archives: unpacked once, in pieces, to a file, with bounds on size and memory.

None of these formats can be read from the middle, and a client reads from everywhere: so it is once or again and again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from ninep.member import ArchiveError, Part

UNPACKED_MAX = 8 << 30  # bytes: a few kilobytes can unpack to terabytes, and the disk is somebody's
MEMORY_MAX = 256 << 20  # bytes an xz stream may ask for: `xz -9` needs 65 MiB, its format allows 4 GiB
PIECE = 1 << 20


class Unpacker(Protocol):
    """What zlib's, bz2's and lzma's decompressors have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...


def _gzip() -> tuple[Unpacker, Callable[[bytes], bytes]]:
    import zlib

    unpacker = zlib.decompressobj(31)
    return unpacker, lambda data: unpacker.decompress(unpacker.unconsumed_tail + data, PIECE)


def _bzip2() -> tuple[Unpacker, Callable[[bytes], bytes]]:
    import bz2

    unpacker = bz2.BZ2Decompressor()
    return unpacker, lambda data: unpacker.decompress(data, PIECE)


def _xz() -> tuple[Unpacker, Callable[[bytes], bytes]]:
    import lzma

    unpacker = lzma.LZMADecompressor(lzma.FORMAT_AUTO, MEMORY_MAX)
    return unpacker, lambda data: unpacker.decompress(data, PIECE)


FORMATS: tuple[tuple[bytes, str, Callable[[], tuple[Unpacker, Callable[[bytes], bytes]]] | None], ...] = (
    (b"\x1f\x8b", "gzip", _gzip),
    (b"\xfd7zXZ\0", "xz", _xz),
    (b"BZh", "bzip2", _bzip2),
    (b"]\0\0", "lzma", _xz),
    (b"\x28\xb5\x2f\xfd", "zstd", None),  # the standard library of Python 3.11 has no zstd, lz4, lzop
    (b"\x02\x21\x4c\x18", "lz4", None),
    (b"\x04\x22\x4d\x18", "lz4", None),
    (b"\x89LZO\0\r\n\x1a\n", "lzop", None),
)


def find_format(magic: bytes) -> tuple[str, Callable[[], tuple[Unpacker, Callable[[bytes], bytes]]] | None] | None:
    """The compression that data beginning with magic has."""
    return next(((name, make) for start, name, make in FORMATS if magic.startswith(start)), None)


def unpack(part: Part, position: int, out: int) -> tuple[Part, int]:
    """Append to descriptor out what is compressed at position, all streams of one format that follow each other.

    Returns what was unpacked, and where in part the compressed bytes end. ArchiveError when they are damaged, cut
    short, or too large; OSError when there is no room for them.
    """
    found = find_format(part.peek(position, 16))
    assert found is not None
    name, make = found
    if make is None:
        raise ArchiveError(f"compressed with {name}, which has to be unpacked before", position)
    start = size = os.lseek(out, 0, os.SEEK_END)
    while found == find_format(part.peek(position, 16)):
        unpacker, decompress = make()
        first = position
        while not unpacker.eof:
            data = part.peek(position, PIECE)
            position += len(data)
            try:
                piece = decompress(data)
                while True:
                    size += _append(out, piece, size)
                    if unpacker.eof or len(piece) < PIECE:
                        break
                    piece = decompress(b"")
            except (OSError, ValueError, EOFError, MemoryError) as error:
                if isinstance(error, ArchiveError) or (isinstance(error, OSError) and error.errno):
                    raise  # the disk's, not the data's
                raise ArchiveError(f"damaged {name} data: {error}", first) from None
            except Exception as error:  # zlib.error and lzma.LZMAError have no base of their own
                raise ArchiveError(f"damaged {name} data: {error}", first) from None
            if not data and not unpacker.eof:
                raise ArchiveError(f"the {name} data is cut short", position)
        position -= len(unpacker.unused_data)
    return Part(out, start, size), position


def _append(out: int, piece: bytes, at: int) -> int:
    if at + len(piece) > UNPACKED_MAX:
        raise ArchiveError(f"unpacks to more than {UNPACKED_MAX} bytes")
    view = memoryview(piece)
    while view:
        done = os.pwrite(out, view, at)
        at += done
        view = view[done:]
    return len(piece)
