"""The table of commands. Pure data: the dispatcher, the builder's links and the tests read it, so it imports nothing.

Adding a command is a row here and a file with `main(argv: list[str]) -> int`; argv[0] is the name it was called by.
"""

from typing import NamedTuple


class Applet(NamedTuple):
    """A command: the name people type, the module that is it, a line of help, and where it makes sense."""

    name: str
    module: str
    summary: str
    where: str  # "client", "board" or "both"


TABLE: tuple[Applet, ...] = (
    Applet("cpu", "multicall.cpu", "run a command on a board with this machine's files", "client"),
    Applet("cpud", "multicall.cpud", "let cpu in: the board's side", "both"),
    Applet("init", "multicall.init", "process 1 of a board", "board"),
    Applet("9p", "multicall.tools.p9", "serve a directory by 9P, mount one, read and write its files", "client"),
    Applet("dhcp", "multicall.tools.dhcp", "configure an interface by DHCP", "board"),
    Applet("poweroff", "multicall.tools.poweroff", "switch the board off", "board"),
    Applet("reboot", "multicall.tools.poweroff", "restart the board", "board"),
    Applet("halt", "multicall.tools.poweroff", "stop the board", "board"),
)


def find(name: str) -> Applet | None:
    """Return the row of the command called `name`, or None."""
    for applet in TABLE:
        if applet.name == name:
            return applet
    return None
