"""What cpu and cpud agree on: our own frames, and u-root/cpu's exec strings as its programs write them."""

import json
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multicall.lib import contract
from multicall.lib.contract import ContractError, Exec, Request

WORDS = st.binary(min_size=0, max_size=40).filter(lambda word: b"\0" not in word)
NAMES = WORDS.filter(lambda name: name and b"=" not in name)
TERMINALS = st.none() | st.builds(contract.Terminal, WORDS, st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
REQUESTS = st.builds(
    Request,
    argv=st.lists(WORDS, max_size=5),
    environment=st.dictionaries(NAMES, WORDS, max_size=5),
    cwd=WORDS,
    fstab=WORDS,
    ninep=st.text("0123456789abcdef", max_size=64),
    terminal=TERMINALS,
    mount=st.sampled_from(contract.MOUNT_BACKENDS),
    timeout_s=st.floats(0.001, 1000),
)


def unframe(framed: bytes) -> bytes:
    body = contract.FrameReader().feed(framed)
    assert body is not None
    return body


@given(REQUESTS)
def test_a_request_survives_the_wire(request: Request) -> None:
    assert contract.decode_request(unframe(contract.encode_request(request))) == request


@given(REQUESTS, WORDS)
def test_a_frame_byte_at_a_time_leaves_what_follows(request: Request, rest: bytes) -> None:
    framed = contract.encode_request(request)
    reader = contract.FrameReader()
    for index in range(len(framed) - 1):
        assert reader.feed(framed[index : index + 1]) is None
    assert reader.feed(framed[-1:] + rest) == framed[4:]
    assert reader.rest == rest


def test_a_frame_too_large_is_refused_before_it_comes() -> None:
    with pytest.raises(ContractError, match="4194305 bytes"):
        contract.FrameReader().feed((contract.MAX_FRAME_BYTES + 1).to_bytes(4, "big"))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_a_contract_error(body: bytes) -> None:
    try:
        contract.decode_request(body)
    except ContractError:
        pass


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("version", [2, 0], r"version \[2, 0\].*\[1, 0\]"),
        ("argv", "ls", "argv"),
        ("argv", [1], "not a string"),
        ("argv", ["a\0b"], "NUL"),
        ("argv", ["\u20ac"], "Latin-1"),
        ("environment", {"": "x"}, "called"),
        ("environment", {"a=b": "x"}, "called"),
        ("terminal", ["vt100", -1, 24], "columns"),
        ("terminal", ["vt100"], "terminal"),
        ("mount", "nfs", "auto, 9p, fuse"),
        ("timeout_s", 0, "seconds"),
        ("ninep", "x" * 65, "ninep"),
    ],
)
def test_a_wrong_field_is_named(field: str, value: object, words: str) -> None:
    fields = {"version": [1, 0], "argv": [], "environment": {}, field: value}
    with pytest.raises(ContractError, match=words):
        contract.decode_request(json.dumps(fields).encode())


def test_unknown_fields_and_minor_versions_are_ignored() -> None:
    body = json.dumps({"version": [1, 99], "argv": ["ls"], "colour": "blue"}).encode()
    assert contract.decode_request(body).argv == [b"ls"]


def test_exec_string_is_written_as_u_root_writes_it() -> None:
    assert contract.exec_string([b"/bin/ls", b"-l"], 37101) == b"-port9p=37101 '/bin/ls' '-l'"
    assert contract.exec_string([b"/bin/ls"], None) == b" '/bin/ls'"
    assert contract.exec_string([b"it's"], None) == b" 'it'\"'\"'s'"


@given(st.lists(WORDS, min_size=1, max_size=5), st.none() | st.integers(1, 0xFFFF))
def test_exec_string_is_read_back(argv: list[bytes], port: int | None) -> None:
    line = contract.exec_string(argv, port)
    assert contract.is_ours(line)
    if port is not None and argv[0].startswith(b"-"):
        return  # a command that looks like an option after one: refused or taken for it, as in u-root/cpu
    assert contract.parse_exec(line) == Exec(argv, port)


def test_a_peer_sets_no_other_option() -> None:
    for line in (b"-pk= 'ls'", b"-port9p=x 'ls'", b"-remote 'ls'", b"-port9p=70000 'ls'", b"-port9p=" + b"1" * 5000):
        with pytest.raises(ContractError):
            contract.parse_exec(line)
    with pytest.raises(ContractError, match="split"):
        contract.parse_exec(b" 'unclosed")
    assert contract.parse_exec(b"-d --port9p 17 'ls'") == Exec([b"ls"], 17)
    assert shlex.split("-d --port9p 17 'ls'")[-1] == "ls"
