"""The one place in a connection's process that waits for children: everybody's exit status goes to who asked for it.

The process is a subreaper (prctl(2)): a command's orphans come to it and are reaped here, unless they are asked for.
"""

import asyncio
import os
import signal

from multicall.lib import mount


class Reaper:
    """Owns SIGCHLD and waitpid in this process. Make it in the loop before the first fork."""

    def __init__(self) -> None:
        mount.prctl(mount.PR_SET_CHILD_SUBREAPER, 1)
        self._loop = asyncio.get_running_loop()
        self._awaited: dict[int, asyncio.Future[int]] = {}
        self._loop.add_signal_handler(signal.SIGCHLD, self._reap)

    def exited(self, pid: int) -> asyncio.Future[int]:
        """A future of the wait status (see waitpid(2)) of the child `pid`. Ask in the tick that forked it."""
        future: asyncio.Future[int] = self._loop.create_future()
        self._awaited[pid] = future
        return future

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            future = self._awaited.pop(pid, None)
            if future and not future.done():
                future.set_result(status)
