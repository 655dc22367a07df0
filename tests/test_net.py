"""What a lease means, and DHCP for real: a server in one network namespace, our client in another."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from multicall.lib import net

TOP = Path(__file__).resolve().parent.parent

needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("busybox") or not shutil.which("ip"), reason="needs root, busybox and ip"
)


def answer(**options: Any) -> dict[str, Any]:
    return {"yiaddr": "10.9.0.20", "options": {"subnet_mask": "255.255.255.0", "lease_time": 600, **options}}


def test_a_full_answer() -> None:
    settings = net.settings_of(
        answer(
            router=["0.0.0.0", "10.9.0.1"],
            name_server=["10.9.0.2", "10.9.0.3"],
            domain_name=b"example.org.\0",
            host_name="lamp.example.org",
            interface_mtu=1400,
            broadcast_address="10.9.0.255",
        )
    )
    assert settings == net.Settings(
        "10.9.0.20", 24, "10.9.0.255", "10.9.0.1", ("10.9.0.2", "10.9.0.3"), "example.org", "lamp", 1400, 600
    )
    assert net.is_near(settings)
    assert not net.is_near(settings._replace(gateway="10.8.0.1"))
    assert net.resolv_conf(settings, "eth0").splitlines()[1:] == [
        "search example.org",
        "nameserver 10.9.0.2",
        "nameserver 10.9.0.3",
    ]


def test_a_bare_or_hostile_answer() -> None:
    bare = net.settings_of({"yiaddr": "172.16.0.9", "options": {"lease_time": -1}})
    assert (bare.prefix_bits, bare.gateway, bare.lease_s, bare.mtu) == (16, "", None, 0)
    hostile = net.settings_of(answer(domain_name="x\nnameserver 6.6.6.6", host_name="a b", interface_mtu=68))
    assert (hostile.domain, hostile.hostname, hostile.mtu) == ("", "", 0)


def test_retries_grow_and_stop_growing() -> None:
    waits = [wait for wait, _ in zip(net.retries(), range(9), strict=False)]
    assert 1.8 <= waits[0] <= 2.2
    assert all(57 <= wait <= 71 for wait in waits[5:])


def test_writing_beside(tmp_path: Path) -> None:
    target = tmp_path / "resolv.conf"
    assert net.write_first((str(tmp_path / "no/where"), str(target)), "a\n") == str(target)
    (tmp_path / "link").symlink_to(target)
    net.write_beside(str(tmp_path / "link"), "b\n")
    assert target.read_text() == "b\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "resolv.conf"]


def test_only_what_is_needed_of_pyroute2_is_loaded() -> None:
    loaded = python("import sys; from multicall.lib import net; print(*sys.modules)")
    assert not {"sqlite3", "unittest", "unittest.mock", "pyroute2.ndb.main"} & set(loaded.split())


def test_it_does_without_what_an_image_has_not() -> None:
    # None in sys.modules is a module that cannot be found; what stood in for them must not stay.
    absent = "import sys; sys.modules.update(_ssl=None, _lzma=None, _bz2=None, sqlite3=None)"
    got = python(
        f"{absent}; import asyncio; from multicall.lib import net; print('ssl' in sys.modules, net.State.BOUND)"
    )
    assert got == "False 6\n"


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=TOP, capture_output=True, text=True, check=True).stdout


def until(condition: Callable[[], object], what: str, timeout_s: float = 20) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.05)
    return found


class Wire:
    """Two network namespaces and a cable: v0 is the DHCP server's, v1 the board's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []

    def lay(self) -> None:
        own = os.readlink("/proc/self/ns/net")
        self.server, self.board = (self._start("unshare", "-m", "-n", "-u", "sleep", "600") for _ in range(2))
        for process in (self.server, self.board):
            until(lambda pid=process.pid: os.readlink(f"/proc/{pid}/ns/net") != own, "a namespace")
        self.on(self.server, "ip", "link", "add", "v0", "type", "veth", "peer", "v1", "netns", str(self.board.pid))
        self.on(self.server, "ip", "addr", "add", "10.9.0.1/24", "dev", "v0")
        self.on(self.server, "ip", "link", "set", "v0", "up")
        self.on(self.board, "mount", "-t", "tmpfs", "tmpfs", "/run")
        self.on(self.board, "mkdir", "/run/etc", "/run/work")
        overlay = "lowerdir=/etc,upperdir=/run/etc,workdir=/run/work"
        self.on(self.board, "mount", "-t", "overlay", "-o", overlay, "overlay", "/etc")
        self.on(self.board, "hostname", "localhost")

    def _start(self, *command: str, **streams: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, **streams)
        self.processes.append(process)
        return process

    def on(self, where: subprocess.Popen[bytes], *command: str) -> str:
        enter = ["nsenter", "-m", "-n", "-u", "-t", str(where.pid)]
        done = subprocess.run([*enter, *command], capture_output=True, text=True, check=False, cwd=TOP, timeout=30)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def serve(self, first: int, lease_s: int = 600) -> subprocess.Popen[bytes]:
        (self.folder / "leases").write_text("")
        (self.folder / "udhcpd.conf").write_text(
            f"start 10.9.0.{first}\nend 10.9.0.{first + 9}\nmax_leases 10\ninterface v0\nmin_lease 1\n"
            f"lease_file {self.folder}/leases\npidfile {self.folder}/pid\noption subnet 255.255.255.0\n"
            "option router 10.9.0.1\noption dns 10.9.0.2 10.9.0.3\noption domain example.org\noption mtu 1400\n"
            f"option hostname lamp\noption lease {lease_s}\n"
        )
        log = (self.folder / "udhcpd.log").open("ab")
        enter = ["nsenter", "-n", "-t", str(self.server.pid)]
        server = self._start(
            *enter, "busybox", "udhcpd", "-f", str(self.folder / "udhcpd.conf"), stdout=log, stderr=log
        )
        log.close()
        return server

    def client(self, *arguments: str) -> subprocess.Popen[bytes]:
        enter = ["nsenter", "-m", "-n", "-u", "-t", str(self.board.pid), f"--wd={TOP}"]
        command = [*enter, sys.executable, "-m", "multicall", "dhcp", *arguments]
        return self._start(*command, stderr=subprocess.PIPE)

    def addresses(self) -> list[dict[str, Any]]:
        links = json.loads(self.on(self.board, "ip", "-j", "-4", "addr", "show", "dev", "v1"))
        found: list[dict[str, Any]] = links[0]["addr_info"] if links else []
        return found

    def address(self) -> str:
        return ",".join(entry["local"] for entry in self.addresses())

    def served(self) -> str:
        return (self.folder / "udhcpd.log").read_text()

    def close(self) -> None:
        for process in reversed(self.processes):
            process.kill()
            process.wait()
            if process.stderr:
                process.stderr.close()


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    made = Wire(tmp_path)
    try:
        made.lay()
        yield made
    finally:
        made.close()


def ended(client: subprocess.Popen[bytes]) -> tuple[int, str]:
    return client.wait(20), (client.stderr.read() if client.stderr else b"").decode()


@pytest.mark.root
@needs_namespaces
def test_once(wire: Wire) -> None:
    wire.serve(20)
    status, text = ended(wire.client("-1", "v1"))
    assert status == 0, text
    entry = wire.addresses()[0]
    assert entry["local"].startswith("10.9.0.2")
    assert (entry["prefixlen"], entry["dynamic"]) == (24, True)
    assert 590 <= entry["valid_life_time"] <= 600
    assert text == f"dhcp: v1: {entry['local']}/24, gateway 10.9.0.1, names from 10.9.0.2 10.9.0.3, for 600 s\n"
    route = json.loads(wire.on(wire.board, "ip", "-j", "route", "show", "default"))[0]
    assert (route["gateway"], route["dev"]) == ("10.9.0.1", "v1")
    assert json.loads(wire.on(wire.board, "ip", "-j", "link", "show", "v1"))[0]["mtu"] == 1400
    assert "search example.org\nnameserver 10.9.0.2\n" in wire.on(wire.board, "cat", "/etc/resolv.conf")
    assert wire.on(wire.board, "hostname") == "lamp\n"
    wire.on(wire.board, "busybox", "ping", "-c1", "-W5", "10.9.0.1")


@pytest.mark.root
@needs_namespaces
def test_it_renews_follows_the_cable_and_a_new_server(wire: Wire) -> None:
    server = wire.serve(20, lease_s=4)
    client = wire.client("v1")
    until(wire.address, "an address")
    first = wire.address()
    until(lambda: wire.served().count("sending ACK") >= 3, "two renewals")
    assert wire.address() == first
    # The cable is pulled, and put in where the network is another.
    wire.on(wire.server, "ip", "link", "set", "v0", "down")
    server.send_signal(signal.SIGTERM)
    server.wait()
    wire.serve(40)
    wire.on(wire.server, "ip", "link", "set", "v0", "up")
    until(lambda: wire.address().startswith("10.9.0.4"), "an address of the new network, and no other")
    assert client.poll() is None
    wire.on(wire.server, "ip", "link", "del", "v0")
    status, text = ended(client)
    assert status == 255
    assert text.endswith("dhcp: interface v1: has gone\n")
    assert "Traceback" not in text


@pytest.mark.root
@needs_namespaces
def test_nobody_answers(wire: Wire) -> None:
    assert ended(wire.client("-1", "-t", "500ms", "v1")) == (255, "dhcp: configure v1: no answer in 0.5 s\n")
    assert ended(wire.client("v7")) == (255, "dhcp: switch on v7: No such device\n")
