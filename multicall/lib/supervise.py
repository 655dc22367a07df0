"""Programs that are to run as long as the board does, and the children that process 1 is given. No threads, no waiting:

its owner polls, calls `reap` on SIGCHLD and `start_due` when the time it was told has come.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, NoReturn

from multicall.lib.log import reason

ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "USER": "root",
}

NO_TERMINAL, CANNOT_RUN = 126, 127
"""Exit statuses of a child that did not come to be the program."""


class Backoff:
    """How long to wait before starting again what ended: longer each time, from the start when it ran for a while."""

    def __init__(self, first_s: float = 0.5, most_s: float = 30.0, factor: float = 2.0, steady_s: float = 10.0) -> None:
        self._first_s, self._most_s, self._factor, self._steady_s = first_s, most_s, factor, steady_s
        self._next_s = first_s

    def delay_s(self, ran_s: float) -> float:
        """The wait after a run of `ran_s` seconds."""
        delay_s = self._first_s if ran_s >= self._steady_s else self._next_s
        self._next_s = min(delay_s * self._factor, self._most_s)
        return delay_s


class Service(NamedTuple):
    """A program to keep running. `console`: the terminal it owns, "" is no input and process 1's own output.

    `prepare` runs in the child before the program, with the terminal in place; what it raises is told and forgotten.
    """

    name: str
    argv: tuple[str, ...]
    console: str = ""
    environment: Mapping[str, str] = ENVIRONMENT
    prepare: Callable[[], None] | None = None
    arg0: str = ""
    quiet: bool = False
    "ending is what it does, as a shell: nothing to tell"


class _State:
    def __init__(self, service: Service, backoff: Backoff) -> None:
        self.service = service
        self.backoff = backoff
        self.pid = 0
        self.started_s = 0.0
        self.due_s: float | None = None


def describe_status(status: int) -> str:
    """A wait status (see waitpid(2)) in words."""
    if os.WIFSIGNALED(status):
        return f"killed by {signal.strsignal(os.WTERMSIG(status)) or os.WTERMSIG(status)}"
    return f"exit status {os.WEXITSTATUS(status)}"


def reap() -> Iterator[tuple[int, int]]:
    """Take every child that has ended, ours or an orphan's: (pid, wait status). In process 1 only it sees its own."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        yield pid, status


def launch(service: Service) -> int:
    """Start the program in a session of its own; returns its pid. Raises OSError when it cannot even be tried.

    What goes wrong after the fork is said on stderr and ends in status NO_TERMINAL or CANNOT_RUN.
    """
    os.stat(service.argv[0])  # the usual mistake, told here in one line
    pid = os.fork()
    if pid == 0:
        _become(service)
    return pid


def _become(service: Service) -> NoReturn:
    status = NO_TERMINAL
    try:
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals():
            if number not in (signal.SIGKILL, signal.SIGSTOP) and signal.getsignal(number) != signal.SIG_DFL:
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.setsid()
        os.umask(0o022)
        if service.console:
            _own_terminal(service.console)
        else:
            null = os.open("/dev/null", os.O_RDONLY)
            os.dup2(null, 0)
            if null > 0:
                os.close(null)
        if service.prepare:
            try:
                service.prepare()
            except Exception as error:
                os.write(2, f"{service.name}: {reason(error)}\n".encode())
        status = CANNOT_RUN
        argv = (service.arg0 or service.argv[0], *service.argv[1:])
        os.execve(service.argv[0], argv, {**service.environment})
    except BaseException as error:
        what = service.argv[0] if status == CANNOT_RUN else service.console
        os.write(2, f"init: run {service.name}: {what}: {reason(error)}\n".encode())
    finally:
        os._exit(status)


def _own_terminal(path: str) -> None:
    import fcntl
    import termios

    # Without O_NONBLOCK, a serial line without carrier detect holds open(2) back.
    terminal = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY)
    os.set_blocking(terminal, True)
    # 1: take it even if an earlier session still holds it, which is what a respawned shell meets.
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 1)
    for fd in (0, 1, 2):
        os.dup2(terminal, fd)
    if terminal > 2:
        os.close(terminal)
    make_sane(0)


def make_sane(fd: int) -> None:
    """Give a terminal the settings of a fresh one, speed and size excepted, as stty(1) sane does."""
    import termios

    attributes = termios.tcgetattr(fd)
    attributes[0] = termios.ICRNL | termios.IXON | termios.BRKINT
    attributes[1] = termios.OPOST | termios.ONLCR
    attributes[2] |= termios.CREAD | termios.CS8
    attributes[3] = (
        termios.ISIG | termios.ICANON | termios.ECHO | termios.ECHOE | termios.ECHOK | termios.IEXTEN | termios.ECHOCTL
    )
    characters = attributes[6]
    for index, value in (
        (termios.VINTR, b"\x03"),
        (termios.VQUIT, b"\x1c"),
        (termios.VERASE, b"\x7f"),
        (termios.VKILL, b"\x15"),
        (termios.VEOF, b"\x04"),
        (termios.VSUSP, b"\x1a"),
        (termios.VMIN, 1),
        (termios.VTIME, 0),
    ):
        characters[index] = value
    termios.tcsetattr(fd, termios.TCSANOW, attributes)


class Supervisor:
    """Keeps services running. `say` is told each end and each failure to start; `problem` what is to be remembered."""

    def __init__(
        self,
        say: Callable[[str], None],
        problem: Callable[[str], None],
        start: Callable[[Service], int] = launch,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say, self._problem, self._start, self._clock = say, problem, start, clock
        self._states: dict[str, _State] = {}

    def add(self, service: Service, backoff: Backoff | None = None) -> None:
        """Keep this running from the next `start_due` on. One of that name which is there already stays."""
        if service.name not in self._states:
            state = _State(service, backoff or Backoff())
            state.due_s = self._clock()
            self._states[service.name] = state

    def remove(self, name: str) -> int:
        """No longer keep it running; returns the pid of the process if there still is one, else 0."""
        state = self._states.pop(name, None)
        return state.pid if state else 0

    def names(self) -> list[str]:
        """The services, in the order they were added."""
        return list(self._states)

    def pid_of(self, name: str) -> int:
        """The pid of a service that runs, else 0."""
        state = self._states.get(name)
        return state.pid if state else 0

    def start_due(self) -> float | None:
        """Start what is due. Returns the seconds until the next one is, or None when nothing waits."""
        for state in list(self._states.values()):
            if state.due_s is None or state.due_s > self._clock():
                continue
            state.due_s = None
            state.started_s = self._clock()
            try:
                state.pid = self._start(state.service)
            except OSError as error:
                self._problem(f"start {state.service.name}: {state.service.argv[0]}: {reason(error)}")
                state.due_s = self._clock() + state.backoff.delay_s(0.0)
        due = [state.due_s for state in self._states.values() if state.due_s is not None]
        return max(0.0, min(due) - self._clock()) if due else None

    def ended(self, pid: int, status: int) -> bool:
        """Take note of a reaped child. Returns whether it was a service; then it will be started again."""
        for state in self._states.values():
            if state.pid == pid:
                state.pid = 0
                now_s = self._clock()
                delay_s = state.backoff.delay_s(now_s - state.started_s)
                state.due_s = now_s + delay_s
                failed = os.WIFEXITED(status) and os.WEXITSTATUS(status) in (NO_TERMINAL, CANNOT_RUN)
                if failed or not state.service.quiet:
                    self._problem(f"{state.service.name}: {describe_status(status)}")
                    self._say(f"{state.service.name}: again in {delay_s:g} s")
                return True
        return False
