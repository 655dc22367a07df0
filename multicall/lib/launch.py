"""From fork to exec: the child of a session makes its world and becomes the command.

It runs on a board whose /usr is about to be covered by the client's, so everything that it needs is imported before the
fork, and on a tree that its parent serves, so it may block where the parent must not. It tells the parent what it did
through a pipe that exec closes (REPORT_*), and people through the session's stderr.
"""

import errno
import fcntl
import grp
import os
import pwd
import signal
import termios
from collections.abc import Mapping, Sequence
from typing import NamedTuple, NoReturn

from multicall.lib import contract, mount, namespace
from multicall.lib.log import reason

REPORT_MOUNTED = b"mounted"
REPORT_MADE = b"made "
"""What the child writes to the report pipe, each ended by a NUL: the tree is mounted; a mount point was made."""

PLACES = (b"/tmp/cpu", b"/tmp/local", b"/tmp/merge", b"/tmp/root", b"/home")
"""Directories every session has, as u-root/cpu makes them."""

DEFAULT_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SHELL = b"/bin/sh"


class User(NamedTuple):
    """Whom the command runs as; looked up before the client's /etc covers the board's."""

    name: str
    uid: int
    gid: int
    groups: Sequence[int]
    home: bytes
    shell: bytes


class Plan(NamedTuple):
    """All that the child needs. `options` is mount(2)'s data for the tree, which names an open descriptor."""

    request: contract.Request
    backend: mount.Backend | None
    options: bytes
    user: User | None
    is_terminal: bool
    stdio: tuple[int, int, int]
    report_fd: int


def find_user(name: str) -> User | None:
    """The account `name`, or None for "as cpud": when cpud is not root, or the board has no such account."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(name)
    except (KeyError, ValueError):
        return None
    if entry.pw_uid == 0:
        return None
    groups = os.getgrouplist(name, entry.pw_gid)
    return User(name, entry.pw_uid, entry.pw_gid, groups, os.fsencode(entry.pw_dir), os.fsencode(entry.pw_shell))


def preload() -> None:
    """Make the C library and Python load now what the child would load too late, from the client's tree."""
    for look_up in (pwd.getpwuid, grp.getgrgid):
        try:
            look_up(0)
        except KeyError:
            pass
    os.strerror(errno.ENOENT).encode("utf-8", "backslashreplace").decode("latin-1")


def run(plan: Plan) -> NoReturn:
    """The child's whole life. Never returns and never raises."""
    status = contract.STATUS_OURS
    try:
        _reset_signals()
        os.setsid()
        mount.prctl(mount.PR_SET_PDEATHSIG, signal.SIGKILL)
        _stdio(plan)
        if plan.backend:
            _mount_all(plan, plan.backend)
        _become(plan.user)
        # The kernel forgets the death signal when credentials change (prctl(2)).
        mount.prctl(mount.PR_SET_PDEATHSIG, signal.SIGKILL)
        argv = plan.request.argv or [plan.request.environment.get(b"SHELL", b"") or SHELL]
        _chdir(plan.request.cwd)
        os.umask(_UMASK)
        status = _exec(argv, plan.request.environment)
    except Stop:
        pass
    except BaseException as error:
        _tell(f"cpud: {type(error).__name__}: {reason(error)}")
    finally:
        os._exit(status)


_UMASK = 0o022


class Stop(Exception):
    """What had to be said is said; the session fails with our status."""


def _tell(text: str) -> None:
    try:
        os.write(2, text.encode("utf-8", "surrogateescape") + b"\n")
    except OSError:
        pass


def _fail(text: str, hint: str = "") -> NoReturn:
    _tell(f"cpud: {text}" + (f"\nhint: {hint}" if hint else ""))
    raise Stop


def _reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in range(1, signal.NSIG):
        try:
            if signal.getsignal(number) is not None:
                signal.signal(number, signal.SIG_DFL)
        except (OSError, ValueError):
            pass
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _stdio(plan: Plan) -> None:
    if plan.is_terminal:
        fcntl.ioctl(plan.stdio[0], termios.TIOCSCTTY, 0)
    # Out of the way first: a source may have a number from 0 to 2 itself.
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in plan.stdio]
    for number, fd in enumerate(copies):
        os.dup2(fd, number, inheritable=True)


def _report(plan: Plan, what: bytes) -> None:
    os.write(plan.report_fd, what + b"\0")


def _mount_all(plan: Plan, backend: mount.Backend) -> None:
    request = plan.request
    try:
        mount.private_namespace()
        mount.mount(b"cpu", b"/tmp", b"tmpfs", mount.MS_NODEV | mount.MS_NOSUID, b"mode=1777")
    except OSError as error:
        hint = "cpud has to run as root to mount" if error.errno == errno.EPERM else ""
        _fail(f"make a private /tmp: {reason(error)}", hint)
    for place in PLACES:
        made = mount.make_mount_point(place, b"/")
        for path in made:
            if not path.startswith(b"/tmp/"):
                _report(plan, REPORT_MADE + path)
    mount.mount(b"/", b"/tmp/local", b"none", mount.MS_BIND | mount.MS_REC)
    try:
        flags = mount.MS_NODEV | mount.MS_NOSUID
        mount.mount(b"cpu", namespace.CLIENT_TREE, backend.fstype, flags, plan.options)
    except OSError as error:
        needed = f"the board's kernel needs {backend.kernel_option}" if error.errno == errno.ENODEV else ""
        _fail(f"mount the client's files with {backend.name}: {reason(error)}", needed)
    _report(plan, REPORT_MOUNTED)
    rows, complaints = namespace.parse_fstab(request.fstab)
    for complaint in complaints:
        _tell(f"cpud: {complaint}")
    for row in rows:
        _mount_row(plan, row)


def _mount_row(plan: Plan, row: namespace.Mount) -> None:
    target = row.target.decode(errors="replace")
    source = row.source.decode(errors="replace")
    try:
        if not os.path.lexists(row.target):
            if b"bind" in row.options or b"rbind" in row.options:
                os.stat(row.source)
            for path in mount.make_mount_point(row.target, row.source):
                if not path.startswith(b"/tmp/"):
                    _report(plan, REPORT_MADE + path)
    except OSError as error:
        _tell(f"cpud: mount {source} on {target}: {reason(error)} (skipped)")
        return
    try:
        mount.mount_row(row)
    except OSError as error:
        _tell(f"cpud: mount {source} on {target}: {reason(error)} (skipped)")


def _become(user: User | None) -> None:
    if user:
        os.setgroups(list(user.groups))
        os.setgid(user.gid)
        os.setuid(user.uid)


def _chdir(cwd: bytes) -> None:
    shown = cwd.decode(errors="replace")
    try:
        os.chdir(cwd)
    except OSError as error:
        _fail(f"chdir {shown}: {reason(error)}", f"add it to the namespace: -namespace +{shown}")


def _exec(argv: Sequence[bytes], environment: Mapping[bytes, bytes]) -> int:
    """exec the command by its PATH. Returns the status of the failure, having told it."""
    name = argv[0]
    if b"/" in name:
        candidates = [name]
    else:
        path = environment.get(b"PATH", DEFAULT_PATH)
        candidates = [(folder or b".") + b"/" + name for folder in path.split(b":")]
    failure: OSError | None = None
    found = b""
    for candidate in candidates:
        try:
            os.execve(candidate, list(argv), dict(environment))
        except OSError as error:
            if error.errno == errno.ENOEXEC:
                # A script without #! is the shell's, as execvp(3) has it.
                try:
                    os.execve(SHELL, [SHELL, candidate, *argv[1:]], dict(environment))
                except OSError as shell_error:
                    error = shell_error
            # What PATH says later does not hide that something was there (execvp(3)).
            if failure is None or failure.errno in (errno.ENOENT, errno.ENOTDIR):
                failure, found = error, candidate
    shown = name.decode(errors="replace")
    if failure is None or failure.errno in (errno.ENOENT, errno.ENOTDIR):
        for candidate in candidates:
            if os.path.isfile(candidate):
                where = candidate.decode(errors="replace")
                _tell(f"cpud: {where}: is there, but not its interpreter: the loader of its ELF file or of its #! line")
                _tell("hint: a program of another architecture? its libraries must be in the namespace")
                return contract.STATUS_NOT_EXECUTABLE
        _tell(f"cpud: {shown}: " + ("No such file or directory" if b"/" in name else "command not found"))
        return contract.STATUS_NOT_FOUND
    if failure.errno == errno.E2BIG:
        _tell(f"cpud: {shown}: {reason(failure)}")
        return contract.STATUS_NOT_EXECUTABLE
    where = found.decode(errors="replace")
    hint = ""
    if failure.errno == errno.ENOEXEC:
        hint = f"a program of another architecture? the board is {os.uname().machine}"
    _tell(f"cpud: {where}: {reason(failure)}" + (f"\nhint: {hint}" if hint else ""))
    return contract.STATUS_NOT_EXECUTABLE
