"""What cpu and cpud agree on. Pure: bytes in, values out; ARCHITECTURE.md "On the wire" is its description.

Between our own ends a session is the subsystem SUBSYSTEM on an ssh session channel. Its first bytes from the client are
one framed Request, its first bytes from the board one framed Reply; everything after is the command's standard input
and output. The 9P stream, if any, is a direct-streamlocal channel of the same connection to the path
`ninep_path(id)`, opened at the same time.

With u-root/cpu's programs a session is an exec request whose string and environment are made and read here too
(`exec_string`, `parse_exec`, FSTAB_VARIABLES, NONCE_VARIABLE).

A frame is a length (4 bytes, big endian) and that many bytes of JSON. Arguments, variables and paths are bytes, which
need not be UTF-8: in the JSON every string stands for bytes by Latin-1.
"""

import json
import shlex
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

DEFAULT_PORT = 17010
SUBSYSTEM = "cpu@pycpu"
NINEP_PATH = "cpu@pycpu/9p/"
VERSION = (1, 0)
"""Major, minor. An unknown major version is refused with both numbers; unknown fields are ignored."""

MAX_FRAME_BYTES = 4 << 20
"""More than Linux's limit for argv and environment under an ordinary stack (2 MiB, execve(2)); no board runs out."""

FSTAB_VARIABLES = (b"CPU_FSTAB", b"LC_GLENDA_CPU_FSTAB")
"""u-root/cpu sends the namespace in both: OpenSSH's default AcceptEnv lets LC_* through."""
NONCE_VARIABLE = b"CPUNONCE"
NONCE_BYTES = 16
"""Random bytes of the nonce; on the wire it is twice as many hexadecimal digits."""

SIGNALS = ("INT", "TERM", "HUP", "QUIT", "USR1", "USR2")
"""What the client forwards, by RFC 4254 section 6.10's names."""

STATUS_NOT_FOUND = 127
STATUS_NOT_EXECUTABLE = 126
STATUS_OURS = 255

MOUNT_BACKENDS = ("auto", "9p", "fuse")
TIMEOUT_9P_S = 30.0
"""How long the board waits for its mounts, unless -timeout9p says otherwise."""


class ContractError(Exception):
    """The peer sent something that is not of this contract. The message is for a person."""


class Terminal(NamedTuple):
    """A terminal: its type (TERM) and its size in characters."""

    term: bytes
    columns: int
    rows: int


class Request(NamedTuple):
    """One command to run on the board.

    argv: the command and its arguments; empty means the user's shell. environment: the whole of it. cwd: where to run.
    fstab: what to mount and bind, as fstab(5) text. ninep: the id of the 9P channel, empty for no mounts at all.
    """

    argv: Sequence[bytes]
    environment: Mapping[bytes, bytes]
    cwd: bytes
    fstab: bytes = b""
    ninep: str = ""
    terminal: Terminal | None = None
    mount: str = "auto"
    timeout_s: float = TIMEOUT_9P_S


class Reply(NamedTuple):
    """The board's answer: empty error is "accepted"."""

    error: str = ""
    hint: str = ""


def ninep_path(ident: str) -> str:
    """The direct-streamlocal path that means: the 9P stream of the session with this id."""
    return NINEP_PATH + ident


def frame(body: bytes) -> bytes:
    """Put the length in front."""
    return struct.pack(">I", len(body)) + body


class FrameReader:
    """Collects the one frame that a stream begins with. What follows it is left in `rest`."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.rest = b""

    def feed(self, received: bytes) -> bytes | None:
        """Take bytes; return the frame's body once it is whole. A frame too large is a ContractError, unbuffered."""
        self._buffer += received
        if len(self._buffer) < 4:
            return None
        (length,) = struct.unpack_from(">I", self._buffer)
        if length > MAX_FRAME_BYTES:
            raise ContractError(f"a frame of {length} bytes, more than {MAX_FRAME_BYTES}")
        if len(self._buffer) < 4 + length:
            return None
        body = bytes(self._buffer[4 : 4 + length])
        self.rest = bytes(self._buffer[4 + length :])
        self._buffer.clear()
        return body


def _text(raw: bytes) -> str:
    return raw.decode("latin-1")


def _raw(value: object, what: str) -> bytes:
    if not isinstance(value, str):
        raise ContractError(f"{what} is not a string")
    try:
        raw = value.encode("latin-1")
    except UnicodeEncodeError:
        raise ContractError(f"{what} is not bytes by Latin-1") from None
    if b"\0" in raw:
        raise ContractError(f"{what} has a NUL in it")
    return raw


def _size(value: object, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 0xFFFF:
        raise ContractError(f"{what} is not a number from 0 to 65535")
    return value


def encode_request(request: Request) -> bytes:
    """The framed form of a request."""
    fields: dict[str, Any] = {
        "version": list(VERSION),
        "argv": [_text(word) for word in request.argv],
        "environment": {_text(name): _text(value) for name, value in request.environment.items()},
        "cwd": _text(request.cwd),
        "fstab": _text(request.fstab),
        "ninep": request.ninep,
        "mount": request.mount,
        "timeout_s": request.timeout_s,
    }
    if request.terminal:
        term, columns, rows = request.terminal
        fields["terminal"] = [_text(term), columns, rows]
    return frame(json.dumps(fields, separators=(",", ":")).encode("ascii"))


def _object(body: bytes, what: str) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise ContractError(f"the {what} is not JSON") from None
    if not isinstance(fields, dict):
        raise ContractError(f"the {what} is not an object")
    return fields


def decode_request(body: bytes) -> Request:
    """Read a request's body; everything in it is checked. Raises ContractError."""
    fields = _object(body, "request")
    version = fields.get("version")
    if not isinstance(version, list) or not version or version[0] != VERSION[0]:
        raise ContractError(f"the client speaks version {version!r} of this protocol, the board {list(VERSION)}")
    argv = fields.get("argv")
    environment = fields.get("environment", {})
    if not isinstance(argv, list) or not isinstance(environment, dict):
        raise ContractError("argv is not a list or environment is not an object")
    terminal = fields.get("terminal")
    if terminal is not None:
        if not isinstance(terminal, list) or len(terminal) != 3:
            raise ContractError("terminal is not [term, columns, rows]")
        term, columns, rows = terminal
        terminal = Terminal(_raw(term, "TERM"), _size(columns, "columns"), _size(rows, "rows"))
    ninep = fields.get("ninep", "")
    mount = fields.get("mount", "auto")
    timeout_s = fields.get("timeout_s", TIMEOUT_9P_S)
    if not isinstance(ninep, str) or len(ninep) > 64:
        raise ContractError("ninep is not a short string")
    if mount not in MOUNT_BACKENDS:
        raise ContractError(f"mount is {mount!r}, not one of {', '.join(MOUNT_BACKENDS)}")
    if not isinstance(timeout_s, int | float) or not 0 < timeout_s < 1e6:
        raise ContractError("timeout_s is not a number of seconds")
    return Request(
        argv=[_raw(word, "an argument") for word in argv],
        environment={_variable(_raw(name, "a variable's name")): _raw(environment[name], name) for name in environment},
        cwd=_raw(fields.get("cwd", "/"), "cwd"),
        fstab=_raw(fields.get("fstab", ""), "fstab"),
        ninep=ninep,
        terminal=terminal,
        mount=mount,
        timeout_s=float(timeout_s),
    )


def _variable(name: bytes) -> bytes:
    if not name or b"=" in name:
        raise ContractError(f"a variable is called {name!r}")
    return name


def encode_reply(reply: Reply) -> bytes:
    """The framed form of a reply."""
    return frame(json.dumps({"version": list(VERSION), "error": reply.error, "hint": reply.hint}).encode("ascii"))


def decode_reply(body: bytes) -> Reply:
    """Read a reply's body. Raises ContractError."""
    fields = _object(body, "reply")
    return Reply(str(fields.get("error", "")), str(fields.get("hint", "")))


def quote(word: bytes) -> bytes:
    """Quote one argument for a POSIX splitter, the way u-root/cpu writes it."""
    return b"'" + word.replace(b"'", b"'\"'\"'") + b"'"


def exec_string(argv: Sequence[bytes], port: int | None) -> bytes:
    """The exec request's string of u-root/cpu: `-port9p=N` (nothing without 9P), a space, the quoted words."""
    option = b"" if port is None else b"-port9p=%d" % port
    return option + b" " + b" ".join(quote(word) for word in argv)


class Exec(NamedTuple):
    """What an exec string asks for."""

    argv: Sequence[bytes]
    port: int | None
    """The forwarded port that the client waits on for 9P, None when the string has no -port9p."""


def is_ours(command: bytes) -> bool:
    """Whether an exec string is u-root/cpu's: it begins with an option, or with a space where there is none.

    OpenSSH's client sends the user's words with spaces between, for a shell to make sense of.
    """
    return command.startswith((b" ", b"-"))


def parse_exec(command: bytes) -> Exec:
    """Split an exec string as a POSIX shell would and take the options a peer may set off its front.

    Those are -d and -port9p=N (or -port9p N), one dash or two, and nothing else: a peer chooses these words. After a
    leading space there is no option. Raises ContractError.
    """
    try:
        words = [word.encode("latin-1") for word in shlex.split(command.decode("latin-1"))]
    except ValueError as error:
        raise ContractError(f"cannot split the command: {error}") from None
    port: int | None = None
    while not command.startswith(b" ") and words and words[0].startswith(b"-"):
        option, equals, value = words.pop(0).lstrip(b"-").partition(b"=")
        if option == b"d":
            continue
        if option != b"port9p":
            raise ContractError(f"option -{option.decode('latin-1')} is not for a peer to set")
        if not equals:
            value = words.pop(0) if words else b""
        if not value.isdigit() or len(value) > 5 or int(value) > 0xFFFF:
            raise ContractError(f"-port9p={value[:40].decode('latin-1')} is not a port")
        port = int(value) or None
    return Exec(words, port)
