"""Plan 9's dial strings, `network!host!port` (dial(2) there): how they are read, dialled and listened on.

tcp!host!port   tcp!host (port 564)   tcp!*!port (every address; to listen)   also tcp4, tcp6
unix!path       a path may hold anything; "@" begins an abstract name
vsock!cid!port  unix-vsock!path!port (to dial)
"""

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
import stat
from typing import NamedTuple

from multicall.lib import transport
from multicall.lib.log import Problem, reason

DEFAULT_PORT = "564"
"""9P's own (IANA: 9pfs)."""

PORT_NAMES = {"9fs": "564", "9pfs": "564", "styx": "6666"}
"""Services that Plan 9 knows by name, and a Linux machine's /etc/services need not."""

KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)
"""A peer that has vanished is noticed after a minute; small messages are not held back for bigger ones."""

ABSENT = frozenset((errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT))
"""What an address of a host says on a machine without its family: the others will do."""


class Address(NamedTuple):
    """A dial string, read. For unix the host is the path, and there is no port."""

    network: str
    host: str
    port: str

    def __str__(self) -> str:
        return "!".join(part for part in self if part)


def parse(text: str) -> Address:
    """Read a dial string. Raises ValueError, whose text is for a person."""
    network, bang, rest = text.partition("!")
    if not bang:
        raise ValueError(f"{text}: not a dial string such as tcp!host!564 or unix!/path")
    if network not in transport.DIAL:
        raise ValueError(f"{text}: network {network} is not one of {', '.join(transport.DIAL)}")
    if network == "unix":
        host, port = rest, ""
    else:
        host, bang, port = rest.rpartition("!")
        if not bang:
            host, port = rest, DEFAULT_PORT
        port = PORT_NAMES.get(port, port)
        if not port.isdecimal() or int(port) > (0xFFFF if network in transport.FAMILIES else 0xFFFFFFFF):
            raise ValueError(f"{text}: port {port} is not a number")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not host:
        raise ValueError(f"{text}: no {'path' if network == 'unix' else 'host'} in it")
    return Address(network, host, port)


async def dial(address: Address, timeout_s: float) -> socket.socket:
    """Connect. The socket is the caller's. Raises Problem of status 1."""
    try:
        async with asyncio.timeout(timeout_s):
            sock = await transport.DIAL[address.network](*address)
    except TimeoutError as error:
        raise Problem(f"dial {address}: no answer for {timeout_s:g} s", status=1) from error
    except OSError as error:
        raise Problem(f"dial {address}: {reason(error)}", status=1) from error
    except Problem as problem:
        raise Problem(f"dial {address}: {problem.message}", problem.hint, status=1) from problem
    keep_alive(sock)
    return sock


def keep_alive(sock: socket.socket) -> None:
    """Set up a connected socket of TCP; others are left alone."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        for level, option, value in KEEPALIVE:
            sock.setsockopt(level, option, value)


def listen(address: Address) -> list[socket.socket]:
    """Listen on every address that the host of `address` has, "*" being all. The sockets are the caller's.

    A unix socket is made for this user only; one that nobody listens on any more is replaced. Raises Problem, status 1.
    """
    try:
        if address.network == "unix":
            return [_listen_unix(address.host)]
        if address.network in transport.FAMILIES and address.host != "*":
            return _listen_tcp(address)
        return [transport.listen(address.network, address.port)]
    except OSError as error:
        raise Problem(f"listen on {address}: {reason(error)}", status=1) from error
    except Problem as problem:
        raise Problem(problem.message, problem.hint, status=1) from problem


def _listen_tcp(address: Address) -> list[socket.socket]:
    try:
        found = socket.getaddrinfo(
            address.host, int(address.port), transport.FAMILIES[address.network], socket.SOCK_STREAM
        )
    except socket.gaierror as error:
        raise Problem(f"listen on {address}: {error.strerror}", status=1) from error
    listeners: list[socket.socket] = []
    failure: OSError | None = None
    for family, _, _, _, where in found:
        port = int(where[1]) or (listeners[0].getsockname()[1] if listeners else 0)
        try:
            listeners.append(socket.create_server((str(where[0]), port), family=family, backlog=transport.BACKLOG))
        except OSError as error:
            if error.errno not in ABSENT:
                for listener in listeners:
                    listener.close()
                raise
            failure = failure or error
    if not listeners:
        raise failure or OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    return listeners


def _listen_unix(path: str) -> socket.socket:
    umask = os.umask(0o077)
    try:
        try:
            return transport.LISTEN["unix"]("unix", path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_left_over(path):
                raise
        os.unlink(path)
        return transport.LISTEN["unix"]("unix", path)
    finally:
        os.umask(umask)


def _is_left_over(path: str) -> bool:
    """Whether a path is a socket that no process listens on: its server was killed."""
    if path.startswith("@") or not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
    return False


class Left:
    """What a listener leaves in the file system, to be taken away when it is still that."""

    def __init__(self, address: Address) -> None:
        self._path = address.host if address.network == "unix" and not address.host.startswith("@") else None
        self._identity = self._look()

    def _look(self) -> tuple[int, int] | None:
        if self._path is None:
            return None
        try:
            st = os.lstat(self._path)
        except OSError:
            return None
        return st.st_dev, st.st_ino

    def remove(self) -> None:
        """Remove the socket, unless another server has put its own there."""
        if self._path is not None and self._identity is not None and self._look() == self._identity:
            with contextlib.suppress(OSError):
                os.unlink(self._path)


def bound(listener: socket.socket, address: Address) -> Address:
    """The address that a listener really has: a port of 0 has become a number, a host's name an address."""
    name = listener.getsockname()
    if address.network in transport.FAMILIES:
        host = "*" if ipaddress.ip_address(name[0]).is_unspecified else str(name[0])
        return address._replace(host=host, port=str(name[1]))
    return address


def is_reachable_from_outside(listener: socket.socket) -> bool:
    """Whether another machine may be able to connect to a listener."""
    if listener.family == socket.AF_UNIX:
        return False
    if listener.family in (socket.AF_INET, socket.AF_INET6):
        ip = ipaddress.ip_address(listener.getsockname()[0].partition("%")[0])
        mapped = getattr(ip, "ipv4_mapped", None)
        return not (mapped or ip).is_loopback
    return True
