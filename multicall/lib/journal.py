"""Where process 1 and its helpers say what happens: the console, the kernel's log, and /run for whoever asks later.

Nothing here raises: a board without a console, /dev/kmsg or /run still boots.
"""

import contextlib
import os

RUN_FOLDER = "/run/pycpu"
PROBLEMS = "problems"
KMSG_LEVEL_ERROR, KMSG_LEVEL_INFO = 4, 6
"""Warning and information: what the kernel itself repeats on the console (below loglevel=) would be there twice."""
KMSG_BYTES = 900
"""A record of /dev/kmsg may hold about 1000 bytes (kernel/printk/printk.c, LOG_LINE_MAX)."""


class Journal:
    """What one process says. `problems` holds each failure once, in order, with how often it was met.

    Only process 1 has a `folder`: it alone owns the file of problems. The others only speak.
    """

    def __init__(self, name: str, folder: str = "", console: int = 2, kmsg: str = "/dev/kmsg") -> None:
        self._name = name
        self._folder = folder
        self._console = console
        self._kmsg = kmsg
        self.problems: dict[str, int] = {}

    def say(self, text: str) -> None:
        """Tell what happened."""
        self._write(f"{self._name}: {text}", KMSG_LEVEL_INFO)

    def problem(self, text: str) -> None:
        """Tell what failed, `operation value: reason`, and keep it. Leave out what differs at each repetition."""
        self._write(f"{self._name}: {text}", KMSG_LEVEL_ERROR)
        self.problems[text] = self.problems.get(text, 0) + 1
        self.keep()

    def keep(self) -> None:
        """Write the file of problems, as far as that is possible yet; written beside and renamed."""
        if not self._folder or not self.problems:
            return
        lines = (f"{text} ({times} times)" if times > 1 else text for text, times in self.problems.items())
        path = os.path.join(self._folder, PROBLEMS)
        with contextlib.suppress(OSError):
            os.makedirs(self._folder, exist_ok=True)
            with open(path + ".new", "w", encoding="utf-8", errors="replace") as file:
                file.writelines(line.replace("\n", "; ") + "\n" for line in lines)
            os.replace(path + ".new", path)

    def _write(self, text: str, level: int) -> None:
        line = text.rstrip("\n").encode("utf-8", "replace")
        with contextlib.suppress(OSError):
            os.write(self._console, line + b"\n")
        with contextlib.suppress(OSError):
            kmsg = os.open(self._kmsg, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY)
            try:
                for part in line.split(b"\n"):
                    os.write(kmsg, b"<%d>%s" % (level, part[:KMSG_BYTES]))
            finally:
                os.close(kmsg)
