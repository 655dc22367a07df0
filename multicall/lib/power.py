"""How a machine stops: the words, what process 1 is told for each, and reboot(2)."""

import ctypes
import os
import signal
from typing import NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)

# linux/reboot.h
CMD_RESTART, CMD_HALT, CMD_POWER_OFF = 0x01234567, 0xCDEF0123, 0x4321FEDC
CMD_CAD_OFF = 0


class Way(NamedTuple):
    """A way to stop. The signals are those that busybox's init takes too, so its applets work here."""

    name: str
    number: int
    command: int
    doing: str


WAYS: tuple[Way, ...] = (
    Way("poweroff", signal.SIGUSR2, CMD_POWER_OFF, "switching off"),
    Way("reboot", signal.SIGTERM, CMD_RESTART, "restarting"),
    Way("halt", signal.SIGUSR1, CMD_HALT, "halting"),
    Way("ctrl-alt-del", signal.SIGINT, CMD_RESTART, "restarting"),
)


def way_of_signal(number: int) -> Way | None:
    """The way that process 1 is asked for by this signal, or None."""
    for way in WAYS:
        if way.number == number:
            return way
    return None


def get_way(name: str) -> Way:
    """The row called `name`. Raises KeyError."""
    return {way.name: way for way in WAYS}[name]


def reboot(command: int) -> None:
    """reboot(2): unless it is CMD_CAD_OFF, this does not return, and nothing is written out before. Raises OSError.

    In a pid namespace it ends that namespace only (reboot(2), "Behavior inside PID namespaces").
    """
    if _libc.reboot(ctypes.c_int(ctypes.c_int32(command & 0xFFFFFFFF).value)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
