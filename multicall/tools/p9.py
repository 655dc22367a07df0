"""9p: serve, mount, and read and write the files of a 9P server. Named as plan9port's 9p(1), whose habits it has.

Each verb is a command below; what they share is in lib/: dialstring (addresses), attach (a tree by paths),
ninepfile (what is done to a file), listing (lines), ninepserve (many connections), readonly.
"""

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import stat
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import click

from multicall.lib import attach, dialstring, flags, listing, ninepfile, ninepserve
from multicall.lib.attach import Tree
from multicall.lib.dialstring import Address
from multicall.lib.front import open_standard
from multicall.lib.log import Problem, reason, say, set_up
from multicall.lib.log import run as report
from ninep.codec import MSIZE_DEFAULT, MSIZE_MAX, MSIZE_MIN
from ninep.file import File

FAILED = 1

WARNING = """\
9p: WARNING: serve {where}: no authentication: whoever can reach it {does} {root} as {user}
"""


def _address(ctx: click.Context, param: click.Parameter, value: str) -> Address:
    try:
        return dialstring.parse(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


class _Group(click.Group):
    command_class = flags.Command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, flags.go_booleans(args, self.params))


def _common(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that may stand before a verb and behind it."""
    for option in (
        click.option("-D", "--trace", "trace", is_flag=True, help="print each 9P message, both ways"),
        click.option(
            "--msize",
            "-msize",
            "msize",
            type=click.IntRange(MSIZE_MIN, MSIZE_MAX),
            metavar="BYTES",
            help=f"the largest message to agree on [{MSIZE_DEFAULT}]",
        ),
        click.option("-v", "--verbose", "verbose", is_flag=True, help="say what is going on"),
        click.option("--debug", "debug", is_flag=True, help="say more, and tracebacks"),
    ):
        function = option(function)
    return function


def _attaching(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("-a", "-A", "--aname", "aname", metavar="NAME", help="the tree to attach to"),
        click.option("-u", "--uname", "uname", metavar="USER", help="attach as USER, a name or a number"),
    ):
        function = option(function)
    return _common(function)


def _wanted(ctx: click.Context, name: str) -> Any:
    """An option, as it stands behind the verb or before it."""
    value = ctx.params.get(name)
    return value if value not in (None, False) else ctx.find_root().params.get(name)


def _options(ctx: click.Context) -> attach.Options:
    trace = (lambda line: say(f"{line}\n")) if _wanted(ctx, "trace") else None
    aname = os.fsencode(_wanted(ctx, "aname") or "")
    return attach.Options(aname, _wanted(ctx, "uname"), _wanted(ctx, "msize") or MSIZE_DEFAULT, trace)


def _prepare(ctx: click.Context, ends_by_signal: bool = True) -> None:
    """Logging, standard descriptors and signals: a verb that leaves nothing behind just dies of INT, TERM and PIPE."""
    open_standard()
    debug = bool(_wanted(ctx, "debug") or _wanted(ctx, "debug_too"))
    set_up("9p: %(message)s", logging.INFO if _wanted(ctx, "verbose") else logging.WARNING, debug=debug)
    if ends_by_signal:
        for number in (signal.SIGINT, signal.SIGPIPE):
            if number == signal.SIGPIPE or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)


def _each(
    ctx: click.Context, address: Address, paths: Iterable[str], work: Callable[[Tree, bytes], Awaitable[None]]
) -> int:
    """Attach, and do work for each path; a failure is told, and the others are done. Returns the exit status."""
    _prepare(ctx)

    async def story() -> int:
        status = 0
        tree = await Tree.attach(address, _options(ctx))
        for path in paths:
            try:
                await work(tree, os.fsencode(path))
            except OSError as error:
                shown = os.fsdecode(listing.shown_name(os.fsencode(path)))
                say(f"9p: {ctx.info_name} {address} {shown}: {attach.why(error)}\n")
                status = FAILED
        await tree.close()
        return status

    return asyncio.run(story())


@click.group(
    cls=_Group,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "allow_interspersed_args": False},
)
@_attaching
@click.option("-d", "debug_too", is_flag=True, help="as --debug, before a verb")
def command(**_: Any) -> None:
    """Serve a directory by 9P2000.L, mount one that is served, or read and write its files.

    ADDR is a dial string: tcp!HOST!PORT (port 564 when left out), unix!PATH, vsock!CID!PORT. Paths begin at the root
    of the tree; symbolic links are followed as on a mount.
    """


@command.command()
@_attaching
@click.option("-l", "long", is_flag=True, help="mode, links, uid, gid, size, time of change, name")
@click.option("-d", "itself", is_flag=True, help="a directory itself, not what is in it")
@click.argument("address", metavar="ADDR", callback=_address)
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@click.pass_context
def ls(ctx: click.Context, /, long: bool, itself: bool, address: Address, paths: Sequence[str], **_: Any) -> int:
    """List directories, a name a line, sorted; of several each with its path. Without PATH: the root."""

    prefixed = len(paths) > 1
    return _each(
        ctx, address, paths or ("/",), lambda tree, path: ninepfile.list_names(tree, path, long, itself, prefixed)
    )


@command.command(name="stat")
@_attaching
@click.argument("address", metavar="ADDR", callback=_address)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.pass_context
def stat_(ctx: click.Context, /, address: Address, paths: Sequence[str], **_: Any) -> int:
    """Print all attributes of files, a line each; of a symbolic link its own."""

    return _each(ctx, address, paths, ninepfile.print_attributes)


@command.command()
@_attaching
@click.argument("address", metavar="ADDR", callback=_address)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.pass_context
def cat(ctx: click.Context, /, address: Address, paths: Sequence[str], **_: Any) -> int:
    """Write the contents of files to standard output. 9p read is the same."""

    return _each(ctx, address, paths, ninepfile.copy_out)


command.add_command(cat, "read")


@command.command()
@_attaching
@click.option("-l", "lines", is_flag=True, help="a message for each line")
@click.argument("address", metavar="ADDR", callback=_address)
@click.argument("path", metavar="PATH")
@click.pass_context
def write(ctx: click.Context, /, lines: bool, address: Address, path: str, **_: Any) -> int:
    """Write standard input to a file, which is created, or emptied first."""

    return _each(ctx, address, [path], lambda tree, path: ninepfile.copy_in(tree, path, lines))


@command.command()
@_attaching
@click.argument("address", metavar="ADDR", callback=_address)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.pass_context
def rm(ctx: click.Context, /, address: Address, paths: Sequence[str], **_: Any) -> int:
    """Remove files and empty directories."""

    return _each(ctx, address, paths, ninepfile.remove)


@command.command()
@_common
@click.option(
    "-root", "--root", "root", default=".", show_default=True, metavar="DIR", help="what to serve; nothing outside it"
)
@click.option("--read-only", "-r", "read_only", is_flag=True, help="nothing can be changed")
@click.argument("address", metavar="ADDR", callback=_address)
@click.pass_context
def serve(ctx: click.Context, /, root: str, read_only: bool, address: Address, **_: Any) -> int:
    """Serve a directory to everybody who dials ADDR, until INT or TERM. tcp!*!564 is every address.

    There is no authentication: all that is done is done as this process's user. A unix socket is made for that user
    alone; on tcp!127.0.0.1 every user of this machine can dial.
    """
    from multicall.lib.readonly import ReadOnly
    from ninep import localfs, server
    from ninep.stream import of_socket

    _prepare(ctx, ends_by_signal=False)
    path = os.fsencode(root)
    try:
        if not stat.S_ISDIR(os.stat(path).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        tree = localfs.LocalFile.root(path)
    except OSError as error:
        raise Problem(f"serve -root {root}: {reason(error)}", status=FAILED) from error
    traces, msize = _wanted(ctx, "trace"), _wanted(ctx, "msize") or MSIZE_DEFAULT

    def make() -> File:
        # One tree for all attaches of a connection: qids are unique in a tree.
        file = localfs.LocalFile(tree.tree, tree.node, tree.qid)
        return ReadOnly(file) if read_only else file

    async def one(sock: socket.socket, number: int) -> None:
        trace = (lambda line: say(f"{number} {line}\n")) if traces else None
        await server.serve(of_socket(sock), ninepserve.attacher(make, path), msize=msize, trace=trace)

    listeners = dialstring.listen(address)
    left = dialstring.Left(address)
    try:
        if any(map(dialstring.is_reachable_from_outside, listeners)):
            does = "reads" if read_only else "reads and writes"
            user = "root" if os.geteuid() == 0 else f"uid {os.geteuid()}"
            say(WARNING.format(where=address, does=does, root=os.path.realpath(root), user=user))
        if _wanted(ctx, "verbose"):
            for listener in listeners:
                say(f"9p: listening on {dialstring.bound(listener, address)}\n")
        asyncio.run(ninepserve.run(listeners, one))
    finally:
        for listener in listeners:
            listener.close()
        left.remove()
    return 0


@command.command()
@_attaching
@click.option("--allow-other", is_flag=True, help="let other users in too (fuse.conf has a say in that)")
@click.argument("address", metavar="ADDR", callback=_address)
@click.argument("mountpoint", metavar="DIR")
@click.pass_context
def mount(ctx: click.Context, /, allow_other: bool, address: Address, mountpoint: str, **_: Any) -> int:
    """Mount a tree on DIR by FUSE, until it is unmounted (fusermount3 -u DIR), or this is interrupted.

    When the server goes, every access fails with EIO, and DIR stays a mount: no program then writes into what is below.
    Never inside the very tree that is served: whoever meets it there waits for himself.
    """
    _prepare(ctx, ends_by_signal=False)
    operation = f"mount {address} {mountpoint}"
    try:
        if not stat.S_ISDIR(os.stat(mountpoint).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    except OSError as error:
        raise Problem(f"{operation}: {reason(error)}", status=FAILED) from error
    try:
        from ninep import fuse
    except ImportError as error:
        raise Problem(f"{operation}: {error}", "pyfuse3 and libfuse3 are needed", status=FAILED) from error

    async def story() -> int:
        loop = asyncio.get_running_loop()
        tree = await Tree.attach(address, _options(ctx), attach.LastingClient)
        mounting = asyncio.create_task(
            fuse.mount(
                tree.root,
                os.fsencode(mountpoint),
                ready=lambda: logging.info("%s: ready", operation),
                allow_other=allow_other,
            )
        )

        def end() -> None:
            if not mounting.cancelling():  # a second time would stop the unmounting
                mounting.cancel()

        ninepserve.on_end(loop, end)

        def lost(_: object) -> None:
            say(f"9p: {operation}: {tree.client.reason}\nhint: umount {mountpoint} ends it; until then all is EIO\n")

        assert tree.client.reader
        tree.client.reader.add_done_callback(lost)
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await mounting
        except OSError as error:
            raise Problem(f"{operation}: {error.strerror or reason(error)}", status=FAILED) from error
        finally:
            tree.client.reader.remove_done_callback(lost)
            was_lost = tree.client.reason is not None
            await tree.close()
        return FAILED if was_lost else 0

    return asyncio.run(story())


def main(argv: list[str]) -> int:
    """Run 9p. argv[0] is the name it was called by."""
    return report(argv[0], lambda: flags.run(command, argv) or 0, debug="--debug" in argv or argv[1:2] == ["-d"])
