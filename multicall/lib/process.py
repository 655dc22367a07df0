"""Who belongs to a session: the processes of its mount namespace, and of its session id (setsid(2)).

A command's children may leave its process group, its session and their parent; they cannot leave its mount namespace
without making another one.
"""

import asyncio
import contextlib
import os
from typing import NamedTuple


class Membership(NamedTuple):
    """What makes a process one of a session's: the leader's pid, the mount namespace ("" when it is not private)."""

    leader: int
    namespace: str = ""


def mount_namespace(pid: int) -> str:
    """The name of a process's mount namespace, as in mount_namespaces(7); "" when it is gone."""
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return ""


def _session_id(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return 0


def members(membership: Membership) -> list[int]:
    """The processes that belong now, our own excepted. Zombies count: they are somebody's to reap."""
    leader, namespace = membership
    return [
        pid
        for pid in (int(name) for name in os.listdir("/proc") if name.isdigit())
        if pid != os.getpid()
        and ((namespace and mount_namespace(pid) == namespace) or (leader and _session_id(pid) == leader))
    ]


def kill(membership: Membership, number: int) -> list[int]:
    """Send a signal to every member; returns whom."""
    pids = members(membership)
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, number)
    return pids


async def wait_gone(membership: Membership, timeout_s: float) -> bool:
    """Wait until no member is left, woken by each one's end (pidfd_open(2)). Returns whether that came true in time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while pids := members(membership):
        if loop.time() >= deadline:
            return False
        ended = asyncio.Event()
        try:
            pidfd = os.pidfd_open(pids[0])
        except ProcessLookupError:
            await asyncio.sleep(0)
            continue
        loop.add_reader(pidfd, ended.set)
        try:
            await asyncio.wait_for(ended.wait(), max(0, deadline - loop.time()))
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
        # A dead process stays in /proc until its parent reaps it: let our own reaper run.
        await asyncio.sleep(0.001)
    return True
