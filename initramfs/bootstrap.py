"""What the builder itself needs, made once: Debian packages and a virtual environment. Standard library only.

Everything here runs before anything is installed, on a machine's own python3.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

MINIMUM = (3, 11)


class Package(NamedTuple):
    """A Debian package of the build host, and why."""

    name: str
    reason: str


PACKAGES: tuple[Package, ...] = (
    Package("python3-venv", "the virtual environment in .venv"),
    Package("python3-dev", "headers to compile pyfuse3"),
    Package("gcc", "compiles pyfuse3"),
    Package("libc6-dev", "headers to compile pyfuse3"),
    Package("libfuse3-dev", "what pyfuse3 is compiled against"),
    Package("pkg-config", "finds libfuse3 for pyfuse3's build"),
    Package("fuse3", "fusermount3 and /dev/fuse's permissions, for mounts without root"),
    Package("binutils", "strips the image's libraries"),
    Package("debian-archive-keyring", "verifies the packages a board's Python and kernel come from"),
    Package("ca-certificates", "downloads"),
    Package("qemu-system-x86", "boots the board qemu-x86_64"),
    Package("flashrom", "the demo's command: its emulated chip stands in for a flash chip"),
    Package("openssh-client", "a foreign ssh for the tests, and ssh-keygen for keys"),
    Package("openssh-server", "a foreign sshd for the tests"),
    Package("diod", "a foreign 9P server for the tests"),
    Package("cpio", "reads our archives back in the tests"),
    Package("libarchive-tools", "bsdcpio: reads our archives back in the tests"),
    Package("busybox-static", "a DHCP server for the tests"),
    Package("iproute2", "network namespaces for the tests"),
    Package("procps", "ps in the tests"),
    Package("git", "a real program on the mount, in the tests"),
    Package("tar", "a real program on the mount, in the tests"),
    Package("sqlite3", "a real program on the mount, in the tests: byte-range locks and shared mappings"),
    Package("make", "a real program on the mount, in the tests"),
    Package("rsync", "a real program on the mount, in the tests: hard links, ACLs, attributes"),
    Package("fio", "a real program on the mount, in the tests: random reads and writes that are verified"),
)


def stop(message: str, hint: str = "") -> NoReturn:
    """End the builder with a line a person can act on."""
    sys.stderr.write(f"build.py: {message}\n" + (f"hint: {hint}\n" if hint else ""))
    sys.exit(1)


def say(text: str) -> None:
    """A line of progress."""
    sys.stderr.write(f"build.py: {text}\n")
    sys.stderr.flush()


def missing_packages() -> list[Package]:
    """Which of PACKAGES dpkg does not have installed. Empty where there is no dpkg: then names mean nothing."""
    result = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *(package.name for package in PACKAGES)],
        capture_output=True,
        text=True,
        check=False,
    )
    present = {line.split()[0] for line in result.stdout.splitlines() if line.endswith(" installed")}
    return [package for package in PACKAGES if package.name not in present]


def install_packages() -> None:
    """Install what is missing, through sudo when not root, after saying what and why."""
    if not shutil.which("dpkg-query") or not shutil.which("apt-get"):
        listed = "\n".join(f"  {package.name:<24} {package.reason}" for package in PACKAGES)
        stop(f"this machine has no apt; install what these are elsewhere, then set PYCPU_NO_APT=1:\n{listed}")
    missing = missing_packages()
    if not missing:
        return
    say("installing Debian packages:")
    for package in missing:
        sys.stderr.write(f"  {package.name:<24} {package.reason}\n")
    prefix = [] if os.geteuid() == 0 else ["sudo"]
    if prefix and not shutil.which("sudo"):
        stop("installing them needs root, and there is no sudo", "run build.py once as root")
    environment = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive"]
    for command in (
        ["apt-get", "-q", "update"],
        ["apt-get", "-q", "-y", "--no-install-recommends", "install", *(package.name for package in missing)],
    ):
        if subprocess.run([*environment, *command], stdout=sys.stderr, check=False).returncode:
            stop(f"{' '.join(command)}: failed, its reason is above")


def _stamp(top: str) -> str:
    """What the environment was made from; another stamp means: make it again."""
    digest = hashlib.sha256(f"{sys.version}{sys.executable}{PACKAGES}".encode())
    for name in ("dev.txt", "payload.txt"):
        with open(os.path.join(top, "configs", "lock", name), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def _make_environment(python: str, top: str) -> None:
    folder = os.path.join(top, ".venv")
    say("making .venv and installing the locked Python packages into it (once, about half a minute)")
    shutil.rmtree(folder, ignore_errors=True)
    lock = os.path.join(top, "configs", "lock")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
    steps: Sequence[Sequence[str]] = (
        [sys.executable, "-m", "venv", folder],
        [*pip, "-r", os.path.join(lock, "dev.txt")],
        # Built with the locked setuptools and cython of the step before, not with whatever is newest today.
        [*pip, "--no-build-isolation", "-r", os.path.join(lock, "payload.txt")],
    )
    for step in steps:
        if subprocess.run(step, stdout=sys.stderr, check=False).returncode:
            stop(f"{' '.join(step)}: failed, its reason is above")


def enter(top: str) -> None:
    """Come back running in .venv with everything installed; the first time this takes a while, later nothing.

    Replaces the process unless it is in .venv already.
    """
    if sys.version_info < MINIMUM:
        stop(f"python3 is {sys.version.split()[0]}, at least {'.'.join(map(str, MINIMUM))} is needed")
    folder = os.path.join(top, ".venv")
    python = os.path.join(folder, "bin", "python3")
    if os.path.realpath(sys.prefix) == os.path.realpath(folder):
        return
    stamp_path = os.path.join(folder, "stamp")
    stamp = _stamp(top)
    try:
        with open(stamp_path, encoding="ascii") as file:
            ready = file.read() == stamp
    except OSError:
        ready = False
    if not ready:
        if not os.environ.get("PYCPU_NO_APT"):
            install_packages()
        _make_environment(python, top)
        with open(stamp_path, "w", encoding="ascii") as file:
            file.write(stamp)
    os.execv(python, [python, *sys.argv])
