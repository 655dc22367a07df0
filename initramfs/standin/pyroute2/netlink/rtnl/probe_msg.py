"""In place of pyroute2's: messages that ask for probes of other machines. Not for us, and theirs needs OpenSSL."""

from typing import NoReturn


class probe_msg:
    """Never made: no kernel sends or takes this type of message."""


def proxy_newprobe(*_: object) -> NoReturn:
    """What asks for a probe. Raises NotImplementedError."""
    raise NotImplementedError("probes of other machines are not on a board")
