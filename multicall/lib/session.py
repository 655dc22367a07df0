"""The board's side of one command: its child, its tree, its input and output, and that nothing of it remains.

Runs in the process of the connection, whose loop also serves the FUSE tree: it never looks at a path that may lie in
there. Whoever disappears first, the rest goes (ARCHITECTURE.md "Sessions").
"""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from multicall.lib import contract, launch, process, pump, tree
from multicall.lib.log import Problem, reason
from multicall.lib.reaper import Reaper
from multicall.lib.stdio import Output, Stdio, set_size
from ninep.stream import Stream

log = logging.getLogger("cpud")

GRACE_S = 5.0
"""How long a command that lost its client has between HUP and KILL."""
LEFTOVER_GRACE_S = 0.5
"""How long what a finished command left running has between HUP and KILL."""


class Channel(Output, Protocol):
    """Where a session's output goes and what its end is told to. Implemented over an ssh channel."""

    def exit(self, status: int) -> None:
        """End the session with an exit status."""

    def exit_signal(self, name: str) -> None:
        """End the session: killed by the signal of this name, which has no SIG in front."""


class Session:
    """One command. `run` is its life; the other methods tell it what comes from the client, in any order, at any time.

    `stream` is the client's 9P, None for a command without mounts; `in_order` says that its server is ours, which
    answers requests of a fid in the order they came. `made` is told each mount point that had to be made
    on the board's own root, where others may use it too: when to remove it is not the session's to know.
    """

    def __init__(
        self,
        request: contract.Request,
        channel: Channel,
        reaper: Reaper,
        *,
        stream: Stream | None = None,
        in_order: bool = False,
        user: launch.User | None = None,
        made: Callable[[bytes], None] = lambda path: None,
    ) -> None:
        self._request = request
        self._channel = channel
        self._reaper = reaper
        self._stream = stream
        self._in_order = in_order
        self._user = user
        self._made = made
        self._stdio: Stdio | None = None
        self._early: list[bytes] = []
        self._input_ended = False
        self._membership = process.Membership(0)
        self._gone = asyncio.Event()
        self._mounted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()

    # What comes from the client.

    def feed(self, data: bytes) -> None:
        """Take standard input."""
        if self._stdio:
            self._stdio.feed(data)
        else:
            self._early.append(data)

    def end_input(self) -> None:
        """Standard input has ended."""
        self._input_ended = True
        if self._stdio:
            self._stdio.end_input()

    def signal(self, name: str) -> None:
        """Send the command, and what it runs in the foreground, a signal by its name without SIG."""
        number = getattr(signal, "SIG" + name, None)
        group = self._membership.leader
        if number is None or not group or name not in contract.SIGNALS:
            return
        if self._stdio and self._stdio.master is not None:
            with contextlib.suppress(OSError):
                group = os.tcgetpgrp(self._stdio.master)
        with contextlib.suppress(OSError):
            os.killpg(group, number)

    def resize(self, columns: int, rows: int) -> None:
        """The client's terminal has another size."""
        if self._stdio and self._stdio.master is not None:
            set_size(self._stdio.master, columns, rows)

    def flow(self, go_on: bool) -> None:
        """The channel takes more output, or none for now."""
        if self._stdio:
            self._stdio.flow(go_on)

    def hang_up(self) -> None:
        """The client is gone."""
        self._gone.set()

    # The command's life.

    async def run(self) -> None:
        """Start the command, carry its bytes, report its end. Leaves no process, mount or descriptor behind."""
        try:
            status = await self._run()
        except (Problem, OSError) as error:
            problem = error if isinstance(error, Problem) else Problem(f"start the command: {reason(error)}")
            self._channel.write_stderr(problem.text("cpud").encode())
            self._channel.exit(problem.status)
            return
        if os.WIFSIGNALED(status):
            self._channel.exit_signal(signal.Signals(os.WTERMSIG(status)).name.removeprefix("SIG"))
        else:
            self._channel.exit(os.WEXITSTATUS(status))
        if self._membership.namespace:
            await self._end_members(LEFTOVER_GRACE_S)

    async def _run(self) -> int:
        with contextlib.ExitStack() as stack:
            mountable = None
            if self._stream:
                stack.callback(self._stream.close)
                uname = self._user.name.encode() if self._user else b"root"
                mountable = tree.make(self._request.mount, self._stream, uname, in_order=self._in_order)
                stack.callback(mountable.close)
            self._stdio = stdio = Stdio(self._request.terminal, self._channel)
            stack.callback(stdio.close)
            exited, report = self._fork(stdio, mountable)
            stack.callback(os.close, report)
            reports = pump.Reader(report, self._reports())
            stack.callback(reports.stop)
            for data in self._early:
                stdio.feed(data)
            self._early.clear()
            if self._input_ended:
                stdio.end_input()
            try:
                if mountable:
                    self._spawn(self._serve(mountable))
                    self._spawn(self._limit_mount(mountable))
                status = await self._wait(exited)
                await stdio.drain()
                if self._gone.is_set():
                    await self._end_members(GRACE_S)
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)
            return status

    def _fork(self, stdio: Stdio, mountable: tree.Tree | None) -> tuple[asyncio.Future[int], int]:
        """Start the child. Returns the future of its wait status and the pipe of its reports, which is the caller's."""
        report, childs_report = os.pipe2(os.O_CLOEXEC)
        plan = launch.Plan(
            request=self._request,
            backend=mountable.backend if mountable else None,
            options=mountable.options if mountable else b"",
            user=self._user,
            is_terminal=stdio.master is not None,
            stdio=stdio.child,
            report_fd=childs_report,
        )
        try:
            pid = os.fork()
            if pid == 0:
                launch.run(plan)
        except OSError:
            os.close(report)
            raise
        finally:
            os.close(childs_report)
        self._membership = process.Membership(pid)
        stdio.forked()
        if mountable:
            mountable.forked()
        return self._reaper.exited(pid), report

    def _reports(self) -> Callable[[bytes], None]:
        """Return what reads the child's reports, each ended by a NUL."""
        pending = bytearray()

        def received(data: bytes) -> None:
            pending.extend(data)
            *reports, rest = bytes(pending).split(b"\0")
            pending[:] = rest
            for report in reports:
                if report.startswith(launch.REPORT_MADE):
                    self._made(report.removeprefix(launch.REPORT_MADE))
                elif report == launch.REPORT_MOUNTED and not self._mounted.done():
                    # The child is in its namespace for good: its processes are known by it from here on.
                    pid = self._membership.leader
                    self._membership = process.Membership(pid, process.mount_namespace(pid))
                    self._mounted.set_result(None)
            if not data and not self._mounted.done():
                self._mounted.cancel()

        return received

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(asyncio.get_running_loop().create_task(work))

    async def _serve(self, mountable: tree.Tree) -> None:
        try:
            await mountable.serve(self._mounted)
        except OSError as error:
            log.warning("serve the client's files: %s", reason(error))
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("serve the client's files")
        finally:
            mountable.close()

    async def _limit_mount(self, mountable: tree.Tree) -> None:
        """Fail the session when its tree is not mounted in time: the client may have stopped serving it."""
        timeout_s = self._request.timeout_s
        done, _ = await asyncio.wait([self._mounted], timeout=timeout_s)
        if not done:
            name = mountable.backend.name
            problem = Problem(
                f"mount the client's files with {name}: no answer for {timeout_s:g} s", "-timeout9p waits longer"
            )
            self._channel.write_stderr(problem.text("cpud").encode())
            mountable.close()
            process.kill(self._membership, signal.SIGKILL)

    async def _wait(self, exited: asyncio.Future[int]) -> int:
        """Wait for the command's end, or for the client's and bring the command's about."""
        gone = asyncio.ensure_future(self._gone.wait())
        try:
            either: set[asyncio.Future[Any]] = {exited, gone}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not exited.done():
                process.kill(self._membership, signal.SIGHUP)
                process.kill(self._membership, signal.SIGCONT)
                await asyncio.wait([exited], timeout=GRACE_S)
                if not exited.done():
                    process.kill(self._membership, signal.SIGKILL)
            return await exited
        finally:
            gone.cancel()

    async def _end_members(self, grace_s: float) -> None:
        """End what the command left running: HUP, then KILL."""
        if process.kill(self._membership, signal.SIGHUP) and not await process.wait_gone(self._membership, grace_s):
            process.kill(self._membership, signal.SIGKILL)
            await process.wait_gone(self._membership, grace_s)
