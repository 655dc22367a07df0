"""A built image: what is in it, that it is the same each time, and that its Python finds all that it imports."""

import dataclasses
import hashlib
import io
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from initramfs import compress, cpio, demo, elf, image, python, report
from multicall import applets

TOP = Path(__file__).resolve().parent.parent

OPTIONAL = {
    # module of the image that cannot be imported on a board: the one that it lacks, and whoever imports it expects that
    "asyncssh.crypto.x509": "OpenSSL",
    "asyncssh.gss_unix": "gssapi",
}


@pytest.fixture(scope="module")
def entries(made: demo.Made) -> dict[str, cpio.Entry]:
    packed = image.archive_path(made.profile, TOP / "build").read_bytes()
    return {entry.name.decode(): entry for entry in cpio.complete(cpio.read(io.BytesIO(compress.unpack(packed))))}


@pytest.fixture(scope="module")
def tree(entries: dict[str, cpio.Entry], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image as a folder, without its device nodes."""
    top = tmp_path_factory.mktemp("tree")
    for name, entry in entries.items():
        path = top / name
        if stat.S_ISDIR(entry.mode):
            path.mkdir(mode=0o755)
        elif stat.S_ISLNK(entry.mode):
            path.symlink_to(os.fsdecode(entry.content))
        elif stat.S_ISREG(entry.mode):
            path.write_bytes(entry.content)
            path.chmod(stat.S_IMODE(entry.mode))
    return top


@pytest.fixture(scope="module")
def run(tree: Path, made: demo.Made) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run a program of the image in it, with nothing in the environment."""
    if made.profile.architecture != "amd64" or os.uname().machine != "x86_64":
        pytest.skip("the image is for another architecture than this machine's")
    enter = ["chroot"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "chroot"]
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"

    def program(*words: str) -> "subprocess.CompletedProcess[str]":
        command = ["env", "-i", f"PATH={path}", *enter, str(tree), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    return program


def test_what_a_board_needs_is_there(made: demo.Made, entries: dict[str, cpio.Entry]) -> None:
    assert entries["etc/cpud/host_key"].content == made.host_key.read_bytes()
    assert stat.S_IMODE(entries["etc/cpud/host_key"].mode) == 0o600
    assert Path(f"{made.key}.pub").read_bytes() in entries["etc/cpud/authorized_keys"].content
    for name in ("usr/bin/python3.11", elf.LOADERS[made.profile.architecture], "bin/busybox"):
        assert entries[name].content.startswith(b"\x7fELF")
        assert stat.S_IMODE(entries[name].mode) == 0o755
    assert all(entry.uid == entry.gid == 0 for entry in entries.values())
    modules = [name for name in entries if name.endswith(".ko")]
    assert any(name.endswith("/9p.ko") for name in modules)


def test_nothing_is_there_twice_or_of_this_machine(entries: dict[str, cpio.Entry]) -> None:
    suffixes = {os.path.splitext(name)[1] for name in entries}
    assert ".py" not in suffixes
    assert not any("__pycache__" in name or ".dist-info" in name for name in entries)
    here = os.fsencode(TOP)
    assert not [name for name, entry in entries.items() if here in entry.content]


def test_every_link_leads_somewhere(entries: dict[str, cpio.Entry]) -> None:
    lost = []
    for name, entry in entries.items():
        if stat.S_ISLNK(entry.mode):
            target = os.path.normpath(os.path.join("/", os.path.dirname(name), entry.content.decode()))
            if target[1:] not in entries:
                lost.append(f"{name} -> {entry.content.decode()}")
    assert not lost


def test_gnu_cpio_reads_it(made: demo.Made, entries: dict[str, cpio.Entry]) -> None:
    raw = compress.unpack(image.archive_path(made.profile, TOP / "build").read_bytes())
    listed = subprocess.run(["cpio", "-t", "--quiet"], input=raw, capture_output=True, check=True)
    assert listed.stdout.decode().splitlines() == list(entries)


def test_every_module_can_be_imported(
    entries: dict[str, cpio.Entry], run: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    names = []
    for folder in (f"{python.STDLIB}/lib-dynload/", f"{python.STDLIB}/", f"{python.PAYLOAD}/"):
        for name in entries:
            if name.startswith(folder) and name.endswith((".pyc", ".so")) and "lib-dynload/" not in name[len(folder) :]:
                stem = name[len(folder) :].partition(".")[0]
                names.append(stem.removesuffix("/__init__").replace("/", "."))
    assert "multicall.cpud" in names
    # Ours first: they prepare what others are imported into.
    names.sort(key=lambda name: (name.split(".")[0] not in image.OWN_PACKAGES, name))
    script = (
        "import importlib, sys\nsys.path.append('/usr/lib/pycpu')\n"
        f"for name in {names!r}:\n"
        "    try: importlib.import_module(name)\n"
        "    except BaseException as error: print(name, getattr(error, 'name', None) or repr(error))\n"
        "print('end')"
    )
    result = run("/usr/bin/python3.11", "-IS", "-c", script)
    *failed, end = result.stdout.splitlines()
    assert end == "end", result.stderr
    assert dict(line.split(" ", 1) for line in failed) == OPTIONAL


@pytest.mark.parametrize("name", [applet.name for applet in applets.TABLE if applet.where != "client"])
def test_every_applet_starts_by_its_link(name: str, run: Callable[..., "subprocess.CompletedProcess[str]"]) -> None:
    result = run(f"/usr/bin/{name}", "--help")
    assert "Traceback" not in result.stderr
    # init is for process 1 only, and says so.
    assert (result.returncode, name in result.stdout + result.stderr) == (255 if name == "init" else 0, True)


def test_the_same_bytes_wherever_and_whoever_builds(made: demo.Made, tmp_path: Path) -> None:
    """Another folder, umask, time zone, locale and hash seed; nothing downloaded again."""
    (tmp_path / made.profile.name).mkdir()
    (tmp_path / made.profile.name / "host_key").write_bytes(made.host_key.read_bytes())
    (tmp_path / "cache").symlink_to(TOP / "build/cache")
    script = (
        "import hashlib, os, sys; from pathlib import Path; from initramfs import demo, image, profile\n"
        "os.umask(0o077); keys = [*demo.user_keys(), Path(sys.argv[2]).read_text().strip()]\n"
        "plan = image.plan(profile.load('qemu-x86_64'), Path(sys.argv[1]), keys)\n"
        "print(hashlib.sha256(image.archive(plan.items)).hexdigest())"
    )
    environment = {**os.environ, "TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONHASHSEED": "7", "PYTHONPATH": str(TOP)}
    result = subprocess.run(
        [sys.executable, "-c", script, tmp_path, f"{made.key}.pub"],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    raw = compress.unpack(image.archive_path(made.profile, TOP / "build").read_bytes())
    assert result.stdout.strip() == hashlib.sha256(raw).hexdigest()


def test_what_is_built_is_not_packed_again(made: demo.Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").symlink_to(TOP / "build/cache")
    board = dataclasses.replace(made.profile, name="few", applets=("poweroff",), modules=("9p",), compressor="gzip")
    said: list[str] = []

    def build(**more: Any) -> report.Report:
        said.clear()
        return image.build(board, tmp_path, progress=said.append, **more)

    first = build()
    assert any(line.startswith("packing") for line in said)
    assert build() == first
    assert said == ["nothing has changed"]
    with monkeypatch.context() as patch:
        patch.setattr(image, "_sources", lambda *_: "another source, the same bytes")
        assert build() == first
        assert said[-1] == "nothing in the image has changed"
    # Without a host key here, cpud makes one; a key is a reason to pack again; so is a file that is not whole.
    out = image.archive_path(board, tmp_path)
    assert made.host_key.read_bytes() not in compress.unpack(out.read_bytes())
    build(authorized_keys=["ssh-ed25519 AAAA me"], extra=[cpio.file(b"etc/motd", b"hello")])
    assert b"ssh-ed25519 AAAA me\n" in compress.unpack(out.read_bytes())
    assert b"hello" in compress.unpack(out.read_bytes())
    out.write_bytes(out.read_bytes()[:-1])
    build(authorized_keys=["ssh-ed25519 AAAA me"], extra=[cpio.file(b"etc/motd", b"hello")])
    assert b"hello" in compress.unpack(out.read_bytes())
    assert first.packed < made.report.packed


def test_the_report_is_of_this_file_and_within_the_budget(made: demo.Made) -> None:
    assert made.report.packed == image.archive_path(made.profile, TOP / "build").stat().st_size
    assert sum(row.packed for row in made.report.rows) == made.report.packed
    assert made.report.budget
    assert made.report.fits(), made.report.text()
