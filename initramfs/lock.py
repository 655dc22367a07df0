"""One builder at a time in a folder: a second one waits, and then finds what the first has made."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def locked(folder: str) -> Iterator[None]:
    """Make a folder and hold its lock, against other processes. The kernel lets go of it whatever happens to us."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, ".lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
