"""Command lines as u-root/cpu's users type them, on click: -name X, -name=X, -bool=false, and GNU's spellings."""

from collections.abc import Sequence
from typing import Any

import click

TRUE = frozenset(("1", "t", "T", "true", "TRUE", "True"))
FALSE = frozenset(("0", "f", "F", "false", "FALSE", "False"))
"""What Go's flag package reads as a boolean (strconv.ParseBool)."""

UNITS_S = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class Command(click.Command):
    """A click command that also reads Go's booleans, and leaves everything from the first argument on alone."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See click.Command."""
        ctx.allow_interspersed_args = False
        return super().parse_args(ctx, go_booleans(args, self.params))


def go_booleans(args: Sequence[str], params: Sequence[click.Parameter]) -> list[str]:
    """Turn -flag=true and -flag=false into click's -flag and -no-flag, up to the first argument."""
    options = {name: param for param in params if isinstance(param, click.Option) for name in param.opts}
    negative = {
        name: param.secondary_opts[0]
        for param in params
        if isinstance(param, click.Option) and param.secondary_opts
        for name in param.opts
    }
    read: list[str] = []
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if word == "--" or not word.startswith("-") or word == "-":
            return [*read, word, *rest]
        name, equals, value = word.partition("=")
        option = options.get(name)
        if option is None or not option.is_flag:
            read.append(word)
            if option is not None and not equals and rest:
                read.append(rest.pop(0))
        elif equals and value in TRUE:
            read.append(name)
        elif equals and value in FALSE and name in negative:
            read.append(negative[name])
        elif equals and value not in FALSE:
            raise click.BadParameter(f"{value!r} is not true or false", param_hint=name)
        elif not equals:
            read.append(word)
    return read


def duration_s(text: str) -> float:
    """Read a duration as Go writes it (300ms, 1m30s); a plain number is seconds. Raises click.BadParameter."""
    rest, total_s = text, 0.0
    try:
        return float(text)
    except ValueError:
        pass
    while rest:
        digits = len(rest) - len(rest.lstrip("0123456789."))
        unit = next((unit for unit in ("ns", "us", "ms", "s", "m", "h") if rest[digits:].startswith(unit)), "")
        try:
            total_s += float(rest[:digits]) * UNITS_S[unit]
        except (ValueError, KeyError):
            raise click.BadParameter(f"{text!r} is not a duration such as 30s, 500ms or 1m30s") from None
        rest = rest[digits + len(unit) :]
    return total_s


def run(command: click.Command, argv: Sequence[str]) -> Any:
    """Parse and call; click's own errors are printed as `name: message`, and end in status 2 as command lines do."""
    try:
        return command.main(args=list(argv[1:]), prog_name=argv[0], standalone_mode=False)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.UsageError as error:
        click.echo(f"{argv[0]}: {error.format_message()}\nhint: {argv[0]} --help lists the options", err=True)
        return 2
    except click.Abort:
        return 130
