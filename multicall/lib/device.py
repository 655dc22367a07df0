"""The file systems, nodes and links that a Linux program expects, as tables, and the small engine that makes them."""

import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from multicall.lib import mount
from multicall.lib.log import reason


class Mount(NamedTuple):
    """A file system of every boot."""

    fstype: bytes
    target: bytes
    flags: int = 0
    options: bytes = b""


class Node(NamedTuple):
    """A character device, by the numbers of Documentation/admin-guide/devices.txt."""

    path: bytes
    mode: int
    major: int
    minor: int


class Link(NamedTuple):
    """A symbolic link."""

    path: bytes
    text: bytes


MOUNTS: tuple[Mount, ...] = (
    Mount(b"devtmpfs", b"/dev", mount.MS_NOSUID, b"mode=0755"),
    Mount(b"proc", b"/proc", mount.MS_NOSUID | mount.MS_NODEV | mount.MS_NOEXEC),
    Mount(b"sysfs", b"/sys", mount.MS_NOSUID | mount.MS_NODEV | mount.MS_NOEXEC),
    # ptmxmode: /dev/pts/ptmx would otherwise be closed to everybody, and programs of containers use it.
    Mount(b"devpts", b"/dev/pts", mount.MS_NOSUID | mount.MS_NOEXEC, b"ptmxmode=0666,mode=0620,gid=5"),
    Mount(b"tmpfs", b"/dev/shm", mount.MS_NOSUID | mount.MS_NODEV, b"mode=1777"),
    Mount(b"tmpfs", b"/run", mount.MS_NOSUID | mount.MS_NODEV, b"mode=0755"),
    Mount(b"tmpfs", b"/tmp", mount.MS_NOSUID | mount.MS_NODEV, b"mode=1777"),
)

NODES: tuple[Node, ...] = (
    # For a kernel without devtmpfs; where it has it, they are there.
    Node(b"/dev/console", 0o600, 5, 1),
    Node(b"/dev/tty", 0o666, 5, 0),
    Node(b"/dev/ptmx", 0o666, 5, 2),
    Node(b"/dev/null", 0o666, 1, 3),
    Node(b"/dev/zero", 0o666, 1, 5),
    Node(b"/dev/full", 0o666, 1, 7),
    Node(b"/dev/random", 0o666, 1, 8),
    Node(b"/dev/urandom", 0o666, 1, 9),
    Node(b"/dev/kmsg", 0o644, 1, 11),
)

LINKS: tuple[Link, ...] = (
    Link(b"/dev/fd", b"/proc/self/fd"),
    Link(b"/dev/stdin", b"fd/0"),
    Link(b"/dev/stdout", b"fd/1"),
    Link(b"/dev/stderr", b"fd/2"),
    Link(b"/etc/mtab", b"/proc/self/mounts"),
)


def attach(row: Mount) -> None:
    """Mount a row, unless the kernel or a boot loader's stage has mounted something there. Raises OSError."""
    os.makedirs(row.target, exist_ok=True)
    if not os.path.ismount(row.target):
        mount.mount(row.fstype, row.target, row.fstype, row.flags, row.options)


def make_node(row: Node) -> None:
    """Make a device node unless it is there. Raises OSError."""
    if not os.path.lexists(row.path):
        os.mknod(row.path, stat.S_IFCHR | row.mode, os.makedev(row.major, row.minor))
        os.chmod(row.path, row.mode)  # what the umask took


def make_link(row: Link) -> None:
    """Make a symbolic link unless there is something of that name. Raises OSError."""
    if not os.path.lexists(row.path):
        os.symlink(row.text, row.path)


def bring_up(
    problem: Callable[[str], None],
    mounts: tuple[Mount, ...] = MOUNTS,
    nodes: tuple[Node, ...] = NODES,
    links: tuple[Link, ...] = LINKS,
) -> None:
    """Make all of the tables. A failure is told to `problem` and the next row is tried: half a board beats none."""
    steps = (
        *((attach, row, b"mount " + row.target) for row in mounts),
        *((make_node, row, b"make node " + row.path) for row in nodes),
        *((make_link, row, b"make link " + row.path) for row in links),
    )
    for act, row, what in steps:
        try:
            act(row)  # type: ignore[operator]
        except OSError as error:
            problem(f"{os.fsdecode(what)}: {reason(error)}")
