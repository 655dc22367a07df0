"""cpud: lets cpu in. Accepts, forks a process for each connection, and keeps nothing between them.

The parent has no event loop: it has everything imported, waits in poll(2), and a fork of it costs milliseconds. What a
connection does, it does in its own process (ARCHITECTURE.md "Processes").
"""

import asyncio
import contextlib
import gc
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import click

from multicall import VERSION
from multicall.lib import contract, flags, launch, mount, transport
from multicall.lib.log import Problem, reason, say, set_up
from multicall.lib.log import run as report

if TYPE_CHECKING:
    from multicall.lib.ssh_server import Policy

log = logging.getLogger("cpud")

DEFAULT_HOST_KEY = "/etc/cpud/host_key"
MAX_CONNECTIONS = 32
"""Processes at once, about 4 MB each: so many that nobody notices, so few that strangers cannot use up a board.
The next one waits in the backlog; who does not log in is cut off after ssh_server.LOGIN_TIMEOUT_S."""

STOP_GRACE_S = 8.0
"""Longer than a session's own grace between HUP and KILL, so that each can end its command."""

LOUD = """\
cpud: WARNING: no authentication: whoever can reach {where} is {user} on this machine
"""


def _key_reader(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


class Daemon:
    """The listening parent. `policy` is what its connections are served by."""

    def __init__(self, listeners: Sequence[socket.socket], policy: "Policy") -> None:
        self._listeners = list(listeners)
        self._policy = policy
        self._children: set[int] = set()
        self._made: list[bytes] = []
        self._made_pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._signals: list[int] = []

    def run(self) -> int:
        """Accept until TERM or INT, or until HUP and the end of the last connection. Returns an exit status."""
        signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        for handled in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(handled, lambda number, frame: None)
        poll = select.poll()
        poll.register(self._wake[0], select.POLLIN)
        poll.register(self._made_pipe[0], select.POLLIN)
        for listener in self._listeners:
            listener.setblocking(False)
        while self._listeners or self._children:
            for listener in self._listeners:
                poll.register(listener, select.POLLIN if len(self._children) < MAX_CONNECTIONS else 0)
            for fd, _ in poll.poll():
                if fd == self._wake[0]:
                    for number in os.read(fd, 4096):
                        if number in (signal.SIGTERM, signal.SIGINT):
                            self._stop()
                            return 0
                        if number == signal.SIGHUP:
                            for listener in self._listeners:
                                poll.unregister(listener)
                            self._close_listeners()
                    self._reap()
                elif fd == self._made_pipe[0]:
                    self._take_made()
                else:
                    for listener in self._listeners:
                        if listener.fileno() == fd:
                            self._accept(listener)
        return 0

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, peer = listener.accept()
        except OSError:
            return  # the peer has gone meanwhile
        try:
            pid = os.fork()
        except OSError as error:
            log.error("take a connection: fork: %s", reason(error))
            sock.close()
            return
        if pid == 0:
            self._serve(sock, peer)
        self._children.add(pid)
        sock.close()

    def _serve(self, sock: socket.socket, peer: object) -> NoReturn:
        """The life of a connection's process."""
        status = 1
        try:
            parent = os.getppid()
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            mount.prctl(mount.PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(status)  # cpud died before the line above
            self._close_listeners()
            for fd in (*self._wake, self._made_pipe[0]):
                os.close(fd)
            from multicall.lib import ssh_server

            log.debug("connection from %s", peer)
            asyncio.run(ssh_server.serve(sock, self._policy._replace(made=self._tell_made)))
            status = 0
        except BaseException:
            log.exception("connection from %s", peer)
        finally:
            os._exit(status)

    def _tell_made(self, path: bytes) -> None:
        with contextlib.suppress(OSError):
            os.write(self._made_pipe[1], path[: select.PIPE_BUF - 1] + b"\0")

    def _take_made(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._made_pipe[0], 65536):
                self._made += [path for path in data.split(b"\0") if path]

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                self._children.discard(pid)
                if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGTERM:
                    log.warning("a connection's process died: %s", signal.strsignal(os.WTERMSIG(status)))
        self._remove_made()

    def _remove_made(self) -> None:
        """Remove mount points that sessions made, once there is none that might use them."""
        self._take_made()
        if self._children:
            return
        for path in reversed(self._made):
            with contextlib.suppress(OSError):
                if os.path.isdir(path):
                    os.rmdir(path)
                elif os.path.getsize(path) == 0:
                    os.unlink(path)
        self._made.clear()

    def _stop(self) -> None:
        """End every connection, then be gone."""
        self._close_listeners()
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_GRACE_S
        while self._children and time.monotonic() < deadline:
            self._reap()
            select.select([self._wake[0]], [], [], max(0, min(0.5, deadline - time.monotonic())))
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake[0], 4096)
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._reap()


def _register(network: str, address: str, timeout_s: float) -> None:
    """Dial `address` and write ok, as whoever started this board waits for it."""
    host, _, port = address.rpartition(":") if network not in ("unix",) else (address, "", "")

    async def tell() -> None:
        sock = await transport.dial(network, host.strip("[]"), port, timeout_s)
        with sock:
            await asyncio.get_running_loop().sock_sendall(sock, b"ok")

    asyncio.run(tell())


@click.command(cls=flags.Command, context_settings={"help_option_names": ["-h", "--help", "-help"]})
@click.option(
    "-pk",
    "--authorized-keys",
    "keys",
    default="key.pub",
    show_default=True,
    metavar="FILE",
    help="public keys to let in, read at each login",
)
@click.option(
    "-hk",
    "--host-key",
    "host_key",
    default=DEFAULT_HOST_KEY,
    show_default=True,
    metavar="FILE",
    help="host key, made when absent",
)
@click.option(
    "-sp",
    "--port",
    "port",
    default=str(contract.DEFAULT_PORT),
    show_default=True,
    metavar="PORT",
    help="port, or a socket's path with -net unix",
)
@click.option(
    "-net",
    "--network",
    "networks",
    default=["tcp"],
    multiple=True,
    show_default=True,
    metavar="NET",
    help="tcp tcp4 tcp6 unix vsock; repeatable",
)
@click.option(
    "--mount",
    "mount_by",
    type=click.Choice(contract.MOUNT_BACKENDS),
    default="auto",
    show_default=True,
    help="how to mount for clients that do not say it",
)
@click.option("--insecure-no-auth", is_flag=True, help="let everybody in")
@click.option("-register", "--register", "register", default="", metavar="ADDR", help="dial ADDR and write ok")
@click.option("-registerTO", "--register-timeout", "register_timeout", default="5s", metavar="DUR")
@click.option("-sleepBeforeServing", "--sleep-before-serving", "sleep_first", default="0s", metavar="DUR")
@click.option("-klog", "--klog", is_flag=True, help="log to /dev/kmsg")
@click.option("-d", "--debug", is_flag=True, help="say more")
@click.version_option(VERSION)
def command(  # one parameter an option
    keys: str,
    host_key: str,
    port: str,
    networks: tuple[str, ...],
    mount_by: str,
    insecure_no_auth: bool,
    register: str,
    register_timeout: str,
    sleep_first: str,
    klog: bool,
    debug: bool,
) -> int:
    """Let cpu in: serve sessions on this machine over ssh."""
    set_up("cpud: %(message)s", logging.INFO, debug=debug, handler=_KernelLog() if klog else None)
    time.sleep(flags.duration_s(sleep_first))
    listeners = [transport.listen(network, port) for network in networks]
    # After the bind: whoever dials meanwhile waits in the backlog instead of being refused.
    from multicall.lib import ssh_server

    open_to_all = insecure_no_auth or not keys
    if open_to_all:
        say(
            LOUD.format(
                where=f"{' '.join(networks)} {port}", user="root" if os.geteuid() == 0 else f"uid {os.geteuid()}"
            )
        )
    else:
        try:
            ssh_server.parse_authorized_keys(_key_reader(keys), keys)
        except OSError as error:
            raise Problem(
                f"read keys from {keys}: {reason(error)}", "-pk FILE names the public keys to let in"
            ) from error
    policy = ssh_server.Policy(
        ssh_server.load_host_key(host_key),
        None if open_to_all else lambda: _key_reader(keys),
        lambda path: None,
        mount_by,
    )
    launch.preload()
    if mount.has_fuse():
        from ninep import fuse  # noqa: F401  loaded once here, not in every fork
    gc.collect()
    gc.freeze()  # the forks share these objects' pages as long as nobody counts them
    daemon = Daemon(listeners, policy)
    where = ", ".join(
        f"{network} {_bound_port(listener, port)}" for network, listener in zip(networks, listeners, strict=True)
    )
    log.info("listening on %s, host key %s", where, policy.host_key.get_fingerprint())
    if register:
        _register(networks[0], register, flags.duration_s(register_timeout))
    try:
        return daemon.run()
    finally:
        for network in networks:
            transport.remove(network, port)


def _bound_port(listener: socket.socket, port: str) -> str:
    address = listener.getsockname()
    return str(address[1]) if isinstance(address, tuple) else port


class _KernelLog(logging.Handler):
    """Writes to /dev/kmsg, a record a line."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError), open("/dev/kmsg", "wb", buffering=0) as kmsg:
            kmsg.write(b"<6>" + self.format(record).replace("\n", " ").encode()[:900])


def main(argv: list[str]) -> int:
    """Run cpud. argv[0] is the name it was called by."""
    return report(argv[0], lambda: flags.run(command, argv) or 0, debug="-d" in argv)
