"""Kernel modules: put into the kernel in the order that is given; whoever gives it knows what depends on what."""

import ctypes
import errno
import os
import sys
from collections.abc import Callable, Sequence

from multicall.lib.log import reason

_libc = ctypes.CDLL(None, use_errno=True)

FOLDER = "/lib/modules"

ARCHITECTURE = str(getattr(sys.implementation, "_multiarch", "") or os.uname().machine).partition("-")[0]
"""Of this Python, which may be another one than the kernel's: a 32-bit program on a 64-bit board."""

SYSCALLS = {"x86_64": 313, "i386": 350, "aarch64": 273, "riscv64": 273, "arm": 379, "powerpc64le": 353}
"""finit_module's number by architecture (arch/*/entry/syscalls/*.tbl): no C library has a function for it."""


def insert(path: str, parameters: str = "") -> bool:
    """Load the module in the file `path` by finit_module(2). Returns False when the kernel has it already.

    Raises OSError: ENOENT is also the kernel's word for a symbol that no loaded module has.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        number = SYSCALLS[ARCHITECTURE]
        if _libc.syscall(ctypes.c_long(number), ctypes.c_long(fd), parameters.encode(), ctypes.c_long(0)) == 0:
            return True
        code = ctypes.get_errno()
    finally:
        os.close(fd)
    if code == errno.EEXIST:
        return False
    raise OSError(code, os.strerror(code))


def insert_all(
    modules: Sequence[str],
    problem: Callable[[str], None],
    folder: str = "",
    insert: Callable[[str], bool] = insert,
) -> int:
    """Load `modules`, paths below `folder` (the running kernel's own by default). Returns how many are in now.

    A failure is told to `problem` and the next one is tried.
    """
    folder = folder or os.path.join(FOLDER, os.uname().release)
    loaded = 0
    for name in modules:
        path = os.path.join(folder, name)
        try:
            insert(path)
            loaded += 1
        except OSError as error:
            why = reason(error)
            if error.errno == errno.ENOENT and os.path.exists(path):
                why = "a symbol is missing: something that it depends on is not loaded"
            problem(f"load module {name}: {why}")
        except KeyError:
            problem(f"load module {name}: its number of the system call is not known for {ARCHITECTURE}")
    return loaded
