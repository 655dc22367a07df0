"""The board's side of the client's files: what the session's child mounts, and who answers the kernel behind it.

Two ways, one shape: the kernel's own 9P client on a socket whose other end we relay to the ssh channel, or FUSE served
by our 9P client. Both are made before the fork, mounted by the child in its own mount namespace, served by the parent.
"""

import asyncio
import os
import socket
from typing import ClassVar, Protocol

from multicall.lib import mount
from multicall.lib.log import Problem
from ninep.client import Client
from ninep.stream import Stream

RELAY_BYTES = 256 << 10

MSIZE = (512 << 10) + 24
"""The largest 9P message: 512 KiB of payload and IOHDRSZ, so that no power of two needs two messages."""

_LACKS = {
    "9p": ("no 9p", "its kernel needs CONFIG_9P_FS and CONFIG_NET_9P_FD (modules 9p, 9pnet_fd); --mount fuse may work"),
    "fuse": ("no /dev/fuse", "its kernel needs CONFIG_FUSE_FS (module fuse); --mount 9p may work"),
    "auto": (
        "neither 9p nor /dev/fuse",
        "its kernel needs CONFIG_9P_FS and CONFIG_NET_9P_FD, or CONFIG_FUSE_FS; -9p=false runs without the files",
    ),
}


class Tree(Protocol):
    """A mountable tree. The child uses `backend` and `options`; the parent calls the methods, in this order.

    `options` is mount(2)'s data; it names a descriptor that the child inherits.
    """

    backend: mount.Backend
    options: bytes

    def forked(self) -> None:
        """The child has its copy of the descriptor: close what is only its."""

    async def serve(self, mounted: "asyncio.Future[None]") -> None:
        """Answer until the mount or the client is gone. `mounted` is done when mount(2) has returned in the child."""

    def close(self) -> None:
        """Let go of everything. The mount, if it is still there, answers with errors from here on."""


def make(wanted: str, stream: Stream, uname: bytes, *, in_order: bool) -> Tree:
    """Choose how to mount and prepare it. Raises Problem when this board cannot.

    `uname` is whom the 9P server is told of. `in_order` allows what only a server of ours promises (Client.connect).
    """
    backend = mount.choose(wanted)
    if backend is None:
        lacks, hint = _LACKS[wanted]
        raise Problem(f"mount the client's files: this board has {lacks}", hint)
    return KernelTree(backend, stream, uname) if backend.name == "9p" else FuseTree(backend, stream, uname, in_order)


class KernelTree:
    """v9fs: the kernel speaks 9P itself, bytes are carried between its socket and the channel."""

    def __init__(self, backend: mount.Backend, stream: Stream, uname: bytes) -> None:
        self.backend = backend
        self._stream = stream
        self._ours, self._kernels = socket.socketpair()
        fd = self._kernels.fileno()
        # cache=mmap: none refuses shared writable mappings (sqlite, some linkers), loose has no coherence at all.
        # access=user: the default, client, does not pass ACLs on, and keeps none itself without posixacl.
        self.options = b"version=9p2000.L,trans=fd,rfdno=%d,wfdno=%d,uname=%s,msize=%d,cache=mmap,access=user" % (
            fd,
            fd,
            uname,
            MSIZE,
        )

    def forked(self) -> None:
        """See Tree."""
        self._kernels.close()

    async def serve(self, mounted: "asyncio.Future[None]") -> None:
        """See Tree. mount(2) itself needs answers, so this starts before `mounted`."""
        reader, writer = await asyncio.open_connection(sock=self._ours, limit=RELAY_BYTES)
        directions = [
            asyncio.ensure_future(_relay(reader, self._stream)),
            asyncio.ensure_future(_relay(self._stream, writer)),
        ]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
            writer.close()

    def close(self) -> None:
        """See Tree."""
        self._kernels.close()
        self._ours.close()
        self._stream.close()


class FuseTree:
    """FUSE: the child mounts an open /dev/fuse, this process answers on it with our 9P client."""

    _is_taken: ClassVar[bool] = False
    """Whether this process serves one: pyfuse3 keeps its session in globals."""

    def __init__(self, backend: mount.Backend, stream: Stream, uname: bytes, in_order: bool) -> None:
        from ninep import fuse

        if FuseTree._is_taken:
            raise Problem("mount the client's files: this connection has a FUSE mount already", "connect once more")
        self.backend = backend
        self._stream = stream
        self._uname = uname
        self._in_order = in_order
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        self.options = fuse.mount_options(self._fd)
        FuseTree._is_taken = True

    def forked(self) -> None:
        """See Tree. The descriptor is the parent's to serve."""

    async def serve(self, mounted: "asyncio.Future[None]") -> None:
        """See Tree. The kernel refuses reads of /dev/fuse before mount(2), and wants them at once after it."""
        from ninep import fuse

        client = await Client.connect(self._stream, msize=MSIZE, in_order=self._in_order)
        try:
            root = await client.attach(uname=self._uname)
            await mounted
            await fuse.serve(root, self._fd)
        finally:
            await client.close()

    def close(self) -> None:
        """See Tree."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            FuseTree._is_taken = False
            os.close(fd)
        self._stream.close()


class _Source(Protocol):
    async def read(self, n: int, /) -> bytes: ...


class _Sink(Protocol):
    def write(self, data: bytes, /) -> None: ...

    async def drain(self) -> None: ...


async def _relay(source: _Source, sink: _Sink) -> None:
    while data := await source.read(RELAY_BYTES):
        sink.write(data)
        await sink.drain()
