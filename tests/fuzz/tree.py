"""A small tree of Files in memory: quick, bounded, and some of its calls wait."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence
from typing import Any

from ninep import message as m
from ninep.codec import entry_size
from ninep.file import File
from ninep.message import Entry, Qid, Rgetattr, Rgetlock, Rstatfs

NODES_MAX = 64
SIZE_MAX = 4096


class Node:
    """A file, or a directory when it has children. name "slow..." waits some turns, "stuck..." for ever."""

    def __init__(self, tree: Tree, parent: Node | None, name: bytes, children: dict[bytes, Node] | None = None) -> None:
        tree.made += 1
        self.tree = tree
        self.parent = parent or self
        self.name = name
        self.children = children
        self.content = bytearray()
        self.attributes: dict[bytes, bytes] = {}
        self.qid = Qid(m.QTFILE if children is None else m.QTDIR, 0, tree.made)


class Tree:
    """The tree, and how many of its Files are in use."""

    def __init__(self) -> None:
        self.made = 0
        self.in_use = 0
        self.root = Node(self, None, b"/", {})
        for name in (b"f", b"slow", b"stuck"):
            self.add(self.root, name).content += b"0123456789"
        self.add(self.add(self.root, b"d", {}), b"g")

    def add(self, directory: Node, name: bytes, children: dict[bytes, Node] | None = None) -> Node:
        if directory.children is None:
            raise OSError(errno.ENOTDIR, "not a directory")
        if name in directory.children:
            raise OSError(errno.EEXIST, "exists")
        if self.made >= NODES_MAX:
            raise OSError(errno.ENOSPC, "full")
        node = directory.children[name] = Node(self, directory, name, children)
        return node


class MemoryFile(File):
    """A File of a Tree. Using one after its clunk, or clunking it twice, is an AssertionError."""

    def __init__(self, tree: Tree, node: Node | None = None) -> None:
        self.tree = tree
        self._node = node or tree.root
        self.qid = self._node.qid
        self.opened = self.gone = False
        tree.in_use += 1

    @property
    def node(self) -> Node:
        assert not self.gone, "used after its clunk"
        return self._node

    async def _wait(self) -> Node:
        if self.node.name.startswith(b"slow"):
            for _ in range(3):
                await asyncio.sleep(0)
        elif self.node.name.startswith(b"stuck"):
            await asyncio.get_running_loop().create_future()
        return self.node

    def _open_node(self) -> Node:
        if not self.opened:
            raise OSError(errno.EBADF, "not open")
        return self.node

    async def walk(self, names: Sequence[bytes]) -> tuple[list[Qid], File | None]:
        node, qids = self.node, []
        for name in names:
            children = node.children
            if children is None or (name != b".." and name not in children):
                if not qids:
                    raise OSError(errno.ENOENT, "no such file")
                return qids, None
            node = node.parent if name == b".." else children[name]
            qids.append(node.qid)
        return qids, MemoryFile(self.tree, node)

    async def open(self, flags: int) -> tuple[Qid, int]:
        if self.opened:
            raise OSError(errno.EBUSY, "open")
        if flags & m.O_TRUNC:
            self.node.content.clear()
        self.opened = True
        return self.qid, 0

    async def create(self, name: bytes, flags: int, mode: int, gid: int) -> tuple[Qid, int]:
        if self.opened:
            raise OSError(errno.EBUSY, "open")
        self._node = self.tree.add(self.node, name)
        self.qid, self.opened = self._node.qid, True
        return self.qid, 0

    async def read(self, offset: int, count: int) -> bytes:
        self._open_node()
        return bytes((await self._wait()).content[offset : offset + count])

    async def write(self, offset: int, data: Any) -> int:
        self._open_node()
        node = await self._wait()
        if offset + len(data) > SIZE_MAX:
            raise OSError(errno.EFBIG, "too big")
        node.content += bytes(max(0, offset + len(data) - len(node.content)))
        node.content[offset : offset + len(data)] = data
        return len(data)

    async def readdir(self, offset: int, count: int) -> list[Entry]:
        node = self._open_node()
        if node.children is None:
            raise OSError(errno.ENOTDIR, "not a directory")
        found = []
        rows = [(b".", node), (b"..", node.parent), *node.children.items()]
        for at, (name, child) in list(enumerate(rows, 1))[min(offset, len(rows)) :]:
            count -= entry_size(name)
            if count < 0:
                break
            found.append(Entry(child.qid, at, 0, name))
        return found

    async def getattr(self, mask: int = m.GETATTR_BASIC) -> Rgetattr:
        return Rgetattr(mask & m.GETATTR_BASIC, self.qid, 0o644, 0, 0, 1, 0, len(self.node.content), 4096, *[0] * 11)

    async def setattr(self, valid: int, mode: int = 0, uid: int = 0, gid: int = 0, size: int = 0, *times: int) -> None:
        if valid & m.SETATTR_SIZE:
            if size > SIZE_MAX:
                raise OSError(errno.EFBIG, "too big")
            del self.node.content[size:]

    async def statfs(self) -> Rstatfs:
        return Rstatfs(m.V9FS_MAGIC, 4096, 1, 1, 1, NODES_MAX, NODES_MAX - self.tree.made, 0, 255)

    async def mkdir(self, name: bytes, mode: int, gid: int) -> Qid:
        return self.tree.add(self.node, name, {}).qid

    async def unlinkat(self, name: bytes, flags: int) -> None:
        if not (self.node.children or {}).pop(name, None):
            raise OSError(errno.ENOENT, "no such file")

    async def remove(self) -> None:
        node = await self._wait()
        if not (node.parent.children or {}).pop(node.name, None):
            raise OSError(errno.ENOENT, "no such file")

    async def fsync(self, datasync: bool) -> None:
        await self._wait()

    async def getxattr(self, name: bytes) -> bytes:
        try:
            return (await self._wait()).attributes[name]
        except KeyError:
            raise OSError(errno.ENODATA, "no such attribute") from None

    async def listxattr(self) -> bytes:
        return b"".join(name + b"\0" for name in self.node.attributes)

    async def setxattr(self, name: bytes, value: bytes, flags: int) -> None:
        if len(self.node.attributes) > 8:
            raise OSError(errno.ENOSPC, "full")
        self.node.attributes[name] = value

    async def lock(self, type: int, flags: int, start: int, length: int, proc_id: int, client_id: bytes) -> int:
        await self._wait()
        return m.LOCK_SUCCESS

    async def getlock(self, type: int, start: int, length: int, proc_id: int, client_id: bytes) -> Rgetlock:
        return Rgetlock(m.LOCK_TYPE_UNLCK, start, length, proc_id, client_id)

    async def clunk(self) -> None:
        assert not self.gone, "clunked twice"
        self.gone = True
        self.tree.in_use -= 1
        if self._node.name.startswith(b"slow"):
            await asyncio.sleep(0)
            raise OSError(errno.EIO, "a slow file's clunk fails")
