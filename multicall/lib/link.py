"""Network interfaces as process 1 needs them: which there are, switch one on, hear of new ones; by sysfs and ioctl(2).

Addresses are the business of lib/net, in a process of its own.
"""

import fcntl
import os
import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

SYSFS = "/sys/class/net"

# linux/if_arp.h, linux/if.h, linux/sockios.h, linux/rtnetlink.h
ARPHRD_ETHER = 1
IFF_UP, IFF_RUNNING = 1, 0x40
SIOCGIFCONF, SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCGIFHWADDR = 0x8912, 0x8913, 0x8914, 0x8927
RTMGRP_LINK = 1

_IFREQ_BYTES = 24 + 2 * struct.calcsize("P")
_IFREQ = struct.Struct(f"16sH{_IFREQ_BYTES - 18}x")


class Interface(NamedTuple):
    """`is_hardware`: there is a device behind it, unlike a bridge, a bond or a dummy."""

    name: str
    is_ethernet: bool
    is_hardware: bool
    is_wireless: bool


def interfaces(sysfs: str = SYSFS) -> list[Interface]:
    """Every interface there is now. Without /sys, none has hardware."""
    return [
        Interface(
            name,
            _ask(SIOCGIFHWADDR, name) == ARPHRD_ETHER,
            os.path.exists(f"{sysfs}/{name}/device"),
            os.path.exists(f"{sysfs}/{name}/phy80211"),
        )
        for _, name in socket.if_nameindex()
    ]


def wanted(present: Iterable[Interface], named: Iterable[str] = ()) -> list[str]:
    """The interfaces to configure: those named, as far as they are there, else each wired one of hardware."""
    chosen = frozenset(named)
    if chosen:
        return [interface.name for interface in present if interface.name in chosen]
    return [
        interface.name
        for interface in present
        if interface.is_ethernet and interface.is_hardware and not interface.is_wireless
    ]


def has_carrier(name: str) -> bool:
    """Whether the interface is on and its cable is in."""
    return _ask(SIOCGIFFLAGS, name) & (IFF_UP | IFF_RUNNING) == IFF_UP | IFF_RUNNING


def exists(name: str) -> bool:
    """Whether there is an interface of that name."""
    try:
        return socket.if_nametoindex(name) > 0
    except OSError:
        return False


def switch_on(name: str) -> None:
    """Set IFF_UP. Raises OSError: ENODEV when it has gone."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        answer = fcntl.ioctl(control, SIOCGIFFLAGS, _IFREQ.pack(name.encode(), 0))
        flags = _IFREQ.unpack(answer)[1]
        if not flags & IFF_UP:
            fcntl.ioctl(control, SIOCSIFFLAGS, _IFREQ.pack(name.encode(), flags | IFF_UP))


def _ask(request: int, name: str) -> int:
    """The first number of an interface request's answer (netdevice(7)); 0 when the interface has gone."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            answer: tuple[bytes, int] = _IFREQ.unpack(fcntl.ioctl(control, request, _IFREQ.pack(name.encode(), 0)))
            return answer[1]
    except OSError:
        return 0


def addresses() -> list[tuple[str, str]]:
    """(interface, IPv4 address) of everything but the loopback. Raises OSError."""
    import array

    room = array.array("B", bytes(_IFREQ_BYTES * 64))
    where, length = room.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        # struct ifconf: a length, then after padding a pointer
        answer = fcntl.ioctl(control, SIOCGIFCONF, struct.pack("iP", length, where))
    used = struct.unpack_from("i", answer)[0]
    raw = room.tobytes()[:used]
    found = []
    for at in range(0, used, _IFREQ_BYTES):
        name = raw[at : at + 16].split(b"\0")[0].decode()
        address = socket.inet_ntoa(raw[at + 20 : at + 24])
        if not address.startswith("127."):
            found.append((name, address))
    return found


class Watch:
    """Readable (poll it by fileno()) when an interface comes, goes or changes. Raises OSError without netlink."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.setblocking(False)
        self._socket.bind((0, RTMGRP_LINK))

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self._socket.fileno()

    def drain(self) -> None:
        """Forget what was announced: whoever watches looks at all interfaces again, which no lost message can spoil."""
        while True:
            try:
                if not self._socket.recv(65536):
                    return
            except BlockingIOError:
                return
            except OSError:
                continue  # ENOBUFS: messages were lost, others may be waiting

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()
