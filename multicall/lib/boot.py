"""What process 1 does: bring the board up step by step, keep its programs running, reap, and stop the machine cleanly.

One thread, one poll(2). Nothing here is polled for: signals arrive by a pipe, interfaces by netlink, and the rest is
the time at which something is to be started again.
"""

import os
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import NoReturn

from multicall import VERSION
from multicall.lib import board, device, journal, link, module, mount, power, supervise
from multicall.lib.log import reason

CPUD = "/usr/bin/cpud"
DHCP = "/usr/bin/dhcp"
RTC = "/sys/class/rtc/rtc0/since_epoch"
"""Kernels set their clock by it themselves, but not from a driver that is a module."""

SHELLS: tuple[tuple[str, ...], ...] = (
    # program, name it is called by, arguments
    ("/bin/busybox", "sh"),
    ("/usr/bin/busybox", "sh"),
    ("/bin/sh", "sh"),
    ("/usr/bin/python3.11", "python3", "-q", "-i"),
)

STOP_GRACE_S = 10.0
"""From TERM to KILL. cpud needs up to 8 to end its sessions, each of which gives its command a chance."""

KILL_GRACE_S = 2.0
CRASHES, CRASHES_S = 5, 10.0
"""So many exceptions of the main loop in so short a time, and it is given up for a bare shell."""


class Init:
    """Process 1. Make one, `bring_up`, `serve` again and again."""

    def __init__(self) -> None:
        self.journal = journal.Journal("init", journal.RUN_FOLDER)
        self.board = board.Board()
        self.options = board.Options()
        self.supervisor = supervise.Supervisor(self.journal.say, self.journal.problem)
        self._watch: link.Watch | None = None
        self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    # Bringing up.

    def bring_up(self) -> None:
        """Do every step, in order: the console comes as soon as it can, the network last."""
        self._do(
            ("take signals", self._take_signals),
            ("make devices", self._make_devices),
            ("read the kernel's command line", self._read_command_line),
            ("read the board's description", self._read_board),
            ("set the clock", self._set_clock),
            ("set the hostname", self._set_hostname),
            ("start the shell", self._start_shell),
            ("load modules", self._load_modules),
        )
        self.start_services()

    def start_services(self) -> None:
        """Have everything run that should, and does not: also what a stop that was refused has ended."""
        self._do(
            ("start the shell", self._start_shell),
            ("start cpud", self._start_cpud),
            ("start the network", self._start_network),
        )

    def _do(self, *steps: tuple[str, Callable[[], None]]) -> None:
        """One that fails is told and kept, and the next one follows."""
        for name, step in steps:
            try:
                step()
                self.supervisor.start_due()
            except Exception as error:
                self.journal.problem(f"{name}: {type(error).__name__}: {reason(error)}")

    def _take_signals(self) -> None:
        for number in (signal.SIGCHLD, *(way.number for way in power.WAYS)):
            signal.signal(number, lambda number, frame: None)
        for number in (signal.SIGHUP, signal.SIGPIPE, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)

    def _make_devices(self) -> None:
        os.umask(0o022)
        device.bring_up(self.journal.problem)
        open_console()
        self.journal.keep()
        try:
            power.reboot(power.CMD_CAD_OFF)  # ctrl-alt-del becomes our SIGINT
        except OSError as error:
            self.journal.problem(f"take ctrl-alt-del: {reason(error)}")

    def _read_command_line(self) -> None:
        with open("/proc/cmdline", encoding="utf-8", errors="replace") as file:
            self.options = board.options(file.read())

    def _read_board(self) -> None:
        try:
            with open(board.PATH, encoding="utf-8") as file:
                text = file.read()
        except OSError as error:
            self.journal.problem(f"read {board.PATH}: {reason(error)}")
            return
        self.board = board.parse(text, self.journal.problem)

    def _set_clock(self) -> None:
        if time.time() >= self.board.build_time:
            return
        wanted_s, source = float(self.board.build_time), "the date of the image"
        try:
            with open(RTC, encoding="ascii") as file:
                clock_s = float(file.read())
            if clock_s >= wanted_s:
                wanted_s, source = clock_s, "the hardware clock"
        except (OSError, ValueError):
            pass
        time.clock_settime(time.CLOCK_REALTIME, wanted_s)
        self.journal.say(f"set the clock to {source}")

    def _set_hostname(self) -> None:
        name = self.options.hostname or self.board.hostname
        if name:
            socket.sethostname(name)

    def _load_modules(self) -> None:
        if self.board.modules:
            loaded = module.insert_all(self.board.modules, self.journal.problem)
            self._debug(f"loaded {loaded} of {len(self.board.modules)} modules")

    def _start_cpud(self) -> None:
        if self.board.cpud is not None:
            self.supervisor.add(supervise.Service("cpud", (CPUD, *self.board.cpud)))

    def _start_shell(self) -> None:
        if not self.options.shell:
            return
        for console in self.board.console:
            program, name, *arguments = find_shell()
            terminal = find_terminal(console)
            self.supervisor.add(
                supervise.Service(
                    f"shell on {os.path.basename(terminal)}",
                    (program, *arguments),
                    console=terminal,
                    environment={**supervise.ENVIRONMENT, "TERM": terminal_type(terminal)},
                    prepare=self._print_banner,
                    arg0=name,
                    quiet=True,
                )
            )

    def _print_banner(self) -> None:
        os.write(1, ("\n" + banner(list(self.journal.problems)) + "\n").encode("utf-8", "replace"))

    def _start_network(self) -> None:
        try:
            link.switch_on("lo")
        except OSError as error:
            self.journal.problem(f"switch on lo: {reason(error)}")
        if self.board.network.mode == "none":
            return
        self._look_at_links()
        if not self._watch:
            self._watch = link.Watch()
            self._look_at_links()  # what came between the two lines above

    def _look_at_links(self) -> None:
        """Have one DHCP client for each interface that there is, and none for those that have gone."""
        present = link.wanted(link.interfaces(), self.board.network.interfaces)
        for name in present:
            self.supervisor.add(supervise.Service(f"dhcp {name}", (DHCP, name)))
        for service in self.supervisor.names():
            kind, _, name = service.partition(" ")
            if kind == "dhcp" and name not in present:
                pid = self.supervisor.remove(service)
                if pid:
                    os.kill(pid, signal.SIGTERM)

    def _debug(self, text: str) -> None:
        if self.options.debug:
            self.journal.say(text)

    # Running.

    def serve(self) -> power.Way:
        """Keep everything running until somebody wants the machine to stop; returns how."""
        poll = select.poll()
        poll.register(self._wake[0], select.POLLIN)
        if self._watch:
            poll.register(self._watch.fileno(), select.POLLIN)
        while True:
            for pid, status in supervise.reap():
                if not self.supervisor.ended(pid, status):
                    self._debug(f"reaped {pid}: {supervise.describe_status(status)}")
            wait_s = self.supervisor.start_due()
            for fd, _ in poll.poll(None if wait_s is None else wait_s * 1000 + 1):
                if fd == self._wake[0]:
                    for number in os.read(fd, 4096):
                        way = power.way_of_signal(number)
                        if way:
                            return way
                elif self._watch:
                    self._watch.drain()
                    self._look_at_links()

    # Stopping.

    def stop(self, way: power.Way) -> NoReturn:
        """End every process, write everything out, let go of the file systems, and stop. Raises OSError if refused."""
        self.journal.say(f"{way.name}: {way.doing}")
        for name in self.supervisor.names():
            pid = self.supervisor.remove(name)
            if pid and name.startswith("shell"):
                kill(-pid, signal.SIGHUP)  # an interactive shell does not listen to TERM
        kill(-1, signal.SIGTERM)
        kill(-1, signal.SIGCONT)
        if not self._wait_alone(STOP_GRACE_S):
            self.journal.say("killing what is left")
            kill(-1, signal.SIGKILL)
            self._wait_alone(KILL_GRACE_S)
        os.sync()
        unmount_all()
        power.reboot(way.command)
        raise OSError(0, f"reboot(2) returned from {way.name}")

    def _wait_alone(self, timeout_s: float) -> bool:
        """Reap until there is no other process; they all are our children in the end. Returns whether it came true."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return True
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            if select.select([self._wake[0]], [], [], left_s)[0]:
                os.read(self._wake[0], 4096)


def open_console() -> None:
    """Give process 1 its three descriptors, when the kernel found no /dev/console to open."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            opened = os.open("/dev/console", os.O_RDWR | os.O_NOCTTY)
            if opened != fd:
                os.dup2(opened, fd)
                os.close(opened)


def find_shell() -> tuple[str, ...]:
    """The row of SHELLS that is here; the last one if none is."""
    for row in SHELLS:
        if os.access(row[0], os.X_OK):
            return row
    return SHELLS[-1]


def find_terminal(console: str) -> str:
    """What a shell can own: /dev/console stands for another device, and only that can be a session's terminal."""
    if console == "/dev/console":
        try:
            with open("/sys/class/tty/console/active", encoding="ascii") as file:
                name = file.read().split()[-1]
        except (OSError, IndexError):
            return console
        # tty0 is the virtual console in the foreground; a session owns one of them.
        found = "/dev/tty1" if name == "tty0" else f"/dev/{name}"
        return found if os.path.exists(found) else console
    return console


def terminal_type(terminal: str) -> str:
    """What to call the terminal behind a line: the kernel's own on a virtual console, else what most programs are."""
    return "linux" if terminal.removeprefix("/dev/tty").isdecimal() else "vt220"


def banner(problems: list[str]) -> str:
    """What is printed before a shell: who this is, how to reach it, what failed."""
    try:
        known = " ".join(f"{name} {address}" for name, address in link.addresses()) or "no address yet"
    except OSError as error:
        known = f"no address: {reason(error)}"
    lines = [f"pycpu {VERSION} on {socket.gethostname()}: {known}"]
    if problems:
        lines.append(f"{len(problems)} problems, also in {journal.RUN_FOLDER}/{journal.PROBLEMS}:")
        lines += [f"  {text}" for text in problems[-10:]]
    return "\n".join(lines)


def kill(pid: int, number: int) -> None:
    """kill(2) of what may have gone."""
    try:
        os.kill(pid, number)
    except OSError:
        pass


def unmount_all() -> None:
    """Unmount what can be, the last first, and make the rest read-only."""
    try:
        with open("/proc/self/mounts", "rb") as table:
            rows = [line.split() for line in table]
    except OSError:
        return
    for source, target, fstype, *_ in reversed(rows):
        target = target.replace(b"\\040", b" ")
        if fstype in (b"proc", b"sysfs", b"devtmpfs", b"devpts", b"tmpfs", b"rootfs", b"ramfs"):
            continue
        try:
            mount.unmount(target)
        except OSError:
            try:
                mount.mount(source, target, b"none", mount.MS_REMOUNT | mount.MS_RDONLY)
            except OSError:
                pass


def run() -> NoReturn:
    """Be process 1. Raises only when even the main loop fails again and again."""
    init = Init()
    init.bring_up()
    crashes: list[float] = []
    while True:
        try:
            init.stop(init.serve())
        except Exception as error:
            if isinstance(error, OSError):
                init.journal.problem(f"process 1: {reason(error)}")
            else:
                import traceback

                init.journal.problem(f"process 1: {traceback.format_exc()}")
            crashes = [when for when in crashes if when > time.monotonic() - CRASHES_S] + [time.monotonic()]
            if len(crashes) >= CRASHES:
                raise
            init.start_services()
