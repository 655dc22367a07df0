"""A directory of this machine as Files.

Every place is held by an O_PATH descriptor and every step is openat(descriptor, name, O_PATH|O_NOFOLLOW): no path is
ever put together, so neither renames nor symbolic links swapped in meanwhile lead anywhere else. ".." goes up the chain
of descriptors that led here and ends at the root. Operations on the file itself go through /proc/self/fd/N, which
resolves to exactly that file, symbolic links included; /proc must be mounted.

Everything runs as this process's user, and blocks the loop for as long as the local disk does (measured: a thread pool
costs 3-7 times the CPU); only what can block for good, FIFOs, waits elsewhere. Device nodes are never opened, as on a
nodev mount: with a root server their makers could otherwise reach disks outside the root. The kernel that mounts the
tree opens its own devices and FIFOs and does not ask us.

The umask: modes come from a kernel that has applied its own, so ours is set to 0 around the calls that create (that
keeps default ACLs right, which a later chmod would not). Threads that create files in that instant go without it too.
New files belong to this process's user; a process with root's rights gives them the group that was asked for, and the
owner that root() was told.

A process that has changed its user without an exec has to make itself dumpable again (prctl), or its /proc/self is
not its own.

Each File holds a descriptor, and a kernel that caches a tree holds thousands of Files: so root() lets this process have
as many descriptors as it may.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from ninep import message as m
from ninep.codec import entry_size
from ninep.fifo import open_fifo, readable, writable
from ninep.file import File, check_name
from ninep.message import Entry, Qid, Rgetattr, Rgetlock, Rstatfs

# Wire flags that mean something here, and what they are called on this machine. O_DIRECT would want aligned buffers;
# O_NOATIME needs ownership; O_LARGEFILE, O_CLOEXEC, O_NOCTTY are always so.
OPEN_FLAGS = (
    (m.O_TRUNC, os.O_TRUNC),
    (m.O_APPEND, os.O_APPEND),
    (m.O_NONBLOCK, os.O_NONBLOCK),
    (m.O_DSYNC, os.O_DSYNC),
    (m.O_SYNC, os.O_SYNC),
    (m.O_DIRECTORY, os.O_DIRECTORY),
)
FIFO_READ_MAX = 65536  # a pipe's usual capacity: what one read of a FIFO returns at most
DENTS_SIZE = 65536  # bytes asked of getdents64 at once
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2  # linux/stat.h
F_OFD_GETLK, F_OFD_SETLK = 36, 37  # linux/fcntl.h: locks of the open file, not of this process
_FLOCK = struct.Struct("hhqqi4x")  # struct flock with 64-bit offsets
_LOCK_TYPES = (fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK)  # by the wire's number
_DIRENT = struct.Struct("=QqHB")  # struct linux_dirent64, then the name

_libc = ctypes.CDLL(None, use_errno=True)


def raise_descriptor_limit() -> None:
    """Raise the soft limit of this process's descriptors, 1024 mostly, to the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


@contextmanager
def _no_umask() -> Iterator[None]:
    umask = os.umask(0)
    try:
        yield
    finally:
        os.umask(umask)


class _Tree:
    """What the Files of one root share: the device numbers seen, and what new files are to belong to."""

    def __init__(self, device: int, owner: int | None) -> None:
        self.devices = {device: 0}
        self.privileged = os.geteuid() == 0
        self.owner = owner if self.privileged else None

    def qid(self, st: os.stat_result) -> Qid:
        return self.make_qid(st.st_mode, st.st_dev, st.st_ino, (st.st_mtime_ns >> 10) ^ (st.st_size << 8))

    def make_qid(self, mode: int, device: int, inode: int, version: int) -> Qid:
        """Unique over (device, inode): the root's device keeps its inode numbers, others get a number in front.

        Inodes of more than 48 bits are mixed to 63; two of them could meet, at odds of one in 2^63.
        The version changes with the content, as far as mtime and size do (what QEMU's server does too).
        """
        index = self.devices.setdefault(device, len(self.devices))
        if inode < 1 << 48 and index < 1 << 15:
            path = index << 48 | inode
        else:
            path = 1 << 63 | hash((device, inode)) & (1 << 63) - 1
        kind = m.QTDIR if stat.S_ISDIR(mode) else m.QTSYMLINK if stat.S_ISLNK(mode) else m.QTFILE
        return Qid(kind, version & 0xFFFFFFFF, path)


class _Node:
    """An O_PATH descriptor and the way it was reached. Shared by clones and children; closed with the last of them."""

    __slots__ = ("fd", "name", "parent", "path")

    def __init__(self, fd: int, parent: _Node | None, name: bytes) -> None:
        self.fd = fd
        self.parent = parent
        self.name = name
        self.path = b"/proc/self/fd/%d" % fd

    def __del__(self) -> None:
        os.close(self.fd)

    def step(self, name: bytes) -> _Node:
        if name == b"..":
            if not stat.S_ISDIR(os.fstat(self.fd).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, "not a directory")
            return self.parent or self
        return _Node(os.open(check_name(name), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd), self, name)

    def holder(self) -> _Node:
        """The directory to remove or rename this file from, when the name there still is this file."""
        if self.parent is None:
            raise OSError(errno.EBUSY, "the root of the tree")
        there = os.stat(self.name, dir_fd=self.parent.fd, follow_symlinks=False)
        if not os.path.samestat(there, os.fstat(self.fd)):
            raise FileNotFoundError(errno.ENOENT, "no longer there")
        return self.parent


class LocalFile(File):
    """A file of this machine. `root(path)` makes the first one; the others come from it."""

    def __init__(self, tree: _Tree, node: _Node, qid: Qid) -> None:
        self.tree = tree
        self.node = node
        self.qid = qid
        self.handle = -1  # the open file's descriptor
        self.writable = False
        self.fifo = False
        self.flocked = fcntl.LOCK_UN  # the lock of the whole file that handle has by flock(2)
        self.entries: list[Entry] = []  # read from the directory and not handed out yet, the next one last
        self.next_offset = 0  # the offset that entries continue from

    @classmethod
    def root(cls, path: bytes, owner: int | None = None) -> LocalFile:
        """The root of a tree: path, symbolic links in it followed. OSError when it is not there.

        owner: the user that new files are given to, where this process may do that (it is root).
        """
        raise_descriptor_limit()
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        st = os.fstat(fd)
        tree = _Tree(st.st_dev, owner)
        return cls(tree, _Node(fd, None, b""), tree.qid(st))

    # Places

    async def walk(self, names: Sequence[bytes]) -> tuple[list[Qid], File | None]:
        node, qid, qids = self.node, self.qid, []
        try:
            for name in names:
                node = node.step(name)
                qid = self.tree.qid(os.fstat(node.fd))
                qids.append(qid)
        except OSError:
            if not qids:
                raise
            return qids, None
        return qids, LocalFile(self.tree, node, qid)

    async def getattr(self, mask: int = m.GETATTR_BASIC) -> Rgetattr:
        st = os.fstat(self.node.fd)
        atime, mtime, ctime = st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns
        u64 = 0xFFFFFFFFFFFFFFFF  # times before 1970 are two's complement on the wire
        return Rgetattr(
            m.GETATTR_BASIC,
            self.tree.qid(st),
            st.st_mode,
            st.st_uid,
            st.st_gid,
            st.st_nlink,
            st.st_rdev,
            st.st_size,
            st.st_blksize,
            st.st_blocks,
            atime // 1000000000 & u64,
            atime % 1000000000,
            mtime // 1000000000 & u64,
            mtime % 1000000000,
            ctime // 1000000000 & u64,
            ctime % 1000000000,
            0,
            0,
            0,
            0,
        )

    async def setattr(
        self, valid: int, mode: int = 0, uid: int = 0, gid: int = 0, size: int = 0, atime_ns: int = 0, mtime_ns: int = 0
    ) -> None:
        path = self.node.path
        # Size and owner first: both clear setuid bits that the mode may ask for.
        if valid & m.SETATTR_SIZE:
            if self.writable:
                os.ftruncate(self.handle, size)
            elif not stat.S_ISREG(kind := os.fstat(self.node.fd).st_mode):
                raise OSError(errno.EISDIR if stat.S_ISDIR(kind) else errno.EINVAL, "not a regular file")
            else:
                os.truncate(path, size)
        if valid & (m.SETATTR_UID | m.SETATTR_GID):
            os.chown(path, _id(uid) if valid & m.SETATTR_UID else -1, _id(gid) if valid & m.SETATTR_GID else -1)
        if valid & m.SETATTR_MODE:
            if self.qid.type & m.QTSYMLINK:
                raise OSError(errno.EOPNOTSUPP, "a symbolic link has no mode")
            os.chmod(path, mode & 0o7777)
        if valid & (m.SETATTR_ATIME | m.SETATTR_MTIME):
            times: list[int] = []
            for change, given, value in (
                (m.SETATTR_ATIME, m.SETATTR_ATIME_SET, atime_ns),
                (m.SETATTR_MTIME, m.SETATTR_MTIME_SET, mtime_ns),
            ):
                if not valid & change:
                    times += (0, UTIME_OMIT)
                elif not valid & given:
                    times += (0, UTIME_NOW)
                else:
                    times += divmod(value, 1000000000)
            try:
                spec = struct.pack("llll", *times)
            except struct.error:
                raise OSError(errno.EOVERFLOW, "time out of range") from None
            _check(_libc.utimensat(-100, path, spec, 0))  # -100 is AT_FDCWD

    async def statfs(self) -> Rstatfs:
        st = os.fstatvfs(self.node.fd)
        return Rstatfs(
            m.V9FS_MAGIC,
            st.f_frsize & 0xFFFFFFFF,
            st.f_blocks,
            st.f_bfree,
            st.f_bavail,
            st.f_files,
            st.f_ffree,
            st.f_fsid & 0xFFFFFFFFFFFFFFFF,
            st.f_namemax,
        )

    async def readlink(self) -> bytes:
        if not self.qid.type & m.QTSYMLINK:
            raise OSError(errno.EINVAL, "not a symbolic link")
        return os.readlink(b"", dir_fd=self.node.fd)

    # Open files

    async def open(self, flags: int) -> tuple[Qid, int]:
        if self.handle >= 0:
            raise OSError(errno.EBUSY, "already open")
        st = os.fstat(self.node.fd)
        kind = stat.S_IFMT(st.st_mode)
        if kind in (stat.S_IFCHR, stat.S_IFBLK):
            raise PermissionError(errno.EACCES, "device nodes are not opened")
        native = _native(flags)
        path = self.node.path
        if kind != stat.S_IFIFO:
            # Without waiting: there are regular files that do, as /proc/kmsg. For all others it changes nothing.
            handle = os.open(path, native | os.O_NONBLOCK)
        elif native & os.O_NONBLOCK or native & os.O_ACCMODE == os.O_RDWR:
            handle = os.open(path, native | os.O_NONBLOCK)
        else:
            handle = await open_fifo(path, native)
        self._opened(handle, flags, kind)
        if flags & m.O_TRUNC:
            st = os.fstat(handle)
        self.qid = self.tree.qid(st)
        return self.qid, 0

    def _opened(self, handle: int, flags: int, kind: int) -> None:
        self.handle = handle
        self.writable = flags & m.O_ACCMODE in (m.O_WRONLY, m.O_RDWR)
        self.fifo = kind == stat.S_IFIFO

    async def create(self, name: bytes, flags: int, mode: int, gid: int) -> tuple[Qid, int]:
        if self.handle >= 0:
            raise OSError(errno.EBUSY, "already open")
        native = _native(flags & ~m.O_DIRECTORY) | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        check_name(name)
        for _ in range(16):  # somebody may create and remove the name in turn
            try:
                with _no_umask():
                    handle = os.open(name, native, mode & 0o7777, dir_fd=self.node.fd)
            except FileExistsError:
                if flags & m.O_EXCL:
                    raise
                try:
                    node = self.node.step(name)
                except FileNotFoundError:
                    continue
                # Not in one go with O_CREAT: what is there may be a device or a FIFO, and open() knows those.
                there = LocalFile(self.tree, node, self.qid)
                answer = await there.open(flags)
                self.node, self.handle, self.qid = node, there.handle, there.qid
                self.writable, self.fifo = there.writable, there.fifo
                return answer
            try:
                node = _Node(os.open(b"/proc/self/fd/%d" % handle, os.O_PATH | os.O_CLOEXEC), self.node, name)
                self._give(node.path, mode, gid)
            except BaseException:
                os.close(handle)
                raise
            self.node = node
            self._opened(handle, flags, stat.S_IFREG)
            self.qid = self.tree.qid(os.fstat(handle))
            return self.qid, 0
        raise OSError(errno.EBUSY, "the name comes and goes")

    def _give(self, path: bytes, mode: int, gid: int, dir_fd: int | None = None) -> None:
        """Give a new file its owner and group, where this process has the right to."""
        if not self.tree.privileged:
            return
        st = os.stat(path, dir_fd=dir_fd, follow_symlinks=dir_fd is None)
        uid = self.tree.owner if self.tree.owner is not None else st.st_uid
        if gid == 0xFFFFFFFF:
            gid = st.st_gid
        if (uid, gid) != (st.st_uid, st.st_gid):
            os.chown(path, uid, gid, dir_fd=dir_fd, follow_symlinks=dir_fd is None)
            if mode & 0o6000 and not stat.S_ISLNK(st.st_mode):  # chown has cleared them
                os.chmod(path, st.st_mode & 0o7777, dir_fd=dir_fd)

    async def read(self, offset: int, count: int) -> bytes:
        while True:
            handle = self._open_handle()
            try:
                if self.fifo:
                    return os.read(handle, min(count, FIFO_READ_MAX))
                return os.pread(handle, count, offset)
            except BlockingIOError:
                await readable(handle)

    async def write(self, offset: int, data: bytes | bytearray | memoryview) -> int:
        while True:
            handle = self._open_handle()
            try:
                return os.write(handle, data) if self.fifo else os.pwrite(handle, data, offset)
            except BlockingIOError:
                await writable(handle)

    def _open_handle(self) -> int:
        if self.handle < 0:
            raise OSError(errno.EBADF, "not open")
        return self.handle

    async def fsync(self, datasync: bool) -> None:
        (os.fdatasync if datasync else os.fsync)(self._open_handle())

    async def readdir(self, offset: int, count: int) -> list[Entry]:
        """The offsets are the file system's own (getdents64's d_off): they survive what others add and remove.

        Reading on from where the last answer ended does not seek: on tmpfs of older kernels an offset is a position,
        and only the open directory's own cursor is right after removals.
        """
        handle = self._open_handle()
        if offset != self.next_offset or offset == 0:
            os.lseek(handle, offset, os.SEEK_SET)
            self.entries.clear()
            self.next_offset = offset
        found: list[Entry] = []
        while True:
            if not self.entries:
                self.entries = self._getdents(handle)
                if not self.entries:
                    return found
            entry = self.entries[-1]
            count -= entry_size(entry.name)
            if count < 0:
                if not found:
                    raise OSError(errno.EINVAL, "count is too small for an entry")
                return found
            found.append(self.entries.pop())
            self.next_offset = entry.offset

    def _getdents(self, handle: int) -> list[Entry]:
        buffer = ctypes.create_string_buffer(DENTS_SIZE)
        try:
            end = _check(_libc.getdents64(handle, buffer, DENTS_SIZE))
        except FileNotFoundError:  # the directory itself has been removed: empty
            return []
        raw = buffer.raw[:end]
        device = os.fstat(handle).st_dev
        entries = []
        at = 0
        while at < end:
            inode, offset, length, kind = _DIRENT.unpack_from(raw, at)
            name = raw[at + 19 : raw.index(0, at + 19)]
            at += length
            if name == b".." and self.node.parent is None:
                entries.append(Entry(self.tree.qid(os.fstat(handle)), offset, 4, name))
                continue
            mode = kind << 12
            if kind == 0:  # the file system does not say
                try:
                    mode = os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode
                except OSError:
                    pass
            entries.append(Entry(self.tree.make_qid(mode, device, inode, 0), offset, stat.S_IFMT(mode) >> 12, name))
        entries.reverse()
        return entries

    # Directories

    def _new_qid(self, name: bytes, mode: int, gid: int) -> Qid:
        self._give(name, mode, gid, self.node.fd)
        return self.tree.qid(os.stat(name, dir_fd=self.node.fd, follow_symlinks=False))

    async def symlink(self, name: bytes, target: bytes, gid: int) -> Qid:
        if b"\0" in target:
            raise OSError(errno.EINVAL, "NUL in a link's target")
        os.symlink(target, check_name(name), dir_fd=self.node.fd)
        return self._new_qid(name, 0, gid)

    async def mknod(self, name: bytes, mode: int, major: int, minor: int, gid: int) -> Qid:
        with _no_umask():
            os.mknod(check_name(name), mode, os.makedev(_device(major), _device(minor)), dir_fd=self.node.fd)
        return self._new_qid(name, mode, gid)

    async def mkdir(self, name: bytes, mode: int, gid: int) -> Qid:
        with _no_umask():
            os.mkdir(check_name(name), mode & 0o7777, dir_fd=self.node.fd)
        return self._new_qid(name, 0, gid)

    async def link(self, target: File, name: bytes) -> None:
        if not isinstance(target, LocalFile):
            raise OSError(errno.EXDEV, "not the same kind of tree")
        os.link(target.node.path, check_name(name), dst_dir_fd=self.node.fd, follow_symlinks=True)

    async def rename(self, directory: File, name: bytes) -> None:
        if not isinstance(directory, LocalFile):
            raise OSError(errno.EXDEV, "not the same kind of tree")
        node = self.node
        os.rename(node.name, check_name(name), src_dir_fd=node.holder().fd, dst_dir_fd=directory.node.fd)
        node.parent, node.name = directory.node, name

    async def renameat(self, oldname: bytes, directory: File, newname: bytes) -> None:
        if not isinstance(directory, LocalFile):
            raise OSError(errno.EXDEV, "not the same kind of tree")
        os.rename(check_name(oldname), check_name(newname), src_dir_fd=self.node.fd, dst_dir_fd=directory.node.fd)

    async def unlinkat(self, name: bytes, flags: int) -> None:
        if flags & m.AT_REMOVEDIR:
            os.rmdir(check_name(name), dir_fd=self.node.fd)
        else:
            os.unlink(check_name(name), dir_fd=self.node.fd)

    async def remove(self) -> None:
        directory = self.node.holder().fd
        if self.qid.type & m.QTDIR:
            os.rmdir(self.node.name, dir_fd=directory)
        else:
            os.unlink(self.node.name, dir_fd=directory)

    # Extended attributes: through /proc/self/fd, which for a symbolic link means the link itself

    async def getxattr(self, name: bytes) -> bytes:
        return os.getxattr(self.node.path, _attribute(name))

    async def listxattr(self) -> bytes:
        return b"".join(os.fsencode(name) + b"\0" for name in os.listxattr(self.node.path))

    async def setxattr(self, name: bytes, value: bytes, flags: int) -> None:
        os.setxattr(self.node.path, _attribute(name), value, flags & (m.XATTR_CREATE | m.XATTR_REPLACE))

    async def removexattr(self, name: bytes) -> None:
        os.removexattr(self.node.path, _attribute(name))

    # Locks: of the open file (OFD), so two fids of one server keep each other out as two processes would.
    # A kernel's 9P client sends flock(2) as a lock of the whole file. Local programs keep the two kinds apart, so who
    # locks a whole file gets both: what a program here does, with either call, is seen there and the other way round.

    def _lock(self, command: int, kind: int, start: int, length: int) -> tuple[int, int, int, int]:
        if kind >= len(_LOCK_TYPES) or max(start, length) >= 1 << 63:
            raise OSError(errno.EINVAL, "no such lock")
        flock = _FLOCK.pack(_LOCK_TYPES[kind], os.SEEK_SET, start, length, 0)
        kind, _, start, length, pid = _FLOCK.unpack(fcntl.fcntl(self._open_handle(), command, flock))
        return _LOCK_TYPES.index(kind), start, length, pid

    async def lock(self, type: int, flags: int, start: int, length: int, proc_id: int, client_id: bytes) -> int:
        before = self.flocked
        whole = not start and not length and type < m.LOCK_TYPE_UNLCK
        try:
            if whole:
                self._flock(fcntl.LOCK_SH if type == m.LOCK_TYPE_RDLCK else fcntl.LOCK_EX)
            try:
                self._lock(F_OFD_SETLK, type, start, length)
            except OSError as error:
                # Only flock(2) exclusively locks what is open for reading only, and the like.
                if error.errno != errno.EBADF or not whole:
                    raise
            if not whole:
                self._flock(fcntl.LOCK_UN)
        except BlockingIOError:
            with suppress(BlockingIOError):
                self._flock(before)
            return m.LOCK_BLOCKED
        return m.LOCK_SUCCESS

    def _flock(self, how: int) -> None:
        if how != self.flocked:
            self.flocked = fcntl.LOCK_UN  # a lock that cannot be changed is lost: flock(2)
            fcntl.flock(self._open_handle(), how | fcntl.LOCK_NB)
            self.flocked = how

    async def getlock(self, type: int, start: int, length: int, proc_id: int, client_id: bytes) -> Rgetlock:
        kind, at, size, pid = self._lock(F_OFD_GETLK, type, start, length)
        if kind == m.LOCK_TYPE_UNLCK:
            return Rgetlock(kind, start, length, proc_id, client_id)
        return Rgetlock(kind, at, size, max(pid, 0), b"")

    async def clunk(self) -> None:
        handle, self.handle = self.handle, -1
        del self.node
        if handle >= 0:
            os.close(handle)


def _native(flags: int) -> int:
    if flags & m.O_ACCMODE == m.O_ACCMODE:
        raise OSError(errno.EINVAL, "neither for reading nor for writing")
    native = flags & m.O_ACCMODE | os.O_CLOEXEC | os.O_NOCTTY
    for wire, ours in OPEN_FLAGS:
        if flags & wire == wire:
            native |= ours
    return native


def _id(value: int) -> int:
    return -1 if value == 0xFFFFFFFF else value


def _device(number: int) -> int:
    if number >= 1 << 20:
        raise OSError(errno.EINVAL, "no such device number")
    return number


def _attribute(name: bytes) -> bytes:
    if not name or b"\0" in name:
        raise OSError(errno.EINVAL, "not an attribute's name")
    return name
