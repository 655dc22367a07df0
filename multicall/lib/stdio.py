"""A command's input and output on the board: a terminal or three pipes, and their pumps to a channel."""

import asyncio
import fcntl
import os
import struct
import termios
from collections.abc import Callable
from typing import Protocol

from multicall.lib import contract, pump

END_OF_INPUT = b"\x04"
"""What a person types on a terminal to end the input (VEOF's default)."""

DRAIN_S = 0.2
"""How long a terminal may take to hand over what its last process wrote just before it ended."""


class Output(Protocol):
    """Where output goes."""

    def write(self, data: bytes) -> None:
        """Send standard output."""

    def write_stderr(self, data: bytes) -> None:
        """Send standard error."""

    def flow(self, go_on: bool) -> None:
        """Ask for standard input, or for no more of it for now."""


def set_size(fd: int, columns: int, rows: int) -> None:
    """Set a terminal's size in characters (ioctl_tty(2)); its foreground group gets SIGWINCH from the kernel."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


class Stdio:
    """The descriptors of one command. `child` are the three that become 0, 1 and 2 there, valid until `forked`."""

    def __init__(self, terminal: contract.Terminal | None, output: Output) -> None:
        self.master: int | None = None
        self._readers: list[pump.Reader] = []
        self._ended = asyncio.Event()
        self._open: list[int] = []
        if terminal:
            self.master, slave = os.openpty()
            set_size(self.master, terminal.columns, terminal.rows)
            self.child = (slave, slave, slave)
            self._childs = [slave]
            reads: list[tuple[int, Callable[[bytes], None]]] = [(self.master, output.write)]
            stdin = self.master
        else:
            (child_in, stdin), (out, child_out), (err, child_err) = (os.pipe2(os.O_CLOEXEC) for _ in range(3))
            self.child = (child_in, child_out, child_err)
            self._childs = [child_in, child_out, child_err]
            reads = [(out, output.write), (err, output.write_stderr)]
        for fd, write in reads:
            os.set_blocking(fd, False)
            self._open.append(fd)
            self._readers.append(pump.Reader(fd, self._deliver(write)))
        os.set_blocking(stdin, False)
        self._stdin = pump.Writer(stdin, nonblocking=True, owned=stdin != self.master, flow=output.flow)

    def _deliver(self, write: Callable[[bytes], None]) -> Callable[[bytes], None]:
        def received(data: bytes) -> None:
            if data:
                write(data)
            elif all(reader.ended for reader in self._readers):
                self._ended.set()

        return received

    def forked(self) -> None:
        """Close the child's ends: it has them."""
        for fd in self._childs:
            os.close(fd)
        self._childs.clear()

    def feed(self, data: bytes) -> None:
        """Give the command input."""
        self._stdin.write(data)

    def end_input(self) -> None:
        """End the command's input, after what it was given."""
        if self.master is None:
            self._stdin.finish()
        else:
            self._stdin.write(END_OF_INPUT)

    def flow(self, go_on: bool) -> None:
        """Read output, or none for now."""
        for reader in self._readers:
            if go_on:
                reader.resume()
            else:
                reader.pause()

    async def drain(self) -> None:
        """The command has ended: hand over what it still wrote. What it left running may keep the ends open."""
        if self.master is not None and not self._ended.is_set():
            self.flow(True)
            try:
                await asyncio.wait_for(self._ended.wait(), DRAIN_S)
            except TimeoutError:
                pass
        for reader in self._readers:
            reader.drain()

    def close(self) -> None:
        """Close everything; a terminal's processes get HUP from the kernel."""
        self.forked()
        for reader in self._readers:
            reader.stop()
        self._stdin.close()
        for fd in self._open:
            os.close(fd)
        self._open.clear()
