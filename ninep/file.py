"""File: the interface of a served file. The 9P server, the client and the FUSE mount meet here.

A File is what a fid is to 9P: a place in a tree, and once opened also an open file. Its methods are the messages, with
fids replaced by Files; attributes and file system numbers are the messages' own classes.

For every method: names, link targets and attribute names are bytes. Errors are OSError with the errno of the machine
that has the file, and nothing else. A method that a kind of file does not have raises EOPNOTSUPP, which is what this
class does for all of them. Methods of one File may be called concurrently, but those that move it (open, create,
rename, remove, clunk) only when no other call is under way. A method that returns without having awaited anything has
its effects when it returns: the server relies on it to keep the order of requests. One that may be started outside a
task of its own (ninep.server does) must not ask for the current task, so no asyncio.timeout inside.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from ninep.message import GETATTR_BASIC, Entry, Qid, Rgetattr, Rgetlock, Rstatfs

NAME_MAX = 255  # bytes of a name (linux/limits.h): no file system of Linux has longer ones


def check_name(name: bytes) -> bytes:
    """name, if it can be an entry of a directory; else OSError: what no path element may be never reaches a system."""
    if b"/" in name or b"\0" in name or name in (b"", b".", b".."):
        raise OSError(errno.EINVAL, "not a file name")
    if len(name) > NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, "file name too long")
    return name


def _unsupported() -> OSError:
    return OSError(errno.EOPNOTSUPP, "operation not supported by this kind of file")


class File:
    """A served file. See the module for what holds for every method."""

    qid: Qid  # identity, as of when the File was made or opened; qid.path never changes

    async def walk(self, names: Sequence[bytes]) -> tuple[list[Qid], File | None]:
        """Go down names, of which ".." may be one; ".." in the root of the tree is the root.

        Returns the qids met, and the File there: a new one, unopened, the caller's to clunk. No names: another File
        at the same place. When the first name fails, its OSError; when a later one does, the qids so far and None.
        Symbolic links are never followed. An opened File can be walked from too.
        """
        raise _unsupported()

    async def walk_getattr(self, name: bytes, mask: int = GETATTR_BASIC) -> tuple[File, Rgetattr]:
        """walk((name,)) and getattr(mask) in one, which may cost one round trip instead of two."""
        _, file = await self.walk((name,))
        if file is None:  # one name has no partial answer
            raise OSError(errno.ENOENT, "no such file")
        try:
            return file, await file.getattr(mask)
        except BaseException:
            await file.clunk()
            raise

    async def walk_open(self, names: Sequence[bytes], flags: int) -> File:
        """walk(names) and open(flags) in one; returns the open File. No names: this place, opened once more."""
        _, file = await self.walk(names)
        if file is None:
            raise OSError(errno.ENOENT, "no such file")
        try:
            await file.open(flags)
        except BaseException:
            await file.clunk()
            raise
        return file

    async def open(self, flags: int) -> tuple[Qid, int]:
        """Open this File itself; flags are the wire's (message.O_*). Returns its qid and the iounit, 0 for any size.

        O_TRUNC, O_APPEND and O_DIRECTORY hold; O_CREAT is not looked at. EBUSY when already open; ELOOP for a
        symbolic link. Device nodes are never opened: the mounting kernel keeps its own devices.
        """
        raise _unsupported()

    async def create(self, name: bytes, flags: int, mode: int, gid: int) -> tuple[Qid, int]:
        """Create a regular file in this directory and open it; this File then *is* the new file.

        With O_EXCL EEXIST if the name exists; without, an existing file is opened; a symbolic link is never followed.
        mode is taken as it comes: the caller's kernel has applied its umask, ours is not.
        """
        raise _unsupported()

    async def read(self, offset: int, count: int) -> bytes | bytearray | memoryview:
        """Up to count bytes from offset; fewer only at the end of a regular file; b"" there. Needs an open File."""
        raise _unsupported()

    async def write(self, offset: int, data: bytes | bytearray | memoryview) -> int:
        """Write; returns how many bytes were. When opened with O_APPEND, at the end whatever offset says."""
        raise _unsupported()

    async def readdir(self, offset: int, count: int) -> list[Entry]:
        """Entries, "." and ".." among them, of at most count bytes in wire form (codec.entry_size); [] at the end.

        offset is 0 or the offset of an entry returned before; entries that neither come nor go meanwhile are met
        exactly once. EINVAL when count is too small for the next entry. Needs an open File.
        """
        raise _unsupported()

    async def getattr(self, mask: int = GETATTR_BASIC) -> Rgetattr:
        """Attributes; those of mask that are known are in the answer's valid. Works for a file that is unlinked."""
        raise _unsupported()

    async def setattr(
        self, valid: int, mode: int = 0, uid: int = 0, gid: int = 0, size: int = 0, atime_ns: int = 0, mtime_ns: int = 0
    ) -> None:
        """Change the attributes named by valid (message.SETATTR_*).

        A time without its _SET bit becomes the present of the machine with the file. Size on a File open for writing
        needs no permission of the name. The mode of a symbolic link is EOPNOTSUPP.
        """
        raise _unsupported()

    async def statfs(self) -> Rstatfs:
        """Numbers of the file system the file is on."""
        raise _unsupported()

    async def readlink(self) -> bytes:
        """A symbolic link's target, as it was made. EINVAL for anything else."""
        raise _unsupported()

    async def symlink(self, name: bytes, target: bytes, gid: int) -> Qid:
        """Make a symbolic link in this directory."""
        raise _unsupported()

    async def mknod(self, name: bytes, mode: int, major: int, minor: int, gid: int) -> Qid:
        """Make a regular file, FIFO, socket or device node (the type is in mode) in this directory."""
        raise _unsupported()

    async def mkdir(self, name: bytes, mode: int, gid: int) -> Qid:
        """Make a directory in this one; mode as with create."""
        raise _unsupported()

    async def link(self, target: File, name: bytes) -> None:
        """Make name in this directory another name of target. EXDEV when target is not of this kind of tree."""
        raise _unsupported()

    async def rename(self, directory: File, name: bytes) -> None:
        """Give the file this File was walked to the name in directory. ENOENT when it has lost its own meanwhile."""
        raise _unsupported()

    async def renameat(self, oldname: bytes, directory: File, newname: bytes) -> None:
        """Move oldname of this directory to newname of the other, replacing it in one step as rename(2) does."""
        raise _unsupported()

    async def unlinkat(self, name: bytes, flags: int) -> None:
        """Remove a name of this directory; a directory with AT_REMOVEDIR, when it is empty (ENOTEMPTY)."""
        raise _unsupported()

    async def remove(self) -> None:
        """Remove the name this File was walked to. The File stays to be clunked."""
        raise _unsupported()

    async def fsync(self, datasync: bool) -> None:
        """Bring data, and attributes unless datasync, to stable storage. Needs an open File."""
        raise _unsupported()

    async def getxattr(self, name: bytes) -> bytes:
        """An extended attribute. ENODATA when there is none of that name."""
        raise _unsupported()

    async def listxattr(self) -> bytes:
        """The names of all extended attributes, each ended by a NUL."""
        raise _unsupported()

    async def setxattr(self, name: bytes, value: bytes, flags: int) -> None:
        """Set an extended attribute; flags 0, XATTR_CREATE (EEXIST) or XATTR_REPLACE (ENODATA)."""
        raise _unsupported()

    async def removexattr(self, name: bytes) -> None:
        """Remove an extended attribute. ENODATA when there is none of that name."""
        raise _unsupported()

    async def lock(self, type: int, flags: int, start: int, length: int, proc_id: int, client_id: bytes) -> int:
        """Take or give up a byte-range lock (LOCK_TYPE_*; length 0 is to the end) of the machine with the file.

        Returns LOCK_SUCCESS, or LOCK_BLOCKED at once when another holds it: the caller asks again, as ninep.server does
        for a Tlock with LOCK_FLAGS_BLOCK. Needs an open File; its locks go when it is clunked.
        """
        raise _unsupported()

    async def getlock(self, type: int, start: int, length: int, proc_id: int, client_id: bytes) -> Rgetlock:
        """What lock() of the same arguments would meet; type LOCK_TYPE_UNLCK when nothing."""
        raise _unsupported()

    async def clunk(self) -> None:
        """Let go of the file: whatever was open is closed, even if this raises. The File is of no more use."""
