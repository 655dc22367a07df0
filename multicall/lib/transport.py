"""Networks by name: how to dial a board and how to listen on one. A network is a row of each table.

The names are u-root/cpu's -net: tcp, tcp4, tcp6, unix (the host is a path, "@" begins an abstract one), vsock (the host
is a CID), unix-vsock (Firecracker's socket: the host is its path).
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable

from multicall.lib.log import Problem, reason

BACKLOG = 64
HANDSHAKE_BYTES = 64
"""More than any answer of Firecracker's, which is "OK" and a port."""

FAMILIES = {"tcp": socket.AF_UNSPEC, "tcp4": socket.AF_INET, "tcp6": socket.AF_INET6}


def port_number(port: str, highest: int = 0xFFFF) -> int:
    """Read a port. Raises Problem."""
    if not port.isdigit() or int(port) > highest:
        raise Problem(f"port {port}: not a number from 0 to {highest}")
    return int(port)


def unix_address(path: str) -> str | bytes:
    """A unix socket's address: a leading "@" is the abstract namespace (unix(7))."""
    return b"\0" + os.fsencode(path[1:]) if path.startswith("@") else path


async def _dial_tcp(network: str, host: str, port: str) -> socket.socket:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port_number(port), family=FAMILIES[network], type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise Problem(f"look up {host}: {error.strerror}") from error
    failure: OSError | None = None
    for family, kind, protocol, _, address in found:
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, address)
            return sock
        except OSError as error:
            sock.close()
            failure = failure or error
        except BaseException:
            sock.close()
            raise
    raise failure or OSError(f"{host} has no address")


async def _connect(sock: socket.socket, address: object) -> socket.socket:
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, address)  # type: ignore[arg-type]
    except BaseException:
        sock.close()
        raise
    return sock


async def _dial_unix(network: str, host: str, port: str) -> socket.socket:
    return await _connect(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), unix_address(host))


async def _dial_vsock(network: str, host: str, port: str) -> socket.socket:
    if not host.isdigit():
        raise Problem(f"vsock {host}: the host of a vsock is a CID, a number")
    address = (int(host), port_number(port, 0xFFFFFFFF))
    return await _connect(socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM), address)


async def _dial_unix_vsock(network: str, host: str, port: str) -> socket.socket:
    sock = await _dial_unix(network, host, port)
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_sendall(sock, b"CONNECT %d\n" % port_number(port, 0xFFFFFFFF))
        answer = b""
        # A byte at a time: what follows the line is already ssh's.
        while not answer.endswith(b"\n") and len(answer) < HANDSHAKE_BYTES:
            byte = await loop.sock_recv(sock, 1)
            if not byte:
                break
            answer += byte
        if not answer.startswith(b"OK ") or not answer.endswith(b"\n"):
            raise Problem(f"unix-vsock {host}: port {port}: refused by the VMM: {answer.decode('latin-1').strip()!r}")
    except BaseException:
        sock.close()
        raise
    return sock


DIAL: dict[str, Callable[[str, str, str], Awaitable[socket.socket]]] = {
    "tcp": _dial_tcp,
    "tcp4": _dial_tcp,
    "tcp6": _dial_tcp,
    "unix": _dial_unix,
    "vsock": _dial_vsock,
    "unix-vsock": _dial_unix_vsock,
}


async def dial(network: str, host: str, port: str, timeout_s: float) -> socket.socket:
    """Connect to a board. The socket is the caller's. Raises Problem."""
    if network not in DIAL:
        raise Problem(f"network {network}: not one of {', '.join(DIAL)}")
    shown = host if network.startswith("unix") and network != "unix-vsock" else f"{host}:{port}"
    try:
        async with asyncio.timeout(timeout_s):
            return await DIAL[network](network, host, port)
    except TimeoutError as error:
        raise Problem(f"connect to {shown}: no answer for {timeout_s:g} s") from error
    except ConnectionRefusedError as error:
        raise Problem(
            f"connect to {shown}: {reason(error)}", "nothing listens there: is cpud running, and on this port?"
        ) from error
    except OSError as error:
        raise Problem(f"connect to {shown}: {reason(error)}") from error


def _listen_tcp(network: str, port: str) -> socket.socket:
    number = port_number(port)
    if network == "tcp4" or (network == "tcp" and not _has_ipv6()):
        return socket.create_server(("0.0.0.0", number), backlog=BACKLOG)
    return socket.create_server(
        ("::", number), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=network == "tcp"
    )


def _has_ipv6() -> bool:
    return socket.has_dualstack_ipv6() and os.path.exists("/proc/net/if_inet6")


def _listen_unix(network: str, port: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(unix_address(port))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _listen_vsock(network: str, port: str) -> socket.socket:
    sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        sock.bind((socket.VMADDR_CID_ANY, port_number(port, 0xFFFFFFFF)))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


LISTEN: dict[str, Callable[[str, str], socket.socket]] = {
    "tcp": _listen_tcp,
    "tcp4": _listen_tcp,
    "tcp6": _listen_tcp,
    "unix": _listen_unix,
    "vsock": _listen_vsock,
}


def listen(network: str, port: str) -> socket.socket:
    """Listen on every address of a network; for unix the port is the path. The socket is the caller's."""
    if network not in LISTEN:
        raise Problem(f"network {network}: cannot listen there, only on {', '.join(LISTEN)}")
    try:
        return LISTEN[network](network, port)
    except OSError as error:
        raise Problem(f"listen on {network} {port}: {reason(error)}") from error


def remove(network: str, port: str) -> None:
    """Take away what a listener leaves in the file system."""
    if network == "unix" and not port.startswith("@"):
        with contextlib.suppress(OSError):
            os.unlink(port)
