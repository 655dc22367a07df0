"""ELF files of any architecture: which libraries one needs, and those without what only a debugger reads."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

from initramfs.problem import Problem

TRIPLETS = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu", "armhf": "arm-linux-gnueabihf"}
"""Debian architecture -> its multiarch folder name, which is also how its binutils are called."""
LOADERS = {
    "amd64": "lib64/ld-linux-x86-64.so.2",
    "arm64": "lib/ld-linux-aarch64.so.1",
    "armhf": "lib/ld-linux-armhf.so.3",
}
"""Where programs of a Debian architecture look for the dynamic loader (their PT_INTERP)."""
MACHINES = {"amd64": "EM_X86_64", "arm64": "EM_AARCH64", "armhf": "EM_ARM"}


def is_elf(path: str) -> bool:
    """Whether a file begins as an ELF file does. Raises OSError."""
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"


def needed(path: str) -> list[str]:
    """Return the DT_NEEDED names of a program or library, in order. Raises Problem."""
    try:
        with open(path, "rb") as file:
            section = ELFFile(file).get_section_by_name(".dynamic")
            if isinstance(section, DynamicSection):
                # pyelftools gives a tag the attribute that its kind has.
                return [str(vars(tag)["needed"]) for tag in section.iter_tags("DT_NEEDED")]
    except (ELFError, OSError) as error:
        raise Problem(f"read {path}: {error}") from error
    return []


def machine(path: str) -> str:
    """Return the ELF machine of a file, such as EM_X86_64. Raises Problem."""
    try:
        with open(path, "rb") as file:
            return str(ELFFile(file)["e_machine"])
    except (ELFError, OSError) as error:
        raise Problem(f"read {path}: {error}") from error


def strings_section(path: str, name: str) -> list[str]:
    """Return the NUL-ended strings of a section, such as a module's .modinfo; none when it isn't there."""
    try:
        with open(path, "rb") as file:
            section = ELFFile(file).get_section_by_name(name)
            content = bytes(section.data()) if section is not None else b""
    except (ELFError, OSError) as error:
        raise Problem(f"read {path}: {error}") from error
    return [text.decode("utf-8", "replace") for text in content.split(b"\0") if text]


def library_index(folders: Iterable[str], architecture: str) -> dict[str, str]:
    """Return the shared libraries of unpacked packages: file name -> path, links followed. The first folder wins."""
    found: dict[str, str] = {}
    for top in folders:
        for where in (f"lib/{TRIPLETS[architecture]}", f"usr/lib/{TRIPLETS[architecture]}", "lib", "lib64"):
            folder = os.path.join(top, where)
            if not os.path.isdir(folder):
                continue
            for name in sorted(os.listdir(folder)):
                path = os.path.realpath(os.path.join(folder, name))
                if ".so" in name and path.startswith(os.path.realpath(top)) and os.path.isfile(path):
                    found.setdefault(name, path)
    return found


def closure(paths: Sequence[str], libraries: dict[str, str]) -> dict[str, str]:
    """Return every library that the files at `paths` need, directly or through others: name -> path. Raises Problem."""
    found: dict[str, str] = {}
    queue = list(paths)
    while queue:
        path = queue.pop()
        for name in needed(path):
            if name in found:
                continue
            if name not in libraries:
                raise Problem(f"{os.path.basename(path)} needs {name}: no package of the image has it")
            found[name] = libraries[name]
            queue.append(libraries[name])
    return dict(sorted(found.items()))


def find_strip(architecture: str) -> str | None:
    """Return a program that strips files of an architecture, or None: then they stay as they are, only larger."""
    host = os.uname().machine
    names = [f"{TRIPLETS[architecture]}-strip"]
    if TRIPLETS[architecture].startswith(host):
        names.append("strip")
    return next((path for name in names if (path := shutil.which(name))), None)


def stripped(path: str, strip: str | None, *options: str) -> bytes:
    """Return a file's bytes without symbols and debugging sections. `options` are strip's. Raises OSError, Problem."""
    with open(path, "rb") as file:
        content = file.read()
    if strip is None:
        return content
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "out")
        result = subprocess.run(
            [strip, "--strip-unneeded", "-R", ".comment", *options, "-o", out, path],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise Problem(f"strip {path}: {result.stderr.strip()}")
        with open(out, "rb") as file:
            return file.read()
