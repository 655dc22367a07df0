"""What of an image is neither Python nor kernel: folders, device nodes, /etc, links. Literal tables.

/lib, /lib64, /bin and /sbin are real directories, not links into /usr as Debian has them: a session binds the client's
/lib, /usr, /bin ... over them, mount(2) follows links, and with links the client's /lib would cover the board's
/usr/lib before its /usr does.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from initramfs import cpio
from initramfs.kernel import Kernel
from initramfs.profile import Profile
from multicall import VERSION, applets

LAUNCHER = "usr/lib/pycpu/launch"
INIT = "init"
BUSYBOX = "bin/busybox"

DIRECTORIES: tuple[tuple[str, int], ...] = (
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("etc/cpud", 0o700),
    ("home", 0o755),
    ("lib", 0o755),
    ("lib64", 0o755),
    ("mnt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sbin", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr/bin", 0o755),
    ("usr/lib", 0o755),
    ("usr/sbin", 0o755),
    ("var/tmp", 0o1777),
)

NODES: tuple[tuple[str, int, int, int], ...] = (
    # Static, for the time before devtmpfs: Python does not start without urandom on a CPU without RDRAND.
    ("dev/console", 5, 1, 0o600),
    ("dev/kmsg", 1, 11, 0o644),
    ("dev/null", 1, 3, 0o666),
    ("dev/random", 1, 8, 0o666),
    ("dev/tty", 5, 0, 0o666),
    ("dev/ttyS0", 4, 64, 0o600),
    ("dev/urandom", 1, 9, 0o666),
    ("dev/zero", 1, 5, 0o666),
)

ETC: tuple[tuple[str, str], ...] = (
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"),
    ("etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
    ("etc/resolv.conf", ""),
    ("etc/os-release", f'ID=pycpu\nNAME=pycpu\nVERSION_ID={VERSION}\nPRETTY_NAME="pycpu {VERSION}"\n'),
)

BUSYBOX_NAMES = """
[ ash cat chmod chown clear cp cut date dd df dmesg du echo env false find free grep gunzip gzip head hexdump hostname
id insmod ip kill less ln ls lsmod mkdir mknod more mount mv nc netstat ping printf ps pwd readlink rm rmdir rmmod sed
sh sleep sort stat stty sync tail tar tee test top touch tr true tty umount uname uniq uptime vi wc wget which whoami
xargs xzcat
"""
"""What of busybox has a name in /bin: to look around and repair by hand. Ours come first: they lie in /usr/bin."""

LAUNCH = """\
#!/usr/bin/python3.11 -IS
import sys
sys.path.append("/usr/lib/pycpu")
from multicall.__main__ import main
sys.exit(main())
"""
"""What every command's name on a board leads to; multicall.__main__ looks at the name. -I -S: no site, nothing of the
environment, so that it starts the same as process 1, in a session and by hand, and early.

Not the other way there was, a shiv archive without contents over the same tree: measured on two shared cores, warm,
`poweroff --help` takes 56 ms by this script and 129 ms by that, 8 ms of each the bare interpreter; in an emulated board
several times that. It would also bring back zipfile and what else its bootstrap imports."""


class Item(NamedTuple):
    """An entry of an archive with the row of the size report that it counts for."""

    entry: cpio.Entry
    component: str


CPUD = ("-pk", "/etc/cpud/authorized_keys", "-hk", "/etc/cpud/host_key")


def settings(board: Profile, kernel: Kernel) -> dict[str, Any]:
    """Return what init reads in /etc/pycpu/board.json. `modules` are paths, in the order they are loaded.

    The build time is the kernel's: a clock that has lost its battery is set to it, and it is the same in every build.
    """
    return {
        "hostname": board.hostname,
        "console": board.console,
        "network": board.network,
        "modules": [f"/{module.target}" for module in kernel.modules],
        "cpud": [*CPUD, *board.cpud],
        "build_time": kernel.build_time,
    }


def system(board: Profile, kernel: Kernel) -> list[Item]:
    """The folders, nodes, texts and links of a board's image."""
    entries = [cpio.directory(name.encode(), mode) for name, mode in DIRECTORIES]
    entries += [cpio.character(name.encode(), major, minor, mode) for name, major, minor, mode in NODES]
    entries += [cpio.file(name.encode(), text.encode()) for name, text in ETC]
    entries.append(cpio.file(b"etc/hostname", f"{board.hostname}\n".encode()))
    text = json.dumps(settings(board, kernel), indent=1) + "\n"
    entries.append(cpio.file(b"etc/pycpu/board.json", text.encode()))
    items = [Item(entry, "system") for entry in entries]
    items.append(Item(cpio.file(LAUNCHER.encode(), LAUNCH.encode(), 0o755), "pycpu"))
    items.append(Item(cpio.symlink(INIT.encode(), LAUNCHER.encode()), "pycpu"))
    for applet in applets.TABLE:
        if applet.name in board.applets:
            items.append(Item(cpio.symlink(f"usr/bin/{applet.name}".encode(), f"/{LAUNCHER}".encode()), "pycpu"))
    return items


def busybox(path: str) -> list[Item]:
    """The rescue shell: one static program and its names."""
    with open(path, "rb") as file:
        items = [Item(cpio.file(BUSYBOX.encode(), file.read(), 0o755), "busybox")]
    for name in BUSYBOX_NAMES.split():
        items.append(Item(cpio.symlink(f"bin/{name}".encode(), b"busybox"), "busybox"))
    return items


def keys(authorized_keys: Sequence[str], host_key: bytes | None) -> list[Item]:
    """Who may log in, and who the board is. Without a host key here, cpud makes one at its start."""
    text = "".join(f"{line.strip()}\n" for line in authorized_keys if line.strip())
    items = [Item(cpio.file(b"etc/cpud/authorized_keys", text.encode(), 0o600), "system")]
    if host_key is not None:
        items.append(Item(cpio.file(b"etc/cpud/host_key", host_key, 0o600), "system"))
    return items
