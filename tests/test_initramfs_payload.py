"""The zipapp: the same bytes each time, and it starts from anywhere with nothing but python3 around it."""

import os
import subprocess
from pathlib import Path

import pytest

from initramfs import payload
from multicall import applets


@pytest.fixture(scope="module")
def zipapp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return payload.build_zipapp(tmp_path_factory.mktemp("build") / "cpu.pyz")


def run(program: Path, *words: str, home: Path) -> "subprocess.CompletedProcess[str]":
    environment = {"PATH": os.environ["PATH"], "HOME": str(home)}
    return subprocess.run([program, *words], cwd="/", env=environment, capture_output=True, text=True, check=False)


def test_every_command_has_a_link(zipapp: Path) -> None:
    links = {path.name: os.readlink(path) for path in (zipapp.parent / "bin").iterdir()}
    assert links == {applet.name: "../cpu.pyz" for applet in applets.TABLE}


def test_it_starts_by_its_names_and_by_its_own(zipapp: Path, tmp_path: Path) -> None:
    by_link = run(zipapp.parent / "bin/cpud", "--help", home=tmp_path)
    assert (by_link.returncode, by_link.stderr) == (0, "")
    assert by_link.stdout.startswith("Usage: cpud")
    by_word = run(zipapp, "cpud", "--help", home=tmp_path)
    assert by_word.stdout == by_link.stdout
    assert run(zipapp, home=tmp_path).returncode == 127
    assert [path.name.startswith("cpu.pyz_") for path in (tmp_path / ".shiv").iterdir() if path.is_dir()] == [True]


def test_it_can_import_all_that_a_session_needs(zipapp: Path, tmp_path: Path) -> None:
    found = subprocess.run(
        [zipapp],
        env={**os.environ, "SHIV_ROOT": str(tmp_path), "SHIV_INTERPRETER": "1"},
        input="import asyncssh, pyfuse3, pyroute2, click, multicall.cpu, ninep.fuse; print(pyfuse3.__file__)\n",
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert str(tmp_path) in found.stdout, found.stderr


def test_the_same_bytes_under_another_umask(zipapp: Path, tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        again = payload.build_zipapp(tmp_path / "cpu.pyz")
    finally:
        os.umask(old)
    assert again.read_bytes() == zipapp.read_bytes()
    assert os.access(again, os.X_OK)


def test_it_is_not_made_again_and_old_links_go(zipapp: Path) -> None:
    before = zipapp.stat().st_mtime_ns
    (zipapp.parent / "bin/gone").symlink_to("../cpu.pyz")
    payload.build_zipapp(zipapp)
    assert zipapp.stat().st_mtime_ns == before
    assert not (zipapp.parent / "bin/gone").is_symlink()
