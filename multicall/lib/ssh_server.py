"""The board's ssh: one connection, its authentication, its session channels, and nothing else that ssh can do.

asyncssh is the protocol; this file only says what a cpud offers: session channels with our own subsystem, u-root/cpu's
exec strings and plain commands; the client's 9P on a channel of its own, or on u-root/cpu's reverse forward, for which
no port is ever opened on the board.
"""

import asyncio
import logging
import os
import secrets
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, NamedTuple

import asyncssh

from multicall.lib import contract, launch
from multicall.lib.log import Problem, reason
from multicall.lib.reaper import Reaper
from multicall.lib.session import Session
from multicall.lib.ssh import ALGORITHMS, WINDOW_BYTES
from ninep.stream import Stream, of_streams

log = logging.getLogger("cpud")

LOGIN_TIMEOUT_S = 30
KEEPALIVE_S = 15
KEEPALIVE_COUNT = 3
MAX_SESSIONS = 16
"""Sessions at once on one connection: each is a process and a mount."""
MAX_PENDING_TREES = 16
"""9P channels that came before their request."""

Arrived = Callable[[asyncssh.SSHReader[Any], asyncssh.SSHWriter[Any]], Awaitable[None] | None]


class Policy(NamedTuple):
    """Whom to let in. `authorized_keys` is the text of the file, None for no authentication at all."""

    host_key: asyncssh.SSHKey
    authorized_keys: Callable[[], str] | None
    made: Callable[[bytes], None]
    """Told each mount point that a session had to make on the board's root."""
    mount: str = "auto"
    """How to mount for clients that do not say it."""


def load_host_key(path: str) -> asyncssh.SSHKey:
    """Read the host key, or make an ed25519 one when the file is absent. Raises Problem."""
    try:
        return asyncssh.read_private_key(path)
    except FileNotFoundError:
        pass
    except (OSError, asyncssh.KeyImportError) as error:
        raise Problem(f"read host key {path}: {reason(error)}") from error
    key = asyncssh.generate_private_key("ssh-ed25519")
    beside = f"{path}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), mode=0o755, exist_ok=True)
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(key.export_private_key())
            file.flush()
            os.fsync(fd)
        os.rename(beside, path)
    except OSError as error:
        log.warning("keep the host key in %s: %s (it will be another one after the next start)", path, reason(error))
    return key


def parse_authorized_keys(text: str, path: str) -> asyncssh.SSHAuthorizedKeys:
    """Read an authorized_keys text. Raises Problem."""
    try:
        return asyncssh.import_authorized_keys(text)
    except ValueError as error:
        raise Problem(f"read keys from {path}: {reason(error)}", "one OpenSSH public key a line") from error


async def serve(sock: socket.socket, policy: Policy) -> None:
    """Serve one accepted connection until it is gone and every session of it has ended. Owns `sock`."""
    reaper = Reaper()
    server = _Connection(policy, reaper)
    try:
        connection = await asyncssh.run_server(
            sock,
            server_factory=lambda: server,
            server_host_keys=[policy.host_key],
            encoding=None,
            line_editor=False,
            password_auth=False,
            kbdint_auth=False,
            gss_host=None,
            agent_forwarding=False,
            x11_forwarding=False,
            allow_scp=False,
            compression_algs=None,
            login_timeout=LOGIN_TIMEOUT_S,
            keepalive_interval=KEEPALIVE_S,
            keepalive_count_max=KEEPALIVE_COUNT,
            window=WINDOW_BYTES,
            **ALGORITHMS,
        )
    except (OSError, asyncssh.ConnectionLost) as error:
        log.debug("gone before it said who: %s", reason(error))  # a port scan, a readiness probe
        return
    except asyncssh.Error as error:
        log.info("connection refused: %s", reason(error))
        return
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.hang_up)
    await connection.wait_closed()
    await server.wait_sessions()


class _Connection(asyncssh.SSHServer):
    """What asyncssh asks of a server, for one connection."""

    def __init__(self, policy: Policy, reaper: Reaper) -> None:
        self._policy = policy
        self.default_mount = policy.mount
        self.reaper = reaper
        self.user: launch.User | None = None
        self._connection: asyncssh.SSHServerConnection | None = None
        self._trees: dict[str, asyncio.Future[Stream]] = {}
        self._forwards: dict[int, str] = {}
        self._sessions: set[asyncio.Task[None]] = set()
        self._channels: set[_SessionChannel] = set()

    # asyncssh's callbacks.

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn

    def connection_lost(self, exc: Exception | None) -> None:
        for future in self._trees.values():
            future.cancel()
        for channel in list(self._channels):
            channel.hang_up()

    def begin_auth(self, username: str) -> bool:
        if self._policy.authorized_keys is None:
            self._settle_user(username)
            return False
        assert self._connection
        try:
            keys = parse_authorized_keys(self._policy.authorized_keys(), "authorized keys")
            self._connection.set_authorized_keys(keys)
        except Problem as problem:
            log.error("%s", problem.message)
        self._settle_user(username)
        return True

    def _settle_user(self, username: str) -> None:
        self.user = launch.find_user(username)

    def session_requested(self) -> "asyncssh.SSHServerSession[bytes] | bool":
        if len(self._channels) >= MAX_SESSIONS:
            return False
        return _SessionChannel(self)

    def unix_connection_requested(self, dest_path: str) -> "Arrived | bool":
        if not dest_path.startswith(contract.NINEP_PATH):
            return False
        ident = dest_path.removeprefix(contract.NINEP_PATH)
        if len(self._trees) >= MAX_PENDING_TREES and ident not in self._trees:
            return False

        async def arrived(reader: asyncssh.SSHReader[Any], writer: asyncssh.SSHWriter[Any]) -> None:
            future = self._tree(ident)
            if future.done():
                writer.close()
            else:
                future.set_result(of_streams(reader, writer))

        return arrived

    def server_requested(self, listen_host: str, listen_port: int) -> "asyncssh.SSHListener | bool":
        """u-root/cpu wants a port on the board's loopback for its own child to dial. We only give it a number."""
        if listen_port or listen_host not in ("127.0.0.1", "::1", "localhost"):
            return False
        port = 1024 + secrets.randbelow(64512)
        while port in self._forwards:
            port = 1024 + secrets.randbelow(64512)
        self._forwards[port] = listen_host
        return _Forward(port)

    # What the sessions ask.

    def _tree(self, ident: str) -> "asyncio.Future[Stream]":
        if ident not in self._trees:
            self._trees[ident] = asyncio.get_running_loop().create_future()
        return self._trees[ident]

    async def take_tree(self, ident: str, timeout_s: float) -> Stream:
        """Wait for the 9P channel of this id; nobody else can have it then. Raises Problem."""
        try:
            return await asyncio.wait_for(self._tree(ident), timeout_s)
        except TimeoutError:
            raise Problem(f"the client's 9P channel did not come within {timeout_s:g} s") from None
        finally:
            self._trees.pop(ident, None)

    async def dial_tree(self, port: int, nonce: bytes) -> Stream:
        """Open u-root/cpu's 9P stream: a connection to the port it was given, which begins with the nonce."""
        host = self._forwards.pop(port, None)
        if host is None:
            raise Problem(f"-port9p={port} is no port that this connection was given")
        assert self._connection
        try:
            reader, writer = await self._connection.open_connection(host, port, host, port, encoding=None)
        except (OSError, asyncssh.Error) as error:
            raise Problem(f"open the client's 9P on port {port}: {reason(error)}") from error
        writer.write(nonce)
        return of_streams(reader, writer)

    def start(self, channel: "_SessionChannel", session: Session) -> None:
        """Let a session run to its end, even when the connection ends first."""
        task = asyncio.get_running_loop().create_task(session.run())
        self._sessions.add(task)
        self._channels.add(channel)

        def ended(task: asyncio.Task[None]) -> None:
            self._sessions.discard(task)
            self._channels.discard(channel)
            if not task.cancelled() and task.exception():
                log.error("session", exc_info=task.exception())

        task.add_done_callback(ended)

    def made(self, path: bytes) -> None:
        """Pass on what a session had to make."""
        self._policy.made(path)

    def hang_up(self) -> None:
        """End every session, as if its client had gone."""
        if self._connection:
            self._connection.close()
        for channel in list(self._channels):
            channel.hang_up()

    async def wait_sessions(self) -> None:
        """Wait for the end of every session."""
        while self._sessions:
            await asyncio.wait(list(self._sessions))


class _Forward(asyncssh.SSHListener):
    """A port that nobody can dial: its number only pairs a session with the client's reverse forward."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port

    def get_port(self) -> int:
        return self._port

    def close(self) -> None:
        pass

    async def wait_closed(self) -> None:
        pass


class _SessionChannel(asyncssh.SSHServerSession[bytes]):
    """One session channel, until and after it knows what is to run. Is the session's Channel too."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._channel: asyncssh.SSHServerChannel[bytes] | None = None
        self._terminal: contract.Terminal | None = None
        self._session: Session | None = None
        self._frames: contract.FrameReader | None = None
        self._early: list[bytes] = []
        self._eof = False
        self._gone = False
        self._begin: Callable[[], None] | None = None
        self._starting: asyncio.Future[None] | None = None

    # asyncssh's callbacks.

    def connection_made(self, chan: "asyncssh.SSHServerChannel[bytes]") -> None:
        self._channel = chan

    def connection_lost(self, exc: Exception | None) -> None:
        self.hang_up()

    def pty_requested(self, term_type: str, term_size: tuple[int, int, int, int], term_modes: object) -> bool:
        columns, rows = (min(size, 0xFFFF) for size in term_size[:2])
        self._terminal = contract.Terminal(os.fsencode(term_type), columns, rows)
        return True

    def shell_requested(self) -> bool:
        self._begin = lambda: self._plain([])
        return True

    def exec_requested(self, command: str) -> bool:
        self._begin = lambda: self._exec(command.encode("utf-8", "surrogateescape"))
        return True

    def subsystem_requested(self, subsystem: str) -> bool:
        if subsystem != contract.SUBSYSTEM:
            return False
        self._frames = contract.FrameReader()
        return True

    def session_started(self) -> None:
        if self._begin:
            self._begin()

    def data_received(self, data: bytes, datatype: int | None) -> None:
        if self._session:
            self._session.feed(data)
        elif self._frames:
            try:
                body = self._frames.feed(data)
                if body is not None:
                    request = contract.decode_request(body)
                    self._early.append(self._frames.rest)
                    self._frames = None
                    self.write(contract.encode_reply(contract.Reply()))
                    self._later(self._with_tree(request))
            except contract.ContractError as error:
                self._frames = None
                self.write(contract.encode_reply(contract.Reply(str(error))))
                self.exit(contract.STATUS_OURS)
        else:
            self._early.append(data)

    def eof_received(self) -> bool:
        self._eof = True
        if self._session:
            self._session.end_input()
        return True

    def signal_received(self, signal: str) -> None:
        if self._session:
            self._session.signal(signal)

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        if self._session:
            self._session.resize(min(width, 0xFFFF), min(height, 0xFFFF))

    def pause_writing(self) -> None:
        if self._session:
            self._session.flow(False)

    def resume_writing(self) -> None:
        if self._session:
            self._session.flow(True)

    # The session's Channel.

    def write(self, data: bytes) -> None:
        if self._channel and not self._gone:
            self._channel.write(data)

    def write_stderr(self, data: bytes) -> None:
        if self._channel and not self._gone:
            self._channel.write_stderr(data)

    def flow(self, go_on: bool) -> None:
        if self._channel and not self._gone:
            if go_on:
                self._channel.resume_reading()
            else:
                self._channel.pause_reading()

    def exit(self, status: int) -> None:
        if self._channel and not self._gone:
            self._channel.exit(status)

    def exit_signal(self, name: str) -> None:
        if self._channel and not self._gone:
            self._channel.exit_with_signal(name)

    # From a request to a session.

    def hang_up(self) -> None:
        """The client is gone, or is to be treated so."""
        self._gone = True
        if self._session:
            self._session.hang_up()

    def _exec(self, command: bytes) -> None:
        assert self._channel
        if not contract.is_ours(command):
            if os.path.exists(launch.SHELL):
                self._plain([launch.SHELL, b"-c", command])
                return
            command = b" " + command
        try:
            asked = contract.parse_exec(command)
        except contract.ContractError as error:
            self._refuse(str(error))
            return
        if asked.port is None:
            self._plain(asked.argv)
            return
        environment = dict(self._channel.get_environment_bytes())
        nonce = environment.pop(contract.NONCE_VARIABLE, b"")
        fstab = b""
        for name in contract.FSTAB_VARIABLES:
            fstab = environment.pop(name, b"") or fstab
        cwd = environment.get(b"PWD", b"/")
        request = contract.Request(asked.argv, environment, cwd, fstab, ninep=str(asked.port), terminal=self._terminal)
        self._later(self._with_forward(request, asked.port, nonce))

    def _plain(self, argv: Sequence[bytes]) -> None:
        """A command or shell of the board itself, without the client's files, as from any sshd."""
        assert self._channel
        user = self._connection.user
        given = dict(self._channel.get_environment_bytes())
        for variable in (*contract.FSTAB_VARIABLES, contract.NONCE_VARIABLE):
            given.pop(variable, None)
        name = user.name if user else "root"
        home = user.home if user else b"/root"
        shell = user.shell if user else launch.SHELL
        environment = {
            b"PATH": launch.DEFAULT_PATH,
            b"HOME": home,
            b"USER": name.encode(),
            b"LOGNAME": name.encode(),
            b"SHELL": shell,
        }
        if self._terminal:
            environment[b"TERM"] = self._terminal.term
        environment.update(given)
        cwd = given.get(b"PWD") or (home if os.path.isdir(home) else b"/")
        self._start(contract.Request(argv, environment, cwd, terminal=self._terminal), None)

    async def _with_tree(self, request: contract.Request) -> None:
        stream = await self._connection.take_tree(request.ninep, request.timeout_s) if request.ninep else None
        self._start(request, stream, in_order=True)

    async def _with_forward(self, request: contract.Request, port: int, nonce: bytes) -> None:
        self._start(request, await self._connection.dial_tree(port, nonce))

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        async def guarded() -> None:
            try:
                await work
            except Problem as problem:
                self._refuse(problem.message, problem.hint)
            except asyncio.CancelledError:
                pass

        self._starting = asyncio.ensure_future(guarded())

    def _start(self, request: contract.Request, stream: Stream | None, *, in_order: bool = False) -> None:
        if request.mount == "auto":
            request = request._replace(mount=self._connection.default_mount)
        session = Session(
            request,
            self,
            self._connection.reaper,
            stream=stream,
            in_order=in_order,
            user=self._connection.user,
            made=self._connection.made,
        )
        for data in self._early:
            session.feed(data)
        self._early.clear()
        if self._eof:
            session.end_input()
        if self._gone:
            session.hang_up()
        self._session = session
        self._connection.start(self, session)

    def _refuse(self, message: str, hint: str = "") -> None:
        self.write_stderr(Problem(message, hint).text("cpud").encode())
        self.exit(contract.STATUS_OURS)
