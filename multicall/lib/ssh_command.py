"""A command on a board as the client sees it: a session channel, opened in our own way or in u-root/cpu's.

Part of the client's ssh (see ssh.py); serves 9P on whatever stream the board's side comes by.
"""

import asyncio
import hmac
import os
import secrets
import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import asyncssh

from multicall.lib import contract
from multicall.lib.log import Problem, reason
from multicall.lib.ssh import WINDOW_BYTES, Connection
from ninep.stream import Stream, of_streams

STDERR = asyncssh.EXTENDED_DATA_STDERR

Serve = Callable[[Stream], Awaitable[None]]
"""Serves 9P on a stream until it ends."""


class Refused(Exception):
    """The board does not know our own way: it is no cpud of ours."""


class Command(asyncssh.SSHClientSession[bytes]):
    """A running command. `received` gets its output, with True for stderr; `flow` is asked to pause our input.

    `ended` is its exit status: its own, 128+n when killed by signal n (as a shell says it), or a Problem when the
    connection ended first.
    """

    def __init__(
        self, where: str, received: Callable[[bytes, bool], None], flow: Callable[[bool], None], *, replies: bool
    ) -> None:
        self._where = where
        self._received = received
        self._flow = flow
        self._frames = contract.FrameReader() if replies else None
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None
        self._status: int | None = None
        self.serving: list[asyncio.Future[None]] = []
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    # asyncssh's callbacks.

    def connection_made(self, chan: "asyncssh.SSHClientChannel[bytes]") -> None:
        self._channel = chan

    def data_received(self, data: bytes, datatype: int | None) -> None:
        if self._frames and datatype is None:
            try:
                body = self._frames.feed(data)
                if body is None:
                    return
                reply = contract.decode_reply(body)
            except contract.ContractError as error:
                self._fail(Problem(f"{self._where}: the board's answer: {error}"))
                return
            data, self._frames = self._frames.rest, None
            if reply.error:
                self._fail(Problem(f"{self._where}: refused: {reply.error}", reply.hint))
                return
        if data:
            self._received(data, datatype == STDERR)

    def exit_status_received(self, status: int) -> None:
        self._status = status & 0xFF

    def exit_signal_received(self, signal_name: str, core_dumped: bool, msg: str, lang: str) -> None:
        number = getattr(signal, "SIG" + signal_name.partition("@")[0], 0)
        self._status = 128 + int(number)

    def eof_received(self) -> bool:
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if self.ended.done():
            return
        if self._status is not None:
            self.ended.set_result(self._status)
        else:
            why = reason(exc) if exc else "it closed the session without an exit status"
            self._fail(Problem(f"{self._where}: lost the board: {why}"))

    def pause_writing(self) -> None:
        self._flow(False)

    def resume_writing(self) -> None:
        self._flow(True)

    def _fail(self, problem: Problem) -> None:
        if not self.ended.done():
            self.ended.set_exception(problem)

    # What the client does with it.

    def send(self, data: bytes) -> None:
        """Give it input; b"" ends the input."""
        if self._channel and not self._channel.is_closing():
            if data:
                self._channel.write(data)
            else:
                self._channel.write_eof()

    def flow(self, go_on: bool) -> None:
        """Take more of its output, or none for now."""
        if self._channel:
            if go_on:
                self._channel.resume_reading()
            else:
                self._channel.pause_reading()

    def signal(self, name: str) -> None:
        """Send it a signal, by its name without SIG."""
        if self._channel and not self._channel.is_closing():
            self._channel.send_signal(name)

    def resize(self, columns: int, rows: int) -> None:
        """Tell it the terminal's new size."""
        if self._channel and not self._channel.is_closing():
            self._channel.change_terminal_size(columns, rows)


async def open_ours(
    connection: Connection,
    request: contract.Request,
    received: Callable[[bytes, bool], None],
    flow: Callable[[bool], None],
    serve: Serve,
) -> Command:
    """Start a command by our own subsystem. Raises Refused when the board is no cpud of ours.

    Everything goes out at once: the session and the 9P channel are opened in the same flight.
    """
    ssh = connection.ssh
    command = Command(connection.target.shown, received, flow, replies=True)
    opening: list[asyncio.Future[Any]] = []
    opening.append(asyncio.ensure_future(_open_session(connection, command, subsystem=contract.SUBSYSTEM)))
    tree: asyncio.Future[Any] | None = None
    if request.ninep:
        path = contract.ninep_path(request.ninep)
        tree = asyncio.ensure_future(ssh.open_unix_connection(path, encoding=None, window=WINDOW_BYTES))
        opening.append(tree)
    results = await asyncio.gather(*opening, return_exceptions=True)
    if isinstance(results[0], asyncssh.ChannelOpenError):
        if tree and not tree.exception():
            tree.result()[1].close()
        raise Refused from results[0]
    for result in results:
        if isinstance(result, asyncssh.Error | OSError):
            raise Problem(f"{connection.target.shown}: open a session: {reason(result)}") from result
        if isinstance(result, BaseException):
            raise result
    command.send(contract.encode_request(request))
    if tree:
        reader, writer = tree.result()
        command.serving.append(asyncio.ensure_future(serve(of_streams(reader, writer))))
    return command


async def _open_session(connection: Connection, session: Command, **how: Any) -> None:
    await connection.ssh.create_session(
        lambda: session, encoding=None, window=WINDOW_BYTES, **{"request_pty": False, **how}
    )


async def open_uroot(
    connection: Connection,
    request: contract.Request,
    received: Callable[[bytes, bool], None],
    flow: Callable[[bool], None],
    serve: Serve,
) -> Command:
    """Start a command the way u-root/cpu's programs do it (ARCHITECTURE.md "On the wire")."""
    command = Command(connection.target.shown, received, flow, replies=False)
    environment = dict(request.environment)
    port = None
    try:
        if request.ninep:
            nonce = secrets.token_hex(contract.NONCE_BYTES).encode()
            port = await _listen_reverse(connection, command, nonce, serve)
            environment[contract.NONCE_VARIABLE] = nonce
            # u-root/cpu's text begins with a newline and ends with one, whatever is in between.
            text = b"\n" + request.fstab + b"\n"
            environment.update(dict.fromkeys(contract.FSTAB_VARIABLES, text))
        await _open_exec(connection, command, contract.exec_string(request.argv, port), environment, request.terminal)
    except (asyncssh.Error, OSError) as error:
        raise Problem(f"{connection.target.shown}: start the command: {reason(error)}") from error
    return command


async def open_plain(
    connection: Connection,
    line: bytes,
    terminal: contract.Terminal | None,
    received: Callable[[bytes, bool], None],
    flow: Callable[[bool], None],
) -> Command:
    """Start a command as ssh does, without our files; an empty line is the user's shell."""
    command = Command(connection.target.shown, received, flow, replies=False)
    environment = {name: os.environb[name] for name in os.environb if name == b"LANG" or name.startswith(b"LC_")}
    try:
        await _open_exec(connection, command, line, environment, terminal)
    except (asyncssh.Error, OSError) as error:
        raise Problem(f"{connection.target.shown}: start the command: {reason(error)}") from error
    return command


async def _open_exec(
    connection: Connection,
    command: Command,
    line: bytes,
    environment: Mapping[bytes, bytes],
    terminal: contract.Terminal | None,
) -> None:
    how: dict[str, Any] = {}
    if terminal:
        how = {
            "request_pty": "force",
            "term_type": os.fsdecode(terminal.term),
            "term_size": (terminal.columns, terminal.rows),
        }
    await _open_session(connection, command, command=line or None, env=environment, **how)


async def _listen_reverse(connection: Connection, command: Command, nonce: bytes, serve: Serve) -> int:
    """Ask the board for a port on its loopback and serve 9P on the one connection that knows the nonce."""
    taken = asyncio.Event()

    async def arrived(reader: "asyncssh.SSHReader[bytes]", writer: "asyncssh.SSHWriter[bytes]") -> None:
        try:
            sent = await reader.readexactly(len(nonce))
        except (asyncio.IncompleteReadError, asyncssh.Error, OSError):
            sent = b""
        if taken.is_set() or not hmac.compare_digest(sent, nonce):
            writer.close()
            return
        taken.set()
        listener.close()
        await serve(of_streams(reader, writer))

    failure: Exception | None = None
    for host in ("127.0.0.1", "::1"):
        try:
            listener = await connection.ssh.start_server(
                lambda *origin: arrived, host, 0, encoding=None, window=WINDOW_BYTES
            )
            return listener.get_port()
        except (asyncssh.Error, OSError) as error:
            failure = error
    raise Problem(
        f"{connection.target.shown}: ask for a reverse forward, which carries the files: {reason(failure or OSError())}"
    )
