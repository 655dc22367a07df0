"""What process 1 decides, without being it: the board's description, command line, back-off, supervision, tables."""

import errno
import json
import os
import signal
from pathlib import Path

import pytest

from multicall.lib import board, boot, device, journal, link, power, supervise


def parsed(table: object) -> tuple[board.Board, list[str]]:
    problems: list[str] = []
    return board.parse(json.dumps(table), problems.append), problems


def test_a_board_has_a_default_for_everything() -> None:
    assert parsed({}) == (board.Board(), [])


def test_a_board_is_what_its_file_says() -> None:
    got, problems = parsed(
        {
            "hostname": "lamp",
            "modules": ["kernel/fs/9p/9p.ko"],
            "network": {"mode": "none", "interfaces": ["eth1"]},
            "cpud": ["-pk", "/k"],
            "console": ["ttyS0", "/dev/tty1"],
            "build_time": 1700000000,
        }
    )
    assert not problems
    assert got == board.Board(
        "lamp",
        ("kernel/fs/9p/9p.ko",),
        board.Network("none", ("eth1",)),
        ("-pk", "/k"),
        ("/dev/ttyS0", "/dev/tty1"),
        1700000000,
    )


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"hostnam": "x"}, "hostnam: no such key; there are hostname"),
        ({"hostname": ""}, 'hostname = "": must be a text'),
        ({"modules": "9p"}, 'modules = "9p": must be a list of texts'),
        ({"modules": [1]}, "modules = [1]: must be a text"),
        ({"network": {"mode": "wifi"}}, 'network.mode = "wifi": must be one of dhcp, none'),
        ({"network": 3}, "network = 3: must be an object"),
        ({"build_time": -1}, "build_time = -1: must be a number of seconds"),
        ({"build_time": True}, "build_time = true: must be a number of seconds"),
        ([], "must be an object"),
    ],
)
def test_what_is_wrong_is_named_and_the_rest_still_counts(table: object, named: str) -> None:
    got, problems = parsed({**table, "console": "ttyAMA0"} if isinstance(table, dict) else table)
    assert len(problems) == 1
    assert named in problems[0]
    if isinstance(table, dict):
        assert got == board.Board(console=("/dev/ttyAMA0",))


def test_text_that_is_no_json_is_a_problem() -> None:
    problems: list[str] = []
    assert board.parse("{", problems.append) == board.Board()
    assert problems[0].startswith("read /etc/pycpu/board.json: ")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", []),
        ("quiet  cpu.debug\n", ["quiet", "cpu.debug"]),
        ('a="x y" b', ["a=x y", "b"]),
        ('"a=x y"', ["a=x y"]),
        ('a="', ["a="]),
        ('""', [""]),
    ],
)
def test_the_command_line_is_split_as_the_kernel_does(line: str, words: list[str]) -> None:
    assert board.words(line) == words


def test_options_of_the_command_line() -> None:
    assert board.options("console=ttyS0 quiet xcpu.shell=0") == board.Options()
    assert board.options("cpu.hostname=a cpu.hostname=b cpu.shell=0 cpu.debug") == board.Options("b", False, True)
    assert board.options("cpu.debug=0 cpu.shell=1") == board.Options()


def test_back_off_grows_to_its_limit_and_starts_again_after_a_steady_run() -> None:
    backoff = supervise.Backoff(first_s=1, most_s=5, factor=2, steady_s=10)
    assert [backoff.delay_s(0.1) for _ in range(5)] == [1, 2, 4, 5, 5]
    assert backoff.delay_s(10) == 1
    assert backoff.delay_s(0) == 2


class Machine:
    """A supervisor whose time stands still and whose programs are numbers."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.started: list[str] = []
        self.said: list[str] = []
        self.problems: list[str] = []
        self.fails = False
        self.supervisor = supervise.Supervisor(self.said.append, self.problems.append, self.start, lambda: self.now_s)

    def start(self, service: supervise.Service) -> int:
        if self.fails:
            raise FileNotFoundError(errno.ENOENT, "no", "/x")
        self.started.append(service.name)
        return 1000 + len(self.started)


def test_a_service_is_started_again_when_its_time_has_come() -> None:
    machine = Machine()
    machine.supervisor.add(supervise.Service("cpud", ("/x",)), supervise.Backoff(1))
    assert machine.supervisor.start_due() is None
    assert machine.started == ["cpud"]
    assert not machine.supervisor.ended(4711, 0), "an orphan is nobody's"
    assert machine.supervisor.ended(1001, 3 << 8)
    assert machine.problems == ["cpud: exit status 3"]
    assert machine.said == ["cpud: again in 1 s"]
    machine.now_s += 0.25
    assert machine.supervisor.start_due() == 0.75
    assert machine.supervisor.pid_of("cpud") == 0
    machine.now_s += 0.75
    assert machine.supervisor.start_due() is None
    assert machine.supervisor.pid_of("cpud") == 1002
    assert machine.supervisor.remove("cpud") == 1002
    assert not machine.supervisor.ended(1002, signal.SIGKILL)
    assert machine.supervisor.start_due() is None


def test_a_program_that_is_not_there_is_tried_again() -> None:
    machine = Machine()
    machine.fails = True
    machine.supervisor.add(supervise.Service("cpud", ("/x",)), supervise.Backoff(1))
    assert machine.supervisor.start_due() == 1
    assert machine.problems == ["start cpud: /x: No such file or directory"]
    machine.fails = False
    machine.now_s += 1
    assert machine.supervisor.start_due() is None
    assert machine.started == ["cpud"]


def test_a_shell_ends_silently_but_not_when_it_never_ran() -> None:
    machine = Machine()
    machine.supervisor.add(supervise.Service("shell", ("/x",), quiet=True), supervise.Backoff(0))
    machine.supervisor.start_due()
    machine.supervisor.ended(1001, 0)
    assert not machine.problems
    machine.supervisor.start_due()
    machine.supervisor.ended(1002, supervise.NO_TERMINAL << 8)
    assert machine.problems == ["shell: exit status 126"]


def test_status_in_words() -> None:
    assert supervise.describe_status(0) == "exit status 0"
    assert supervise.describe_status(signal.SIGKILL) == "killed by Killed"


def test_launch_runs_a_program_in_a_session_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = f'exec > {out}; echo "$0 $1 $HOME $PATH"; read x || echo eof; ps -o sid= -p $$; echo $$'
    service = supervise.Service("x", ("/bin/sh", "-c", script, "word"), arg0="sh")
    pid = supervise.launch(service)
    assert os.waitpid(pid, 0)[1] == 0
    first, eof, sid, own = out.read_text().split("\n")[:4]
    assert first == "word  /root /usr/sbin:/usr/bin:/sbin:/bin"
    assert eof == "eof"
    assert int(sid) == int(own) == pid


def test_the_kernel_file_systems_are_in_an_order_that_works() -> None:
    targets = [row.target for row in device.MOUNTS]
    assert len(set(targets)) == len(targets)
    for index, target in enumerate(targets):
        assert not any(later != target and target.startswith(later + b"/") for later in targets[index:])
    assert {b"/dev", b"/proc", b"/sys", b"/dev/pts", b"/dev/shm", b"/run", b"/tmp"} == set(targets)


def test_devices_go_on_after_a_failure(tmp_path: Path) -> None:
    problems: list[str] = []
    link_path = os.fsencode(tmp_path / "link")
    device.bring_up(
        problems.append,
        (device.Mount(b"nosuchfs", os.fsencode(tmp_path / "m")),),
        (device.Node(os.fsencode(tmp_path / "no" / "node"), 0o600, 1, 3),),
        (device.Link(link_path, b"text"), device.Link(link_path, b"other")),
    )
    assert os.readlink(link_path) == b"text"
    assert problems[0].startswith(f"mount {tmp_path}/m: ")
    assert problems[1] == f"make node {tmp_path}/no/node: No such file or directory"
    assert len(problems) == 2


def test_problems_are_kept_once_with_their_number(tmp_path: Path) -> None:
    read, write = os.pipe()
    book = journal.Journal("init", str(tmp_path / "run"), console=write, kmsg="/dev/null")
    book.problem("mount /x: no")
    book.problem("load y: no\nat all")
    book.problem("mount /x: no")
    assert (tmp_path / "run/problems").read_text() == "mount /x: no (2 times)\nload y: no; at all\n"
    assert os.read(read, 1000).startswith(b"init: mount /x: no\ninit: load y: no\nat all\n")


def test_a_journal_without_console_and_folder_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    book = journal.Journal("init", str(tmp_path / "file" / "run"), console=9999, kmsg="/nope/kmsg")
    book.problem("x")
    assert book.problems == {"x": 1}


def test_signals_mean_what_busybox_says() -> None:
    meant = {way.number: (way.name, way.command) for way in power.WAYS}
    assert meant[signal.SIGUSR2] == ("poweroff", 0x4321FEDC)
    assert meant[signal.SIGUSR1] == ("halt", 0xCDEF0123)
    assert meant[signal.SIGTERM] == ("reboot", 0x01234567)
    assert power.way_of_signal(signal.SIGINT) is not None
    assert power.way_of_signal(signal.SIGCHLD) is None


def test_which_interfaces_are_configured() -> None:
    present = [
        link.Interface("lo", False, False, False),
        link.Interface("eth0", True, True, False),
        link.Interface("br0", True, False, False),
        link.Interface("wlan0", True, True, True),
    ]
    assert link.wanted(present) == ["eth0"]
    assert link.wanted(present, ("br0", "usb0")) == ["br0"]


def test_interfaces_and_addresses_of_this_machine() -> None:
    names = {interface.name: interface for interface in link.interfaces()}
    assert not names["lo"].is_ethernet
    assert link.exists("lo")
    assert not link.exists("nope0")
    assert not link.has_carrier("nope0")
    assert all(name in names and address.count(".") == 3 for name, address in link.addresses())


def test_the_terminal_of_a_console() -> None:
    assert boot.find_terminal("/dev/ttyS7") == "/dev/ttyS7"
    assert boot.terminal_type("/dev/tty1") == "linux"
    assert boot.terminal_type("/dev/ttyS0") == "vt220"


@pytest.mark.parametrize(("now_s", "set_to"), [(0.0, [1e9]), (1e9 + 1, [])])
def test_no_clock_is_before_the_image(monkeypatch: pytest.MonkeyPatch, now_s: float, set_to: list[float]) -> None:
    init = boot.Init()
    init.board = board.Board(build_time=10**9)
    taken: list[float] = []
    monkeypatch.setattr(boot.time, "time", lambda: now_s)
    monkeypatch.setattr(boot.time, "clock_settime", lambda clock, seconds: taken.append(seconds))
    monkeypatch.setattr(boot, "RTC", "/nope")
    init._set_clock()
    assert taken == set_to


def test_init_refuses_to_be_another_process(capsys: pytest.CaptureFixture[str]) -> None:
    from multicall import init

    assert init.main(["init"]) == 255
    assert "cannot be init" in capsys.readouterr().err


def test_a_main_loop_that_fails_again_and_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[str] = []

    class Broken:
        def __init__(self) -> None:
            self.journal = journal.Journal("init", console=9999, kmsg="/nope")

        def bring_up(self) -> None:
            rounds.append("up")

        def start_services(self) -> None:
            rounds.append("services")

        def serve(self) -> None:
            raise ValueError("broken")

        def stop(self, way: None) -> None:
            raise AssertionError

    monkeypatch.setattr(boot, "Init", Broken)
    with pytest.raises(ValueError, match="broken"):
        boot.run()
    assert rounds == ["up"] + ["services"] * (boot.CRASHES - 1)
