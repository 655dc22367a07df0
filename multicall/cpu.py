"""cpu: run a command on a board with this machine's files.

`command` reads the command line, `run` is the story, everything else is in lib/.
"""

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import click

from multicall import VERSION
from multicall.lib import contract, flags, namespace, terminal
from multicall.lib.front import Front, open_standard
from multicall.lib.log import Problem, reason, say, set_up
from multicall.lib.log import run as report

if TYPE_CHECKING:
    from multicall.lib import ssh, ssh_command
    from ninep.stream import Stream

WIRES = ("auto", "pycpu", "u-root")


class Options(NamedTuple):
    """The command line, read and checked."""

    connection: "ssh.Options"
    argv: Sequence[bytes]
    root: str
    namespace: str
    fstab: str | None
    ninep: bool
    mount: str
    wire: str
    plain: bool
    terminal: bool | None
    timeout_s: float
    trace: bool


def environment(cwd: bytes) -> dict[bytes, bytes]:
    """The environment that the command gets: all of ours, with a $PWD that is true."""
    copied = dict(os.environb)
    copied[b"PWD"] = cwd
    copied[b"TMPDIR"] = b"/tmp"
    return copied


def working_directory() -> bytes:
    """Where we are: by $PWD, as people see it, when that is the place, else as the kernel says it."""
    try:
        here = os.getcwdb()
    except OSError as error:
        raise Problem(f"find the current directory: {reason(error)}") from error
    told = os.environb.get(b"PWD", b"")
    with contextlib.suppress(OSError):
        if told.startswith(b"/") and os.path.samefile(told, here):
            return namespace.normal(told)
    return here


def plan_namespace(options: Options, cwd: bytes) -> bytes:
    """The fstab text of a session: the user's own file, then the binds and the current directory. Raises Problem."""
    try:
        binds = namespace.parse(os.fsencode(options.namespace))
    except namespace.NamespaceError as error:
        raise Problem(str(error), "-namespace /board/path=/client/path:... ; none is none") from error
    root = os.fsencode(options.root)
    if options.namespace == os.fsdecode(namespace.DEFAULT):
        # Nobody asked for these by name: what this machine has not, is not missed.
        binds = [bind for bind in binds if os.path.exists(_under(root, bind.client))]
    if not namespace.covers(binds, cwd) and cwd != b"/":
        binds.append(namespace.Bind(cwd, cwd))
    binds = [namespace.Bind(bind.board, _resolve(root, bind.client)) for bind in binds]
    text = b""
    if options.fstab:
        try:
            with open(options.fstab, "rb") as file:
                text = file.read()
        except OSError as error:
            raise Problem(f"read fstab {options.fstab}: {reason(error)}") from error
        if not text.endswith(b"\n"):
            text += b"\n"
    return text + namespace.fstab(binds)


def _under(root: bytes, path: bytes) -> bytes:
    return root.rstrip(b"/") + path


def _resolve(root: bytes, path: bytes) -> bytes:
    """Follow an absolute link here, where it means something: on the board it would lead out of our tree."""
    if root != b"/":
        return path
    return os.path.realpath(path)


def split_destination(text: str, network: str = "tcp") -> tuple[str | None, str]:
    """Split [user@]host; the host may be an IPv6 address in brackets, or a socket's name that begins with @."""
    if network.startswith("unix"):
        user, at, host = ("", "", text) if text.startswith("@") else text.partition("@")
        return (user, host) if at and "/" not in user else (None, text)
    user, at, host = text.rpartition("@")
    return (user or None) if at else None, host[1:-1] if host.startswith("[") and host.endswith("]") else host


def make_request(options: Options) -> contract.Request:
    """Everything the board has to know, from the command line and from where we are. Raises Problem."""
    cwd = working_directory()
    wants_terminal = options.terminal
    if wants_terminal is None:
        wants_terminal = os.isatty(0) and os.isatty(1)
    return contract.Request(
        argv=options.argv or [os.environb.get(b"SHELL", b"") or b"/bin/sh"],
        environment=environment(cwd),
        cwd=cwd,
        fstab=plan_namespace(options, cwd) if options.ninep else b"",
        ninep=secrets.token_hex(8) if options.ninep else "",
        terminal=terminal.describe(0) if wants_terminal else None,
        mount=options.mount,
        timeout_s=options.timeout_s,
    )


def exporter(options: Options) -> "ssh_command.Serve":
    """Return what serves our files on a stream. Raises Problem when the root cannot be served."""
    from ninep import server
    from ninep.localfs import LocalFile

    try:
        root = LocalFile.root(os.fsencode(options.root))
    except OSError as error:
        raise Problem(f"serve -root {options.root}: {reason(error)}") from error
    trace = (lambda line: say(f"{line}\n")) if options.trace else None

    async def serve(stream: "Stream") -> None:
        await server.serve(stream, root, trace=trace)

    return serve


async def run(options: Options) -> int:
    """Connect, start the command, carry its bytes, return its exit status. Raises Problem."""
    request = make_request(options)
    serve = exporter(options) if options.ninep else None

    from multicall.lib import ssh

    connection = await ssh.connect(options.connection)
    front = Front(is_terminal=request.terminal is not None)
    try:
        command = await start(options, connection, request, front, serve)
        return await front.carry(command)
    finally:
        connection.ssh.abort()


async def start(
    options: Options,
    connection: "ssh.Connection",
    request: contract.Request,
    front: Front,
    serve: "ssh_command.Serve | None",
) -> "ssh_command.Command":
    """Start the command in the way of the wire that the options and the board allow."""
    from multicall.lib import ssh_command

    if serve is None:
        line = b" ".join(options.argv) if options.plain else contract.exec_string(options.argv, None)
        return await ssh_command.open_plain(
            connection, line if options.argv else b"", request.terminal, front.received, front.flow
        )
    if options.wire != "u-root":
        try:
            return await ssh_command.open_ours(connection, request, front.received, front.flow, serve)
        except ssh_command.Refused as refused:
            if options.wire == "pycpu":
                raise Problem(
                    f"{connection.target.shown}: does not speak our own protocol", "--wire auto tries u-root/cpu's too"
                ) from refused
    if options.mount != "auto":
        raise Problem(
            f"--mount {options.mount}: u-root/cpu's protocol has no word for it",
            "the board chooses; cpud has a --mount too",
        )
    return await ssh_command.open_uroot(connection, request, front.received, front.flow, serve)


@click.command(cls=flags.Command, context_settings={"help_option_names": ["-h", "--help", "-help"]})
@click.option("-sp", "-p", "--port", "port", metavar="PORT", help="cpud's port [17010, or ssh_config's]")
@click.option("-key", "-i", "--key", "key", metavar="FILE", help="the key to log in with")
@click.option("-useKey/-no-useKey", "--use-key/--no-use-key", "use_key", default=True, help="offer a key at all")
@click.option("-hk", "--host-key", "host_key", metavar="FILE", help="the board's host key, instead of known_hosts")
@click.option("-l", "--user", "user", metavar="USER", help="log in as")
@click.option(
    "-net",
    "--network",
    "network",
    default="tcp",
    show_default=True,
    metavar="NET",
    help="tcp tcp4 tcp6 unix vsock unix-vsock",
)
@click.option("-F", "--config", "config", metavar="FILE", help="ssh_config to read [~/.ssh/config]")
@click.option(
    "-root",
    "--root",
    "root",
    default="/",
    show_default=True,
    metavar="DIR",
    help="the directory to serve; nothing outside it can be reached",
)
@click.option(
    "-namespace",
    "--namespace",
    "binds",
    default=os.fsdecode(namespace.DEFAULT),
    show_default=True,
    metavar="BINDS",
    help="board_path[=client_path]:...; none; + adds to the default",
)
@click.option("-fstab", "--fstab", "fstab", metavar="FILE", help="more to mount on the board, before the binds")
@click.option("-9p/-no-9p", "--9p/--no-9p", "ninep", default=True, help="serve files to the command")
@click.option(
    "-mount",
    "--mount",
    "mount",
    type=click.Choice(contract.MOUNT_BACKENDS),
    default="auto",
    show_default=True,
    help="how the board mounts them",
)
@click.option(
    "-wire",
    "--wire",
    "wire",
    type=click.Choice(WIRES),
    default="auto",
    show_default=True,
    help="our own protocol, u-root/cpu's, or whichever the board speaks",
)
@click.option(
    "-timeout9p",
    "--timeout9p",
    "timeout",
    default="30s",
    show_default=True,
    metavar="DUR",
    help="how long the board waits for its mount",
)
@click.option("-ssh", "--ssh", "plain", is_flag=True, help="plain ssh: no files, no namespace")
@click.option("-t", "terminal_on", is_flag=True, help="a terminal for the command, in any case")
@click.option("-T", "terminal_off", is_flag=True, help="no terminal")
@click.option("-dbg9p", "--dbg9p", "trace", is_flag=True, help="print each 9P message")
@click.option("-d", "--debug", "debug", is_flag=True, help="print more, and tracebacks")
@click.version_option(VERSION, "-V", "--version", prog_name="cpu", message="%(prog)s %(version)s")
@click.argument("destination", metavar="[USER@]BOARD")
@click.argument("command_line", metavar="[COMMAND [ARGUMENT]...]", nargs=-1, type=click.UNPROCESSED)
def command(
    port: str | None,
    key: str | None,
    use_key: bool,
    host_key: str | None,
    user: str | None,
    network: str,
    config: str | None,
    root: str,
    binds: str,
    fstab: str | None,
    ninep: bool,
    mount: str,
    wire: str,
    timeout: str,
    plain: bool,
    terminal_on: bool,
    terminal_off: bool,
    trace: bool,
    debug: bool,
    destination: str,
    command_line: Sequence[str],
) -> int:
    """Run COMMAND on BOARD, with this machine's files; without one, a shell."""
    from multicall.lib import ssh

    named, host = split_destination(destination, network)
    timeout_s = flags.duration_s(timeout)
    if timeout_s <= 0:
        raise click.BadParameter("has to be more than nothing", param_hint="-timeout9p")
    set_up("cpu: %(name)s: %(message)s", logging.WARNING, debug=debug)
    options = Options(
        connection=ssh.Options(
            host=host,
            user=user or named,
            port=port,
            network=network,
            key=key,
            use_key=use_key,
            host_key=host_key,
            config=None if config is None else [config],
        ),
        argv=[os.fsencode(word) for word in command_line],
        root=root,
        namespace=binds,
        fstab=fstab,
        ninep=ninep and bool(root) and not plain,
        mount=mount,
        wire=wire,
        plain=plain,
        terminal=True if terminal_on else False if terminal_off else None,
        timeout_s=timeout_s,
        trace=trace,
    )
    open_standard()
    return asyncio.run(run(options))


def main(argv: list[str]) -> int:
    """Run cpu. argv[0] is the name it was called by."""
    return report(argv[0], lambda: flags.run(command, argv) or 0, debug="-d" in argv)
