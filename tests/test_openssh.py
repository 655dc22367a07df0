"""OpenSSH's ssh against cpud: what works with an sshd works here, and what a cpud does not offer is refused."""

import os
import subprocess
from collections.abc import Iterator

import pytest

from rig import Cpud, Running, running, wait_until

pytestmark = [pytest.mark.interop]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cpud]:
    daemon = Cpud(tmp_path_factory.mktemp("host"))
    yield daemon
    daemon.stop()


def ssh_argv(host: Cpud, *words: str) -> list[str]:
    options = {
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": str(host.home / "openssh"),
        "StrictHostKeyChecking": "accept-new",
        "LogLevel": "ERROR",
    }
    named = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    return ["ssh", "-F", "none", "-i", str(host.key), *named, "-p", host.port, *words]


def ssh(host: Cpud, *words: str, input: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(ssh_argv(host, *words), input=input, capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize(("command", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 255), ("nosuch", 127)])
def test_exit_status(host: Cpud, command: str, status: int) -> None:
    assert ssh(host, "127.0.0.1", command).returncode == status


def test_a_command_line_is_the_shells(host: Cpud) -> None:
    result = ssh(host, "127.0.0.1", 'echo "$((1+2))" | tr 3 4; echo wrong >&2')
    assert (result.stdout, result.stderr) == (b"4\n", b"wrong\n")


def test_environment_and_directory(host: Cpud) -> None:
    result = ssh(host, "-o", "SetEnv=PWD=/usr", "127.0.0.1", "pwd; echo $HOME $USER; command -v ls")
    assert result.stdout.split() == [b"/usr", b"/root", b"root", b"/usr/bin/ls"]


def test_binary_input_and_output(host: Cpud) -> None:
    content = os.urandom(5 << 20)
    assert ssh(host, "127.0.0.1", "cat", input=content).stdout == content


def test_a_terminal(host: Cpud) -> None:
    result = ssh(host, "-tt", "127.0.0.1", "tty; echo $TERM; stty -echo; read x; echo got $x", input=b"hello\n")
    lines = result.stdout.decode().split("\r\n")
    assert any(line.startswith("/dev/pts/") for line in lines)
    assert "got hello" in lines


def test_a_client_that_goes_takes_its_command(host: Cpud) -> None:
    with Running(ssh_argv(host, "127.0.0.1", "echo ready; exec sleep 31415926"), stdout=-1) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        process.kill()
    wait_until(lambda: not running("31415926"), "the command to end")


def test_what_is_not_offered(host: Cpud) -> None:
    sftp = ssh(host, "-s", "127.0.0.1", "sftp")
    assert sftp.returncode == 255
    forward = ssh(host, "-o", "ExitOnForwardFailure=yes", "-R", "17999:127.0.0.1:22", "127.0.0.1", "true")
    assert forward.returncode == 255
    through = ssh(host, "-W", "127.0.0.1:22", "127.0.0.1")
    assert through.returncode == 255
