"""dhcp: get an interface its address, and keep it."""

import asyncio
import sys

import click

from multicall.lib import flags, net
from multicall.lib.log import run as report


@click.command(cls=flags.Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-1", "--once", is_flag=True, help="stop when there is a lease; leave the address")
@click.option("-t", "--timeout", default="", metavar="DUR", help="with -1: give up after that long")
@click.option("-d", "--debug", is_flag=True, help="say more")
@click.argument("interface")
def command(once: bool, timeout: str, debug: bool, interface: str) -> int:
    """Configure INTERFACE by DHCP: address, default route, MTU, name servers, hostname if there is none.

    Runs until the interface has gone, and renews; everything is tried again for ever, less and less often.
    """
    timeout_s = flags.duration_s(timeout) if timeout else None
    asyncio.run(net.keep(interface, lambda text: print(f"dhcp: {text}", file=sys.stderr), once, timeout_s, debug))
    return 0


def main(argv: list[str]) -> int:
    """Run dhcp. argv[0] is the name it was called by."""
    return report(argv[0], lambda: flags.run(command, argv) or 0, debug="-d" in argv)
