"""A 9P server for everybody who dials: a task for each connection, none of which can end the others."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from multicall.lib import dialstring
from multicall.lib.log import reason
from ninep.file import File
from ninep.message import Tattach

log = logging.getLogger("9p")

PAUSE_S = 0.2
"""Before accepting again when there was no descriptor or memory for it."""

Serve = Callable[[socket.socket, int], Awaitable[None]]
"""Serve one connection, which is the callee's to close; the number tells connections apart."""


def on_end(loop: asyncio.AbstractEventLoop, end: Callable[[], object]) -> None:
    """Have `end` called for INT and TERM, and for HUP unless that is ignored (nohup)."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, end)


async def run(listeners: Sequence[socket.socket], serve: Serve) -> None:
    """Accept on all listeners, which stay the caller's, until INT, TERM or HUP; then end what is under way."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    on_end(loop, stop.set)
    connections: set[asyncio.Task[None]] = set()
    count = 0

    async def accept(listener: socket.socket) -> None:
        nonlocal count
        listener.setblocking(False)
        while True:
            try:
                sock, peer = await loop.sock_accept(listener)
            except ConnectionError:
                continue  # it has gone meanwhile
            except OSError as error:
                log.warning("accept: %s", reason(error))
                await asyncio.sleep(PAUSE_S)
                continue
            count += 1
            task = asyncio.create_task(one(sock, peer, count))
            connections.add(task)
            task.add_done_callback(connections.discard)

    async def one(sock: socket.socket, peer: Any, number: int) -> None:
        try:
            log.info("connection %d from %s", number, "!".join(map(str, peer[:2])) if peer else "this machine")
            dialstring.keep_alive(sock)
            await serve(sock, number)
            log.info("connection %d has ended", number)
        except Exception:
            log.exception("connection %d: our bug", number)
        finally:
            sock.close()

    accepting = [asyncio.create_task(accept(listener)) for listener in listeners]
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([stopping, *accepting], return_when=asyncio.FIRST_COMPLETED)
    finally:
        tasks = [*accepting, stopping, *connections]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in accepting:
        if not task.cancelled():
            task.result()


def attacher(make: Callable[[], File], path: bytes) -> Callable[[Tattach], File]:
    """What server.serve is to ask for a root: there is one tree, and "", "/" and its own path are its names.

    Any other name is ENOENT: who asks for a part of a tree must not be given all of it.
    """
    names = {b"", b"/", path.rstrip(b"/"), os.path.realpath(path)}

    def attach(request: Tattach) -> File:
        if request.aname.rstrip(b"/") not in names and request.aname not in names:
            log.warning("attach %s: there is no such tree here", os.fsdecode(request.aname))
            raise FileNotFoundError(2, os.strerror(2))
        return make()

    return attach
