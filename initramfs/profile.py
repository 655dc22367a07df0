"""Board profiles: configs/boards/NAME.toml, read into a Profile whose every field has been checked.

The table of keys is the dataclass itself; a wrong key or value names the file, the key and what is allowed.
"""

import dataclasses
import difflib
import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from initramfs import compress
from initramfs.problem import Problem, reason
from multicall import applets

ARCHITECTURES = ("amd64", "arm64", "armhf")
NETWORKS = ("dhcp", "none")
FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "configs", "boards")


@dataclass(frozen=True)
class Profile:
    """What a board is and what its image holds. Names are Debian's; sizes in bytes, memory in MiB."""

    name: str
    architecture: str
    kernel: str
    "a Debian package; one that only depends on the real one, such as linux-image-amd64, is followed"
    console: str
    "the tty of the rescue shell, without /dev/"
    cmdline: str
    "the kernel's command line, without what the boot loader adds"
    modules: tuple[str, ...] = ()
    "in the order they are wanted; what they need is added before them"
    network: str = "dhcp"
    hostname: str = "board"
    memory_mib: int = 256
    summary: str = ""
    "a line for a list of boards"
    applets: tuple[str, ...] = ()
    cpud: tuple[str, ...] = ()
    "arguments of cpud beside the keys"
    compressor: str = "xz"
    budget: int = 0
    "the most that the packed image without kernel modules may have, in bytes; 0 is any"


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a text that is not empty")
    return value


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError("a whole number, 0 or more")
    return value


def _size(value: Any) -> int:
    """A number of bytes, or a text such as "10 MiB"."""
    if isinstance(value, str):
        number, _, unit = value.partition(" ")
        scale = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20}.get(unit)
        if number.isdecimal() and scale:
            return int(number) * scale
        raise ValueError('a size such as "10 MiB"')
    return _number(value)


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise ValueError("a list of texts")
    return tuple(value)


def _one_of(*allowed: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in allowed:
            raise ValueError(f"one of {', '.join(allowed)}")
        return str(value)

    return check


def _applets(value: Any) -> tuple[str, ...]:
    names = _texts(value)
    known = [applet.name for applet in applets.TABLE if applet.where != "client"]
    for name in names:
        if name not in known:
            raise ValueError(f"a list of applets of a board ({', '.join(known)}), not {name}")
    return names


KEYS: dict[str, Callable[[Any], Any]] = {
    "summary": _text,
    "architecture": _one_of(*ARCHITECTURES),
    "kernel": _text,
    "console": _text,
    "cmdline": _text,
    "modules": _texts,
    "network": _one_of(*NETWORKS),
    "hostname": _text,
    "memory_mib": _number,
    "applets": _applets,
    "cpud": _texts,
    "compressor": _one_of(*(row.name for row in compress.TABLE)),
    "budget": _size,
}
"""What may stand in a profile, and the check that turns it into a field's value; ValueError says what is allowed."""


def parse(name: str, text: str, where: str) -> Profile:
    """Make a Profile called `name` of TOML; `where` is what messages call the file. Raises Problem."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Problem(f"{where}: {error}") from error
    values: dict[str, Any] = {"name": name}
    for key, value in table.items():
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, 1)
            hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(KEYS)}"
            raise Problem(f"{where}: {key}: no such key", hint)
        try:
            values[key] = KEYS[key](value)
        except ValueError as error:
            raise Problem(f"{where}: {key} = {value!r}: must be {error}") from error
    for field in dataclasses.fields(Profile):
        if field.default is dataclasses.MISSING and field.name not in values:
            raise Problem(f"{where}: {field.name} is missing")
    if not values.get("applets"):
        values["applets"] = tuple(applet.name for applet in applets.TABLE if applet.where != "client")
    return Profile(**values)


def names() -> list[str]:
    """Return the names of the profiles in configs/boards."""
    return sorted(entry.removesuffix(".toml") for entry in os.listdir(FOLDER) if entry.endswith(".toml"))


def load(board: str) -> Profile:
    """Read the profile that a person names: a path to a TOML file, else a name of configs/boards. Raises Problem."""
    path = board
    if not board.endswith(".toml"):
        if board not in names():
            raise Problem(f"board {board}: no such profile", f"there are {', '.join(names())}; or give a .toml file")
        path = os.path.join(FOLDER, f"{board}.toml")
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(f"read board profile {path}: {reason(error)}") from error
    return parse(os.path.basename(path).removesuffix(".toml"), text, path)
