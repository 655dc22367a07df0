"""How an initramfs is packed: a table of compressors. All are Python's own, so no tool has to be there.

Same bytes in, same bytes out: no times, no names, one thread.
"""

import gzip
import lzma
import zlib
from collections.abc import Callable
from typing import NamedTuple

from initramfs.problem import Problem

MAX_DICTIONARY_BYTES = 32 << 20
"""The kernel allocates the dictionary when it unpacks: a small board's memory, beside the archive and its contents."""

BCJ = {"amd64": lzma.FILTER_X86, "armhf": lzma.FILTER_ARMTHUMB}
"""The branch filter that a kernel of this Debian architecture undoes (XZ_DEC_X86, XZ_DEC_ARMTHUMB). Python's lzma has
none for arm64."""


def _raw(data: bytes, architecture: str, effort: int) -> bytes:
    return data


def _gzip(data: bytes, architecture: str, effort: int) -> bytes:
    return gzip.compress(data, effort, mtime=0)


def _xz(data: bytes, architecture: str, effort: int) -> bytes:
    # The kernel's decoder (lib/xz) knows no CRC64, and stops at a dictionary it cannot allocate.
    dictionary = min(max(1 << (len(data) - 1).bit_length(), 1 << 16), MAX_DICTIONARY_BYTES) if data else 1 << 16
    preset = effort | (lzma.PRESET_EXTREME if effort == 9 else 0)
    filters: list[dict[str, int]] = [{"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": dictionary}]
    if architecture in BCJ:
        filters.insert(0, {"id": BCJ[architecture]})
    return lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=filters)


class Compressor(NamedTuple):
    """A way to pack: its name in a profile, what it adds to the file's name, the kernel option that unpacks it."""

    name: str
    suffix: str
    kernel_option: str
    pack: Callable[[bytes, str, int], bytes]
    "data, Debian architecture, effort 1 (quick) to 9 (small) -> packed"


TABLE = (
    Compressor("raw", "", "BLK_DEV_INITRD", _raw),
    Compressor("gzip", ".gz", "RD_GZIP", _gzip),
    Compressor("xz", ".xz", "RD_XZ", _xz),
)


def get(name: str) -> Compressor:
    """Return the row called `name`. Raises Problem."""
    for compressor in TABLE:
        if compressor.name == name:
            return compressor
    raise Problem(f"compressor {name}: not one of {', '.join(row.name for row in TABLE)}")


def unpack(data: bytes) -> bytes:
    """Undo any row of the table, told apart by the first bytes. Raises Problem."""
    try:
        if data.startswith(b"\x1f\x8b"):
            return gzip.decompress(data)
        if data.startswith(b"\xfd7zXZ\0"):
            return lzma.decompress(data)
    except (lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        raise Problem(f"unpack archive: {error}") from error
    return data
