"""Any File as a FUSE mount. The only home of pyfuse3 (3.2.1 of Debian 12 and 3.5 are known to work).

One mount a process: pyfuse3 keeps its session in globals. The process that serves must not touch the mount itself.

pyfuse3 is written for trio, and imports it; its asyncio flavour puts another module in trio's place. We put our own
there, for three reasons: trio's import costs 190 ms and is not on a board; an exception in one of pyfuse3's tasks must
not be dropped; and the time at which a request was there to be read tells "now" from a given time (see fuseloop.Loop).

Coherence: names and attributes are kept by the kernel for as long as serve() is told; data from open to open. Locks
stay inside this mount: pyfuse3 does not pass them on. rename's NOREPLACE and EXCHANGE are EINVAL: 9P has neither.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import stat
import sys
import time
import types
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from ninep import message as m
from ninep.file import File
from ninep.fuseloop import Loop
from ninep.fusetree import Node, Tree
from ninep.message import Entry, Rgetattr

if "trio" in sys.modules:
    import pyfuse3 as _pyfuse3
else:
    sys.modules["trio"] = types.ModuleType("trio")  # pyfuse3 wants no more of it than that it can be imported
    import pyfuse3 as _pyfuse3

    del sys.modules["trio"]

pyfuse3: Any = _pyfuse3  # its types for plain numbers are newer than Debian 12's version

log = logging.getLogger("ninep.fuse")

TIMEOUT_S = 1.0  # how long the kernel may believe names and attributes: what NFS and sshfs take as their least
ENTRIES_SIZE = 32768  # bytes of entries asked for at once
LOOKUPS = 32  # entries whose attributes are asked for at once: what a 4 KiB answer to the kernel can carry, and some

# The kernel's open flags, which differ between machines, and the wire's, which do not.
OPEN_FLAGS = (
    (os.O_APPEND, m.O_APPEND),
    (os.O_TRUNC, m.O_TRUNC),
    (os.O_EXCL, m.O_EXCL),
    (os.O_NONBLOCK, m.O_NONBLOCK),
    (os.O_DSYNC, m.O_DSYNC),
    (os.O_SYNC, m.O_SYNC),
    (os.O_DIRECTORY, m.O_DIRECTORY),
    (os.O_NOFOLLOW, m.O_NOFOLLOW),
)

P = ParamSpec("P")
T = TypeVar("T")


class _Handle:
    """An open file or directory."""

    __slots__ = ("entries", "file", "node", "offset", "ready")

    def __init__(self, node: Node, file: File) -> None:
        self.node = node
        self.file = file
        self.entries: list[Entry] = []  # read and not given to the kernel yet
        self.offset = 0  # where entries begin
        self.ready: dict[bytes, tuple[File, Rgetattr] | OSError] = {}  # of the first of them


def _guarded(
    handler: Callable[Concatenate[_Operations, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[_Operations, P], Coroutine[Any, Any, T]]:
    """Errors as pyfuse3 wants them; whatever is not an OSError is our bug: logged, and EIO."""

    async def guarded(self: _Operations, /, *args: P.args, **kwargs: P.kwargs) -> T:
        self.active += 1
        try:
            return await handler(self, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from None
        except Exception:
            log.exception("FUSE %s: our bug, answered EIO", handler.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from None
        finally:
            self.active -= 1
            if not self.active:
                self.tree.trim()

    return guarded


class _Operations(_pyfuse3.Operations):
    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, root: File, loop: Loop, entry_timeout_s: float, attr_timeout_s: float) -> None:
        super().__init__()
        self.loop = loop
        self.entry_timeout_s = entry_timeout_s
        self.attr_timeout_s = attr_timeout_s
        self.tree = Tree(root)
        self.handles: dict[int, _Handle] = {}
        self.next_handle = 1
        self.active = 0  # handlers under way: only when there is none may a File be let go
        self.may_chown = True

    def attributes(self, node: Node, r: Rgetattr) -> Any:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = node.id
        entry.entry_timeout = self.entry_timeout_s
        entry.attr_timeout = self.attr_timeout_s
        entry.st_mode = r.mode
        entry.st_nlink = r.nlink
        entry.st_uid = r.uid
        entry.st_gid = r.gid
        entry.st_rdev = r.rdev
        entry.st_size = r.size
        entry.st_blksize = min(r.blksize, 1 << 30)
        entry.st_blocks = r.blocks
        entry.st_atime_ns = _ns(r.atime_sec, r.atime_nsec)
        entry.st_mtime_ns = _ns(r.mtime_sec, r.mtime_nsec)
        entry.st_ctime_ns = _ns(r.ctime_sec, r.ctime_nsec)
        node.mode, node.gid, node.size = r.mode, r.gid, r.size
        return entry

    async def found(self, parent: Node, name: bytes) -> Any:
        file, attributes = await (await self.tree.place(parent)).walk_getattr(name)
        return self.attributes(self.tree.enter(parent, name, file), attributes)

    # Names

    @_guarded
    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> Any:
        return await self.found(self.tree.node(parent_inode), name)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for inode, count in inode_list:
            self.tree.forget(inode, count)

    @_guarded
    async def unlink(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        await self._remove(parent_inode, name, 0)

    @_guarded
    async def rmdir(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        await self._remove(parent_inode, name, m.AT_REMOVEDIR)

    async def _remove(self, parent_inode: int, name: bytes, flags: int) -> None:
        parent = self.tree.node(parent_inode)
        node = await self.tree.losing(parent, name)
        await (await self.tree.place(parent)).unlinkat(name, flags)
        self.tree.lost(parent, name, node)

    @_guarded
    async def rename(
        self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes, flags: int, ctx: Any
    ) -> None:
        if flags:
            raise OSError(errno.EINVAL, "rename flags")
        old, new = self.tree.node(parent_inode_old), self.tree.node(parent_inode_new)
        target = await self.tree.losing(new, name_new)
        await (await self.tree.place(old)).renameat(name_old, await self.tree.place(new), name_new)
        self.tree.moved(old, name_old, new, name_new, target)

    @_guarded
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: Any) -> Any:
        parent = self.tree.node(new_parent_inode)
        await (await self.tree.place(parent)).link(await self.tree.place(self.tree.node(inode)), new_name)
        return await self.found(parent, new_name)

    def group(self, parent: Node, ctx: Any) -> int:
        """The group of what is made in parent: the directory's when it is setgid, else the process's."""
        return parent.gid if parent.mode & stat.S_ISGID else int(ctx.gid)

    async def made(self, parent: Node, name: bytes, ctx: Any) -> Any:
        """The entry of what has just been made, given to the process's user if the server lets us."""
        file, r = await (await self.tree.place(parent)).walk_getattr(name)
        if r.uid != ctx.uid and self.may_chown:
            try:
                valid = m.SETATTR_UID | (m.SETATTR_MODE if r.mode & 0o6000 and not stat.S_ISLNK(r.mode) else 0)
                await file.setattr(valid, mode=r.mode, uid=ctx.uid)
                r = await file.getattr()
            except OSError as error:
                # Not a root server: all files are its user's, and there is no point in asking each time.
                self.may_chown = error.errno not in (errno.EPERM, errno.EOPNOTSUPP)
        return self.attributes(self.tree.enter(parent, name, file), r)

    @_guarded
    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: Any) -> Any:
        parent = self.tree.node(parent_inode)
        gid = self.group(parent, ctx)
        await (await self.tree.place(parent)).mknod(name, mode, os.major(rdev), os.minor(rdev), gid)
        return await self.made(parent, name, ctx)

    @_guarded
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Any) -> Any:
        parent = self.tree.node(parent_inode)
        await (await self.tree.place(parent)).mkdir(name, mode & 0o7777, self.group(parent, ctx))
        return await self.made(parent, name, ctx)

    @_guarded
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: Any) -> Any:
        parent = self.tree.node(parent_inode)
        await (await self.tree.place(parent)).symlink(name, target, self.group(parent, ctx))
        return await self.made(parent, name, ctx)

    @_guarded
    async def readlink(self, inode: int, ctx: Any) -> Any:
        node = self.tree.node(inode)
        if node.target is None:
            node.target = await (await self.tree.place(node)).readlink()
        return node.target

    # Attributes

    @_guarded
    async def getattr(self, inode: int, ctx: Any) -> Any:
        node = self.tree.node(inode)
        return self.attributes(node, await (await self.tree.place(node)).getattr())

    @_guarded
    async def setattr(self, inode: int, attr: Any, fields: Any, fh: int | None, ctx: Any) -> Any:
        now = time.time_ns()
        node = self.tree.node(inode)
        file = self.handles[fh].file if fh in self.handles else await self.tree.place(node)
        valid = 0
        for asked, bit in (
            (fields.update_mode, m.SETATTR_MODE),
            (fields.update_uid, m.SETATTR_UID),
            (fields.update_gid, m.SETATTR_GID),
            (fields.update_size, m.SETATTR_SIZE),
        ):
            if asked:
                valid |= bit
        for asked, value, bit, given in (
            (fields.update_atime, attr.st_atime_ns, m.SETATTR_ATIME, m.SETATTR_ATIME_SET),
            (fields.update_mtime, attr.st_mtime_ns, m.SETATTR_MTIME, m.SETATTR_MTIME_SET),
        ):
            if asked:
                # "Now" is the server's, whose clock stamps all other changes; a board's may be in 1970.
                valid |= bit if self.loop.request_ns <= value <= now else bit | given
        await file.setattr(
            valid,
            attr.st_mode & 0o7777 if fields.update_mode else 0,
            attr.st_uid & 0xFFFFFFFF if fields.update_uid else 0,
            attr.st_gid & 0xFFFFFFFF if fields.update_gid else 0,
            attr.st_size if fields.update_size else 0,
            attr.st_atime_ns if fields.update_atime else 0,
            attr.st_mtime_ns if fields.update_mtime else 0,
        )
        return self.attributes(node, await file.getattr())

    @_guarded
    async def statfs(self, ctx: Any) -> Any:
        r = await (await self.tree.place(self.tree.root)).statfs()
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = r.bsize
        data.f_blocks, data.f_bfree, data.f_bavail = r.blocks, r.bfree, r.bavail
        data.f_files, data.f_ffree, data.f_favail = r.files, r.ffree, r.ffree
        data.f_namemax = r.namelen
        return data

    @_guarded
    async def getxattr(self, inode: int, name: Any, ctx: Any) -> bytes:
        node = self.tree.node(inode)
        capability = name == b"security.capability"
        if capability and time.monotonic() < node.no_capability_until:
            raise OSError(errno.ENODATA, "as a moment ago")
        try:
            return await (await self.tree.place(node)).getxattr(name)
        except OSError as error:
            if capability and error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
                # The kernel asks before every write whether it has one to remove.
                node.no_capability_until = time.monotonic() + self.attr_timeout_s
                raise OSError(errno.ENODATA, "none") from None
            raise

    @_guarded
    async def setxattr(self, inode: int, name: Any, value: bytes, ctx: Any) -> None:
        node = self.tree.node(inode)
        node.no_capability_until = 0.0
        await (await self.tree.place(node)).setxattr(name, value, 0)

    @_guarded
    async def listxattr(self, inode: int, ctx: Any) -> Any:
        return (await (await self.tree.place(self.tree.node(inode))).listxattr()).split(b"\0")[:-1]

    @_guarded
    async def removexattr(self, inode: int, name: Any, ctx: Any) -> None:
        await (await self.tree.place(self.tree.node(inode))).removexattr(name)

    # Open files

    def handle(self, node: Node, file: File) -> int:
        number = self.next_handle
        self.next_handle += 1
        self.handles[number] = _Handle(node, file)
        return number

    async def _clone(self, node: Node) -> File:
        _, file = await (await self.tree.place(node)).walk(())
        assert file is not None
        return file

    async def _open(self, inode: int, flags: int) -> int:
        node = self.tree.node(inode)
        return self.handle(node, await (await self.tree.place(node)).walk_open((), flags))

    @_guarded
    async def open(self, inode: int, flags: int, ctx: Any) -> Any:
        fh = await self._open(inode, _wire(flags))
        # /proc and /sys call all their files empty: the kernel reads those only when told not to go by the size.
        direct = not self.tree.node(inode).size and flags & os.O_ACCMODE == os.O_RDONLY
        return pyfuse3.FileInfo(fh=fh, direct_io=direct)

    @_guarded
    async def create(self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any) -> tuple[Any, Any]:
        parent = self.tree.node(parent_inode)
        file = await self._clone(parent)
        try:
            await file.create(name, _wire(flags), mode & 0o7777, self.group(parent, ctx))
            entry = await self.made(parent, name, ctx)
        except BaseException:
            self.tree.let_go(file)
            raise
        return pyfuse3.FileInfo(fh=self.handle(self.tree.node(entry.st_ino), file)), entry

    @_guarded
    async def read(self, fh: int, off: int, size: int) -> Any:
        file = self.handles[fh].file
        piece = await file.read(off, size)
        if len(piece) == size or not len(piece):
            return piece
        result = bytearray(piece)
        while len(result) < size:  # to the kernel a short answer is the end of the file
            piece = await file.read(off + len(result), size - len(result))
            if not len(piece):
                break
            result += piece
        return result

    @_guarded
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        handle = self.handles[fh]
        done = await handle.file.write(off, buf)
        while done < len(buf):
            count = await handle.file.write(off + done, memoryview(buf)[done:])
            if not count:
                break
            done += count
        handle.node.size = max(handle.node.size, off + done)  # the kernel may open it again without having asked
        return done

    @_guarded
    async def flush(self, fh: int) -> None:
        # 9P has nothing to flush, and ENOSYS tells the kernel not to ask again.
        raise OSError(errno.ENOSYS, "nothing to flush")

    @_guarded
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self.handles[fh].file.fsync(datasync)

    async def release(self, fh: int) -> None:
        handle = self.handles.pop(fh)
        self.tree.let_go(handle.file)
        for ready in handle.ready.values():
            if not isinstance(ready, OSError):
                self.tree.let_go(ready[0])

    # Directories

    @_guarded
    async def opendir(self, inode: int, ctx: Any) -> Any:
        return await self._open(inode, m.O_RDONLY | m.O_DIRECTORY)

    async def releasedir(self, fh: int) -> None:
        await self.release(fh)

    @_guarded
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self.handles[fh].file.fsync(datasync)

    @_guarded
    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        handle = self.handles[fh]
        if start_id != handle.offset or start_id == 0:
            handle.entries = []
            handle.offset = start_id
        replied = False
        while True:
            if not handle.entries:
                if replied:
                    return  # what there is goes out before more is waited for
                handle.entries = await handle.file.readdir(handle.offset, ENTRIES_SIZE)
                if not handle.entries:
                    return
            batch = handle.entries[:LOOKUPS]
            await self._look_up(handle, [e.name for e in batch if e.name not in (b".", b"..")])
            for entry in batch:
                if not self._reply(handle, entry, token):
                    return
                replied = True
                handle.entries.pop(0)
                handle.offset = entry.offset

    async def _look_up(self, handle: _Handle, names: list[bytes]) -> None:
        """The attributes of names, all at once, into handle.ready; those of other names are let go."""
        for name in handle.ready.keys() - set(names):
            old = handle.ready.pop(name)
            if not isinstance(old, OSError):
                self.tree.let_go(old[0])
        directory = await self.tree.place(handle.node)
        missing = [name for name in names if name not in handle.ready]
        answers = await asyncio.gather(*map(directory.walk_getattr, missing), return_exceptions=True)
        for name, answer in zip(missing, answers, strict=True):
            if isinstance(answer, BaseException) and not isinstance(answer, OSError):
                raise answer
            handle.ready[name] = answer

    def _reply(self, handle: _Handle, entry: Entry, token: Any) -> bool:
        """Give one entry to the kernel; False when its buffer is full."""
        name = entry.name
        if name in (b".", b".."):  # not looked up, and not counted
            attributes = pyfuse3.EntryAttributes()
            attributes.st_ino = handle.node.id if name == b"." else entry.qid.path or 1
            attributes.st_mode = stat.S_IFDIR
            return bool(pyfuse3.readdir_reply(token, name, attributes, entry.offset))
        ready = handle.ready[name]
        if isinstance(ready, OSError):
            if ready.errno == errno.ENOENT:
                del handle.ready[name]
                return True  # gone since: not an entry any more
            # Seen but not reachable, as in a directory without x: a name and a type are what there is.
            attributes = pyfuse3.EntryAttributes()
            attributes.st_ino = self.tree.id_of(entry.qid.path)
            attributes.st_mode = entry.type << 12
            attributes.entry_timeout = attributes.attr_timeout = 0
            fits = bool(pyfuse3.readdir_reply(token, name, attributes, entry.offset))
            if fits:
                self.tree.enter_unseen(handle.node, name, entry.qid.path)
                del handle.ready[name]
            return fits
        file, r = ready
        id = self.tree.id_of(file.qid.path)
        attributes = self.attributes(self.tree.nodes.get(id) or Node(id, handle.node, name, None), r)
        fits = bool(pyfuse3.readdir_reply(token, name, attributes, entry.offset))
        if fits:
            del handle.ready[name]
            node = self.tree.enter(handle.node, name, file)
            node.mode, node.gid, node.size = r.mode, r.gid, r.size
        return fits

    async def end(self) -> None:
        """Let go of everything but the root, which is the caller's."""
        for fh in list(self.handles):
            await self.release(fh)
        await self.tree.end()


def _ns(seconds: int, nanoseconds: int) -> int:
    """Nanoseconds since 1970 of a time on the wire: kept to what a kernel can hold."""
    if seconds >> 63:
        seconds -= 1 << 64
    return max(-(1 << 62), min(seconds * 1000000000 + nanoseconds, 1 << 62))


def _wire(flags: int) -> int:
    wire = flags & m.O_ACCMODE
    for ours, theirs in OPEN_FLAGS:
        if flags & ours == ours:
            wire |= theirs
    return wire


def mount_options(fd: int) -> bytes:
    """mount(2)'s data for an open descriptor of /dev/fuse (type b"fuse", or b"fuse.NAME", any source).

    The process that mounts must have the descriptor under this number; the one that serves may be another.
    """
    return b"fd=%d,rootmode=40000,user_id=%d,group_id=%d,allow_other,default_permissions" % (
        fd,
        os.getuid(),
        os.getgid(),
    )


async def serve(
    root: File,
    fd: int,
    *,
    ready: Callable[[], None] | None = None,
    entry_timeout_s: float = TIMEOUT_S,
    attr_timeout_s: float = TIMEOUT_S,
) -> None:
    """Serve root on fd, a descriptor of /dev/fuse that somebody mounts with mount_options(fd), before this or after.

    Returns when the mount has gone, or by being cancelled. fd and root stay the caller's; whoever uses the mount gets
    ENOTCONN as soon as every copy of fd is closed, and waits until then. ready is called once, when requests are
    answered from here on.
    """
    mine = os.dup(fd)  # libfuse closes it at the end
    await _run(root, f"/dev/fd/{mine}", set(), ready, entry_timeout_s, attr_timeout_s)


async def mount(
    root: File,
    mountpoint: bytes,
    *,
    ready: Callable[[], None] | None = None,
    allow_other: bool = False,
    entry_timeout_s: float = TIMEOUT_S,
    attr_timeout_s: float = TIMEOUT_S,
) -> None:
    """Mount root on a directory of this machine (libfuse does it, through fusermount3 when not root) and serve it.

    Returns when it has been unmounted by others; when cancelled, unmounts it. OSError when it cannot be mounted.
    """
    options = {"fsname=cpu", "default_permissions"} | ({"allow_other"} if allow_other else set())
    await _run(root, os.fsdecode(mountpoint), options, ready, entry_timeout_s, attr_timeout_s)


async def _run(
    root: File,
    mountpoint: str,
    options: set[str],
    ready: Callable[[], None] | None,
    entry_timeout_s: float,
    attr_timeout_s: float,
) -> None:
    loop = Loop()
    operations = _Operations(root, loop, entry_timeout_s, attr_timeout_s)
    pyfuse3.trio = loop
    try:
        pyfuse3.init(operations, mountpoint, options)
    except RuntimeError as error:
        raise OSError(errno.EIO, f"{mountpoint}: {error}") from error
    try:
        if ready:
            ready()
        await pyfuse3.main()
    finally:
        pyfuse3.close(unmount=not mountpoint.startswith("/dev/fd/"))
        await operations.end()
