"""Namespace strings as u-root/cpu's users write them, and fstab(5) as util-linux reads it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multicall.lib import mount, namespace
from multicall.lib.namespace import Bind, Mount, NamespaceError


@pytest.mark.parametrize(
    ("text", "binds"),
    [
        (b"", []),
        (b"none", []),
        (b"/lib", [Bind(b"/lib", b"/lib")]),
        (b"/lib=/arm/lib:/bin", [Bind(b"/lib", b"/arm/lib"), Bind(b"/bin", b"/bin")]),
        (b"/a=/b=c", [Bind(b"/a", b"/b=c")]),
        (b"/a/../b//c/", [Bind(b"/b/c", b"/b/c")]),
    ],
)
def test_parse(text: bytes, binds: list[Bind]) -> None:
    assert namespace.parse(text) == binds


def test_plus_adds_to_the_default() -> None:
    default = namespace.parse(namespace.DEFAULT)
    assert [bind.board for bind in default] == [b"/lib", b"/lib64", b"/usr", b"/bin", b"/etc", b"/home"]
    assert namespace.parse(b"+/srv") == [*default, Bind(b"/srv", b"/srv")]
    assert namespace.parse(b"+") == default


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b":", "an element is empty"),
        (b"/lib:", "an element is empty"),
        (b"/lib=", "'/lib=': one side is empty"),
        (b"=/lib", "'=/lib': one side is empty"),
        (b"/usr:lib", "'lib': 'lib' is not absolute"),
        (b"/lib=usr/lib", "'usr/lib' is not absolute"),
    ],
)
def test_errors_name_the_element(text: bytes, words: str) -> None:
    with pytest.raises(NamespaceError, match=words):
        namespace.parse(text)


def test_covers_follows_the_last_bind() -> None:
    binds = [Bind(b"/home", b"/home"), Bind(b"/home/me", b"/other"), Bind(b"/opt", b"/srv")]
    assert namespace.covers(binds, b"/home/you/x")
    assert not namespace.covers(binds, b"/home/me/x")
    assert not namespace.covers(binds, b"/opt/x")
    assert not namespace.covers(binds, b"/homes")


PATHS = st.binary(min_size=1, max_size=30).filter(lambda path: b"\0" not in path).map(lambda path: b"/" + path)


@given(st.lists(st.builds(Bind, PATHS, PATHS), max_size=4))
def test_binds_survive_fstab(binds: list[Bind]) -> None:
    binds = [Bind(namespace.normal(bind.board), namespace.normal(bind.client)) for bind in binds]
    mounts, complaints = namespace.parse_fstab(namespace.fstab(binds))
    assert not complaints
    assert [(row.target, row.source) for row in mounts] == [(bind.board, b"/tmp/cpu" + bind.client) for bind in binds]
    assert all(row.options == [b"defaults", b"bind"] for row in mounts)


@given(st.binary(max_size=200))
def test_any_text_is_rows_and_complaints(text: bytes) -> None:
    mounts, complaints = namespace.parse_fstab(text)
    lines = [line.strip(b" \t\r") for line in text.split(b"\n")]
    assert len(mounts) + len(complaints) == sum(1 for line in lines if line and not line.startswith(b"#"))


def test_fstab_as_util_linux_reads_it() -> None:
    text = b"""
# a comment
   # an indented one
/dev/sda1\t/mnt/a\\040b ext4 ro,noatime,data=ordered 0 2
tmpfs /x tmpfs
short line
tmpfs relative tmpfs defaults
"""
    mounts, complaints = namespace.parse_fstab(text)
    assert mounts == [
        Mount(b"/dev/sda1", b"/mnt/a b", b"ext4", [b"ro", b"noatime", b"data=ordered"], 4),
        Mount(b"tmpfs", b"/x", b"tmpfs", [b"defaults"], 5),
    ]
    assert [complaint.split(":")[0] for complaint in complaints] == ["fstab line 6", "fstab line 7"]


@pytest.mark.parametrize(
    ("options", "flags", "data"),
    [
        ([b"defaults"], 0, b""),
        ([b"ro", b"noatime", b"data=ordered", b"discard"], mount.MS_RDONLY | mount.MS_NOATIME, b"data=ordered,discard"),
        ([b"ro", b"rw"], 0, b""),
        ([b"rbind"], mount.MS_BIND | mount.MS_REC, b""),
        ([b"nofail", b"x-systemd.automount", b"comment=x", b"_netdev"], 0, b""),
        # msync's MS_ASYNC is not mount's: u-root/cpu mounts "async" read-only
        ([b"async"], 0, b""),
        ([b"sync"], mount.MS_SYNCHRONOUS, b""),
    ],
)
def test_options_become_flags_and_data(options: list[bytes], flags: int, data: bytes) -> None:
    assert mount.flags_of(options) == (flags, data)
