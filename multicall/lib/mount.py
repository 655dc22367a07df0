"""mount(2) and its relatives, as small functions over ctypes, and the two ways to mount a 9P tree.

Python 3.11 has none of these system calls. Everything here acts on the calling process's mount namespace and may block
on the tree that it mounts: never call it from the thread that serves that tree.
"""

import ctypes
import os
from collections.abc import Sequence
from typing import NamedTuple

from multicall.lib import namespace

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)

# linux/mount.h
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_SYNCHRONOUS, MS_REMOUNT = 1, 2, 4, 8, 16, 32
MS_MANDLOCK, MS_DIRSYNC, MS_NOSYMFOLLOW, MS_NOATIME, MS_NODIRATIME = 64, 128, 256, 1024, 2048
MS_BIND, MS_MOVE, MS_REC, MS_SILENT = 4096, 8192, 16384, 32768
MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED = 1 << 17, 1 << 18, 1 << 19, 1 << 20
MS_RELATIME, MS_STRICTATIME, MS_LAZYTIME = 1 << 21, 1 << 24, 1 << 25

# linux/sched.h
CLONE_NEWNS = 0x00020000

# linux/prctl.h
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36

OPTIONS: dict[bytes, tuple[int, int]] = {
    # name: flags to set, flags to clear. mount(8), "Filesystem-independent mount options".
    b"defaults": (0, MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_SYNCHRONOUS),
    b"ro": (MS_RDONLY, 0),
    b"rw": (0, MS_RDONLY),
    b"nosuid": (MS_NOSUID, 0),
    b"suid": (0, MS_NOSUID),
    b"nodev": (MS_NODEV, 0),
    b"dev": (0, MS_NODEV),
    b"noexec": (MS_NOEXEC, 0),
    b"exec": (0, MS_NOEXEC),
    b"sync": (MS_SYNCHRONOUS, 0),
    b"async": (0, MS_SYNCHRONOUS),
    b"remount": (MS_REMOUNT, 0),
    b"mand": (MS_MANDLOCK, 0),
    b"nomand": (0, MS_MANDLOCK),
    b"dirsync": (MS_DIRSYNC, 0),
    b"nosymfollow": (MS_NOSYMFOLLOW, 0),
    b"noatime": (MS_NOATIME, 0),
    b"atime": (0, MS_NOATIME),
    b"nodiratime": (MS_NODIRATIME, 0),
    b"diratime": (0, MS_NODIRATIME),
    b"bind": (MS_BIND, 0),
    b"rbind": (MS_BIND | MS_REC, 0),
    b"move": (MS_MOVE, 0),
    b"silent": (MS_SILENT, 0),
    b"loud": (0, MS_SILENT),
    b"relatime": (MS_RELATIME, 0),
    b"norelatime": (0, MS_RELATIME),
    b"strictatime": (MS_STRICTATIME, 0),
    b"nostrictatime": (0, MS_STRICTATIME),
    b"lazytime": (MS_LAZYTIME, 0),
    b"nolazytime": (0, MS_LAZYTIME),
    b"private": (MS_PRIVATE, 0),
    b"rprivate": (MS_PRIVATE | MS_REC, 0),
    b"slave": (MS_SLAVE, 0),
    b"rslave": (MS_SLAVE | MS_REC, 0),
    b"shared": (MS_SHARED, 0),
    b"rshared": (MS_SHARED | MS_REC, 0),
    b"unbindable": (MS_UNBINDABLE, 0),
    b"runbindable": (MS_UNBINDABLE | MS_REC, 0),
}

IGNORED_OPTIONS = frozenset(
    (b"auto", b"noauto", b"user", b"nouser", b"users", b"owner", b"group", b"_netdev", b"nofail")
)
"""Words for mount(8) itself and for the boot, which say nothing to the kernel (fstab(5)). So do x-* and comment=*."""


def _check(result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def mount(source: bytes, target: bytes, fstype: bytes, flags: int = 0, options: bytes = b"") -> None:
    """mount(2). Raises OSError."""
    _check(_libc.mount(source, target, fstype, flags, options or None))


def unmount(target: bytes, flags: int = 0) -> None:
    """umount2(2). Raises OSError."""
    _check(_libc.umount2(target, flags))


def unshare(flags: int) -> None:
    """unshare(2). Raises OSError."""
    _check(_libc.unshare(flags))


def prctl(option: int, value: int) -> None:
    """prctl(2). Raises OSError."""
    _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0))


def private_namespace() -> None:
    """Give this process mounts of its own: what it mounts is seen by it and its children, and goes with them."""
    unshare(CLONE_NEWNS)
    mount(b"none", b"/", b"none", MS_REC | MS_PRIVATE)


def flags_of(options: Sequence[bytes]) -> tuple[int, bytes]:
    """Split fstab options into mount(2)'s flags and the file system's own data, in order; the last word wins."""
    flags = 0
    data: list[bytes] = []
    for option in options:
        if option in OPTIONS:
            present, absent = OPTIONS[option]
            flags = (flags & ~absent) | present
        elif option not in IGNORED_OPTIONS and not option.startswith((b"x-", b"X-", b"comment=")):
            data.append(option)
    return flags, b",".join(data)


def mount_row(row: namespace.Mount) -> None:
    """Do what a line of fstab says. A bind with further flags takes a second call, as in mount(8). Raises OSError."""
    flags, data = flags_of(row.options)
    mount(row.source, row.target, row.fstype, flags & (MS_BIND | MS_REC) if flags & MS_BIND else flags, data)
    if flags & MS_BIND and flags & ~(MS_BIND | MS_REC | MS_SILENT):
        mount(b"none", row.target, b"none", (flags & ~MS_REC) | MS_REMOUNT)


def make_mount_point(target: bytes, source: bytes) -> list[bytes]:
    """Create what is missing for `source` to be mounted on `target`: a directory, or a file for a file.

    Returns the directories and the file it made, outermost first; their removal is the caller's. Raises OSError.
    """
    made: list[bytes] = []
    if os.path.lexists(target):
        return made
    is_directory = not os.path.exists(source) or os.path.isdir(source)
    missing = [target] if is_directory else []
    parent = os.path.dirname(target)
    while not os.path.lexists(parent):
        missing.append(parent)
        parent = os.path.dirname(parent)
    for directory in reversed(missing):
        os.mkdir(directory, 0o755)
        made.append(directory)
    if not is_directory:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        made.append(target)
    return made


class Backend(NamedTuple):
    """A way to mount the client's tree: its name for people, its file system type, what the kernel needs for it."""

    name: str
    fstype: bytes
    kernel_option: str


BACKENDS: dict[str, Backend] = {
    "9p": Backend("9p", b"9p", "CONFIG_9P_FS and CONFIG_NET_9P_FD"),
    "fuse": Backend("fuse", b"fuse.cpu", "CONFIG_FUSE_FS"),
}


def has_9p() -> bool:
    """Whether this kernel knows the 9p file system now (modules not yet loaded do not count)."""
    try:
        with open("/proc/filesystems", "rb") as table:
            return any(line.split()[-1:] == [b"9p"] for line in table)
    except OSError:
        return False


def has_fuse() -> bool:
    """Whether /dev/fuse can be opened here."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def choose(wanted: str) -> Backend | None:
    """The backend for `wanted` ("auto", "9p", "fuse"), or None when this kernel has it not."""
    present = {"9p": has_9p, "fuse": has_fuse}
    for name in ("9p", "fuse") if wanted == "auto" else (wanted,):
        if present[name]():
            return BACKENDS[name]
    return None
