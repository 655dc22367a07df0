"""init: process 1 of a board. What may never fail is here, and needs nothing; what it does is lib/boot.

The kernel's command line: cpu.hostname=NAME, cpu.shell=0 (no shell on the console), cpu.debug.
"""

import os
import sys
import time
from typing import NoReturn

SHELLS = (
    ("/bin/busybox", "sh"),
    ("/usr/bin/busybox", "sh"),
    ("/bin/sh", "sh"),
    (sys.executable, "python3", "-q", "-i"),
)


def last_resort(why: BaseException) -> NoReturn:
    """A console and a shell on it, again and again, with nothing but system calls: process 1 must not exit."""
    import traceback

    text = "".join(traceback.format_exception(why)) + "init: that was the end of init; here is a shell\n"
    for path in ("/dev/console", "/dev/kmsg"):
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NOCTTY)
            for line in text.splitlines():
                os.write(fd, line.encode("utf-8", "replace")[:900] + b"\n")
            os.close(fd)
        except OSError:
            pass
    while True:
        try:
            pid = os.fork()
            if pid == 0:
                _shell()
            while os.wait()[0] != pid:
                pass
        except OSError:
            pass
        time.sleep(1)


def _shell() -> NoReturn:
    try:
        os.setsid()
        for fd in (0, 1, 2):
            console = os.open("/dev/console", os.O_RDWR)
            os.dup2(console, fd)
        for path, *argv in SHELLS:
            try:
                os.execve(path, argv, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/", "TERM": "vt220"})
            except OSError:
                pass
    finally:
        os._exit(127)


def main(argv: list[str]) -> int:
    """Be process 1, for ever. As any other process: refuse."""
    if os.getpid() != 1:
        sys.stderr.write(f"{argv[0]}: process {os.getpid()} cannot be init\nhint: the kernel starts it, as process 1\n")
        return 255
    try:
        from multicall.lib import boot

        boot.run()
    except BaseException as error:
        last_resort(error)
