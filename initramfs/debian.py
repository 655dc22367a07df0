"""Debian packages of a board's architecture: downloaded once, verified by apt, unpacked without being installed.

apt runs on a configuration of its own: the architecture, the lists, the caches and the sources are ours, the machine's
are neither read nor changed. The machine's sources only tell which mirror it uses; foreign repositories in them are
left alone. What was downloaded is kept in an index, so that later builds need no network and get the same versions.
"""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from initramfs.lock import locked
from initramfs.problem import Problem, reason

RELEASE = "bookworm"
"""The Debian release that boards are made of: its python3.11 is the one everything else is chosen for."""
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
DEFAULT_MIRRORS = {"debian": "http://deb.debian.org/debian", "debian-security": "http://deb.debian.org/debian-security"}
"""Used when the machine's own sources name no mirror of that archive. Packages are signed: the way need not be."""
MACHINE_SOURCES = "/etc/apt"


class Package(NamedTuple):
    """A downloaded package. `folder` is where its files lie unpacked."""

    name: str
    version: str
    architecture: str
    sha256: str
    folder: str


def source_uris(text: str) -> Iterator[str]:
    """Yield the URIs of a sources file, of the one-line style or the deb822 style."""
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["deb"]:
            yield next((word for word in words[1:] if "://" in word), "")
        elif words[:1] == ["URIs:"]:
            yield from words[1:]


def mirrors(folder: str = MACHINE_SOURCES) -> dict[str, str]:
    """Return the URI of each Debian archive: the machine's own mirror where it names one."""
    found = dict(DEFAULT_MIRRORS)
    paths = [os.path.join(folder, "sources.list")]
    with contextlib.suppress(OSError):
        listed = sorted(os.listdir(os.path.join(folder, "sources.list.d")))
        paths += [
            os.path.join(folder, "sources.list.d", name) for name in listed if name.endswith((".list", ".sources"))
        ]
    own: dict[str, str] = {}
    for path in paths:
        with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
            for uri in source_uris(file.read()):
                parts = urlsplit(uri)
                archive = parts.path.rstrip("/").rpartition("/")[2]
                if archive in found and parts.scheme in ("http", "https"):
                    own.setdefault(archive, uri.rstrip("/"))
    return found | own


def sources(uris: dict[str, str]) -> str:
    """Return a deb822 sources file of RELEASE with its updates and security fixes."""
    rows = (
        (uris["debian"], f"{RELEASE} {RELEASE}-updates"),
        (uris["debian-security"], f"{RELEASE}-security"),
    )
    return "\n".join(
        f"Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main\nSigned-By: {KEYRING}\n" for uri, suites in rows
    )


def run(command: Sequence[str], what: str, hint: str = "", cwd: str | None = None) -> str:
    """Run a program quietly; return its output. Raises Problem with the last of what it said when it fails."""
    try:
        result = subprocess.run(
            command, cwd=cwd, env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise Problem(f"{what}: run {command[0]}: {reason(error)}", hint) from error
    if result.returncode:
        said = (result.stderr.strip() or result.stdout.strip()).splitlines()
        errors = [line for line in said if line.startswith("E:")] or said
        raise Problem(f"{what}: {'; '.join(errors[-3:]) or f'exit status {result.returncode}'}", hint)
    return result.stdout


def _home(cache: str, architecture: str) -> str:
    return os.path.abspath(os.path.join(cache, "debian", f"{RELEASE}-{architecture}"))


def index_path(cache: str, architecture: str) -> str:
    """Where a cache keeps which versions it has of an architecture: as long as it is the same, so are the packages."""
    return os.path.join(_home(cache, architecture), "index.json")


class Archive:
    """The packages of one architecture, in a cache folder that several builds may share. Not for several threads."""

    def __init__(self, cache: str, architecture: str, progress: Callable[[str], None]) -> None:
        self.architecture = architecture
        self._top = _home(cache, architecture)
        self._index = index_path(cache, architecture)
        self._progress = progress
        self._is_fresh = False

    def fetch(self, names: Sequence[str]) -> list[Package]:
        """Return the named packages, unpacked; what is not in the cache is downloaded. Raises Problem."""
        with locked(self._top):
            index = self._read_index()
            missing = [name for name in names if name not in index]
            if missing:
                index |= self._download(missing)
                self._write_index(index)
            return [self._unpack(name, index[name]) for name in names]

    def fetch_kernel(self, name: str) -> Package:
        """Return a kernel's real package, given it or the one that only depends on it. Raises Problem."""
        for _ in range(3):
            package = self.fetch([name])[0]
            if os.path.isdir(os.path.join(package.folder, "boot")):
                return package
            path = self._deb(self._read_index()[name])
            depends = run(["dpkg-deb", "-f", path, "Depends"], f"read package {name}")
            following = [word.split()[0] for word in depends.split(",") if word.strip().startswith("linux-image-")]
            if not following:
                break
            name = following[0]
        raise Problem(f"kernel {name}: this package has no kernel in it")

    def _read_index(self) -> dict[str, dict[str, str]]:
        try:
            with open(self._index, encoding="utf-8") as file:
                index: dict[str, dict[str, str]] = json.load(file)
        except (OSError, ValueError):
            return {}
        return {name: row for name, row in index.items() if os.path.exists(self._deb(row))}

    def _write_index(self, index: dict[str, dict[str, str]]) -> None:
        with open(f"{self._index}.new", "w", encoding="utf-8") as file:
            json.dump(index, file, indent=1, sort_keys=True)
        os.replace(f"{self._index}.new", self._index)

    def _deb(self, row: dict[str, str]) -> str:
        return os.path.join(self._top, "archives", row["file"])

    def _configure(self) -> str:
        """Write apt's configuration and sources; return the configuration's path."""
        if not shutil.which("apt-get"):
            raise Problem("download Debian packages: there is no apt-get here", "build on Debian or a derivative of it")
        if not os.path.exists(KEYRING):
            raise Problem(f"verify Debian packages: no {KEYRING}", "install the package debian-archive-keyring")
        for folder in (
            "etc/sources.list.d",
            "etc/preferences.d",
            "state",
            "lists/partial",
            "cache",
            "archives/partial",
        ):
            os.makedirs(os.path.join(self._top, folder), exist_ok=True)
        with open(os.path.join(self._top, "etc/sources.list.d/debian.sources"), "w", encoding="utf-8") as file:
            file.write(sources(mirrors()))
        path = os.path.join(self._top, "apt.conf")
        with open(path, "w", encoding="utf-8") as file:
            # The machine's own apt.conf.d has been read before: its proxies stay, its hooks (they clean the machine's
            # caches) go. A root that downloads into a folder of a user can't become apt's own user for it. Without
            # the error mode an unreachable mirror is a warning, and then every package is unknown.
            file.write(f"""\
#clear APT::Architectures;
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
APT::Architecture "{self.architecture}";
APT::Architectures {{ "{self.architecture}"; }};
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
APT::Get::AllowUnauthenticated "false";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
Acquire::Languages "none";
Acquire::Retries "3";
Dir::Etc "{self._top}/etc";
Dir::Etc::netrc "/etc/apt/auth.conf";
Dir::Etc::netrcparts "/etc/apt/auth.conf.d";
Dir::State "{self._top}/state";
Dir::State::Lists "{self._top}/lists";
Dir::State::status "/dev/null";
Dir::Cache "{self._top}/cache";
""")
        return path

    def _download(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        apt = ["apt-get", "-q", "-c", self._configure()]
        if not self._is_fresh:
            self._progress(f"reading Debian's package lists ({RELEASE}, {self.architecture})")
            run([*apt, "update"], "read Debian's package lists", "is there a network, or an apt proxy to be set?")
            self._is_fresh = True
        what = f"download {' '.join(names)}"
        listed = run([*apt, "download", "--print-uris", *names], what)
        rows = {}
        size = 0
        for line in listed.splitlines():
            if line.startswith("'"):
                _uri, file, length, digest = line.split()
                rows[file.partition("_")[0]] = {"file": file, "sha256": digest.rpartition(":")[2]}
                size += int(length)
        lost = [name for name in names if name not in rows]
        if lost:
            raise Problem(f"download {', '.join(lost)}: apt knows no such package in {RELEASE} {self.architecture}")
        self._progress(f"downloading {len(names)} Debian packages, {size / 1e6:.1f} MB")
        folder = os.path.join(self._top, "archives")
        run([*apt, "download", *names], what, cwd=folder)
        for name, row in rows.items():
            with open(os.path.join(folder, row["file"]), "rb") as deb:
                digest = hashlib.file_digest(deb, "sha256").hexdigest()
            if digest != row["sha256"]:
                raise Problem(
                    f"download {name}: {row['file']} is not what the signed list says", "remove it, try again"
                )
            row["version"] = run(["dpkg-deb", "-f", self._deb(row), "Version"], f"read package {name}").strip()
        return rows

    def _unpack(self, name: str, row: dict[str, str]) -> Package:
        folder = os.path.join(self._top, "unpacked", row["file"].removesuffix(".deb"))
        if not os.path.isdir(folder):
            self._progress(f"unpacking {name} {row['version']}")
            partial = f"{folder}.new"
            shutil.rmtree(partial, ignore_errors=True)
            os.makedirs(partial)
            run(["dpkg-deb", "-x", self._deb(row), partial], f"unpack {name}")
            os.rename(partial, folder)
        return Package(name, row["version"], self.architecture, row["sha256"], folder)
