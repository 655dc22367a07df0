"""An interface's address from the network: pyroute2's DHCP client, and what we do with what it is given.

The only home of pyroute2, whose own package pulls in sqlite3, unittest.mock and much else; its submodules, imported
below a bare package, need none of that and half the memory. Process 1 does not import this: dhcp is its own process.
"""

import asyncio
import importlib.util
import json
import logging
import os
import random
import re
import socket
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from multicall.lib import link
from multicall.lib.journal import RUN_FOLDER
from multicall.lib.log import Problem, reason


def _bare_package(name: str) -> None:
    """Put a package into sys.modules without running its __init__: its submodules can be imported from then on."""
    if name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(f"no package {name}", name=name)
    package = types.ModuleType(name)
    package.__spec__ = spec
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules[name] = package


def _stand_in(name: str, **attributes: object) -> None:
    """Put an empty module where there is none, for as long as pyroute2 is being imported."""
    if name not in sys.modules:
        module = types.ModuleType(name)
        module.__dict__.update(attributes, is_stand_in=True)
        sys.modules[name] = module


def _drop_stand_in(name: str) -> None:
    if hasattr(sys.modules.get(name), "is_stand_in"):
        del sys.modules[name]


_bare_package("pyroute2")
# Its socket module makes a Mock, its probe messages name ssl, both for uses that are not ours. The image has neither.
_stand_in("unittest", mock=types.SimpleNamespace(Mock=object))
_stand_in("ssl")

from pyroute2.dhcp.client import AsyncDHCPClient, ClientConfig  # noqa: E402  below the bare package
from pyroute2.dhcp.enums.dhcp import Option  # noqa: E402
from pyroute2.dhcp.fsm import State  # noqa: E402
from pyroute2.dhcp.hooks import Trigger, hook  # noqa: E402
from pyroute2.dhcp.leases import Lease  # noqa: E402
from pyroute2.iproute.linux import AsyncIPRoute  # noqa: E402
from pyroute2.netlink.exceptions import NetlinkError  # noqa: E402

_drop_stand_in("unittest")
_drop_stand_in("ssl")

RESOLV_CONF = ("/etc/resolv.conf", "/run/resolv.conf")
"""Where name servers are written: the first that can be."""

ROUTE_METRIC = 100
"""Of a default route, plus the interface's index: with several interfaces, the first one goes out."""

IFA_F_PERMANENT = 0x80  # linux/if_addr.h
MTU_LEAST = 576  # RFC 791: what every host must take
HOOK_TIMEOUT_S = 30.0
FIRST_RETRY_S, MOST_RETRY_S = 2.0, 64.0

WANTED = (
    Option.SUBNET_MASK,
    Option.ROUTER,
    Option.NAME_SERVER,
    Option.HOST_NAME,
    Option.DOMAIN_NAME,
    Option.INTERFACE_MTU,
    Option.BROADCAST_ADDRESS,
    Option.LEASE_TIME,
    Option.RENEWAL_TIME,
    Option.REBINDING_TIME,
)

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252}[A-Za-z0-9])?\Z")


class Settings(NamedTuple):
    """What a lease says, checked: it comes from the network. `lease_s` None is for ever."""

    address: str
    prefix_bits: int
    broadcast: str = ""
    gateway: str = ""
    name_servers: tuple[str, ...] = ()
    domain: str = ""
    hostname: str = ""
    mtu: int = 0
    lease_s: int | None = None


def _number_of(address: str) -> int:
    return int.from_bytes(socket.inet_aton(address), "big")


def _prefix_bits(address: str, mask: str) -> int:
    if mask:
        return _number_of(mask).bit_count()
    first = int(address.split(".")[0])
    return 8 if first < 128 else 16 if first < 192 else 24  # RFC 950: without a mask, the class decides


def _name(text: Any) -> str:
    if isinstance(text, bytes):
        text = text.decode("ascii", "replace")
    text = str(text or "").rstrip("\0").rstrip(".")
    return text if _NAME.match(text) else ""


def settings_of(ack: Mapping[str, Any]) -> Settings:
    """Read a server's answer as pyroute2 decodes it; what makes no sense is left out."""
    given = ack["options"]
    address = ack["yiaddr"]
    lease_s = int(given.get("lease_time", -1))
    mtu = int(given.get("interface_mtu") or 0)
    routers = given.get("router") or ()
    return Settings(
        address,
        _prefix_bits(address, given.get("subnet_mask") or ""),
        given.get("broadcast_address") or "",
        next((router for router in routers if router != "0.0.0.0"), ""),
        tuple(given.get("name_server") or ()),
        _name(given.get("domain_name")),
        _name(given.get("host_name")).split(".")[0],
        mtu if mtu >= MTU_LEAST else 0,
        None if lease_s < 0 else lease_s,
    )


def is_near(settings: Settings) -> bool:
    """Whether the gateway is in the subnet of the address, as it nearly always is."""
    shift = 32 - settings.prefix_bits
    return _number_of(settings.gateway) >> shift == _number_of(settings.address) >> shift


def resolv_conf(settings: Settings, interface: str) -> str:
    """The text of resolv.conf(5)."""
    search = [f"search {settings.domain}"] if settings.domain else []
    lines = [f"# dhcp {interface}", *search, *(f"nameserver {server}" for server in settings.name_servers)]
    return "\n".join(lines) + "\n"


def write_beside(path: str, text: str) -> None:
    """Replace a file's text in one step; whoever reads it sees the old or the new. Raises OSError."""
    path = os.path.realpath(path)
    beside = f"{path}.{os.getpid()}"
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(beside, path)
    except OSError:
        if os.path.exists(beside):
            os.unlink(beside)
        raise


def write_first(paths: tuple[str, ...], text: str) -> str:
    """Write the first of `paths` that can be written; returns which. Raises the last one's OSError."""
    for path in paths[:-1]:
        try:
            write_beside(path, text)
            return path
        except OSError:
            continue
    write_beside(paths[-1], text)
    return paths[-1]


def retries() -> Iterator[float]:
    """Seconds between a message and its repetition (RFC 2131 section 4.1, but sooner: a board waits for its first)."""
    delay_s = FIRST_RETRY_S
    while True:
        yield delay_s * random.uniform(0.9, 1.1)  # noqa: S311  no secret, only not all boards at once
        delay_s = min(delay_s * 2, MOST_RETRY_S)


class FileLease(Lease):  # type: ignore[misc]  # pyroute2 has no types
    """A lease kept in /run: a restarted client asks for the same address, and other programs can look."""

    @staticmethod
    def path(interface: str) -> str:
        """The file of an interface's lease."""
        return f"{RUN_FOLDER}/dhcp.{interface}.json"

    def dump(self) -> None:
        """See Lease. An error is logged by who calls this, and harmless."""
        os.makedirs(RUN_FOLDER, exist_ok=True)
        write_beside(self.path(self.interface), json.dumps(asdict(self), indent=1, default=str))

    @classmethod
    def load(cls, interface: str) -> "FileLease | None":
        """See Lease."""
        try:
            with open(cls.path(interface), encoding="utf-8") as file:
                lease = cls(**json.load(file))
                return None if lease.expired else lease
        except (OSError, ValueError, TypeError, KeyError, LookupError):
            return None


async def apply(interface: str, settings: Settings) -> None:
    """Give the interface what the lease says. The kernel itself drops the address when nobody renews it in time.

    Raises OSError and NetlinkError.
    """
    async with AsyncIPRoute() as routes:
        index = (await routes.link_lookup(ifname=interface))[0]
        if settings.mtu:
            await routes.link("set", index=index, mtu=settings.mtu)
        lifetime = {"valid_lft": settings.lease_s, "preferred_lft": settings.lease_s} if settings.lease_s else {}
        broadcast = {"broadcast": settings.broadcast} if settings.broadcast else {}
        await routes.addr(
            "replace", index=index, address=settings.address, prefixlen=settings.prefix_bits, **broadcast, **lifetime
        )
        await _drop_stale(routes, index, keep=settings.address)
        if settings.gateway:
            far = {} if is_near(settings) else {"flags": ["onlink"]}
            await routes.route(
                "replace", dst="default", gateway=settings.gateway, oif=index, priority=ROUTE_METRIC + index, **far
            )


async def withdraw(interface: str) -> None:
    """Take the address of a lease away, and with it the kernel its routes. Raises OSError and NetlinkError."""
    async with AsyncIPRoute() as routes:
        found = await routes.link_lookup(ifname=interface)
        if found:
            await _drop_stale(routes, found[0], keep="")


async def _drop_stale(routes: Any, index: int, keep: str) -> None:
    """Remove addresses of earlier leases: those with a lifetime. What a person set by hand has none."""
    stale = [
        (entry.get("address"), entry["prefixlen"])
        async for entry in await routes.addr("dump", family=socket.AF_INET, index=index)
        if not entry["flags"] & IFA_F_PERMANENT and entry.get("address") != keep
    ]
    for address, bits in stale:
        await routes.addr("del", index=index, address=address, prefixlen=bits)


class _Keeper:
    """What is done when a lease comes, changes and goes. pyroute2 calls it, one call at a time."""

    def __init__(self, interface: str, say: Callable[[str], None]) -> None:
        self._interface = interface
        self._say = say
        self._current: Settings | None = None
        self.applied = asyncio.Event()

    async def take(self, lease: Lease) -> None:
        """A lease has come or was renewed."""
        settings = settings_of(lease.ack)
        is_new = settings != self._current
        await self._try("configure", apply(self._interface, settings))
        if is_new:
            self._current = settings
            self._set_names(settings)
            self._say(describe(self._interface, settings))
        self.applied.set()

    async def leave(self, lease: Lease) -> None:
        """The lease is no longer ours."""
        self._current = None
        self._say(f"{self._interface}: lost {lease.ip}")
        await self._try("unconfigure", withdraw(self._interface))

    async def _try(self, what: str, act: Any) -> None:
        try:
            await act
        except NetlinkError as error:
            self._say(f"{what} {self._interface}: {os.strerror(error.code)}")
        except (OSError, IndexError) as error:
            self._say(f"{what} {self._interface}: {reason(error)}")

    def _set_names(self, settings: Settings) -> None:
        if settings.name_servers:
            try:
                write_first(RESOLV_CONF, resolv_conf(settings, self._interface))
            except OSError as error:
                self._say(f"write {RESOLV_CONF[-1]}: {reason(error)}")
        if settings.hostname and socket.gethostname() in ("", "(none)", "localhost"):
            try:
                socket.sethostname(settings.hostname)
            except OSError as error:
                self._say(f"set hostname {settings.hostname}: {reason(error)}")


def describe(interface: str, settings: Settings) -> str:
    """A lease in a line."""
    parts = [f"{interface}: {settings.address}/{settings.prefix_bits}"]
    if settings.gateway:
        parts.append(f"gateway {settings.gateway}")
    if settings.name_servers:
        parts.append(f"names from {' '.join(settings.name_servers)}")
    parts.append("for ever" if settings.lease_s is None else f"for {settings.lease_s} s")
    return ", ".join(parts)


def _config(interface: str, keeper: _Keeper) -> ClientConfig:
    name = socket.gethostname()
    return ClientConfig(
        interface=interface,
        lease_type=FileLease,
        hooks=(
            hook(Trigger.BOUND, Trigger.RENEWED, Trigger.REBOUND)(keeper.take),
            hook(Trigger.UNBOUND, Trigger.EXPIRED)(keeper.leave),
        ),
        requested_parameters=WANTED,
        retransmission=retries,
        # The board comes back to the address that it had; and what a link that is down cannot send, is not sent.
        release=False,
        hook_timeout=HOOK_TIMEOUT_S,
        vendor_id="pycpu",
        host_name=name if _name(name) else None,
    )


async def keep(
    interface: str, say: Callable[[str], None], once: bool = False, timeout_s: float | None = None, debug: bool = False
) -> None:
    """Configure the interface by DHCP, and as long as it exists keep it configured; with `once`, until it is.

    Raises Problem when there is no such interface (any more), when `timeout_s` is over, or when the client failed in
    a way that only a new one can mend: who runs it starts it again.
    """
    logging.basicConfig(format="dhcp: %(message)s", level=logging.ERROR)
    logging.getLogger("pyroute2.dhcp").setLevel(logging.DEBUG if debug else logging.ERROR)
    try:
        link.switch_on(interface)
    except OSError as error:
        raise Problem(f"switch on {interface}: {reason(error)}") from error
    keeper = _Keeper(interface, say)
    changed = asyncio.Event()
    watch = link.Watch()

    def look() -> None:
        watch.drain()
        changed.set()

    loop = asyncio.get_running_loop()
    loop.add_reader(watch.fileno(), look)
    try:
        async with asyncio.timeout(timeout_s):
            while not (once and keeper.applied.is_set()):
                await _until(lambda: link.has_carrier(interface), interface, changed)
                await _lease(interface, keeper, changed, once)
    except TimeoutError:
        raise Problem(f"configure {interface}: no answer in {timeout_s:g} s") from None
    finally:
        loop.remove_reader(watch.fileno())
        watch.close()


async def _until(condition: Callable[[], bool], interface: str, changed: asyncio.Event) -> None:
    """Wait until it is true, looking whenever a link changes. Raises Problem when the interface has gone."""
    while not condition():
        if not link.exists(interface):
            raise Problem(f"interface {interface}: has gone")
        changed.clear()
        await changed.wait()


async def _lease(interface: str, keeper: _Keeper, changed: asyncio.Event, once: bool) -> None:
    """Run the client until the link is lost, or with `once` until there is a lease. Raises Problem."""
    client = AsyncDHCPClient(_config(interface, keeper))
    async with client:
        await client.bootstrap()
        lost = asyncio.ensure_future(_until(lambda: not link.has_carrier(interface), interface, changed))
        # These two end early by an error only, which nothing of pyroute2 would tell us before the end.
        waits = {lost, client._sender_task, client._receiver_task}
        if once:
            waits.add(asyncio.ensure_future(keeper.applied.wait()))
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits - {client._sender_task, client._receiver_task}:
                wait.cancel()
        for ended in done:
            error = ended.exception()
            if isinstance(error, Problem):
                raise error
            if error or ended in (client._sender_task, client._receiver_task):
                raise Problem(f"configure {interface}: {reason(error) if error else 'the network is down'}")
        if client.state == State.OFF:
            raise Problem(f"configure {interface}: the client stopped")
