"""What a mounted directory does where it may differ from a local file system: a line "NAME: ANSWER" for each question.

usage: on_board_gaps.py DIRECTORY. Run here and on a board by the tests behind docs/filesystem.md.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
QUESTIONS: list[Callable[[], object]] = []


def question(function: Callable[[], object]) -> Callable[[], object]:
    QUESTIONS.append(function)
    return function


def check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def opened(name: str, flags: int = os.O_RDWR | os.O_CREAT | os.O_TRUNC, content: bytes = b"x" * 8192) -> int:
    fd = os.open(name, flags, 0o644)
    if content and flags & os.O_TRUNC:
        os.write(fd, content)
    return fd


@question
def holes_are_found() -> bool:
    fd = opened("f")
    os.ftruncate(fd, 1 << 20)
    os.fsync(fd)
    return os.lseek(fd, 0, os.SEEK_HOLE) < 1 << 20


@question
def space_is_reserved() -> object:
    return check(libc.fallocate(opened("f"), 0, 0, 1 << 20))


@question
def a_hole_is_punched() -> object:
    return check(libc.fallocate(opened("f"), 3, 0, 4096))  # KEEP_SIZE | PUNCH_HOLE


@question
def flags_of_chattr() -> object:
    return len(fcntl.ioctl(opened("f"), 0x80086601, bytes(8)))  # FS_IOC_GETFLAGS


@question
def direct_io() -> object:
    fd = opened("f", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    with mmap.mmap(-1, 4096) as aligned:
        return os.writev(fd, [aligned])


@question
def a_file_without_a_name() -> object:
    return os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600) >= 0


def rename2(flags: int) -> int:
    for name in ("a", "b"):
        os.close(opened(name))
    return check(libc.renameat2(-100, b"a", -100, b"b", flags))


@question
def rename_that_replaces_nothing() -> object:
    os.close(opened("a"))
    return check(libc.renameat2(-100, b"a", -100, b"fresh", 1))


@question
def rename_that_exchanges() -> object:
    return rename2(2)


@question
def a_copy_by_the_kernel() -> object:
    return os.copy_file_range(opened("f"), opened("g"), 4096, 0, 0)


@question
def a_shared_mapping_is_written() -> bool:
    fd = opened("f")
    with mmap.mmap(fd, 8192) as shared:
        shared[4096:4101] = b"hello"
        shared.flush()
    return os.pread(fd, 5, 4096) == b"hello"


@question
def nanoseconds_of_given_times() -> object:
    os.close(opened("f"))
    os.utime("f", ns=(1_000_000_000_123_456_789, 1_000_000_000_123_456_789))
    return os.stat("f").st_mtime_ns % 10**9


@question
def time_of_birth() -> bool:
    os.close(opened("f"))
    return subprocess.check_output(["stat", "-c", "%W", "f"]).strip() not in (b"0", b"-", b"?")


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


SHARED = acl((1, 6, 2**32 - 1), (2, 6, 54321), (4, 0, 2**32 - 1), (16, 6, 2**32 - 1), (32, 0, 2**32 - 1))


@question
def an_acl_is_kept() -> bool:
    os.close(opened("f"))
    os.setxattr("f", "system.posix_acl_access", SHARED)
    return os.getxattr("f", "system.posix_acl_access") == SHARED


def as_user(user: int, call: Callable[[], object]) -> object:
    os.setegid(user)
    os.seteuid(user)
    try:
        return call()
    finally:
        os.seteuid(0)
        os.setegid(0)


@question
def an_acl_lets_its_user_in() -> object:
    os.close(opened("f"))
    os.setxattr("f", "system.posix_acl_access", SHARED)
    return as_user(54321, lambda: os.open("f", os.O_RDWR) >= 0)


@question
def a_default_acl_is_inherited() -> object:
    os.mkdir("d")
    os.setxattr("d", "system.posix_acl_default", SHARED)
    umask = os.umask(0o077)
    os.close(opened("d/f"))
    os.umask(umask)
    return oct(stat.S_IMODE(os.stat("d/f").st_mode))


@question
def attributes_of_every_kind() -> object:
    os.close(opened("f"))
    for name in ("user.a", "trusted.a", "security.a"):
        os.setxattr("f", name, b"1", os.XATTR_CREATE)
    return sorted(os.listxattr("f"))


@question
def attributes_of_3000_bytes() -> object:
    os.close(opened("f"))
    os.setxattr("f", "user.a", bytes(3000))
    return len(os.getxattr("f", "user.a"))


@question
def a_device_is_opened() -> object:
    os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    return os.write(os.open("null", os.O_WRONLY), b"x")


@question
def a_lease() -> object:
    return fcntl.fcntl(opened("f", os.O_RDONLY | os.O_CREAT), 1024, fcntl.F_RDLCK)


@question
def one_process_locks_by_two_descriptors() -> bool:
    one, two = opened("f"), opened("f")
    fcntl.lockf(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.lockf(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True


@question
def a_close_gives_up_locks_of_other_descriptors() -> bool:
    opened_first, other = opened("f"), opened("f")
    fcntl.lockf(opened_first, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)
    code = "import fcntl; fcntl.lockf(open('f', 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    return not subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL).returncode


def main() -> None:
    top = os.path.abspath(sys.argv[1])
    for i, ask in enumerate(QUESTIONS):
        folder = os.path.join(top, str(i))
        os.mkdir(folder)
        os.chmod(folder, 0o777)
        os.chdir(folder)
        try:
            answer = ask()
        except OSError as error:
            answer = errno.errorcode.get(error.errno or 0, error.errno)
        print(f"{ask.__name__}: {answer}", flush=True)


main()
