"""The user's end of a running command: this process's standard input and output, its signals and its terminal."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from typing import Protocol

from multicall.lib import contract, pump, terminal
from multicall.lib.log import say

SIGPIPE_STATUS = 128 + signal.SIGPIPE
FATAL = ("HUP", "TERM")
"""Signals of which the second one ends cpu itself, whatever the command made of the first."""


class Command(Protocol):
    """What is carried. Implemented by ssh_command.Command."""

    ended: asyncio.Future[int]

    def send(self, data: bytes) -> None:
        """Give it input; b"" ends the input."""

    def flow(self, go_on: bool) -> None:
        """Take more of its output, or none for now."""

    def signal(self, name: str) -> None:
        """Send it a signal, by its name without SIG."""

    def resize(self, columns: int, rows: int) -> None:
        """Tell it the terminal's new size."""


def open_standard() -> None:
    """Put /dev/null where a standard descriptor is missing, before another file takes its number."""
    while True:
        fd = os.open("/dev/null", os.O_RDWR)
        if fd > 2:
            os.close(fd)
            return
        os.set_inheritable(fd, True)


class Front:
    """Made before the command starts, so that no output is early; `carry` is its life."""

    def __init__(self, *, is_terminal: bool) -> None:
        self._is_terminal = is_terminal
        self._command: Command | None = None
        self._ended_by_us: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._writers = [self._writer(fd) for fd in (1, 2)]
        self._reader: pump.Reader | None = None
        self._signalled: set[str] = set()
        self._full: set[int] = set()

    def _writer(self, fd: int) -> pump.Writer:
        mine, nonblocking = pump.private(fd, os.O_WRONLY)

        def flow(go_on: bool) -> None:
            (self._full.discard if go_on else self._full.add)(fd)
            if self._command:
                self._command.flow(not self._full)

        return pump.Writer(mine, nonblocking=nonblocking, owned=mine != fd, flow=flow, broken=self._broken)

    def _broken(self, error: OSError) -> None:
        # As with any program in a pipe whose reader has gone: end without a word.
        if isinstance(error, BrokenPipeError):
            self._end(SIGPIPE_STATUS)
        else:
            say(f"cpu: write standard output: {os.strerror(error.errno or 0)}\n")
            self._end(contract.STATUS_OURS)

    def _end(self, status: int) -> None:
        if not self._ended_by_us.done():
            self._ended_by_us.set_result(status)

    def received(self, data: bytes, is_stderr: bool) -> None:
        """Output of the command."""
        self._writers[is_stderr].write(data)

    def flow(self, go_on: bool) -> None:
        """The command takes more input, or none for now."""
        if self._reader:
            (self._reader.resume if go_on else self._reader.pause)()

    async def carry(self, command: Command) -> int:
        """Carry bytes and signals until the command ends; returns its exit status. Raises what ended it otherwise."""
        loop = asyncio.get_running_loop()
        self._command = command
        with contextlib.ExitStack() as stack:
            for name in contract.SIGNALS:
                number = getattr(signal, "SIG" + name)
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup cpu ...
                    loop.add_signal_handler(number, self._signal, name)
                    stack.callback(loop.remove_signal_handler, number)
            if self._is_terminal:
                stack.enter_context(terminal.Raw(0))
                loop.add_signal_handler(signal.SIGWINCH, self._resize)
                stack.callback(loop.remove_signal_handler, signal.SIGWINCH)
            self._start_input(command)
            ended = asyncio.shield(command.ended)
            await asyncio.wait({ended, self._ended_by_us}, return_when=asyncio.FIRST_COMPLETED)
            if self._reader:
                self._reader.stop()
            if self._ended_by_us.done():
                ended.cancel()
                return self._ended_by_us.result()
            for writer in self._writers:
                await writer.drained()
            return await ended

    def _start_input(self, command: Command) -> None:
        escape: Callable[[bytes], bytes] = lambda typed: typed  # noqa: E731  one of two ways to read
        if self._is_terminal and os.isatty(0):
            escape = terminal.Escape(lambda: self._end(contract.STATUS_OURS), say).feed

        def typed(data: bytes) -> None:
            if not data:
                command.send(b"")
            elif passed := escape(data):
                command.send(passed)

        self._reader = pump.Reader(0, typed)

    def _signal(self, name: str) -> None:
        if name in FATAL and name in self._signalled:
            self._end(128 + getattr(signal, "SIG" + name))
        self._signalled.add(name)
        if self._command:
            self._command.signal(name)

    def _resize(self) -> None:
        if self._command:
            self._command.resize(*terminal.size(0))
