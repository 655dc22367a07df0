"""A foreign tree, by paths: connect, attach, find files as a mounting kernel would, symbolic links followed here."""

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple, TypeVar

from multicall.lib import dialstring
from multicall.lib.dialstring import Address
from multicall.lib.log import Problem, reason
from ninep import message as m
from ninep.client import Client
from ninep.codec import MSIZE_DEFAULT
from ninep.file import File
from ninep.message import Message, Request
from ninep.stream import of_socket

R = TypeVar("R", bound=Message)

TIMEOUT_S = 30.0
"""For each of dialling, and agreeing on 9P and attaching."""

CLUNK_TIMEOUT_S = 1.0
"""For saying goodbye: to close with an answer under way resets the connection, which servers complain about."""

LINKS_MAX = 40
"""Symbolic links followed for one path: Linux's MAXSYMLINKS (path_resolution(7))."""

TOLD = frozenset((errno.ENOTCONN, errno.EPROTO, errno.EPROTONOSUPPORT))
"""Errors of the connection: of these ninep knows more than strerror."""


class Options(NamedTuple):
    """How to attach. A `uname` of None is this process's user."""

    aname: bytes = b""
    uname: str | None = None
    msize: int = MSIZE_DEFAULT  # bytes
    trace: Callable[[str], None] | None = None


def why(error: OSError) -> str:
    """The reason of a failed request, for a person."""
    return error.strerror if error.errno in TOLD and error.strerror else reason(error)


def identity(uname: str | None) -> tuple[bytes, int]:
    """The uname and n_uname of an attach: a name, a number, or None for this process's user.

    A name that this machine does not know goes out as it is, without a number.
    """
    import pwd

    if uname is None:
        uid = os.geteuid()
        try:
            return os.fsencode(pwd.getpwuid(uid).pw_name), uid
        except KeyError:
            return b"", uid
    if uname.isdecimal() and int(uname) < m.NO_UID:
        return b"", int(uname)
    try:
        return os.fsencode(uname), pwd.getpwnam(uname).pw_uid
    except KeyError:
        return os.fsencode(uname), m.NO_UID


class Tree:
    """An attached connection. `close` ends it."""

    def __init__(self, client: Client, root: File) -> None:
        self.client = client
        self.root = root

    @classmethod
    async def attach(cls, address: Address, options: Options, client_class: type[Client] = Client) -> "Tree":
        """Dial, agree on 9P2000.L, attach. Raises Problem."""
        sock = await dialstring.dial(address, TIMEOUT_S)
        step = "agree on 9P2000.L with"
        client: Client | None = None
        try:
            async with asyncio.timeout(TIMEOUT_S):
                client = await client_class.connect(of_socket(sock), msize=options.msize, trace=options.trace)
                step = "attach"
                uname, n_uname = identity(options.uname)
                return cls(client, await client.attach(uname, options.aname, n_uname))
        except (OSError, TimeoutError) as error:
            if client:
                await client.close()
            told = f"no answer for {TIMEOUT_S:g} s" if isinstance(error, TimeoutError) else ""
            aname = f" {os.fsdecode(options.aname)}" if step == "attach" and options.aname else ""
            text = f"{step} {address}{aname}: {told or why(error)}"
            raise Problem(text, status=1) from error

    async def close(self) -> None:
        """End the connection; the server lets go of everything."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CLUNK_TIMEOUT_S):
                await self.root.clunk()
        await self.client.close()

    async def find(self, path: bytes, follow: bool = True) -> File:
        """The File of a path from the root, the caller's to clunk. `follow`: a link at its end too. OSError."""
        names = split(path)
        for _ in range(LINKS_MAX + 1):
            qids, file = await self.root.walk(names)
            at = len(qids)
            if at == 0 or not qids[-1].type & m.QTSYMLINK or (at == len(names) and not follow):
                if file is None:
                    await self._fail(names, at)
                    continue  # it is there now
                return file
            if file is None:
                file = await self._get(names[:at])
            try:
                target = await file.readlink()
            finally:
                await file.clunk()
            above = [] if target.startswith(b"/") else names[: at - 1]
            names = above + split(target) + names[at:]
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))

    @asynccontextmanager
    async def at(self, path: bytes, follow: bool = True) -> AsyncIterator[File]:
        """find(), and clunk at the end: of what has been written, that may have an error to tell. OSError."""
        async with clunked(await self.find(path, follow)) as file:
            yield file

    async def find_holder(self, path: bytes) -> tuple[File, bytes]:
        """The directory that has, or could have, the last name of a path, and that name. OSError."""
        above, _, name = path.rstrip(b"/").rpartition(b"/")
        if name in (b"", b".", b".."):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        return await self.find(above), name

    async def _get(self, names: list[bytes]) -> File:
        _, file = await self.root.walk(names)
        if file is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return file

    async def _fail(self, names: list[bytes], at: int) -> None:
        """Raise the error of the step behind the first `at`: only a walk's first step has one."""
        last = await self._get(names[:at])
        try:
            _, file = await last.walk(names[at : at + 1])
            if file is not None:
                await file.clunk()
        finally:
            await last.clunk()


@asynccontextmanager
async def clunked(file: File) -> AsyncIterator[File]:
    """Clunk file at the end; its error is told unless there is another one."""
    try:
        yield file
    except BaseException:
        with contextlib.suppress(OSError):
            await file.clunk()
        raise
    await file.clunk()


def split(path: bytes) -> list[bytes]:
    """The names of a path."""
    return [name for name in path.split(b"/") if name not in (b"", b".")]


class LastingClient(Client):
    """A Client whose connection's end is EIO: ENOTCONN would say that a FUSE mount has lost its process."""

    async def rpc(self, request: Request[R], made: int | None = None) -> R:
        """See Client."""
        try:
            return await super().rpc(request, made)
        except OSError as error:
            if self.reason is not None:
                raise OSError(errno.EIO, os.strerror(errno.EIO)) from error
            raise
