"""What a mounting kernel knows of a tree of Files: inode numbers, how often it looked them up, and their names.

The kernel may remember a million inodes; the server has a descriptor for each File. So only the places used last are
kept open, and the others are walked to again by their names, which the kernel tells us when it changes them. A file
that has lost its name is kept open for as long as the kernel knows it.
"""

from __future__ import annotations

import asyncio
import errno
import logging

from ninep.file import File

log = logging.getLogger("ninep.fuse")

ROOT_ID = 1  # FUSE_ROOT_ID of linux/fuse.h
FILES_MAX = 4096  # places kept open


class Node:
    """What the kernel knows by an inode number. file is its place, or None when that is to be walked anew."""

    __slots__ = (
        "file",
        "gid",
        "id",
        "lookups",
        "mode",
        "name",
        "no_capability_until",
        "parent",
        "pinned",
        "size",
        "target",
    )

    def __init__(self, id: int, parent: Node | None, name: bytes, file: File | None) -> None:
        self.id = id
        self.parent = parent
        self.name = name
        self.file = file
        self.lookups = 0  # what the kernel will forget
        self.pinned = parent is None  # file must stay: there is no name to walk to it again
        self.mode = self.gid = self.size = 0  # as last seen
        self.target: bytes | None = None  # of a symbolic link: it never changes, and the kernel does not keep it
        self.no_capability_until = 0.0  # monotonic: the kernel asks for this attribute before each write


class Tree:
    """The nodes of one mount. For the tasks of one loop."""

    def __init__(self, root: File, files_max: int = FILES_MAX) -> None:
        self.files_max = files_max
        self.root = Node(ROOT_ID, None, b"", root)
        self.root_path = root.qid.path
        self.nodes: dict[int, Node] = {ROOT_ID: self.root}
        self.names: dict[tuple[int, bytes], Node] = {}  # (directory's id, name) of every name looked up
        self.loaded: dict[Node, None] = {}  # nodes whose file may be let go, the longest unused first
        self.tasks: set[asyncio.Task[None]] = set()

    def node(self, id: int) -> Node:
        try:
            return self.nodes[id]
        except KeyError:
            raise OSError(errno.ESTALE, "no such inode") from None

    def id_of(self, path: int) -> int:
        """The inode number of a qid.path."""
        if path == self.root_path:
            return ROOT_ID
        return path if path > ROOT_ID else path | 1 << 63

    async def place(self, node: Node) -> File:
        """The File of a node. ESTALE when its name has gone to another file, without the kernel's doing."""
        if node.file is None:
            names = []
            above = node
            passed = set()
            while above.file is None:
                names.append(above.name)
                passed.add(above)
                if above.parent is None:
                    raise OSError(errno.ESTALE, "its name is gone")
                above = above.parent
                if above in passed:  # a server that gives a directory and one below it the same qid
                    raise OSError(errno.ELOOP, "a directory inside itself")
            names.reverse()
            qids, file = await above.file.walk(names)
            if file is None or self.id_of(qids[-1].path) != node.id:
                if file is not None:
                    self.let_go(file)
                raise OSError(errno.ESTALE, "another file has its name")
            if node.file is None:
                node.file = file
            else:  # another task was faster
                self.let_go(file)
        self._used(node)
        return node.file

    def _used(self, node: Node) -> None:
        if not node.pinned:
            self.loaded.pop(node, None)
            self.loaded[node] = None

    def trim(self) -> None:
        """Let go of the Files used longest ago, if there are too many. To be called when no task uses any."""
        if len(self.loaded) <= self.files_max:
            return
        for node in list(self.loaded)[: len(self.loaded) - self.files_max * 3 // 4]:
            del self.loaded[node]
            self._drop(node)

    def _drop(self, node: Node) -> None:
        if node.file is not None:
            file, node.file = node.file, None
            self.let_go(file)

    def let_go(self, file: File) -> None:
        """Clunk without waiting for it."""
        task = asyncio.ensure_future(_clunk(file))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def enter(self, parent: Node, name: bytes, file: File) -> Node:
        """The node of a file just walked to, which is the node's from here on. Counts a lookup of the kernel's."""
        id = self.id_of(file.qid.path)
        node = self.nodes.get(id)
        if node is None:
            node = self.nodes[id] = Node(id, parent, name, file)
        elif node.file is None:
            node.file = file
        else:
            self.let_go(file)
        if node is not self.root:
            self.names[parent.id, name] = node
            node.parent, node.name = parent, name
            self._used(node)
        node.lookups += 1
        return node

    def enter_unseen(self, parent: Node, name: bytes, path: int) -> Node:
        """A node of which there is only a name in a listing. Counts a lookup of the kernel's."""
        id = self.id_of(path)
        node = self.nodes.setdefault(id, Node(id, parent, name, None))
        node.lookups += 1
        return node

    def forget(self, id: int, count: int) -> None:
        """The kernel takes back count lookups."""
        node = self.nodes.get(id)
        if node is None or node is self.root:
            return
        node.lookups -= count
        if node.lookups > 0:
            return
        del self.nodes[id]
        self.loaded.pop(node, None)
        if node.parent and self.names.get((node.parent.id, node.name)) is node:
            del self.names[node.parent.id, node.name]
        self._drop(node)

    async def losing(self, parent: Node, name: bytes) -> Node | None:
        """The node whose own name this is, and which may lose it now: its File is made sure of."""
        node = self.names.get((parent.id, name))
        if node is None or node.lookups <= 0 or not _is_own_name(node, parent, name):
            return None
        try:
            await self.place(node)
        except OSError:
            return None
        return node

    def lost(self, parent: Node, name: bytes, node: Node | None) -> None:
        """The name is gone; node is what losing() gave."""
        self.names.pop((parent.id, name), None)
        if node is not None and _is_own_name(node, parent, name) and node.file is not None:
            node.pinned = True
            self.loaded.pop(node, None)

    def moved(self, old: Node, name_old: bytes, new: Node, name_new: bytes, target: Node | None) -> None:
        """A name has become another one; target is what losing() gave for that."""
        node = self.names.get((old.id, name_old))
        if node is not None and node is target:
            return  # two names of one file: rename(2) has then done nothing
        self.lost(new, name_new, target)
        if node is not None:
            del self.names[old.id, name_old]
            self.names[new.id, name_new] = node
            node.parent, node.name = new, name_new

    async def end(self) -> None:
        """Let go of everything but the root, which is not ours."""
        for node in self.nodes.values():
            if node is not self.root:
                self._drop(node)
        if self.tasks:
            await asyncio.wait(self.tasks)


def _is_own_name(node: Node, parent: Node, name: bytes) -> bool:
    return node.parent is not None and node.parent.id == parent.id and node.name == name


async def _clunk(file: File) -> None:
    try:
        await file.clunk()
    except OSError as error:
        log.debug("clunk: %s", error)
    except Exception:
        log.exception("FUSE: our bug, in clunk")
