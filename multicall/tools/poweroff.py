"""poweroff, reboot, halt: ask process 1 to stop the board, or with -f do it here and now."""

import os

import click

from multicall.lib import flags, journal, power
from multicall.lib.log import Problem, reason
from multicall.lib.log import run as report


def ask(way: power.Way) -> None:
    """Tell process 1. Raises Problem."""
    if not os.path.isdir(journal.RUN_FOLDER):
        raise Problem(f"{way.name}: process 1 of this machine is not pycpu's init", "-f does it without asking it")
    try:
        os.kill(1, way.number)
    except OSError as error:
        raise Problem(f"{way.name}: signal process 1: {reason(error)}") from error


def force(way: power.Way, sync: bool = True) -> None:
    """Stop at once: no process is asked to end. Raises Problem."""
    if sync:
        os.sync()
    try:
        power.reboot(way.command)
    except OSError as error:
        raise Problem(f"{way.name}: {reason(error)}") from error


@click.command(cls=flags.Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-f", "--force", "now", is_flag=True, help="at once, without ending anything first")
@click.option("-n", "--no-sync", is_flag=True, help="with -f: do not write out what is in memory")
@click.pass_context
def command(ctx: click.Context, now: bool, no_sync: bool) -> int:
    """Stop this machine: poweroff switches it off, reboot starts it again, halt only stops it."""
    way = power.get_way(ctx.info_name or "poweroff")
    if now:
        force(way, not no_sync)
    else:
        ask(way)
    return 0


def main(argv: list[str]) -> int:
    """Run as poweroff, reboot or halt, whichever argv[0] is."""
    return report(argv[0], lambda: flags.run(command, argv) or 0)
