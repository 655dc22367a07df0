"""The client's ssh: which board, which port, which key and whose host key, each decided here, once; and the connection.

The only home of asyncssh beside ssh_server.py.
"""

import asyncio
import base64
import contextlib
import getpass
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import asyncssh

from multicall.lib import contract, transport
from multicall.lib.log import Problem, reason, say

WINDOW_BYTES = 16 << 20
"""A channel's receive window. ssh's usual 2 MiB stalls a 9P stream on a long link: bandwidth times delay."""

ALGORITHMS: dict[str, Any] = {
    # The AES of the processor first: three times the throughput of asyncssh's own first choice (see ARCHITECTURE.md).
    "encryption_algs": [
        "aes128-gcm@openssh.com",
        "aes256-gcm@openssh.com",
        "chacha20-poly1305@openssh.com",
        "aes256-ctr",
        "aes192-ctr",
        "aes128-ctr",
    ],
}

KEEPALIVE_S = 15
KEEPALIVE_COUNT = 3


class Options(NamedTuple):
    """What the command line says about the connection; None and () are "not said"."""

    host: str
    user: str | None = None
    port: str | None = None
    network: str = "tcp"
    key: str | None = None
    use_key: bool = True
    host_key: str | None = None
    config: Sequence[str] | None = None
    connect_timeout_s: float = 15.0


class Target(NamedTuple):
    """Where to connect and as whom, after the command line, ssh_config and our defaults, in this order."""

    host: str
    port: str
    user: str
    shown: str


class HostKeys:
    """Decides about a board's host key: pinned (-hk), known, new or changed. `problem` says why one was refused."""

    def __init__(self, name: str, pinned: str | None, files: Sequence[str]) -> None:
        self._name = name
        self.files = files
        self.problem: Problem | None = None
        self._pinned_path = pinned
        self._pinned: list[asyncssh.SSHKey] = []
        if pinned is not None:
            self._pinned = [_read_public_key(pinned)]
            self.known = asyncssh.import_known_hosts("")
        else:
            try:
                self.known = asyncssh.read_known_hosts([path for path in files if os.path.exists(path)])
            except (OSError, ValueError) as error:
                raise Problem(f"read known hosts {', '.join(files)}: {reason(error)}") from error

    def trusted(self, host: str = "", addr: str = "", port: int | None = None) -> Sequence[Sequence[Any]]:
        """What asyncssh may trust without asking; has the shape of a known_hosts callable of its.

        By the one name alone, port included: a key known for the same host's sshd says nothing about its cpud.
        """
        return (self._pinned, [], []) if self._pinned else self.known.match(self._name, "", None)

    def decide(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Judge a key that is not among the trusted: record a new host's, refuse every other one."""
        if self._pinned:
            self.problem = Problem(
                f"host key of {self._name}: {key.get_fingerprint()} is not the one in {self._pinned_path}, "
                f"{self._pinned[0].get_fingerprint()}",
                "another board, or somebody between; if the board was made anew, give -hk its new key",
            )
            return False
        known = self.trusted()[0]
        if known:
            places = ", ".join(_lines_with(self.files, known)) or ", ".join(self.files)
            old = ", ".join(each.get_fingerprint() for each in known)
            self.problem = Problem(
                f"host key of {self._name} has changed: it is {key.get_fingerprint()}, known is {old}",
                f"somebody between, or a board made anew; if that, remove {places}",
            )
            return False
        self._record(key)
        return True

    def _record(self, key: asyncssh.SSHKey) -> None:
        path = self.files[0]
        line = self._name.encode() + b" " + key.export_public_key().strip().rsplit(b" ", 0)[0] + b"\n"
        try:
            os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
            with open(path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(line)
        except OSError as error:
            say(f"cpu: remember the host key of {self._name} in {path}: {reason(error)}\n")
            return
        with contextlib.suppress(OSError):
            if os.isatty(2):
                say(f"cpu: first time at {self._name}: its host key {key.get_fingerprint()} is now in {path}\n")


def known_name(network: str, host: str, port: str) -> str:
    """A board as known_hosts writes it (sshd(8)); what is no TCP has the network's name in front of its address."""
    if network == "unix":
        return f"unix:{host}"
    prefix = "" if network in transport.FAMILIES else f"{network}:"
    return f"{prefix}{host}" if port == "22" else f"[{prefix}{host}]:{port}"


def _lines_with(files: Sequence[str], keys: Sequence[asyncssh.SSHKey]) -> list[str]:
    wanted = {base64.b64encode(key.public_data) for key in keys}
    places = []
    for path in files:
        with contextlib.suppress(OSError), open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if wanted & set(line.split()):
                    places.append(f"line {number} of {path}")
    return places


def _read_public_key(path: str) -> asyncssh.SSHKey:
    try:
        with open(path, "rb") as file:
            text = file.read()
        try:
            return asyncssh.import_public_key(text)
        except asyncssh.KeyImportError:
            return asyncssh.import_private_key(text).convert_to_public()
    except (OSError, asyncssh.KeyImportError) as error:
        raise Problem(f"read host key {path}: {reason(error)}") from error


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def read_client_key(path: str) -> asyncssh.SSHKeyPair:
    """Read an identity, asking for its passphrase on the terminal when it has one. Raises Problem."""
    passphrase: str | None = None
    for attempt in range(4):
        try:
            return asyncssh.load_keypairs([path], passphrase)[0]
        except (asyncssh.KeyEncryptionError, asyncssh.KeyImportError) as error:
            encrypted = isinstance(error, asyncssh.KeyEncryptionError) or "passphrase" in str(error).lower()
            if not encrypted or attempt == 3:
                raise Problem(f"read key {path}: {reason(error)}") from error
            if not _has_terminal():
                raise Problem(f"read key {path}: it has a passphrase and there is no terminal to ask on") from error
            passphrase = getpass.getpass(f"Passphrase for {path}: ")
        except OSError as error:
            raise Problem(f"read key {path}: {reason(error)}") from error
    raise AssertionError


class Client(asyncssh.SSHClient):
    """What asyncssh asks of a client: about the host key."""

    def __init__(self, host_keys: HostKeys) -> None:
        self._host_keys = host_keys

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        return self._host_keys.decide(host, addr, port, key)


class Connection(NamedTuple):
    """An authenticated connection, and where it leads."""

    ssh: asyncssh.SSHClientConnection
    target: Target


def _options(options: Options) -> asyncssh.SSHClientConnectionOptions:
    """asyncssh's options: ssh_config under what the command line says."""
    given: dict[str, Any] = {"host": options.host, **ALGORITHMS}
    if options.config is not None:
        given["config"] = list(options.config)
    if options.user:
        given["username"] = options.user
    if not options.use_key:
        given.update(client_keys=None, agent_path=None, preferred_auth=["none"])
    elif options.key:
        given.update(client_keys=[read_client_key(options.key)], agent_path=None)
    given["compression_algs"] = None
    given["connect_timeout"] = None
    try:
        return asyncssh.SSHClientConnectionOptions(**given)
    except (OSError, ValueError, asyncssh.Error) as error:
        raise Problem(f"ssh configuration for {options.host}: {reason(error)}") from error


def resolve(options: Options) -> tuple[Target, asyncssh.SSHClientConnectionOptions]:
    """Decide host, port and user. The port is 17010 unless the command line or ssh_config says otherwise."""
    ssh_options = _options(options)
    config = ssh_options.config
    host = str(config.get("Hostname", options.host)) if options.network.startswith("tcp") else options.host
    port = options.port or str(config.get("Port", contract.DEFAULT_PORT))
    if options.network in ("unix",):
        shown = host
    else:
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return Target(host, port, str(ssh_options.username), shown), ssh_options


def known_hosts_files(ssh_options: asyncssh.SSHClientConnectionOptions) -> Sequence[str]:
    """UserKnownHostsFile, or where OpenSSH keeps it."""
    named: Any = ssh_options.config.get("UserKnownHostsFile", ())
    files = [named] if isinstance(named, str) else list(named)
    return [os.path.expanduser(path) for path in files] or [
        os.path.expanduser("~/.ssh/known_hosts"),
        os.path.expanduser("~/.ssh/known_hosts2"),
    ]


async def connect(options: Options) -> Connection:
    """Dial, check the host key, authenticate. Raises Problem for whatever goes wrong, saying what, where and why."""
    target, ssh_options = resolve(options)
    name = known_name(options.network, str(ssh_options.config.get("HostKeyAlias", target.host)), target.port)
    host_keys = HostKeys(name, options.host_key, known_hosts_files(ssh_options))
    sock = await transport.dial(options.network, target.host, target.port, options.connect_timeout_s)
    port = int(target.port) if target.port.isdigit() else 0
    extra: dict[str, Any] = {}
    legacy = os.path.expanduser("~/.ssh/cpu_rsa")
    if options.use_key and not options.key and os.path.exists(legacy) and not ssh_options.config.get("IdentityFile"):
        # u-root/cpu's default identity comes last, after ssh's own.
        own = [f"~/.ssh/id_{kind}" for kind in ("ed25519", "ecdsa", "rsa")]
        present = [path for path in map(os.path.expanduser, own) if os.path.exists(path)]
        extra["client_keys"] = [read_client_key(path) for path in (*present, legacy)]
    try:
        async with asyncio.timeout(max(options.connect_timeout_s, 1) * 2):
            connection = await asyncssh.connect(
                options.host,
                port,
                sock=sock,
                client_factory=lambda: Client(host_keys),
                options=asyncssh.SSHClientConnectionOptions(
                    ssh_options,
                    known_hosts=host_keys.trusted,
                    keepalive_interval=KEEPALIVE_S,
                    keepalive_count_max=KEEPALIVE_COUNT,
                    **extra,
                ),
            )
    except TimeoutError as error:
        sock.close()
        raise Problem(
            f"connect to {target.shown}: no answer from an ssh server", "does the board run cpud on this port?"
        ) from error
    except asyncssh.PermissionDenied as error:
        raise Problem(
            f"log in to {target.shown} as {target.user}: no key was accepted",
            "-key FILE chooses one; the board knows the keys in its authorized_keys (cpud -pk)",
        ) from error
    except (OSError, asyncssh.Error, ValueError) as error:
        if host_keys.problem:
            raise host_keys.problem from error
        raise Problem(f"connect to {target.shown}: {reason(error)}") from error
    return Connection(connection, target)
