"""A board's kernel: the vmlinuz and the modules of an unpacked Debian package, in the order they are loaded.

The package has no modules.dep (its maintainer script makes it); each module says itself what it needs, in .modinfo.
"""

import difflib
import os
from collections.abc import Sequence
from typing import NamedTuple

from initramfs import elf
from initramfs.problem import Problem


class Module(NamedTuple):
    """A module file: its name with underscores, where it lies now, and its path on the board without leading slash."""

    name: str
    source: str
    target: str


class Kernel(NamedTuple):
    """What a board gets: the release as uname -r says it, the kernel's path here, the modules in loading order.

    `build_time` is when it was built, in seconds since 1970, as its package says.
    """

    release: str
    vmlinuz: str
    modules: tuple[Module, ...]
    build_time: int


def normal(name: str) -> str:
    """A module's name as the kernel writes it: file names have dashes where it has underscores."""
    return name.replace("-", "_")


def depends(path: str) -> tuple[list[str], list[str]]:
    """Return what a module must have loaded before it, and what it would like to (softdep pre:). Raises Problem."""
    hard: list[str] = []
    soft: list[str] = []
    for text in elf.strings_section(path, ".modinfo"):
        key, _, value = text.partition("=")
        if key == "depends":
            hard += [normal(name) for name in value.split(",") if name]
        elif key == "softdep":
            before, _, _after = value.partition("post:")
            soft += [normal(name) for name in before.removeprefix("pre:").split()]
    return hard, soft


def index(folder: str) -> dict[str, str]:
    """Return every module below a folder: name -> path."""
    found = {}
    for where, _folders, names in os.walk(folder):
        for name in names:
            if name.endswith(".ko"):
                found[normal(name.removesuffix(".ko"))] = os.path.join(where, name)
    return found


def builtin(folder: str) -> set[str]:
    """Return the names of what is compiled into the kernel, from modules.builtin in its modules' folder."""
    try:
        with open(os.path.join(folder, "modules.builtin"), encoding="utf-8") as file:
            return {normal(os.path.basename(line.strip()).removesuffix(".ko")) for line in file}
    except OSError:
        return set()


def order(wanted: Sequence[str], modules: dict[str, str], built_in: set[str]) -> list[str]:
    """Return the wanted modules and what they need, each after what it needs; what is built in needs no file.

    Raises Problem for a name that the kernel does not have.
    """
    done: list[str] = []
    stack: list[str] = []

    def visit(name: str, asker: str, must: bool) -> None:
        if name in done or name in built_in or name in stack:
            return
        if name not in modules:
            if must:
                near = difflib.get_close_matches(name, [*modules, *built_in], 3)
                hint = f"similar: {', '.join(near)}" if near else "modinfo on a machine with that kernel knows it"
                raise Problem(f"module {name}{asker}: this kernel has none", hint)
            return
        stack.append(name)
        hard, soft = depends(modules[name])
        for other in soft:
            visit(other, f" (for {name})", must=False)
        for other in hard:
            visit(other, f" (for {name})", must=True)
        stack.pop()
        done.append(name)

    for name in wanted:
        visit(normal(name), "", must=True)
    return done


def find(folder: str, wanted: Sequence[str]) -> Kernel:
    """Return the kernel in an unpacked package, with the wanted modules. Raises Problem."""
    boot = os.path.join(folder, "boot")
    images = sorted(name for name in os.listdir(boot) if name.startswith(("vmlinuz-", "vmlinux-")))
    if len(images) != 1:
        raise Problem(f"kernel in {folder}: {len(images)} kernels, one is wanted")
    release = images[0].partition("-")[2]
    home = next(
        (path for top in ("lib", "usr/lib") if os.path.isdir(path := os.path.join(folder, top, "modules", release))), ""
    )
    modules = index(home) if home else {}
    rows = []
    for name in order(wanted, modules, builtin(home)):
        target = f"lib/modules/{release}/{os.path.relpath(modules[name], home)}"
        rows.append(Module(name, modules[name], target))
    vmlinuz = os.path.join(boot, images[0])
    return Kernel(release, vmlinuz, tuple(rows), int(os.stat(vmlinuz).st_mtime))
