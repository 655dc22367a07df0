#!/usr/bin/env python3
"""The builder: one command line for everything that is made here. Starts with nothing but python3.

python3 build.py demo      set up, build, boot a board in QEMU, run a command on it
python3 build.py test      run every test
python3 build.py --help    the rest
"""

import os
import sys

TOP = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, TOP)

from initramfs import bootstrap  # noqa: E402  it is what makes the imports below possible

if __name__ == "__main__":
    bootstrap.enter(TOP)

import subprocess  # noqa: E402
from pathlib import Path  # noqa: E402

import click  # noqa: E402

from initramfs import demo, payload, profile, qemu  # noqa: E402
from initramfs.problem import Problem  # noqa: E402

BUILD = Path(TOP) / "build"
DEFAULT_BOARD = "qemu-x86_64"

board_option = click.option(
    "--board",
    "-b",
    default=DEFAULT_BOARD,
    show_default=True,
    metavar="NAME|FILE",
    help="a profile of configs/boards, or a path to one",
)


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def cli(context: click.Context) -> None:
    """Build what a board boots, boot it in QEMU, test all of it. Without a command: build."""
    if context.invoked_subcommand is None:
        context.invoke(build, board=DEFAULT_BOARD)


@cli.command()
@board_option
def build(board: str) -> None:
    """Build the zipapp and a board's kernel and initramfs, and report where the bytes are."""
    demo.build(board, BUILD)


@cli.command()
def zipapp() -> None:
    """Build build/cpu.pyz and its links in build/bin only."""
    click.echo(payload.build_zipapp(BUILD / "cpu.pyz"))


@cli.command()
@board_option
@click.option(
    "--port", "-p", default=17010, show_default=True, help="this machine's port that leads to the board's cpud"
)
@click.option("--memory", "-m", default=256, show_default=True, help="the board's memory in MiB")
def run(board: str, port: int, memory: int) -> None:
    """Boot a board in QEMU, its serial console on this terminal. Ctrl-A x ends it."""
    made = demo.build(board, BUILD)
    click.echo(f"{made.how_to_connect(port)}", err=True)
    sys.exit(subprocess.call(qemu.command(made.profile, BUILD, port=port, memory_mb=memory)))


@cli.command(name="demo")
@board_option
def run_demo(board: str) -> None:
    """Boot a board in QEMU and run this machine's flashrom on it."""
    demo.run(board, BUILD)


@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def test(arguments: tuple[str, ...]) -> None:
    """Run every test; ARGUMENTS go to pytest."""
    sys.exit(subprocess.call([sys.executable, "-m", "pytest", *arguments], cwd=TOP))


@cli.command()
def boards() -> None:
    """List the board profiles."""
    for name in profile.names():
        click.echo(f"{name:<20} {profile.load(name).summary}")


def main() -> int:
    """Run a command; what goes wrong is a line for a person."""
    try:
        cli.main(standalone_mode=False)
    except Problem as error:
        click.echo(f"build.py: {error}", err=True)
        return 1
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
