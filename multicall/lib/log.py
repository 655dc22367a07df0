"""What a person reads: a line that says what was attempted, on which value, why it failed; perhaps a hint line."""

import logging
import os
import sys
import traceback
from collections.abc import Callable

FAILURE_STATUS = 255
"""The exit status of a failure of ours, as ssh does it: a command's own status is never confused with it lightly."""


class Problem(Exception):
    """A failure to be told to a person. `hint` is a way out, when we know one; `status` the exit status it ends in."""

    def __init__(self, message: str, hint: str = "", status: int = FAILURE_STATUS) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.status = status

    def text(self, name: str) -> str:
        """The whole message as printed by the command called `name`, newline included."""
        hint = f"hint: {self.hint}\n" if self.hint else ""
        return f"{name}: {self.message}\n{hint}"


def reason(error: BaseException) -> str:
    """The system's words for an error: strerror where there is an errno, else the exception's own text."""
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


def say(text: str) -> None:
    """Write to stderr, whatever state it is in: a closed or full stderr is not a reason to fail."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):
        pass


def run(name: str, command: Callable[[], int], debug: bool = False) -> int:
    """Run a command's main part; turn what it raises into a message and an exit status. Tracebacks with `debug`."""
    try:
        return command()
    except Problem as problem:
        if debug:
            traceback.print_exc()
        say(problem.text(name))
        return problem.status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            say(f"{name}: {type(error).__name__}: {reason(error)}\nhint: -d shows where; please report it\n")
        return FAILURE_STATUS


def set_up(text: str, level: int, *, debug: bool = False, handler: logging.Handler | None = None) -> None:
    """Send a command's log to stderr, or to `handler`: records of `level` and above, all of them with `debug`.

    `text` is the form of a line (logging.Formatter). asyncssh and asyncio log what they also raise: what of that
    matters to a person is said by us, once.
    """
    handler = handler or logging.StreamHandler()
    handler.setFormatter(logging.Formatter(text))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if debug else level)
    if not debug:
        for name in ("asyncssh", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
