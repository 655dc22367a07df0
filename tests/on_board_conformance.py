"""Run on a board by test_qemu_conformance.py: the conformance suite over a directory of a mount, a line a check.

usage: on_board_conformance.py DIRECTORY [CHECK...]
"""

import asyncio
import os
import sys
import traceback

sys.path[:0] = [os.path.dirname(os.path.abspath(__file__)), os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]

import conformance  # noqa: E402
from ninep.localfs import LocalFile  # noqa: E402


async def one(check: conformance.Check, folder: bytes) -> None:
    root = LocalFile.root(folder)
    try:
        await check(root)
    finally:
        await root.clunk()


def main() -> None:
    base, *wanted = sys.argv[1:]
    for check in conformance.CHECKS:
        name = check.__name__
        if wanted and name not in wanted:
            continue
        folder = os.path.join(base, name)
        os.mkdir(folder)
        try:
            asyncio.run(asyncio.wait_for(one(check, os.fsencode(folder)), 300))
        except BaseException as error:
            sys.stderr.write(f"{name}\n{traceback.format_exc()}\n")
            print(f"{name}: {type(error).__name__}", flush=True)
        else:
            print(f"{name}: ok", flush=True)


main()
