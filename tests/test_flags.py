"""Both spellings of every option, Go's booleans, and nothing touched after the board's name."""

import click
import pytest

from multicall import cpu
from multicall.lib import flags

PARAMS = cpu.command.params


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["-9p=false", "board"], ["-no-9p", "board"]),
        (["--9p=0", "board"], ["-no-9p", "board"]),
        (["-9p=true", "board"], ["-9p", "board"]),
        (["-ssh=false", "board"], ["board"]),
        (["-sp", "-9p=false", "board"], ["-sp", "-9p=false", "board"]),
        (["board", "ls", "-9p=false"], ["board", "ls", "-9p=false"]),
        (["--", "-9p=false"], ["--", "-9p=false"]),
    ],
)
def test_go_booleans(given: list[str], read: list[str]) -> None:
    assert flags.go_booleans(given, PARAMS) == read


def test_a_boolean_that_is_none_is_named() -> None:
    with pytest.raises(click.BadParameter, match="'maybe'"):
        flags.go_booleans(["-9p=maybe", "board"], PARAMS)


@pytest.mark.parametrize(
    "words",
    [
        ["-sp", "22", "-namespace=/a:/b", "-9p=false", "b", "ls", "-l", "--help"],
        ["--port=22", "--namespace", "/a:/b", "--no-9p", "b", "ls", "-l", "--help"],
        ["-p", "22", "-namespace", "/a:/b", "-no-9p", "b", "ls", "-l", "--help"],
    ],
)
def test_both_styles_say_the_same(words: list[str]) -> None:
    context = cpu.command.make_context("cpu", words)
    assert context.params["port"] == "22"
    assert context.params["binds"] == "/a:/b"
    assert context.params["ninep"] is False
    assert context.params["destination"] == "b"
    assert context.params["command_line"] == ("ls", "-l", "--help")


@pytest.mark.parametrize(
    ("text", "seconds"), [("100ms", 0.1), ("1m30s", 90), ("5", 5), ("1.5h", 5400), ("250us", 0.00025)]
)
def test_durations(text: str, seconds: float) -> None:
    assert flags.duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "5x", "1m3"])
def test_wrong_durations(text: str) -> None:
    if text == "":
        assert flags.duration_s("0") == 0
    with pytest.raises(click.BadParameter, match="duration"):
        flags.duration_s(text or "ms")


def test_sockets_as_destinations() -> None:
    assert cpu.split_destination("@name", "unix") == (None, "@name")
    assert cpu.split_destination("me@@name", "unix") == ("me", "@name")
    assert cpu.split_destination("me@/run/s", "unix") == ("me", "/run/s")
    assert cpu.split_destination("/run/a@b", "unix") == (None, "/run/a@b")


@pytest.mark.parametrize(
    ("text", "user", "host"),
    [("b", None, "b"), ("me@b", "me", "b"), ("[::1]", None, "::1"), ("me@[fe80::1]", "me", "fe80::1")],
)
def test_destinations(text: str, user: str | None, host: str) -> None:
    assert cpu.split_destination(text) == (user, host)
