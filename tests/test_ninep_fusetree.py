"""What a mount believes of a server's tree, without a mount."""

import asyncio
import errno

from conformance import fails
from fuzz.tree import MemoryFile, Tree
from ninep import fusetree


def test_a_directory_inside_itself() -> None:
    """A server may give a directory's qid to what is below it: once its File is let go, its names lead in a circle."""

    async def run() -> None:
        memory = Tree()
        tree = fusetree.Tree(MemoryFile(memory), files_max=0)
        place = await tree.place(tree.root)
        _, outer = await place.walk((b"d",))
        _, inner = await place.walk((b"d",))
        assert outer and inner
        node = tree.enter(tree.root, b"d", outer)
        assert tree.enter(node, b"again", inner) is node
        tree.trim()
        with fails(errno.ELOOP):
            await asyncio.wait_for(tree.place(node), 5)
        await tree.end()

    asyncio.run(run())
