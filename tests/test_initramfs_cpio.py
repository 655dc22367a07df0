"""newc: read back by ourselves, by GNU cpio and by bsdcpio; what a kernel would skip is refused."""

import io
import os
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from initramfs import cpio
from initramfs.problem import Problem

NAMES = (
    st.lists(
        st.binary(min_size=1, max_size=12).filter(lambda part: not set(part) & {0, 0x2F} and part not in (b".", b"..")),
        min_size=1,
        max_size=4,
    )
    .map(b"/".join)
    .filter(lambda name: name != cpio.TRAILER)
)
FILES = st.builds(cpio.file, NAMES, st.binary(max_size=300), st.integers(0, 0o7777))
LINKS = st.builds(cpio.symlink, NAMES, st.binary(min_size=1, max_size=50).filter(lambda text: 0 not in text))
NODES = st.builds(cpio.character, NAMES, st.integers(0, 4095), st.integers(0, 0xFFFFF), st.integers(0, 0o777))
FOLDERS = st.builds(cpio.directory, NAMES, st.integers(0, 0o7777))


def packed(entries: list[cpio.Entry], mtime: int = 0) -> bytes:
    out = io.BytesIO()
    assert cpio.write(entries, out, mtime=mtime) == len(out.getvalue())
    return out.getvalue()


def unpacked(archive: bytes) -> list[cpio.Entry]:
    return cpio.complete(cpio.read(io.BytesIO(archive)))


SAMPLE = [
    cpio.directory(b"dev"),
    cpio.character(b"dev/console", 5, 1),
    cpio.directory(b"empty", 0o1777),
    cpio.file(b"hello", b"hello\n", 0o755),
    cpio.file(b"none", b""),
    cpio.symlink(b"link", b"dir/target"),
    cpio.Entry(b"one", stat.S_IFREG | 0o644, b"same", link=1),
    cpio.Entry(b"two", stat.S_IFREG | 0o644, b"same", link=1),
    cpio.file(b"sp ace \xff", b"not text"),
]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(FILES, LINKS, NODES, FOLDERS), max_size=12, unique_by=lambda entry: entry.name))
def test_what_is_written_is_read(entries: list[cpio.Entry]) -> None:
    archive = packed(entries)
    assert len(archive) % 4 == 0
    assert unpacked(archive) == entries
    assert packed(entries) == archive


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 200))
def test_damaged_archives_are_told(noise: bytes, cut: int) -> None:
    for archive in (noise, packed(SAMPLE)[:cut]):
        try:
            unpacked(archive)
        except Problem:
            continue
        raise AssertionError("an archive without an end was read")


def test_hard_links_share_an_inode_and_the_last_has_the_contents() -> None:
    raw = list(cpio.read(io.BytesIO(packed(SAMPLE))))
    by_name = {entry.name: entry for entry in raw}
    assert by_name[b"one"].content == b""
    assert by_name[b"two"].content == b"same"
    assert by_name[b"one"].link == by_name[b"two"].link is not None
    assert [entry.content for entry in cpio.complete(raw) if entry.name in (b"one", b"two")] == [b"same", b"same"]


@pytest.mark.parametrize("reader", [["cpio", "-idm", "--quiet"], ["bsdcpio", "-idm", "--quiet"]], ids=["gnu", "bsd"])
def test_other_readers_agree(reader: list[str], tmp_path: Path) -> None:
    entries = [entry for entry in SAMPLE if not stat.S_ISCHR(entry.mode) or os.geteuid() == 0]
    subprocess.run(reader, cwd=tmp_path, input=packed(entries, 1_000_000_000), check=True)
    for entry in entries:
        path = os.path.join(os.fsencode(tmp_path), entry.name)
        found = os.lstat(path)
        assert stat.S_IFMT(found.st_mode) == stat.S_IFMT(entry.mode)
        if stat.S_ISLNK(entry.mode):
            assert os.readlink(path) == entry.content
        else:
            assert stat.S_IMODE(found.st_mode) == stat.S_IMODE(entry.mode)
        if stat.S_ISREG(entry.mode):
            assert found.st_mtime == 1_000_000_000
            assert Path(os.fsdecode(path)).read_bytes() == entry.content
        if stat.S_ISCHR(entry.mode):
            assert (os.major(found.st_rdev), os.minor(found.st_rdev)) == entry.rdev
    assert (tmp_path / "one").stat().st_ino == (tmp_path / "two").stat().st_ino
    assert (tmp_path / "one").stat().st_nlink == 2


def test_an_archive_of_gnu_cpio_is_read(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_bytes(b"x" * 5)
    os.link(tmp_path / "folder/file", tmp_path / "other")
    os.symlink("folder/file", tmp_path / "link")
    names = b"./folder\n./folder/file\n./other\n./link\n"
    made = subprocess.run(
        ["cpio", "-o", "-H", "newc", "--quiet"], cwd=tmp_path, input=names, capture_output=True, check=True
    )
    found = {entry.name: entry for entry in unpacked(made.stdout)}
    assert found[b"folder/file"].content == found[b"other"].content == b"xxxxx"
    assert found[b"link"].content == b"folder/file"
    assert stat.S_ISDIR(found[b"folder"].mode)


REFUSED = {
    "absolute": [cpio.file(b"/etc/x", b"")],
    "outside": [cpio.file(b"a/../b", b"")],
    "empty part": [cpio.file(b"a//b", b"")],
    "trailer": [cpio.file(b"TRAILER!!!", b"")],
    "NUL": [cpio.file(b"a\0b", b"")],
    "too long": [cpio.file(b"x" * 4096, b"")],
    "twice": [cpio.file(b"a", b""), cpio.directory(b"a")],
    "link to nothing": [cpio.symlink(b"a", b"")],
    "linked directory": [cpio.Entry(b"a", stat.S_IFDIR | 0o755, link=1)],
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_kernel_would_not_take_is_refused(case: str) -> None:
    with pytest.raises(Problem, match="archive"):
        packed(REFUSED[case])


def test_the_longest_name_is_written() -> None:
    name = b"/".join([b"n" * 255] * 16)[:4095]
    assert len(name) == 4095
    assert unpacked(packed([cpio.file(name, b"deep")]))[0].name == name


def test_four_gigabytes_are_refused_and_not_read(tmp_path: Path) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(1 << 32)
    with pytest.raises(Problem, match="4 GiB"):
        packed([cpio.Entry(b"big", stat.S_IFREG | 0o644, source=str(big))])


def test_parents_come_first_and_are_made() -> None:
    entries = cpio.with_parents([cpio.file(b"a/b/c", b""), cpio.file(b"a-b", b""), cpio.directory(b"a", 0o700)])
    assert [entry.name for entry in entries] == [b"a", b"a/b", b"a/b/c", b"a-b"]
    assert stat.S_IMODE(entries[0].mode) == 0o700
