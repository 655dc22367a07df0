"""What the image tells process 1 about its board (/etc/pycpu/board.json), and what the kernel's command line adds.

The kernel's command line: `cpu.hostname=NAME` sets the name, `cpu.shell=0` leaves the console without a shell,
`cpu.debug` tells more. Anything else there is not for us.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

PATH = "/etc/pycpu/board.json"

NETWORK_MODES = ("dhcp", "none")


class Network(NamedTuple):
    """`interfaces` empty: every ethernet interface that has hardware behind it, now or later."""

    mode: str = "dhcp"
    interfaces: tuple[str, ...] = ()


class Board(NamedTuple):
    """The board as its image describes it. `build_time` in seconds since 1970; no clock is ever before it.

    Without a `hostname`, DHCP may give one. `cpud` is its arguments, None to run none.
    """

    hostname: str = ""
    modules: tuple[str, ...] = ()
    network: Network = Network()
    cpud: tuple[str, ...] | None = ("-pk", "/etc/cpud/authorized_keys", "-hk", "/etc/cpud/host_key")
    console: tuple[str, ...] = ("/dev/console",)
    build_time: int = 0


class Options(NamedTuple):
    """The `cpu.*` words of the kernel's command line."""

    hostname: str = ""
    shell: bool = True
    debug: bool = False


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("a text that is not empty")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError("a list of texts")
    return tuple(_text(item) for item in value)


def _seconds(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ValueError("a number of seconds, 0 or more")
    return int(value)


def _mode(value: Any) -> str:
    if value not in NETWORK_MODES:
        raise ValueError(f"one of {', '.join(NETWORK_MODES)}")
    return str(value)


def _consoles(value: Any) -> tuple[str, ...]:
    names = (_text(value),) if isinstance(value, str) else _texts(value)
    return tuple(name if name.startswith("/") else f"/dev/{name}" for name in names)


def _arguments(value: Any) -> tuple[str, ...] | None:
    return None if value is None else _texts(value)


_NETWORK_KEYS: dict[str, Callable[[Any], Any]] = {"mode": _mode, "interfaces": _texts}

_KEYS: dict[str, Callable[[Any], Any]] = {
    "hostname": _text,
    "modules": _texts,
    "cpud": _arguments,
    "console": _consoles,
    "build_time": _seconds,
}


def _checked(
    table: Mapping[str, Any], keys: Mapping[str, Callable[[Any], Any]], where: str, problem: Callable[[str], None]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in keys:
            problem(f"{where}{key}: no such key; there are {', '.join(keys)}")
            continue
        try:
            values[key] = keys[key](value)
        except ValueError as error:
            problem(f"{where}{key} = {json.dumps(value)}: must be {error}")
    return values


def parse(text: str, problem: Callable[[str], None]) -> Board:
    """Make a Board of JSON. What is wrong is told to `problem`, and its default taken: the board has to come up."""
    try:
        table = json.loads(text)
    except ValueError as error:
        problem(f"read {PATH}: {error}")
        return Board()
    if not isinstance(table, dict):
        problem(f"read {PATH}: must be an object")
        return Board()
    network = table.pop("network", {})
    if isinstance(network, str):
        network = {"mode": network}
    if not isinstance(network, dict):
        problem(f"{PATH}: network = {json.dumps(network)}: must be an object")
        network = {}
    values = _checked(table, _KEYS, f"{PATH}: ", problem)
    return Board(network=Network(**_checked(network, _NETWORK_KEYS, f"{PATH}: network.", problem)), **values)


def words(line: str) -> list[str]:
    """Split a kernel command line as the kernel does: at white space outside of double quotes, which are dropped."""
    found: list[str] = []
    word, quoted, begun = "", False, False
    for character in line:
        if character == '"':
            quoted, begun = not quoted, True
        elif character.isspace() and not quoted:
            if begun:
                found.append(word)
            word, begun = "", False
        else:
            word, begun = word + character, True
    return [*found, word] if begun else found


def options(line: str) -> Options:
    """Read the `cpu.*` words of a kernel command line; the last of equals counts, as in the kernel."""
    given = dict(word.partition("=")[::2] for word in words(line) if word.startswith("cpu."))
    off = ("0", "off", "no", "n")
    return Options(
        hostname=given.get("cpu.hostname", ""),
        shell=given.get("cpu.shell", "1") not in off,
        debug="cpu.debug" in given and given["cpu.debug"] not in off,
    )
